"""Contestants of the points cases: the same places through this package and its peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from satclip_engine import backends
from satclip_engine.backends import cpu
from satclip_engine.bench.cases import GridCase, PointsCase
from satclip_engine.bench.gemm import layer_yardsticks, torch_threads
from satclip_engine.bench.measure import Contestant, Made
from satclip_engine.bench.peers import PEERS, Peer, choose_block
from satclip_engine.bench.workload import Expected, multiply_adds, scattered, siren
from satclip_engine.weights import Layers


def points(case: PointsCase, threads: tuple[int, ...], compare: frozenset[str]) -> list[Contestant]:
    """Ours and what scales with each number of threads, other peers with all."""
    layers, places = siren(case.degrees, case.sizes), scattered(case.places)
    expected = Expected(layers, places)
    entries = []
    for count in sorted(threads, reverse=True):
        every = count == max(threads)
        entries.append(ours(case, layers, places, expected, count, remember=every))
        entries += layer_yardsticks(case.degrees, case.sizes, count)
        entries += [
            rival(peer, case, layers, places, expected, count, remember=every)
            for peer in PEERS
            if peer.key in compare and (every or peer.scaling)
        ]
    return entries


def ours(
    case: PointsCase | GridCase,
    layers: Layers,
    places: np.ndarray,
    expected: Expected,
    threads: int,
    *,
    name: str = "satclip",
    remember: bool = False,
) -> Contestant:
    """The cpu backend's points path."""

    def make(settings: Mapping[str, Any]) -> Made:
        network = backends.resolve("cpu").prepare(layers, threads)
        return Made(lambda: network.encode(places), expected.error, case.tolerance)

    return Contestant(
        name,
        threads,
        float(len(places)),
        make,
        multiply_adds=multiply_adds(case.degrees, case.sizes),
        ours=True,
        remember=remember,
        missing=cpu.Cpu().missing(),
    )


def rival(
    peer: Peer,
    case: PointsCase | GridCase,
    layers: Layers,
    places: np.ndarray,
    expected: Expected,
    threads: int,
    *,
    remember: bool = False,
) -> Contestant:
    """A peer on the same places, in the blocks that suit it best."""

    def make(settings: Mapping[str, Any]) -> Made:
        before: Callable[[], None] = torch_threads(threads)
        before()
        block = choose_block(peer, layers, places, settings)

        def check(answer: np.ndarray) -> float:
            return expected.error(answer, within=peer.within)

        encode = peer.build(layers, block)
        return Made(lambda: encode(places), check, peer.tolerance, before, {"block": block})

    return Contestant(
        peer.name,
        threads,
        float(len(places)),
        make,
        multiply_adds=multiply_adds(case.degrees, case.sizes),
        remember=remember,
        dtype=peer.dtype,
        note=peer.note,
        missing=peer.missing,
    )

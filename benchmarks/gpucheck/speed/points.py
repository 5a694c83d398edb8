"""Embeddings of scattered places that lie on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from gpucheck.parity import VALUES, relative
from gpucheck.speed import plain
from gpucheck.speed.contest import PEER, Case, Contest, Contestant, Place
from satclip_engine import backends, reference
from satclip_engine.bench.workload import multiply_adds, scattered, siren
from satclip_engine.device import CPU
from satclip_engine.kernels.tools.workloads import KernelWorkload
from satclip_engine.weights.layers import Layers

_COMPARED = 256  # places whose embeddings are compared
_MOST = 1 << 18  # places for a CPU at L = 40; it takes seconds for more


def run(contest: Contest) -> None:
    """All sizes; torch.compile on the first, at the end."""
    works = [
        Places(degrees, count, contest.sizes.widths, contest.place) for degrees, count in contest.sizes.points
    ]
    for work in works:
        contest.run(work.case, work.contestants())
    contest.run(
        works[0].case,
        [plain_places("torch.compile", works[0].layers, works[0].there, works[0].error, contest.place)],
    )


@dataclass(frozen=True)
class Places:
    """Some places and a network."""

    degrees: int
    count: int
    widths: tuple[int, ...]
    place: Place

    @cached_property
    def layers(self) -> Layers:
        return siren(self.degrees, self.widths)

    @cached_property
    def lonlat(self) -> np.ndarray:
        return scattered(self.count)

    @cached_property
    def there(self) -> Any:
        return torch.from_numpy(self.lonlat).to(self.place.device)

    @property
    def case(self) -> Case:
        name = f"points L={self.degrees}, N={self.count:,}"
        return Case(name, "points", self.count, multiply_adds(self.degrees, self.widths))

    def contestants(self) -> Iterator[Contestant]:
        for precision in VALUES:
            yield self._triton(precision)
        yield plain_places("PyTorch eager", self.layers, self.there, self.error, self.place)
        if self.degrees < 40 or self.count < _MOST:
            yield host("cpu", self.layers, CPU, "exact", lambda row: row.encode(self.lonlat), self.error)

    def _triton(self, precision: str) -> Contestant:
        def make() -> Callable[[], Any]:
            from satclip_engine.kernels import encode as kernels

            given = plain.tensors(self.layers, self.place.device)
            return lambda: kernels.forward(self.there, *given, precision=precision, keep=False)[0]

        scene = KernelWorkload(
            "embed", self.count, degrees=self.degrees, sizes=self.widths, precision=precision
        )
        return Contestant(f"triton {precision}", make, self.error, VALUES[precision], scenes=(scene,))

    def error(self, out: Any) -> float:
        """Of some embeddings."""
        some = np.unique(np.linspace(0, self.count - 1, _COMPARED).astype(int))
        values = torch.as_tensor(out)
        found = values[torch.from_numpy(some).to(values.device)]
        return relative(found, reference.encode(self.lonlat[some], self.layers))


def plain_places(
    name: str, layers: Layers, there: Any, error: Callable[[Any], float], place: Place
) -> Contestant:
    """Plain PyTorch for places, eager or compiled as the name says."""

    def make() -> Callable[[], Any]:
        encode = plain.encoder(layers.degrees, torch.float32, place.device)
        return plain.in_blocks(place.compile(encode) if "compile" in name else encode, layers, there)

    return Contestant(name, make, error, PEER)


def host(
    backend: str,
    layers: Layers,
    device: Any,
    precision: str,
    run: Callable[[Any], Any],
    error: Callable[[Any], float],
) -> Contestant:
    """A row of backends.TABLE, from arrays of the host to arrays of the host."""

    def make() -> Callable[[], Any]:
        prepared = backends.resolve(backend, device).prepare(layers, device=device, precision=precision)
        return lambda: run(prepared)

    name = f"{backend} {precision}, host to host" if backend != "cpu" else "cpu"
    return Contestant(name, make, error, VALUES[precision], on_gpu=False)

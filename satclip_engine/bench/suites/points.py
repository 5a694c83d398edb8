"""Implementations of the points workloads: the same points through this package and the baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from satclip_engine import backends
from satclip_engine.backends import cpu
from satclip_engine.bench.catalogue import GridWorkload, PointsWorkload
from satclip_engine.bench.inputs import Expected, multiply_adds, scattered, siren
from satclip_engine.bench.measure import Implementation, PreparedRun
from satclip_engine.bench.suites.gemm import layer_rooflines, torch_threads
from satclip_engine.bench.suites.torch_baselines import BASELINES, Baseline, choose_block


def points(
    workload: PointsWorkload, threads: tuple[int, ...], compare: frozenset[str]
) -> list[Implementation]:
    """This package and the baselines that scale with each number of threads, other baselines with all."""
    lonlat = scattered(workload.points)
    expected = Expected(siren(workload.degrees, workload.sizes), lonlat)
    entries = []
    for count in sorted(threads, reverse=True):
        all_threads = count == max(threads)
        entries.append(points_path(workload, expected, count, measure_memory=all_threads))
        entries += layer_rooflines(workload.degrees, workload.sizes, count)
        entries += [
            baseline_points(baseline, workload, expected, count, measure_memory=all_threads)
            for baseline in BASELINES
            if baseline.key in compare and (all_threads or baseline.scaling)
        ]
    return entries


def points_path(
    workload: PointsWorkload | GridWorkload,
    expected: Expected,
    threads: int,
    *,
    name: str = "satclip",
    measure_memory: bool = False,
) -> Implementation:
    """The cpu backend's points path on the points of `expected`."""

    def prepare(settings: Mapping[str, Any]) -> PreparedRun:
        network = backends.resolve("cpu").prepare(expected.layers, threads)
        return PreparedRun(lambda: network.encode(expected.lonlat), expected.error, workload.tolerance)

    return Implementation(
        name,
        threads,
        float(len(expected.lonlat)),
        prepare,
        multiply_adds=multiply_adds(workload.degrees, workload.sizes),
        ours=True,
        measure_memory=measure_memory,
        missing=cpu.Cpu().missing(),
    )


def baseline_points(
    baseline: Baseline,
    workload: PointsWorkload | GridWorkload,
    expected: Expected,
    threads: int,
    *,
    measure_memory: bool = False,
) -> Implementation:
    """A baseline on the points of `expected`, in the blocks that suit it best."""

    def prepare(settings: Mapping[str, Any]) -> PreparedRun:
        before: Callable[[], None] = torch_threads(threads)
        before()
        block = choose_block(baseline, expected.layers, expected.lonlat, settings)

        def check(answer: np.ndarray) -> float:
            return expected.error(answer, within=baseline.within)

        encode = baseline.build(expected.layers, block)
        return PreparedRun(
            lambda: encode(expected.lonlat), check, baseline.tolerance, before, {"block": block}
        )

    return Implementation(
        baseline.name,
        threads,
        float(len(expected.lonlat)),
        prepare,
        multiply_adds=multiply_adds(workload.degrees, workload.sizes),
        measure_memory=measure_memory,
        dtype=baseline.dtype,
        note=baseline.note,
        missing=baseline.missing,
    )

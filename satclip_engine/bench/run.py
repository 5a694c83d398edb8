"""Runs a group of workloads: implementations of each, timed and measured, as records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from satclip_engine._optional import need
from satclip_engine.bench.catalogue import (
    COMPARED,
    BenchmarkWorkload,
    GemmWorkload,
    GridKernelWorkload,
    GridWorkload,
    HarmonicsWorkload,
    LatticeWorkload,
    LossWorkload,
    PointsKernelWorkload,
    PointsWorkload,
    RasterKernelWorkload,
    TrainWorkload,
    WriteWorkload,
    workloads,
)
from satclip_engine.bench.measure import Implementation, Rounds, Timing, time_all
from satclip_engine.bench.peak_memory import measure_memory
from satclip_engine.bench.results import BenchmarkRecord, records
from satclip_engine.bench.suites import grid, kernels, lattice, loss, points, train, write

# From a workload, numbers of threads and keys of baselines.
Suite = Callable[[Any, tuple[int, ...], frozenset[str]], list[Implementation]]

SUITES: dict[type, Suite] = {
    GemmWorkload: kernels.gemm,
    HarmonicsWorkload: kernels.harmonics,
    PointsKernelWorkload: kernels.points,
    GridKernelWorkload: kernels.grid,
    RasterKernelWorkload: kernels.raster,
    PointsWorkload: points.points,
    GridWorkload: grid.grid,
    LatticeWorkload: lattice.lattice,
    LossWorkload: loss.loss,
    TrainWorkload: train.train,
    WriteWorkload: write.write,
}

ROUNDS = {
    "kernels": Rounds(15, 1.0),
    "points": Rounds(7, 6.0),
    "grid": Rounds(7, 2.5),
    "lattice": Rounds(7, 12.0),
    "loss": Rounds(7, 10.0),
    "train": Rounds(7, 8.0),
    "write": Rounds(3, 20.0, warm_up=0),
}
_QUICK_SHARE = 1 / 4  # of the budget


def run(
    group: str,
    *,
    threads: int,
    quick: bool = False,
    repeat: int | None = None,
    compare: frozenset[str] = frozenset(COMPARED),
    memory: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[BenchmarkWorkload, list[BenchmarkRecord]]]:
    """Yield each workload of a group with the records of its implementations, as they are measured.

    threads: cores to use, beside one; repeat: rounds at most; compare: keys of baselines. Raises MissingExtra
    without torch, which the answers are checked with.
    """
    need(
        "torch", extra="torch", why="satclip-bench, which checks every answer against the float64 reference,"
    )
    usual, share = ROUNDS[group], _QUICK_SHARE if quick else 1
    rounds = replace(usual, most=repeat or usual.most, budget=usual.budget * share)
    for workload in workloads(group, quick=quick):
        implementations = SUITES[type(workload)](workload, thread_counts(threads), compare)
        timings = time_all(implementations, rounds, progress=_prefixed(progress, workload.name))
        used = [_memory(group, workload, timing, quick, progress) if memory else None for timing in timings]
        yield workload, records(workload, timings, used)


def _prefixed(progress: Callable[[str], None], name: str) -> Callable[[str], None]:
    return lambda text: progress(f"{name}: {text}")


def thread_counts(threads: int) -> tuple[int, ...]:
    """Numbers of threads that are compared."""
    return (1,) if threads == 1 else (1, threads)


def find_implementation(
    group: str, workload: str, implementation: str, threads: int, *, quick: bool
) -> Implementation:
    """Return the implementation of those names. Raises LookupError."""
    for candidate in workloads(group, quick=quick):
        if candidate.name == workload:
            for entry in SUITES[type(candidate)](candidate, thread_counts(threads), frozenset(COMPARED)):
                if (entry.name, entry.threads) == (implementation, threads):
                    return entry
    raise LookupError(f"no implementation {implementation!r} of {workload!r}")


def _memory(
    group: str, workload: BenchmarkWorkload, timing: Timing, quick: bool, progress: Callable[[str], None]
) -> dict[str, int] | None:
    implementation = timing.implementation
    if not (implementation.measure_memory and timing.seconds):
        return None
    progress(f"{workload.name}: {implementation.name}: memory")
    return measure_memory(
        group, workload.name, implementation.name, implementation.threads, timing.settings, quick=quick
    )

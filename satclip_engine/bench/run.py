"""From cases to records: who competes in which case, and a group's run from start to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from satclip_engine._optional import need
from satclip_engine.bench import grid, kernels, lattice, loss, points, train, write
from satclip_engine.bench.cases import (
    COMPARED,
    Case,
    GemmCase,
    GridCase,
    GridKernelCase,
    HarmonicsCase,
    LatticeCase,
    LossCase,
    PointsCase,
    PointsKernelCase,
    RasterKernelCase,
    TrainCase,
    WriteCase,
    cases,
)
from satclip_engine.bench.measure import Contestant, Timing, compete
from satclip_engine.bench.memory import measured
from satclip_engine.bench.results import Record, records

Contestants = Callable[[Any, tuple[int, ...], frozenset[str]], list[Contestant]]

CONTESTANTS: dict[type, Contestants] = {
    GemmCase: kernels.gemm,
    HarmonicsCase: kernels.harmonics,
    PointsKernelCase: kernels.points,
    GridKernelCase: kernels.grid,
    RasterKernelCase: kernels.raster,
    PointsCase: points.points,
    GridCase: grid.grid,
    LatticeCase: lattice.lattice,
    LossCase: loss.loss,
    TrainCase: train.train,
    WriteCase: write.write,
}

# Seconds that a contestant gets for its rounds, and how many there are at most.
BUDGETS = {
    "kernels": 1.0,
    "points": 6.0,
    "grid": 2.5,
    "lattice": 12.0,
    "loss": 10.0,
    "train": 8.0,
    "write": 20.0,
}
ROUNDS = {"kernels": 15, "points": 7, "grid": 7, "lattice": 7, "loss": 7, "train": 7, "write": 3}


def run(
    group: str,
    *,
    threads: int,
    quick: bool = False,
    repeat: int | None = None,
    compare: frozenset[str] = frozenset(COMPARED),
    memory: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Case, list[Record]]]:
    """Each case of a group with the records of its contestants, as they are done.

    threads: cores to use, beside one; repeat: rounds at most; compare: peers' keys. Raises MissingExtra
    without torch, which the answers are checked with.
    """
    need(
        "torch", extra="torch", why="satclip-bench, which checks every answer against the float64 reference,"
    )
    for case in cases(group, quick=quick):
        contestants = CONTESTANTS[type(case)](case, counts(threads), compare)
        timings = compete(
            contestants,
            repeat=repeat or ROUNDS[group],
            budget=BUDGETS[group] / (4 if quick else 1),
            warm_up=group != "write",
            progress=_prefixed(progress, case.name),
        )
        used = [_memory(group, case, timing, quick, progress) if memory else None for timing in timings]
        yield case, records(case, timings, used)


def _prefixed(progress: Callable[[str], None], name: str) -> Callable[[str], None]:
    return lambda text: progress(f"{name}: {text}")


def counts(threads: int) -> tuple[int, ...]:
    """Numbers of threads that are compared."""
    return (1,) if threads == 1 else (1, threads)


def find(group: str, case: str, contestant: str, threads: int, *, quick: bool) -> Contestant:
    """The contestant of those names. Raises LookupError."""
    for one in cases(group, quick=quick):
        if one.name == case:
            for entry in CONTESTANTS[type(one)](one, counts(threads), frozenset(COMPARED)):
                if (entry.name, entry.threads) == (contestant, threads):
                    return entry
    raise LookupError(f"no contestant {contestant!r} in {case!r}")


def _memory(
    group: str, case: Case, timing: Timing, quick: bool, progress: Callable[[str], None]
) -> dict[str, int] | None:
    one = timing.contestant
    if not (one.remember and timing.seconds):
        return None
    progress(f"{case.name}: {one.name}: memory")
    return measured(group, case.name, one.name, one.threads, timing.settings, quick=quick)

"""Contestants of a case compute the same on the same numbers: each is checked, then timed.

Rooflines are those of satclip_engine.kernels.tools.report, for the launches of our kernels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from gpucheck.clock import measure
from gpucheck.rows import Check, Rows, Time
from satclip_engine.bench.cases import SIREN
from satclip_engine.kernels.tools.gpus import GPUS
from satclip_engine.kernels.tools.roofline import roofline
from satclip_engine.kernels.tools.workloads import KernelWorkload, record_launches

PEER = 1e-2  # accepted from peers: float32 recurrences, TF32 products


@dataclass(frozen=True)
class Sizes:
    """(L, places), (L, rows, columns), (L, batch) and pairs; budget: seconds of a contestant."""

    points: tuple[tuple[int, int], ...]
    grids: tuple[tuple[int, int, int], ...]
    batches: tuple[tuple[int, int], ...]
    pairs: tuple[int, ...]
    widths: tuple[int, ...] = SIREN
    budget: float = 0.3


FULL = Sizes(
    points=((40, 1 << 17), (40, 1 << 20), (10, 1 << 20)),
    grids=((40, 256, 3600), (40, 64, 3600), (10, 256, 3600), (100, 256, 3600)),
    batches=((40, 8192), (10, 8192), (40, 32_768)),
    pairs=(8192, 32_768),
)
DRY = Sizes(
    points=((4, 37),), grids=((4, 3, 11),), batches=((4, 33),), pairs=(33,), widths=(20, 16, 9), budget=0.0
)


@dataclass(frozen=True)
class Case:
    """work: units in one call. multiply_adds: of a unit."""

    name: str
    unit: str
    work: float
    multiply_adds: float


@dataclass(frozen=True)
class Contestant:
    """make: what is timed, ready to run. check: the error of what it returned. scenes: what it starts."""

    name: str
    make: Callable[[], Callable[[], Any]]
    check: Callable[[Any], float]
    tolerance: float
    on_gpu: bool = True
    scenes: tuple[KernelWorkload, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Place:
    """Where GPU contestants compute; in a dry run the CPU, and torch.compile without its compiler."""

    device: torch.device
    capability: str = "sm_90"
    compiler: dict[str, Any] = field(default_factory=dict)

    @property
    def dry(self) -> bool:
        return self.device.type == "cpu"

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """torch.compile for one shape."""
        return torch.compile(function, dynamic=False, **self.compiler)


def here(dry: bool) -> Place:
    """Where contestants compute on this machine."""
    if dry:
        return Place(torch.device("cpu"), compiler={"backend": "eager"})
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    major, minor = torch.cuda.get_device_capability()
    return Place(torch.device("cuda", 0), f"sm_{major}{minor}")


@dataclass(frozen=True)
class Contest:
    """Where rows go, where and at which sizes contestants compute."""

    rows: Rows
    place: Place
    sizes: Sizes

    def run(self, case: Case, contestants: Iterable[Contestant]) -> None:
        """Each in turn; one that fails is a row, too."""
        for each in contestants:
            self.rows.attempt(f"{case.name}: {each.name}", self._one, case, each)
            if not self.place.dry:
                torch.cuda.empty_cache()

    def _one(self, case: Case, who: Contestant) -> None:
        run = who.make()
        error = who.check(run())
        if not error <= who.tolerance:
            self.rows.add(Check(f"{case.name}: {who.name}", error, who.tolerance, "wrong, so not timed"))
            return
        found = measure(run, on_gpu=who.on_gpu and not self.place.dry, budget=self.sizes.budget)
        self.rows.add(
            Time(
                case=case.name,
                contestant=who.name,
                unit=case.unit,
                work=case.work,
                seconds=found.seconds,
                q1=found.q1,
                q3=found.q3,
                rounds=found.rounds,
                peak_bytes=found.peak_bytes,
                floor=floor(who.scenes, self.place.capability),
                multiply_adds=case.work * case.multiply_adds,
                error=error,
                note=who.note,
            )
        )


def floor(chosen: tuple[KernelWorkload, ...], capability: str) -> float | None:
    """Seconds of the launches at the GPU's peaks, where those are known."""
    if not chosen or capability not in GPUS:
        return None
    gpu = GPUS[capability]
    launches = [each for scene in chosen for each in record_launches(scene, capability).launches]
    return sum(roofline(each.work, gpu).bound for each in launches)

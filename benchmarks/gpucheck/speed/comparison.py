"""Comparison of implementations that compute the same on the same numbers: each is checked, then timed.

Rooflines are those of satclip_engine.kernels.tools.report, for the launches of our kernels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from gpucheck.rows import Check, Rows, Time
from satclip_engine.backends import available_cores
from satclip_engine.bench.catalogue import LAYER_WIDTHS
from satclip_engine.bench.clock import CudaClock, WallClock
from satclip_engine.bench.measure import FAILED, Implementation, PreparedRun, Rounds, quartiles, time_all
from satclip_engine.kernels.tools.gpus import GPUS
from satclip_engine.kernels.tools.roofline import roofline
from satclip_engine.kernels.tools.workloads import KernelWorkload, record_launches

BASELINE_TOLERANCE = 1e-2  # accepted from baselines: float32 recurrences, TF32 products


@dataclass(frozen=True)
class Sizes:
    """(L, points), (L, rows, columns), (L, batch) and pairs; rounds: of an implementation."""

    points: tuple[tuple[int, int], ...]
    grids: tuple[tuple[int, int, int], ...]
    batches: tuple[tuple[int, int], ...]
    pairs: tuple[int, ...]
    rounds: Rounds
    widths: tuple[int, ...] = LAYER_WIDTHS


FULL = Sizes(
    points=((40, 1 << 17), (40, 1 << 20), (10, 1 << 20)),
    grids=((40, 256, 3600), (40, 64, 3600), (10, 256, 3600), (100, 256, 3600)),
    batches=((40, 8192), (10, 8192), (40, 32_768)),
    pairs=(8192, 32_768),
    # The first call compiles; two more warm up, and the fourth tells how many rounds fit.
    rounds=Rounds(most=100, budget=0.3, fewest=5, warm_up=4),
)
DRY = Sizes(
    points=((4, 37),),
    grids=((4, 3, 11),),
    batches=((4, 33),),
    pairs=(33,),
    widths=(20, 16, 9),
    rounds=Rounds(most=1, budget=0.0),
)


@dataclass(frozen=True, eq=False)
class GpuImplementation(Implementation):
    """An implementation on the GPU, or on the host for the host; launches: kernels that it starts."""

    on_gpu: bool = True
    launches: tuple[KernelWorkload, ...] = ()


@dataclass(frozen=True)
class SpeedWorkload:
    """Something to compute. work: units in one call. multiply_adds: of a unit."""

    name: str
    unit: str
    work: float
    multiply_adds: float

    def implementation(
        self,
        name: str,
        prepare: Callable[[], Callable[[], Any]],
        check: Callable[[Any], float],
        tolerance: float,
        **options: Any,
    ) -> GpuImplementation:
        """One way to compute it. prepare: returns the call that is timed. check: the error of its answer."""

        def ready(settings: Mapping[str, Any]) -> PreparedRun:
            return PreparedRun(prepare(), check, tolerance)

        return GpuImplementation(
            name, available_cores(), self.work, ready, multiply_adds=self.multiply_adds, **options
        )


@dataclass(frozen=True)
class Accelerator:
    """Device of GPU implementations; in a dry run the CPU, and torch.compile without its compiler."""

    device: torch.device
    capability: str = "sm_90"
    compiler: dict[str, Any] = field(default_factory=dict)

    @property
    def dry(self) -> bool:
        return self.device.type == "cpu"

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """torch.compile for one shape."""
        return torch.compile(function, dynamic=False, **self.compiler)


def accelerator(dry: bool) -> Accelerator:
    """The first GPU of this machine, or its stand-in."""
    if dry:
        return Accelerator(torch.device("cpu"), compiler={"backend": "eager"})
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    major, minor = torch.cuda.get_device_capability()
    return Accelerator(torch.device("cuda", 0), f"sm_{major}{minor}")


@dataclass(frozen=True)
class Comparison:
    """Destination of rows, device and sizes of implementations."""

    rows: Rows
    accelerator: Accelerator
    sizes: Sizes

    def run(self, workload: SpeedWorkload, implementations: Iterable[GpuImplementation]) -> None:
        """Measure one after the other; one that fails is a row, too."""
        for implementation in implementations:
            label = f"{workload.name}: {implementation.name}"
            self.rows.attempt(label, self._measure, label, workload, implementation)
            if not self.accelerator.dry:
                torch.cuda.empty_cache()

    def _measure(self, label: str, workload: SpeedWorkload, implementation: GpuImplementation) -> None:
        on_gpu = implementation.on_gpu and not self.accelerator.dry
        clock = CudaClock() if on_gpu else WallClock()
        (timing,) = time_all([implementation], self.sizes.rounds, clock=clock)
        if timing.status == FAILED and math.isnan(timing.error):
            self.rows.fail(label, timing.note)
            return
        if timing.status == FAILED:
            self.rows.add(Check(label, timing.error, timing.tolerance, "wrong, so not timed"))
            return
        seconds = quartiles(np.asarray(timing.seconds))
        self.rows.add(
            Time(
                case=workload.name,
                contestant=implementation.name,
                unit=workload.unit,
                work=workload.work,
                seconds=seconds["median"],
                q1=seconds["q1"],
                q3=seconds["q3"],
                rounds=len(timing.seconds),
                peak_bytes=clock.peak_bytes,
                floor=floor(implementation.launches, self.accelerator.capability),
                multiply_adds=workload.work * workload.multiply_adds,
                error=timing.error,
                note=implementation.note,
            )
        )


def floor(workloads: tuple[KernelWorkload, ...], capability: str) -> float | None:
    """Seconds of the launches at the GPU's peaks, where those are known."""
    if not workloads or capability not in GPUS:
        return None
    gpu = GPUS[capability]
    launches = [launch for workload in workloads for launch in record_launches(workload, capability).launches]
    return sum(roofline(launch.work, gpu).bound for launch in launches)

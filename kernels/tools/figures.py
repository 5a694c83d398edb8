"""Figures of a kernel report, as data: compiled kernels and their times in workloads."""

from __future__ import annotations

from dataclasses import dataclass, field

from satclip_engine.kernels.tools.gpus import GPUS
from satclip_engine.kernels.tools.workloads import KernelWorkload


@dataclass
class CompiledKernel:
    """A kernel with constants and configuration, compiled for one capability."""

    capability: str
    name: str
    constants: str
    config: str
    warps: int
    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0
    at_once: int = 64  # programs on a multiprocessor
    variants: int = 0  # of types and alignment
    instructions: int = 0
    loop: dict[str, int] = field(default_factory=dict)  # the main loop's instructions by class
    tensor_share: float = 0.0  # of peak, that the main loop allows
    error: str = ""

    @property
    def occupancy(self) -> float:
        return self.at_once * self.warps / GPUS[self.capability].warps


@dataclass
class KernelTimes:
    """All launches of one kernel in a workload, with their times at the GPU's peaks."""

    capability: str
    workload: str
    kernel: str
    launches: int = 0
    programs: int = 0
    waves: float = 0.0  # of the launch with the most
    multiply_adds: float = 0.0
    bytes: float = 0.0
    bound: float = 0.0  # seconds
    estimate: float = 0.0  # seconds, see roofline.py
    limits: dict[str, float] = field(default_factory=dict)  # pipe → seconds

    @property
    def limit(self) -> str:
        return max(self.limits, key=self.limits.__getitem__)


@dataclass(frozen=True)
class KernelReport:
    """Rows of all tables, and the versions that made them."""

    kernels: list[CompiledKernel]
    times: list[KernelTimes]
    rows: dict[str, list[str]]  # capability → rows of tuning.json that were used
    versions: dict[str, str]

    def seconds(self, capability: str, *workloads: KernelWorkload) -> float:
        """Estimate the seconds of some workloads one after the other."""
        names = {workload.name for workload in workloads}
        return sum(
            times.estimate
            for times in self.times
            if times.capability == capability and times.workload in names
        )

    @property
    def failures(self) -> list[str]:
        """Kernels that must not be shipped, with the reason."""
        return [
            f"{kernel.name} ({kernel.constants}; {kernel.config}) for {kernel.capability}: "
            + (kernel.error or f"{kernel.spills} spills, {kernel.stack} bytes of stack")
            for kernel in self.kernels
            if kernel.error or kernel.spills or kernel.stack or not kernel.at_once
        ]

"""Rooflines and occupancy: the least time of a launch, and how its code uses a GPU.

Roofline: each pipe needs its multiply-adds (or bytes) divided by its peak; the pipes work at the same time,
so the slowest is the bound. TF32 and 16-bit products share the tensor cores. Assumed: boost clock, everything
read and written once, caches as large as needed for that.

Main loop: cycles that its instructions keep each pipe of a quarter of a multiprocessor busy, when enough
warps take turns that only throughput counts. The tensor share is what tensor cores could reach of their peak.

Balance: programs are dealt out whole, so the multiprocessor that has most of them sets the time. No kernel
takes less than MIN_SECONDS.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from satclip_engine.kernels.launch import Work
from satclip_engine.kernels.tools.compiler import Binary
from satclip_engine.kernels.tools.gpus import Gpu
from satclip_engine.kernels.tools.sass import Instruction, Program

MIN_SECONDS = 2e-6  # of a kernel that follows another and does nothing

_WARP_REGISTERS = 256  # a warp's registers are given out in such pieces
_RESERVED_SHARED = 1024  # bytes that CUDA itself takes for each program
_SPECIAL_LANES = 4  # of a quarter: sines, reciprocals, conversions
_SHARED_BYTES = 128 / 4  # of a cycle, a quarter's share
_GLOBAL_BYTES = 64 / 4  # of a cycle from the first-level cache, a quarter's share


@dataclass(frozen=True)
class Roofline:
    """Seconds that each pipe needs, and which of them needs most."""

    seconds: dict[str, float]

    @property
    def limit(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def bound(self) -> float:
        return self.seconds[self.limit]


def roofline(work: Work, gpu: Gpu) -> Roofline:
    """Compute the seconds that this much work takes at the GPU's peaks."""
    return Roofline(
        {
            "tensor": work.tf32 / gpu.tf32 + work.half / gpu.half,
            "fp32": work.fp32 / gpu.fp32,
            "fp64": work.fp64 / gpu.fp64,
            "memory": work.bytes / gpu.bandwidth,
        }
    )


def programs_at_once(binary: Binary, warps: int, gpu: Gpu) -> int:
    """Count the programs of a kernel that a multiprocessor holds; 0 when not even one fits."""
    if binary.shared > gpu.shared_program:
        return 0
    registers = math.ceil(max(binary.registers, 1) * 32 / _WARP_REGISTERS) * _WARP_REGISTERS * warps
    return min(
        gpu.programs,
        gpu.warps // warps,
        gpu.registers // registers,
        gpu.shared // (binary.shared + _RESERVED_SHARED),
    )


def waves(programs: int, at_once: int, gpu: Gpu) -> float:
    """Rounds of programs; below 1 when not all that fit are there."""
    return programs / (at_once * gpu.multiprocessors) if at_once else math.inf


def imbalance(programs: int, gpu: Gpu) -> float:
    """Programs of the multiprocessor that has most of them, divided by their mean number."""
    mean = programs / gpu.multiprocessors
    return math.ceil(mean) / mean if programs else 1.0


def estimate(ideal: Roofline, share: float, programs: int, gpu: Gpu) -> float:
    """Seconds, with programs as they are dealt out and the tensor cores as the main loop allows."""
    tensor = ideal.seconds["tensor"] / (share or 1.0)
    return max(MIN_SECONDS, max(ideal.bound, tensor) * imbalance(programs, gpu))


def pipes(loop: Program, gpu: Gpu) -> dict[str, float]:
    """Cycles of a quarter that one pass of a warp through the loop needs, pipe by pipe."""
    cycles = dict.fromkeys(("issue", "tensor", "fp32", "fp64", "integer", "special", "shared", "global"), 0.0)
    for instruction in loop.instructions:
        cycles["issue"] += 1
        if instruction.group in cycles:
            cycles[instruction.group] += _cycles(instruction, gpu)
        if instruction.base == "HGMMA":
            cycles["shared"] += _operand_bytes(instruction) / _SHARED_BYTES / 4  # one read for all quarters
    return cycles


def tensor_share(loop: Program, gpu: Gpu) -> float:
    """Share of the tensor cores' peak that the main loop's instructions allow."""
    cycles = pipes(loop, gpu)
    return cycles["tensor"] / max(cycles.values())


def _cycles(instruction: Instruction, gpu: Gpu) -> float:
    match instruction.group:
        case "tensor":
            return _tensor_cycles(instruction.name, gpu)
        case "fp32":
            return 32 / gpu.lanes_fp32
        case "fp64":
            return 32 / gpu.lanes_fp64
        case "special":
            return 32 / _SPECIAL_LANES
        case "shared":
            return 32 * _width(instruction.name) / _SHARED_BYTES
        case "global":
            return (
                0.0 if instruction.base.startswith("UTMA") else 32 * _width(instruction.name) / _GLOBAL_BYTES
            )
        case _:
            return 32 / gpu.lanes_int


def _tensor_cycles(name: str, gpu: Gpu) -> float:
    """Cycles of HMMA.1688, 16 × 8 × 8 of one quarter, or of HGMMA.64x128x16, of all four quarters."""
    if group := re.search(r"\.(\d+)x(\d+)x(\d+)", name):
        products = math.prod(map(int, group.groups())) / 4
    elif tile := re.search(r"\.16(\d)(\d+)", name):
        products = 16.0 * int(tile[1]) * int(tile[2])
    else:
        raise ValueError(f"unknown tensor-core instruction {name}")
    return products / (gpu.half_cycle / 2 if "TF32" in name else gpu.half_cycle)


def _operand_bytes(instruction: Instruction) -> int:
    """Bytes that HGMMA reads from shared memory: its right operand, and the left one unless in registers."""
    group = re.search(r"\.(\d+)x(\d+)x(\d+)", instruction.name)
    assert group is not None
    rows, columns, depth = map(int, group.groups())
    left = 0 if re.match(r"R\w+, R\w+, gdesc", instruction.operands) else rows
    return (left + columns) * depth * (4 if "TF32" in instruction.name else 2)


def _width(name: str) -> int:
    """Bytes of a lane."""
    if name.startswith(("LDSM", "STSM")):
        return 4 * int(name.rpartition(".")[2]) if name[-1].isdigit() else 4
    width = re.search(r"\.(64|128)\b", name)
    return int(width[1]) // 8 if width else 4

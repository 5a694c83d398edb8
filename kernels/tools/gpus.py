"""Limits and peak rates of the GPUs that kernels are compiled for, as NVIDIA states them.

Peaks: "NVIDIA A100 Tensor Core GPU" datasheet (80 GB SXM) and "NVIDIA H100 Tensor Core GPU" datasheet (SXM5,
dense rates: half of those with sparsity). Units and limits: the two architectures' white papers, and table
"Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide.
"""

from __future__ import annotations

from dataclasses import dataclass

_TERA = 1e12


@dataclass(frozen=True)
class Gpu:
    """Limits and rates of a GPU. Rates are multiply-adds a second (half of the datasheet's operations)."""

    name: str
    capability: str
    multiprocessors: int
    tf32: float  # tensor cores, float32 accumulation
    half: float  # tensor cores, fp16 or bf16 operands
    fp32: float
    fp64: float  # ordinary units: fp64 tensor cores are not used
    bandwidth: float  # bytes a second
    shared: int  # bytes of a multiprocessor that programs can have
    shared_program: int  # bytes that one program can have
    # Lanes of a quarter of a multiprocessor, which issues one instruction of 32 lanes a cycle.
    lanes_fp32: int
    lanes_fp64: int
    lanes_int: int
    half_cycle: int  # 16-bit multiply-adds of a quarter's tensor core in a cycle; TF32 has half of it
    registers: int = 65_536
    warps: int = 64
    programs: int = 32

    def rate(self, pipe: str) -> float:
        """Multiply-adds a second of "tf32", "half", "fp32", "fp64"; bytes a second of "bytes"."""
        return float(self.bandwidth if pipe == "bytes" else getattr(self, pipe))


A100 = Gpu(
    name="A100 SXM 80 GB",
    capability="sm_80",
    multiprocessors=108,
    tf32=156 * _TERA / 2,
    half=312 * _TERA / 2,
    fp32=19.5 * _TERA / 2,
    fp64=9.7 * _TERA / 2,
    bandwidth=2039e9,
    shared=164 << 10,
    shared_program=163 << 10,
    lanes_fp32=16,
    lanes_fp64=8,
    lanes_int=16,
    half_cycle=256,
)

H100 = Gpu(
    name="H100 SXM",
    capability="sm_90",
    multiprocessors=132,
    tf32=494.7 * _TERA / 2,
    half=989.4 * _TERA / 2,
    fp32=66.9 * _TERA / 2,
    fp64=33.5 * _TERA / 2,
    bandwidth=3350e9,
    shared=228 << 10,
    shared_program=227 << 10,
    lanes_fp32=32,
    lanes_fp64=16,
    lanes_int=16,
    half_cycle=512,
)

GPUS = {gpu.capability: gpu for gpu in (A100, H100)}

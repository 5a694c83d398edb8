"""Occupancy, rooflines and estimates follow from a GPU's limits and rates."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from factories.kernels import LISTING

from satclip_engine.kernels.launch import Work
from satclip_engine.kernels.tools import roofline, sass
from satclip_engine.kernels.tools.compiler import Binary
from satclip_engine.kernels.tools.gpus import A100, H100

pytestmark = pytest.mark.gpu_tools


def binary(registers: int = 32, shared: int = 0) -> Binary:
    return Binary(registers, 0, 0, shared, sass.parse(LISTING))


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "gpu", "expected"),
    [
        (32, 0, 4, H100, 16),  # 64 warps
        (255, 0, 8, H100, 1),  # 256 · 32 registers a warp
        (128, 0, 4, A100, 4),
        (129, 0, 4, A100, 3),  # given out by 256 a warp, 8 a thread
        (32, 0, 1, A100, 32),  # programs
        (32, 100 << 10, 4, H100, 2),
        (32, 100 << 10, 4, A100, 1),
        (32, 113 << 10, 4, H100, 2),  # 1 KiB each is CUDA's
        (32, 114 << 10, 4, H100, 1),
        (32, 227 << 10, 4, H100, 1),
        (32, (227 << 10) + 1, 4, H100, 0),
    ],
)
def test_programs_share_registers_memory_and_warps(
    registers: int, shared: int, warps: int, gpu: Any, expected: int
) -> None:
    assert roofline.programs_at_once(binary(registers, shared), warps, gpu) == expected


def test_the_slowest_pipe_is_the_bound_and_both_precisions_share_the_tensor_cores() -> None:
    ideal = roofline.roofline(Work(tf32=H100.tf32, half=H100.half, fp32=H100.fp32, bytes=1), H100)
    assert ideal.limit == "tensor"
    assert ideal.bound == pytest.approx(2)
    assert roofline.roofline(Work(bytes=3 * A100.bandwidth, fp64=A100.fp64), A100).limit == "memory"


def test_the_multiprocessor_with_most_programs_sets_the_time() -> None:
    assert roofline.imbalance(108, A100) == 1
    assert roofline.imbalance(109, A100) == pytest.approx(2 * 108 / 109)
    assert roofline.imbalance(1, A100) == 108
    ideal = roofline.roofline(Work(half=A100.half, bytes=A100.bandwidth / 2), A100)
    assert roofline.estimate(ideal, 0.25, 216, A100) == pytest.approx(4)
    assert roofline.estimate(ideal, 0.0, 216, A100) == pytest.approx(1)


def test_rates_of_the_datasheets_are_those_of_the_instructions() -> None:
    # At the boost clock that the datasheets assume: 1410 and 1830 MHz.
    for gpu, clock in ((A100, 1.410e9), (H100, 1.830e9)):
        quarters = 4 * gpu.multiprocessors * clock
        assert gpu.half == pytest.approx(quarters * gpu.half_cycle, rel=0.01)
        assert gpu.tf32 == pytest.approx(quarters * gpu.half_cycle / 2, rel=0.01)
        assert gpu.fp32 == pytest.approx(quarters * gpu.lanes_fp32, rel=0.09)  # H100: stated at 1980 MHz
        assert gpu.fp64 == pytest.approx(quarters * gpu.lanes_fp64, rel=0.09)


@pytest.mark.parametrize(
    ("name", "gpu", "cycles"),
    [
        ("HMMA.1688.F32.TF32", A100, 8),
        ("HMMA.16816.F32", A100, 8),
        ("HMMA.16816.F32.BF16", H100, 4),
        ("HGMMA.64x128x16.F32", H100, 64),
        ("HGMMA.64x64x8.F32.TF32", H100, 32),
    ],
)
def test_a_tensor_instruction_takes_its_products_divided_by_the_rate(
    name: str, gpu: Any, cycles: int
) -> None:
    assert roofline.pipes(sass.Program((sass.Instruction(0, name),)), gpu)["tensor"] == cycles


@pytest.mark.parametrize(
    ("name", "operands", "cycles"),
    [
        ("HGMMA.64x32x16.F32", "R24, gdesc[UR8], R24", 24),  # (64 + 32) · 16 of 2 bytes, 128 a cycle
        ("HGMMA.64x128x16.F32", "R24, R4, gdesc[UR8], R24, gsb0", 32),
        ("HGMMA.64x64x8.F32.TF32", "RZ, gdesc[UR8], RZ", 32),
    ],
)
def test_operands_in_shared_memory_take_their_time(name: str, operands: str, cycles: int) -> None:
    loop = sass.Program((sass.Instruction(0, name, operands),))
    assert roofline.pipes(loop, H100)["shared"] == cycles


def test_the_busiest_pipe_limits_the_tensor_share() -> None:
    program = sass.Program((sass.Instruction(0, "HMMA.1688.F32.TF32"), *[sass.Instruction(0, "FFMA")] * 8))
    assert roofline.tensor_share(program, A100) == 0.5  # 8 cycles of 16
    assert roofline.tensor_share(program, H100) == pytest.approx(4 / 9)  # of 9 instructions

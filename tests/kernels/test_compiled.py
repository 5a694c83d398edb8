"""Kernels compiled ahead of time, without a GPU: the reading is right, and what is shipped is sound.

Under TRITON_INTERPRET, which conftest.py sets, kernels are not compiled: that happens in other processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from factories.kernel_names import started_anywhere  # noqa: E402

from satclip_engine.kernels.compiled import estimate, sass, tables  # noqa: E402
from satclip_engine.kernels.compiled.binary import Binary, request  # noqa: E402
from satclip_engine.kernels.compiled.gpus import A100, GPUS, H100  # noqa: E402
from satclip_engine.kernels.launch import Launch, Work  # noqa: E402
from satclip_engine.kernels.report import Code, Report, Step  # noqa: E402
from satclip_engine.kernels.tuning import Config, table  # noqa: E402

TESTS = Path(__file__).parents[1]
COMMITTED = TESTS.parent / "docs" / "kernels-compiled.md"

LISTING = """
 Function toy:
  REG:40 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:592
        /*0000*/                   LDC R1, c[0x0][0x28] ;                     /* 0x00000a00ff017b82 */
                                                                              /* 0x000e220000000800 */
        /*0010*/                   FFMA R2, R3, R4, R2 ;                      /* 0x0000000000007919 */
        /*0020*/              @!P0 LDS.128 R4, [R8] ;                         /* 0x0 */
        /*0030*/                   HMMA.1688.F32.TF32 R4, R8, R12, R4 ;       /* 0x0 */
        /*0040*/              @!UP1 UIADD3 UR4, UR4, 0x1, URZ ;               /* 0x0 */
        /*0050*/               @P0 BRA 0x20 ;                                 /* 0x0 */
        /*0060*/                   STL [R1], R4 ;                             /* 0x0 */
        /*0070*/               @P1 BRA 0x10 ;                                 /* 0x0 */
        /*0080*/                   EXIT ;                                     /* 0x0 */
        /*0090*/                   BRA 0x90;                                  /* 0x0 */
        /*00a0*/                   NOP;                                       /* 0x0 */
"""


def run(*arguments: str) -> str:
    """A Python process that may compile kernels; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(TESTS)
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_listing_is_read_without_its_padding() -> None:
    program = sass.parse(LISTING)
    assert [each.name for each in program.instructions][-1] == "EXIT"
    assert len(program.instructions) == 9
    assert program.count("STL", "LDL") == 1


def test_the_main_loop_is_the_innermost_one_with_most_tensor_instructions() -> None:
    loop = sass.parse(LISTING).main_loop
    assert [each.address for each in loop.instructions] == [0x20, 0x30, 0x40, 0x50]
    assert loop.mix == {"shared": 1, "tensor": 1, "other": 2}


def test_a_kernel_without_loops_is_its_own_main_loop() -> None:
    program = sass.parse(LISTING.replace("BRA 0x10", "BRA 0x80").replace("BRA 0x20", "BRA 0x60"))
    assert program.main_loop is program


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
    assert estimate.programs_at_once(binary(registers, shared), warps, gpu) == expected


def test_the_slowest_pipe_is_the_bound_and_both_precisions_share_the_tensor_cores() -> None:
    ideal = estimate.roofline(Work(tf32=H100.tf32, half=H100.half, fp32=H100.fp32, bytes=1), H100)
    assert ideal.limit == "tensor"
    assert ideal.bound == pytest.approx(2)
    assert estimate.roofline(Work(bytes=3 * A100.bandwidth, fp64=A100.fp64), A100).limit == "memory"


def test_the_multiprocessor_with_most_programs_sets_the_time() -> None:
    assert estimate.imbalance(108, A100) == 1
    assert estimate.imbalance(109, A100) == pytest.approx(2 * 108 / 109)
    assert estimate.imbalance(1, A100) == 108
    ideal = estimate.roofline(Work(half=A100.half, bytes=A100.bandwidth / 2), A100)
    assert estimate.estimated(ideal, 0.25, 216, A100) == pytest.approx(4)
    assert estimate.estimated(ideal, 0.0, 216, A100) == pytest.approx(1)


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
    assert estimate.pipes(sass.Program((sass.Instruction(0, name),)), gpu)["tensor"] == cycles


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
    assert estimate.pipes(loop, H100)["shared"] == cycles


def test_the_busiest_pipe_limits_the_tensor_share() -> None:
    program = sass.Program((sass.Instruction(0, "HMMA.1688.F32.TF32"), *[sass.Instruction(0, "FFMA")] * 8))
    assert estimate.tensor_share(program, A100) == 0.5  # 8 cycles of 16
    assert estimate.tensor_share(program, H100) == pytest.approx(4 / 9)  # of 9 instructions


@pytest.fixture(scope="module")
def made() -> dict[str, list[dict[str, Any]]]:
    """What the compiler makes of tests/made_kernels.py."""
    return json.loads(run(str(TESTS / "made_kernels.py")))


@pytest.mark.parametrize("capability", list(GPUS))
def test_arguments_are_specialised_as_at_a_real_launch(capability: str, made: Any) -> None:
    aligned, shifted, single, ragged = made[capability][:4]
    assert aligned["types"] == ["*fp32", "*fp32", "i32", "fp32", "constexpr"]
    assert aligned["divisible"] == [0, 1, 2]
    assert shifted["divisible"] == [1]  # its address is odd, and 1023 too
    assert single["constants"] == {"2": 1, "4": 128}
    assert ragged["divisible"] == [0, 1]
    assert made[capability][5]["types"][3] == "i64"
    assert len({each["key"] for each in made[capability]}) == len(made[capability])


@pytest.mark.parametrize("capability", list(GPUS))
def test_spills_tensor_instructions_and_shared_memory_are_seen(capability: str, made: Any) -> None:
    scaled, product, large = (made[capability][index] for index in (0, 4, 6))
    assert scaled["shared"] == 0
    assert "tensor" not in scaled["loop"]
    assert product["loop"]["tensor"] > 0
    assert product["shared"] > 0
    assert product["spills"] == scaled["spills"] == 0
    assert large["spills"] > 0
    assert large["registers"] == 255


def test_interpreted_kernels_are_refused() -> None:
    launch = Launch(None, (1,), Config(), {})
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
        request(launch, "sm_90")


def example(spills: int = 0, registers: int = 40) -> Report:
    code = Code("sm_90", "_toy", "SINE=True", "N=16 warps=4 stages=2", 4, registers, 0, spills, 1024, 8)
    step = Step(
        "sm_90", "toy L=1", "_toy", 1, 10, 0.5, 1e9, 1e6, 1e-5, 2e-5, {"tensor": 1e-5, "memory": 1e-6}
    )
    return Report([code], [step], {"sm_90": ["toy"]}, {"triton": "3.7.1", "torch": "2.13.0"})


def test_a_table_equals_itself_whatever_the_registers() -> None:
    before = tables.markdown(example())
    assert tables.differences(before, example(registers=64)) == []
    assert "`_toy`" in before
    assert "multiply-adds/byte" in before


def test_a_table_differs_where_spills_or_kernels_do() -> None:
    before = tables.markdown(example())
    changed = tables.differences(before, example(spills=3))
    assert len(changed) == 2
    assert "is missing in the table" in changed[1]
    assert example(spills=3).failures == [
        "_toy (SINE=True; N=16 warps=4 stages=2) for sm_90: 3 spills, 0 bytes of stack"
    ]
    assert example().failures == []


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every kernel in every shipped configuration, as the command reports it."""
    file = tmp_path_factory.mktemp("report") / "report.json"
    run("-m", "satclip_engine.kernels.report", "--json", str(file), "--check", str(COMMITTED))
    return json.loads(file.read_text())


def test_every_kernel_is_compiled(shipped: Any) -> None:
    for capability in GPUS:
        found = {code["kernel"] for code in shipped["codes"] if code["capability"] == capability}
        assert found == started_anywhere()


def test_every_shipped_configuration_is_compiled(shipped: Any) -> None:
    for capability in GPUS:
        rows = {kernel for kernel, by_capability in table().items() if capability in by_capability}
        assert rows <= set(shipped["rows"][capability])  # where there is none, a lower one's serves


def test_no_shipped_kernel_spills(shipped: Any) -> None:
    assert [code for code in shipped["codes"] if code["spills"] or code["stack"] or code["error"]] == []

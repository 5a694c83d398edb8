"""The report of compiled kernels: its tables, and every shipped kernel compiled without a GPU.

Under TRITON_INTERPRET, which conftest.py sets, kernels are not compiled: that happens in other processes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from factories.kernel_names import started_anywhere
from factories.kernels import compiling_process

from satclip_engine.kernels.tools import report_tables
from satclip_engine.kernels.tools.figures import CompiledKernel, KernelReport, KernelTimes
from satclip_engine.kernels.tools.gpus import GPUS
from satclip_engine.kernels.tuning import table

pytestmark = [pytest.mark.triton, pytest.mark.gpu_tools]

COMMITTED = Path(__file__).parents[3] / "docs" / "kernels-compiled.md"


def example(spills: int = 0, registers: int = 40) -> KernelReport:
    kernel = CompiledKernel(
        "sm_90", "_toy", "SINE=True", "N=16 warps=4 stages=2", 4, registers, 0, spills, 1024, 8
    )
    times = KernelTimes(
        "sm_90", "toy L=1", "_toy", 1, 10, 0.5, 1e9, 1e6, 1e-5, 2e-5, {"tensor": 1e-5, "memory": 1e-6}
    )
    return KernelReport([kernel], [times], {"sm_90": ["toy"]}, {"triton": "3.7.1", "torch": "2.13.0"})


def test_a_table_equals_itself_whatever_the_registers() -> None:
    before = report_tables.markdown(example())
    assert report_tables.differences(before, example(registers=64)) == []
    assert "`_toy`" in before
    assert "multiply-adds/byte" in before


def test_a_table_differs_where_spills_or_kernels_do() -> None:
    before = report_tables.markdown(example())
    changed = report_tables.differences(before, example(spills=3))
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
    compiling_process(
        "-m", "satclip_engine.kernels.tools.report", "--json", str(file), "--check", str(COMMITTED)
    )
    return json.loads(file.read_text())


def test_every_kernel_is_compiled(shipped: Any) -> None:
    for capability in GPUS:
        names = {kernel["name"] for kernel in shipped["kernels"] if kernel["capability"] == capability}
        assert names == started_anywhere()


def test_every_shipped_configuration_is_compiled(shipped: Any) -> None:
    for capability in GPUS:
        rows = {kernel for kernel, by_capability in table().items() if capability in by_capability}
        assert rows <= set(shipped["rows"][capability])  # where there is none, a lower one's serves


def test_no_shipped_kernel_spills(shipped: Any) -> None:
    kernels = shipped["kernels"]
    assert [kernel for kernel in kernels if kernel["spills"] or kernel["stack"] or kernel["error"]] == []

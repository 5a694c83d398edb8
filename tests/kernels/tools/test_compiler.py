"""Launches are compiled ahead of time as a GPU would compile them.

Under TRITON_INTERPRET, which conftest.py sets, kernels are not compiled: that happens in other processes.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from factories.kernels import compiling_process

from satclip_engine.kernels.launch import Launch
from satclip_engine.kernels.tools.compiler import compile_request
from satclip_engine.kernels.tools.gpus import GPUS
from satclip_engine.kernels.tuning import Config

pytestmark = [pytest.mark.triton, pytest.mark.gpu_tools]


@pytest.fixture(scope="module")
def figures() -> dict[str, list[dict[str, Any]]]:
    """Figures of the machine code of factories/kernels.py."""
    return json.loads(compiling_process("-m", "factories.kernels"))


@pytest.mark.parametrize("capability", list(GPUS))
def test_arguments_are_specialised_as_at_a_real_launch(capability: str, figures: Any) -> None:
    aligned, shifted, single, ragged = figures[capability][:4]
    assert aligned["types"] == ["*fp32", "*fp32", "i32", "fp32", "constexpr"]
    assert aligned["divisible"] == [0, 1, 2]
    assert shifted["divisible"] == [1]  # its address is odd, and 1023 too
    assert single["constants"] == {"2": 1, "4": 128}
    assert ragged["divisible"] == [0, 1]
    assert figures[capability][5]["types"][3] == "i64"
    assert len({figure["key"] for figure in figures[capability]}) == len(figures[capability])


@pytest.mark.parametrize("capability", list(GPUS))
def test_spills_tensor_instructions_and_shared_memory_are_seen(capability: str, figures: Any) -> None:
    scaled, product, large = (figures[capability][index] for index in (0, 4, 6))
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
        compile_request(launch, "sm_90")

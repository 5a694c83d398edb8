"""sin(2πx), before it is rounded to 16 bits."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from satclip_engine.kernels.device_functions.sin2pi import sin2pi  # noqa: E402

pytestmark = pytest.mark.triton


@triton.jit
def _sines(x, out, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + index, sin2pi(tl.load(x + index, index < count)), index < count)


def sines(x: Any) -> Any:
    out = torch.empty_like(x)
    _sines[(triton.cdiv(len(x), 4096),)](x, out, len(x), BLOCK=4096)
    return out


def test_sin2pi_errs_by_7e_6_at_most() -> None:
    x = torch.cat([torch.linspace(-1, 1, 20_001), torch.linspace(-500, 500, 20_001)])
    exact = torch.sin(2 * math.pi * x.double())
    assert (sines(x) - exact).abs().max() < 7e-6


def test_whole_turns_end_where_they_began_and_what_is_no_number_stays_none() -> None:
    x = torch.tensor([0.0, 1.0, -3.0, 2.0**22, math.nan, math.inf, -math.inf])
    assert sines(x)[:4].tolist() == [0.0] * 4
    assert sines(x)[4:].isnan().all()

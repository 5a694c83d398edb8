"""Pairs of float16 hold float32 to its last digit, whatever else their tensor holds."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from satclip_engine.kernels.device_functions.split_fp16 import unscale  # noqa: E402
from satclip_engine.kernels.split_operands import PADDED_ROWS, split_padded  # noqa: E402

pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, on what NaN comes from
]


@triton.jit
def _unscale(largest, out):
    tl.store(out, unscale(tl.load(largest)))


def value(pair, x):
    """Value that a pair stands for, in float64."""
    factor = torch.empty(())
    _unscale[(1,)](pair.largest, factor)
    high, low = pair.values[:, : len(x), : x.shape[1]].double()
    return (high + low) * factor.double()


@pytest.mark.parametrize("size", [1e-37, 1e-20, 1.0, 0.9999999, 2.0, 65504.0, 1e20, 3.4e38])
def test_a_pair_errs_by_one_in_the_last_digit(size):
    x = size * (torch.rand(20, 37, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    x[3, 5] = size
    error = (value(split_padded(x, 16), x) - x.double()).abs()
    assert (error <= 2**-23 * x.double().abs() + 2**-39 * size).all()


def test_elements_far_below_the_largest_err_by_its_size():
    x = torch.logspace(-30, 0, 61, base=10).reshape(1, 61)
    error = (value(split_padded(x, 16), x) - x.double()).abs()
    assert (error <= 2**-23 * x.double() + 2**-39).all()
    near = x >= 2**-16
    assert (error[near] <= 2**-23 * x.double()[near]).all()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_spoils_itself_only(wrong):
    x = torch.rand(300, 5, generator=torch.Generator().manual_seed(0))
    expected = value(split_padded(x, 16), x)
    x[7, 2] = wrong
    result = value(split_padded(x, 16), x)
    assert result[7, 2].isnan()
    result[7, 2] = expected[7, 2]
    assert torch.equal(result, expected)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (128, 16), (129, 17), (5, 300)])
def test_rows_and_elements_are_padded_with_zeros(shape):
    pair = split_padded(torch.ones(shape), 16)
    high, low = pair.values.float()
    assert pair.width % 16 == 0
    assert high.shape[0] % PADDED_ROWS == 0
    assert pair.plane == high.numel()
    expected = torch.zeros_like(high)
    expected[: shape[0], : shape[1]] = 2.0**14
    assert torch.equal(high, expected)
    assert torch.equal(low, torch.zeros_like(low))


def test_zeros_stay_zeros():
    x = torch.zeros(3, 4)
    assert torch.equal(value(split_padded(x, 16), x), x.double())

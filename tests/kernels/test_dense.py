"""Dense layers on sines, their input and weight gradients, against PyTorch in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from satclip_engine.kernels import dense as kernels  # noqa: E402
from satclip_engine.kernels.dense import LayerDropout  # noqa: E402
from satclip_engine.reference import gradients  # noqa: E402

pytestmark = pytest.mark.triton

SHAPES = [(1, 1, 1), (32, 32, 32), (65, 17, 5), (50, 70, 37)]  # one, whole blocks, ragged ones: N, K, M
# Of sums of products of order one: float32 rounds at 2⁻²⁴, and operands of 16 bits at 2⁻¹¹ and 2⁻⁸; a handful
# of roundings add up like √K.
EPSILON = {"exact": 4e-7, "fast": 2.0**-10}
BACKWARD = {"exact": 4e-7, "fast": 2.0**-7}


def normal(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_near(result: Any, expected: Any, epsilon: float, terms: int) -> None:
    assert result.dtype == torch.float32
    assert (result.double() - expected).abs().max() <= 4 * epsilon * math.sqrt(terms + 4)


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("sine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_is_its_formula(shape: tuple[int, int, int], sine: bool, precision: str) -> None:
    count, inputs, outputs = shape
    a, weight, bias = normal(count, inputs), normal(outputs, inputs, seed=1), normal(outputs, seed=2)
    below = a.double().sin() if sine else a.double()
    expected = below @ weight.double().T + bias.double()
    assert_near(
        kernels.dense(a, weight, bias, sine=sine, precision=precision), expected, EPSILON[precision], inputs
    )


@pytest.mark.parametrize("layer", [0, 2])
def test_dropout_is_that_of_the_reference_and_what_is_dropped_is_minus_zero(layer: int) -> None:
    a, weight, bias = normal(37, 24), normal(21, 24, seed=1), normal(21, seed=2)
    seed = (5 << 40) + 77
    factors = gradients.dropout_factors(torch.arange(37), 21, layer, 0.4, seed)
    expected = (a.double().sin() @ weight.double().T + bias.double()) * factors
    result = kernels.dense(a, weight, bias, dropout=LayerDropout(0.4, seed, layer))
    assert_near(result, expected, EPSILON["exact"] / 0.6, 24)
    assert torch.equal(torch.signbit(result) & (result == 0), factors == 0)


def test_a_pre_activation_of_zero_stays_plus_zero() -> None:
    result = kernels.dense(
        torch.zeros(9, 4), torch.zeros(6, 4), torch.full((6,), -0.0), dropout=LayerDropout(0.5, 3, 0)
    )
    dropped = gradients.dropout_factors(torch.arange(9), 6, 0, 0.5, 3) == 0
    assert torch.equal(torch.signbit(result), dropped)


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("shape", SHAPES)
def test_input_gradients_pass_through_weights_cosines_and_dropout(
    shape: tuple[int, int, int], precision: str
) -> None:
    count, inputs, outputs = shape
    dz, weight = normal(count, outputs), normal(outputs, inputs, seed=1)
    factors = gradients.dropout_factors(torch.arange(count), inputs, 1, 0.3, 9)
    z = torch.where(factors == 0, torch.tensor(-0.0), normal(count, inputs, seed=2))
    expected = (dz.double() @ weight.double()) * z.double().cos() * factors
    result = kernels.input_gradient(dz, weight, z, dropout=LayerDropout(0.3), precision=precision)
    assert_near(result, expected, BACKWARD[precision] / 0.7, outputs)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("sine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_gradients_add_up_over_points(
    shape: tuple[int, int, int], sine: bool, precision: str, deterministic: bool
) -> None:
    count, inputs, outputs = shape
    dz, z = normal(count, outputs), normal(count, inputs, seed=1)
    below = z.double().sin() if sine else z.double()
    result = kernels.weight_gradient(dz, z, sine=sine, precision=precision, deterministic=deterministic)
    assert_near(result, dz.double().T @ below, BACKWARD[precision], count)


def test_slices_of_wider_tensors_are_read_and_written_in_place() -> None:
    z, weight, bias = normal(20, 30), normal(12, 9, seed=1), normal(12, seed=2)
    before = z.clone()
    kernels.dense(z[:, 3:12], weight, bias, out=z[:, 15:27])
    assert torch.equal(z[:, 15:27], kernels.dense(before[:, 3:12].contiguous(), weight, bias))
    assert torch.equal(z[:, :15], before[:, :15])
    assert torch.equal(z[:, 27:], before[:, 27:])


def test_a_row_has_the_same_bits_in_every_batch() -> None:
    a, weight, bias = normal(40, 24), normal(21, 24, seed=1), normal(21, seed=2)
    whole = kernels.dense(a, weight, bias)
    assert torch.equal(kernels.dense(a[5:24], weight, bias), whole[5:24])


def test_a_point_of_nan_stays_nan_even_where_it_is_dropped() -> None:
    a = normal(5, 8)
    a[2] = math.nan
    result = kernels.dense(a, normal(6, 8), normal(6), dropout=LayerDropout(0.5, 1, 0))
    assert torch.isnan(result).all(dim=1).tolist() == [False, False, True, False, False]

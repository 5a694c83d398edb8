"""The error budget on tensor cores, with kernels rounding in the interpreter as they do on a GPU."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from kernels.tensor_cores import rounding_like_tensor_cores, tf32, three_products  # noqa: E402

from satclip_engine import gradients  # noqa: E402
from satclip_engine.kernels import encode as kernels  # noqa: E402
from satclip_engine.kernels.sine import LIMIT, cosine, sine  # noqa: E402
from satclip_engine.nn import LocationEncoder  # noqa: E402


@triton.jit
def _waves(x, sines, cosines, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at, at < count)
    tl.store(sines + at, sine(values), at < count)
    tl.store(cosines + at, cosine(values), at < count)


def waves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    sines, cosines = torch.empty_like(x), torch.empty_like(x)
    _waves[(triton.cdiv(len(x), 1 << 16),)](x, sines, cosines, len(x), 1 << 16)
    return sines, cosines


def test_sines_and_cosines_are_within_4e_7_up_to_their_limit() -> None:
    dense = torch.linspace(-LIMIT, LIMIT, (1 << 20) + 1)
    small = torch.linspace(-8, 8, (1 << 20) + 1)
    turns = torch.arange(-3800, 3800) * (np.pi / 2)  # where reduction cancels most
    x = torch.cat([dense, small, turns.float()])
    for found, exact in zip(waves(x), (torch.sin, torch.cos), strict=True):
        assert (found.double() - exact(x.double())).abs().max() <= 4e-7


@pytest.mark.parametrize("x", [0.5, 355.0, 11111.0])
def test_a_sine_equals_mpmath(x: float) -> None:
    found = waves(torch.tensor([x]))
    assert abs(found[0].item() - float(mpmath.sin(x))) <= 4e-7
    assert abs(found[1].item() - float(mpmath.cos(x))) <= 4e-7


def test_beyond_the_limit_sines_stay_within_one_and_nan_stays_nan() -> None:
    for values in waves(torch.tensor([1e6, -1e9, 3e38])):
        assert (values.abs() <= 1.0001).all()
    for values in waves(torch.tensor([float("nan"), float("inf"), -float("inf")])):
        assert torch.isnan(values).all()


def test_the_model_of_tensor_cores_rounds_as_they_do() -> None:
    assert tf32(np.float32([1 + 2**-11, 1 + 2**-12, -1 - 2**-11])).tolist() == [1 + 2**-10, 1, -1 - 2**-10]
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(64, 256)).astype(np.float32), rng.normal(size=(256, 64)).astype(np.float32)
    exact = a.astype(np.float64) @ b
    assert 1e-8 < np.abs(three_products(a, b) - exact).max() / 16 < 4e-6  # √256 terms of order one
    assert np.abs(tf32(a) @ tf32(b) - exact).max() / 16 > 1e-4


@pytest.mark.parametrize("gain", [1, 20])
def test_exact_embeddings_of_the_released_size_err_by_less_than_2e_5_of_their_rms(gain: int) -> None:
    model = LocationEncoder(40, seed=5)
    weights = [layer.weight.detach() for layer in model.nnet.all_layers()]
    biases = [layer.bias.detach() for layer in model.nnet.all_layers()]
    weights[0], biases[0] = weights[0] * (30 * gain), biases[0] * 30  # as trained weights grow
    rng = np.random.default_rng(2)
    lonlat = np.stack([rng.uniform(-180, 180, 24), np.degrees(np.arcsin(rng.uniform(-1, 1, 24)))], 1)
    lonlat = torch.from_numpy(np.concatenate([lonlat, [(12, 89.9), (0, -90), (180, 61)]]))
    wide = [w.double() for w in weights], [b.double() for b in biases]
    expected = gradients.encode_forward(lonlat, *wide)[0]
    with rounding_like_tensor_cores():
        found = kernels.forward(lonlat, weights, biases)[0]
    assert (found.double() - expected).abs().max() <= 2e-5 * expected.square().mean().sqrt()

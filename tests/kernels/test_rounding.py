"""The error budget: sines, and embeddings of the released size; the interpreter rounds float16 as GPUs do."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from satclip_engine.kernels import encode as kernels  # noqa: E402
from satclip_engine.kernels.device_functions.sine import MAX_RADIANS, cosine, sine  # noqa: E402
from satclip_engine.nn import LocationEncoder  # noqa: E402
from satclip_engine.reference import gradients  # noqa: E402

pytestmark = pytest.mark.triton


@triton.jit
def _sines_cosines(x, sines, cosines, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + index, index < count)
    tl.store(sines + index, sine(values), index < count)
    tl.store(cosines + index, cosine(values), index < count)


def sines_cosines(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    sines, cosines = torch.empty_like(x), torch.empty_like(x)
    _sines_cosines[(triton.cdiv(len(x), 1 << 16),)](x, sines, cosines, len(x), 1 << 16)
    return sines, cosines


def test_sines_and_cosines_are_within_4e_7_up_to_their_limit() -> None:
    dense = torch.linspace(-MAX_RADIANS, MAX_RADIANS, (1 << 20) + 1)
    small = torch.linspace(-8, 8, (1 << 20) + 1)
    turns = torch.arange(-3800, 3800) * (np.pi / 2)  # where reduction cancels most
    x = torch.cat([dense, small, turns.float()])
    for result, exact in zip(sines_cosines(x), (torch.sin, torch.cos), strict=True):
        assert (result.double() - exact(x.double())).abs().max() <= 4e-7


@pytest.mark.parametrize("x", [0.5, 355.0, 11111.0])
def test_a_sine_equals_mpmath(x: float) -> None:
    result = sines_cosines(torch.tensor([x]))
    assert abs(result[0].item() - float(mpmath.sin(x))) <= 4e-7
    assert abs(result[1].item() - float(mpmath.cos(x))) <= 4e-7


def test_beyond_the_limit_sines_stay_within_one_and_nan_stays_nan() -> None:
    for values in sines_cosines(torch.tensor([1e6, -1e9, 3e38])):
        assert (values.abs() <= 1.0001).all()
    for values in sines_cosines(torch.tensor([float("nan"), float("inf"), -float("inf")])):
        assert torch.isnan(values).all()


@pytest.mark.parametrize(("precision", "budget"), [("exact", 2e-5), ("fast", 5e-3)])
@pytest.mark.parametrize("gain", [1, 20])
def test_embeddings_of_the_released_size_err_by_less_than_promised(
    gain: int, precision: str, budget: float
) -> None:
    model = LocationEncoder(40, seed=5)
    weights = [layer.weight.detach() for layer in model.nnet.all_layers()]
    biases = [layer.bias.detach() for layer in model.nnet.all_layers()]
    weights[0], biases[0] = weights[0] * (30 * gain), biases[0] * 30  # as trained weights grow
    rng = np.random.default_rng(2)
    lonlat = np.stack([rng.uniform(-180, 180, 20), np.degrees(np.arcsin(rng.uniform(-1, 1, 20)))], 1)
    lonlat = torch.from_numpy(np.concatenate([lonlat, [(12, 89.9), (0, -90), (180, 61)]]))
    expected = gradients.encode_forward(lonlat, [w.double() for w in weights], [b.double() for b in biases])[
        0
    ]
    result = kernels.forward(lonlat, weights, biases, precision=precision)[0]
    assert (result.double() - expected).abs().max() <= budget * expected.square().mean().sqrt()

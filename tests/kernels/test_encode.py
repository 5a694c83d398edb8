"""The Triton encoder and its gradients, against the definitions in float64."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from satclip_engine.kernels import encode as kernels  # noqa: E402
from satclip_engine.reference import gradients  # noqa: E402

pytestmark = pytest.mark.triton

SPECIAL = [
    (lon, lat) for lat in (90, -90, 90 - 1e-9, -89.999, 60.1, 0) for lon in (0, 180, -180, 33.3, 539.5)
]
NETWORKS = {  # L, widths, gain of the first weight
    "L=1": (1, (9, 7, 3), 1),
    "one hidden layer": (3, (24, 8), 1),
    "L=10": (10, (64, 64, 32), 1),
    "L=10, three hidden layers, ragged": (10, (33, 70, 61, 37), 3),
    "L=40": (40, (40, 36, 20), 5),
}
# Of the rms, what is promised: products err by 2⁻²², where float32 rounds at 2⁻²⁴; or by 2⁻¹¹.
TOLERANCE = {"exact": 2e-5, "fast": 5e-3}
GRADIENT = 2e-5
FAST_GRADIENT = 2e-2  # root mean square: bfloat16 has 8 bits, and the interpreter cuts where a GPU rounds


def network(case: str) -> tuple[list[Any], list[Any]]:
    """SIREN initialisation, w0 = 30 then 1, sines folded in."""
    degrees, widths, gain = NETWORKS[case]
    rng = np.random.default_rng(3)
    weights, biases, inputs = [], [], degrees**2
    for index, width in enumerate(widths):
        bound, w0 = (1 / inputs * gain, 30) if index == 0 else (math.sqrt(6 / inputs), 1)
        weights.append(torch.from_numpy(rng.uniform(-bound, bound, (width, inputs)) * w0).float())
        biases.append(torch.from_numpy(rng.uniform(-bound, bound, width) * w0).float())
        inputs = width
    return weights, biases


def points(count: int) -> Any:
    rng = np.random.default_rng(1)
    random = np.stack([rng.uniform(-180, 180, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))], 1)
    return torch.from_numpy(np.concatenate([random, SPECIAL]))


def double(tensors: Sequence[Any]) -> list[Any]:
    return [tensor.double() for tensor in tensors]


def relative(results: Any, expected: Any) -> float:
    return float((results.double() - expected).abs().max() / expected.square().mean().sqrt())


def relative_rms(results: Any, expected: Any) -> float:
    return float((results.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("case", NETWORKS)
def test_embeddings_and_saved_pre_activations_equal_the_reference(
    case: str, dropout: float, precision: str
) -> None:
    weights, biases = network(case)
    lonlat, seed = points(37), (3 << 40) + 5
    expected = gradients.encode_forward(lonlat, double(weights), double(biases), dropout, seed)
    results = kernels.forward(lonlat, weights, biases, dropout=dropout, seed=seed, precision=precision)
    for name, value, right in zip(("embedding", "saved"), results, expected, strict=True):
        assert value.dtype == torch.float32
        assert relative(value, right) <= TOLERANCE[precision], name
    dropped = torch.signbit(results[1]) & (results[1] == 0)
    assert torch.equal(dropped, dropped & (expected[1] == 0))
    assert (dropped.sum() > 0) == (dropout > 0)


@functools.cache  # for both precisions
def training_step(case: str, dropout: float) -> tuple[Any, Any, Any, Any]:
    """Points, gradient of their embeddings, pre-activations saved by forward, the reference's gradients."""
    weights, biases = network(case)
    lonlat, seed = points(11), 12345
    grad = torch.randn(len(lonlat), len(weights[-1]), generator=torch.Generator().manual_seed(4))
    wide = gradients.encode_forward(lonlat, double(weights), double(biases), dropout, seed)[1]
    _, saved = kernels.forward(lonlat, weights, biases, dropout=dropout, seed=seed)
    expected = gradients.encode_backward(
        grad.double(), lonlat, double(weights), double(biases), wide, dropout, seed
    )
    return lonlat, grad, saved, expected


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("case", NETWORKS)
def test_every_gradient_equals_the_reference(case: str, dropout: float, precision: str) -> None:
    weights, biases = network(case)
    lonlat, grad, saved, (_, d_weights, d_biases) = training_step(case, dropout)
    results = kernels.backward(grad, lonlat, weights, biases, saved, dropout=dropout, precision=precision)
    for layer in range(len(weights)):
        for name, value, right in (
            (f"weight {layer}", results[1][layer], d_weights[layer]),
            (f"bias {layer}", results[2][layer], d_biases[layer]),
        ):
            assert value.shape == right.shape
            if precision == "exact":
                assert relative(value, right) <= GRADIENT, name
            else:
                assert relative_rms(value, right) <= FAST_GRADIENT, name


def test_the_gradient_of_the_first_pre_activations_is_that_of_the_points() -> None:
    weights, biases = network("L=10")
    lonlat = points(9)[:9]  # not at a pole
    grad = torch.randn(9, len(weights[-1]), generator=torch.Generator().manual_seed(4))
    _, saved = kernels.forward(lonlat, weights, biases)
    d_first, _, _ = kernels.backward(grad, lonlat, weights, biases, saved)
    wide = gradients.encode_forward(lonlat, double(weights), double(biases))[1]
    expected = gradients.encode_backward(
        grad.double(), lonlat, double(weights), double(biases), wide, with_lonlat=True
    )[0]
    results = gradients.lonlat_backward(d_first, lonlat, weights[0])
    assert relative(results, expected) <= GRADIENT


def test_embeddings_alone_have_the_same_bits_however_a_batch_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, biases = network("L=10")
    lonlat = points(60)
    whole, _ = kernels.forward(lonlat, weights, biases)
    monkeypatch.setattr(kernels, "SCRATCH_BYTES", 0)
    monkeypatch.setattr(kernels, "MIN_CHUNK_POINTS", 17)
    alone, none_saved = kernels.forward(lonlat, weights, biases, keep=False)
    assert none_saved is None
    assert torch.equal(alone, whole)
    assert torch.equal(kernels.forward(lonlat[7:9], weights, biases)[0], whole[7:9])


def test_the_first_gradient_adds_up_over_chunks_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, biases = network("one hidden layer")
    lonlat = points(40)
    grad = torch.randn(len(lonlat), 8, generator=torch.Generator().manual_seed(4))
    _, saved = kernels.forward(lonlat, weights, biases)
    whole = kernels.backward(grad, lonlat, weights, biases, saved)[1][0]
    monkeypatch.setattr(kernels, "HARMONICS_BYTES", 0)
    monkeypatch.setattr(kernels, "MIN_CHUNK_POINTS", 13)
    results = kernels.backward(grad, lonlat, weights, biases, saved)[1][0]
    assert relative(results, whole.double()) <= GRADIENT


def test_gradients_have_the_same_bits_every_time_unless_atomic() -> None:
    weights, biases = network("L=10")
    lonlat = points(70)
    grad = torch.randn(len(lonlat), 32, generator=torch.Generator().manual_seed(4))
    _, saved = kernels.forward(lonlat, weights, biases)
    first, again = (kernels.backward(grad, lonlat, weights, biases, saved)[1] for _ in range(2))
    assert all(torch.equal(value, right) for value, right in zip(first, again, strict=True))
    atomic = kernels.backward(grad, lonlat, weights, biases, saved, deterministic=False)[1]
    for layer, (value, right) in enumerate(zip(atomic, first, strict=True)):
        assert relative(value, right.double()) <= GRADIENT, layer


@pytest.mark.parametrize("degrees", ["L=1", "L=10"])
def test_a_point_that_is_not_finite_gives_nan_and_leaves_the_others_alone(degrees: str) -> None:
    weights, biases = network(degrees)
    lonlat = points(5)
    lonlat[3, 0], lonlat[8, 1] = math.nan, math.inf
    out, saved = kernels.forward(lonlat, weights, biases, dropout=0.5, seed=1)
    rows = torch.isnan(out).all(dim=1)
    assert torch.nonzero(rows).flatten().tolist() == [3, 8]
    assert torch.equal(torch.isnan(saved).all(dim=1), rows)
    assert torch.isfinite(out[~rows]).all()


def test_no_points_give_no_embeddings_and_gradients_of_zero() -> None:
    weights, biases = network("L=10")
    out, saved = kernels.forward(points(0)[:0], weights, biases)
    assert out.shape == (0, 32)
    _, d_weights, d_biases = kernels.backward(out, points(0)[:0], weights, biases, saved)
    assert all((gradient == 0).all() for gradient in (*d_weights, *d_biases))

"""Baselines: PyTorch for the same embeddings and loss, written as somebody who knows it would write them.

    plain       blocked PyTorch, the L² features of a block in memory, recurrence vectorised over orders
    published   features as the published implementation has them: an expanded polynomial a degree and order
    torchgeo    the SatCLIP model of torchgeo >= 0.10, where that is installed

Each is a function of (N, 2) float64 points returning (N, E). A baseline in lower precision is wrong by its
nature, so every one states the error that is accepted from it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from satclip_engine._optional import need
from satclip_engine.weights import Layers
from satclip_engine.weights.conventions import column_factors

if TYPE_CHECKING:
    import torch

Encode = Callable[[np.ndarray], np.ndarray]  # (N, 2) float64 → (N, E)
Coefficients = tuple["torch.Tensor", "torch.Tensor", list[float]]

BLOCKS = (512, 1024, 2048, 4096, 16384)  # points at once, from which the fastest is chosen
_CHOICE_SECONDS = 3.0  # for choosing, all block sizes in turns


@dataclass(frozen=True)
class Baseline:
    """An encoder to compare with.

    key: its name for --compare. build(layers, block): the encoder, computing `block` points at once.
    blocks: block sizes to choose from; None computes all at once. tolerance: of the rms, at |latitude| ≤
    within. scaling: it is timed with one thread too.
    """

    key: str
    name: str
    build: Callable[[Layers, int | None], Encode]
    tolerance: float
    within: float = 90.0
    blocks: tuple[int | None, ...] = BLOCKS
    dtype: str = "float32"
    needs: str = "torch"
    scaling: bool = False
    note: str = ""

    @property
    def missing(self) -> str | None:
        """Reason why it cannot run here, or None."""
        return None if find_spec(self.needs) else f"{self.needs} is not installed"


def choose_block(
    baseline: Baseline, layers: Layers, lonlat: np.ndarray, settings: Mapping[str, Any]
) -> int | None:
    """Return the fastest of the baseline's block sizes on some of the points, or the one of `settings`."""
    if "block" in settings:
        return settings["block"]
    if len(baseline.blocks) == 1:
        return baseline.blocks[0]

    trials = [
        (baseline.build(layers, block), lonlat[: max(block or len(lonlat), 8192)])
        for block in baseline.blocks
    ]
    best = [math.inf] * len(trials)
    for encode, sample in trials:
        encode(sample)  # warm
    end = time.perf_counter() + _CHOICE_SECONDS
    while math.inf in best or time.perf_counter() < end:
        for index, (encode, sample) in enumerate(trials):
            start = time.perf_counter()
            encode(sample)
            best[index] = min(best[index], (time.perf_counter() - start) / len(sample))
    return baseline.blocks[best.index(min(best))]


def plain(layers: Layers, block: int | None, *, recurrence: str = "float32") -> Encode:
    """Blocked PyTorch: harmonics of a block by `recurrence` arithmetic, then float32 layers."""
    torch = _torch()
    weights = [torch.tensor(weight, dtype=torch.float32) for weight in layers.weights]
    biases = [torch.tensor(bias, dtype=torch.float32)[:, None] for bias in layers.biases]
    dtype = getattr(torch, recurrence)

    def encode(lonlat: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            result = torch.empty(len(lonlat), layers.embed_dim)
            for points, out in _blocks(lonlat, result, block):
                hidden = harmonics(points, layers.degrees, dtype).float()  # [L², n], then [H, n]
                for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                    hidden = torch.addmm(bias, weight, hidden).sin_()
                torch.addmm(biases[-1].T, hidden.T, weights[-1].T, out=out)
            return result.numpy()

    return encode


def harmonics(
    lonlat: torch.Tensor, degrees: int, dtype: torch.dtype, coefficients: Coefficients | None = None
) -> torch.Tensor:  # [n, 2] -> [L², n]
    """Orthonormal real harmonics, all orders of a degree at once.

    coefficients: of recurrence(); with them a compiler need not trace how they are made.
    """
    torch = _torch()
    lon, lat = torch.deg2rad(lonlat.to(dtype)).unbind(-1)
    x, s = -lat.sin(), lat.cos()
    order = torch.arange(degrees, dtype=dtype, device=lon.device)[:, None]
    cosine, sine = (order * (lon + math.pi)).cos(), (order * (lon + math.pi)).sin()
    a, b, diagonal = coefficients or recurrence(degrees, dtype, lon.device)
    values = lon.new_empty(degrees**2, len(lon))
    previous = before_previous = lon.new_empty(0, len(lon))
    for degree in range(degrees):
        legendre = lon.new_empty(degree + 1, len(lon))
        legendre[degree] = diagonal[degree] * (s * previous[-1] if degree else torch.ones_like(x))
        if degree > 0:
            torch.mul(previous, x, out=legendre[:degree]).mul_(a[degree][:degree])
        if degree > 1:
            legendre[: degree - 1].sub_(before_previous * b[degree][: degree - 1])
        middle = degree * (degree + 1)
        torch.mul(legendre, cosine[: degree + 1], out=values[middle : middle + degree + 1])
        values[middle - degree : middle] = (legendre[1:] * sine[1 : degree + 1]).flip(0)
        previous, before_previous = legendre, previous
    return values


@cache
def recurrence(degrees: int, dtype: torch.dtype, device: torch.device) -> Coefficients:
    """Coefficients of P(l, m) = a·x·P(l−1, m) − b·P(l−2, m), and P(m, m) / (sin θ · P(m−1, m−1))."""
    torch = _torch()
    degree, order = np.arange(degrees)[:, None, None] + 0.0, np.arange(degrees)[None, :, None] + 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        a = np.sqrt((4 * degree**2 - 1) / (degree**2 - order**2))
        b = a * np.sqrt(((degree - 1) ** 2 - order**2) / (4 * (degree - 1) ** 2 - 1))
    diagonal = [math.sqrt(1 + 1 / (2 * m)) if m else math.sqrt(1 / (4 * math.pi)) for m in range(degrees)]
    if degrees > 1:
        diagonal[1] = math.sqrt(3)  # √2 of the real harmonics enters at m = 1
    return torch.tensor(a, dtype=dtype, device=device), torch.tensor(b, dtype=dtype, device=device), diagonal


def dense_encoder(degrees: int, dtype: torch.dtype, device: torch.device) -> Callable[..., torch.Tensor]:
    """Return (lonlat, weights, biases) → (N, E), all points at once, for autograd and compilers.

    The recurrence's coefficients, which do not depend on points, are made before.
    """
    torch = _torch()
    coefficients = recurrence(degrees, dtype, device)

    def encode(lonlat: Any, weights: Sequence[Any], biases: Sequence[Any]) -> Any:
        hidden = harmonics(lonlat, degrees, dtype, coefficients).T
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            hidden = torch.sin(torch.nn.functional.linear(hidden, weight, bias))
        return torch.nn.functional.linear(hidden, weights[-1], biases[-1])

    return encode


def cross_entropy_loss(a: torch.Tensor, b: torch.Tensor, scale: Any) -> torch.Tensor:
    """The contrastive loss: symmetric cross entropy of all pairs' logits, which lie in memory."""
    torch = _torch()
    logits, labels = scale * a @ b.T, torch.arange(len(a), device=a.device)
    entropy = torch.nn.functional.cross_entropy
    return (entropy(logits, labels) + entropy(logits.T, labels)) / 2


def published(layers: Layers, block: int | None) -> Encode:
    """Float64 throughout; every feature is its expanded polynomial in cos θ, evaluated power by power."""
    torch = _torch()
    weights = [torch.tensor(weight) for weight in layers.weights]
    biases = [torch.tensor(bias) for bias in layers.biases]

    def encode(lonlat: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            result = torch.empty(len(lonlat), layers.embed_dim, dtype=torch.float64)
            for points, out in _blocks(lonlat, result, block):
                lon, lat = points.unbind(-1)
                phi, theta = torch.deg2rad(lon + 180), torch.deg2rad(lat + 90)
                features = [
                    _expanded(degree, order, theta, phi)
                    for degree in range(layers.degrees)
                    for order in range(-degree, degree + 1)
                ]
                hidden = torch.stack(features, dim=-1)
                for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                    hidden = torch.sin(torch.nn.functional.linear(hidden, weight, bias))
                out[...] = torch.nn.functional.linear(hidden, weights[-1], biases[-1])
            return result.numpy()

    return encode


def _expanded(degree: int, order: int, theta: torch.Tensor, phi: torch.Tensor) -> torch.Tensor:
    """One real harmonic: lead · (1 − cos²θ)^(|m|/2) · Σ c_k cos^k θ · cos mφ or sin |m|φ."""
    lead, terms = polynomial(degree, abs(order))
    x = theta.cos()
    total: Any = 0.0
    for power, coefficient in terms:
        total = total + (coefficient * x**power if power else coefficient)
    value = lead * (1.0 - x**2) ** (abs(order) / 2) * total
    if order == 0:
        return value
    return value * ((order * phi).cos() if order > 0 else (-order * phi).sin())


@cache
def polynomial(degree: int, order: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Norm and (power, coefficient) of the order-th derivative of the Legendre polynomial, rounded once."""
    terms = []
    for k in range((degree - order) // 2 + 1):
        power = degree - 2 * k
        exact = Fraction(
            (-1) ** k * math.factorial(2 * degree - 2 * k),
            2**degree * math.factorial(k) * math.factorial(degree - k) * math.factorial(power),
        )
        terms.append((power - order, float(exact * math.perm(power, order))))
    share = Fraction((2 * degree + 1) * math.factorial(degree - order), math.factorial(degree + order))
    return math.sqrt(float(share) * (2 if order else 1) / (4 * math.pi)), tuple(terms)


def torchgeo(layers: Layers, block: int | None) -> Encode:
    """torchgeo's model with the same weights in the convention that it expects."""
    torch = _torch()
    models = need("torchgeo.models", extra="torch", why="this baseline")
    model = models.SatCLIP(layers.degrees, layers.capacity, layers.embed_dim, len(layers.weights) - 1).eval()
    scales = [30.0, *[1.0] * (len(layers.weights) - 1)]  # the sine frequencies that Layers have multiplied in
    first = layers.weights[0] / column_factors(layers.degrees, "analytic")
    targets = [*model.nnet.layers, model.nnet.last_layer]
    with torch.no_grad():
        for target, weight, bias, scale in zip(
            targets, (first, *layers.weights[1:]), layers.biases, scales, strict=True
        ):
            target.weight.copy_(torch.tensor(weight / scale))
            target.bias.copy_(torch.tensor(bias / scale))

    def encode(lonlat: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            result = torch.empty(len(lonlat), layers.embed_dim)
            for points, out in _blocks(lonlat, result, block):
                out[...] = model(points)
            return result.numpy()

    return encode


def _plain_float64(layers: Layers, block: int | None) -> Encode:
    return plain(layers, block, recurrence="float64")


def _blocks(
    lonlat: np.ndarray, result: torch.Tensor, block: int | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Points as tensors and the rows of their embeddings, block by block."""
    size = block or max(1, len(lonlat))
    return zip(_torch().from_numpy(lonlat).split(size), result.split(size), strict=True)


def _torch() -> Any:
    return need("torch", extra="torch", why="satclip-bench")


BASELINES: tuple[Baseline, ...] = (
    # float32 recurrences and angles: a few 1e-4 of the rms at L = 40, more at higher degrees.
    Baseline("torch", "PyTorch float32", plain, tolerance=1e-2, scaling=True),
    Baseline("torch64", "PyTorch, float64 basis", _plain_float64, tolerance=2e-5),
    *(
        Baseline(
            "torchgeo",
            name,
            torchgeo,
            tolerance=1e-2,
            within=89.9,  # it moves latitudes beyond 89.95°
            blocks=blocks,
            needs="torchgeo",
        )
        for name, blocks in (("torchgeo, one call", (None,)), ("torchgeo, in blocks", BLOCKS))
    ),
    Baseline(
        "published",
        "published formulas",
        published,
        tolerance=1e-4,
        within=50.0,  # nearer to the poles its coefficients, of up to 1e20, cancel
        blocks=(None,),
        dtype="float64",
        note="error at |lat| ≤ 50°",
    ),
)

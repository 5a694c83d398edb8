"""The definition: real spherical harmonics and the SIREN on them, in plain PyTorch float64.

    x = cos θ = −sin(lat)    φ = lon + 180°
    Y_lm = P̄_l|m|(x) · (cos mφ for m > 0, 1 for m = 0, sin |m|φ for m < 0)
    e = W₃ sin(W₂ sin(W₁ Y + b₁) + b₂) + b₃

Every other backend is correct when it equals this one. Coordinates are degrees, longitude first; any finite
longitude is accepted, |latitude| > 90 is a ValueError naming the first such row, NaN or infinity anywhere in
a row gives a row of NaN.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from satclip_engine._optional import need
from satclip_engine.weights import Layers

if TYPE_CHECKING:
    import torch

_BLOCK_BYTES = 64 << 20  # harmonics of this many bytes are in memory at once


def harmonics(lonlat: np.ndarray, degrees: int) -> np.ndarray:  # (N, 2) float64 -> (N, L²) float64
    """Orthonormal real spherical harmonics of degree 0..L−1, column l² + l + m, at (lon, lat) in degrees."""
    places = _checked(lonlat)
    values = np.empty((len(places), degrees**2))
    for rows in _blocks(len(places), degrees**2):
        values[rows] = _features(places[rows], degrees).T.numpy()
    return values


def encode(lonlat: np.ndarray, layers: Layers) -> np.ndarray:  # (N, 2) float64 -> (N, E) float64
    """Embeddings at (lon, lat) in degrees."""
    torch = _torch()
    places = _checked(lonlat)
    weights = [torch.tensor(weight) for weight in layers.weights]
    biases = [torch.tensor(bias)[:, None] for bias in layers.biases]
    values = np.empty((len(places), layers.embed_dim))
    for rows in _blocks(len(places), layers.degrees**2):
        hidden = _features(places[rows], layers.degrees)  # [L², n], then [H, n]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            hidden = torch.sin(weight @ hidden + bias)
        values[rows] = (weights[-1] @ hidden + biases[-1]).T.numpy()
    return values


def encode_grid(
    lat: np.ndarray, lon: np.ndarray, layers: Layers
) -> np.ndarray:  # (H,), (W,) float64 -> (H, W, E) float64
    """Embeddings at every pair of a latitude and a longitude, in degrees."""
    lat, lon = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
    _check_latitudes(lat)
    values = np.empty((len(lat), len(lon), layers.embed_dim))
    for rows in _blocks(len(lat), max(1, len(lon)) * layers.degrees**2):
        places = np.stack(np.meshgrid(lon, lat[rows]), axis=-1)  # [h, W, 2]
        values[rows] = encode(places.reshape(-1, 2), layers).reshape(*places.shape[:2], -1)
    return values


def _features(places: np.ndarray, degrees: int) -> torch.Tensor:  # (n, 2) -> [L², n]
    torch = _torch()
    lon, lat = torch.from_numpy(places.copy()).unbind(-1)
    nowhere = ~torch.isfinite(lon + lat)
    x, s = _colatitude(lat)
    turn = torch.deg2rad(_reduced(lon))
    values = torch.empty(degrees**2, len(lat), dtype=torch.float64)
    values[0] = math.sqrt(1 / (4 * math.pi))
    top = torch.full_like(x, math.sqrt(1 / (4 * math.pi)))  # P̄_mm
    for m in range(degrees):
        if m > 0:
            top = (
                top * s * math.sqrt(3 if m == 1 else 1 + 1 / (2 * m))
            )  # √2 of the real harmonics enters at m = 1
        # φ is lon + 180°, so cos mφ = (−1)^m cos(m lon); the sign costs no rounding.
        cosine, sine = (-1) ** m * torch.cos(m * turn), (-1) ** m * torch.sin(m * turn)
        before, legendre = torch.zeros_like(x), top
        for degree in range(m, degrees):
            if degree > m:
                before, legendre = legendre, _next_degree(degree, m, x, legendre, before)
            values[degree * (degree + 1) + m] = legendre * cosine
            if m > 0:
                values[degree * (degree + 1) - m] = legendre * sine
    values[:, nowhere] = math.nan
    return values


def _next_degree(
    degree: int, m: int, x: torch.Tensor, last: torch.Tensor, before: torch.Tensor
) -> torch.Tensor:
    """P̄_lm from P̄_(l−1)m and P̄_(l−2)m: upwards in l the fully normalised recurrence is stable at every x."""
    a = math.sqrt((4 * degree**2 - 1) / (degree**2 - m**2))
    b = math.sqrt(((degree - 1) ** 2 - m**2) / (4 * (degree - 1) ** 2 - 1))
    return a * (x * last - b * before)


def _colatitude(lat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos θ = −sin(lat) and sin θ = cos(lat), accurate near the poles and exactly (∓1, 0) at them.

    Beyond 45° both come from the distance to the pole, 90 − |lat|, which is exact in floating point.
    """
    torch = _torch()
    near, far = torch.deg2rad(lat), torch.deg2rad(90 - lat.abs())
    tropics = lat.abs() <= 45
    cosine = torch.where(tropics, -torch.sin(near), -torch.sign(lat) * torch.cos(far))
    return cosine, torch.where(tropics, torch.cos(near), torch.sin(far))


def _reduced(lon: torch.Tensor) -> torch.Tensor:
    """The same longitude in [−180, 180]; both steps are exact."""
    torch = _torch()
    turn = torch.fmod(lon, 360)
    return torch.where(turn.abs() > 180, turn - 360 * torch.sign(turn), turn)


def _checked(lonlat: np.ndarray) -> np.ndarray:
    places = np.asarray(lonlat, np.float64)
    if places.ndim != 2 or places.shape[1] != 2:
        raise ValueError(
            f"expected an array of shape (N, 2), longitude and latitude in degrees, got {places.shape}"
        )
    _check_latitudes(places[:, 1])
    return places


def _check_latitudes(lat: np.ndarray) -> None:
    outside = np.isfinite(lat) & (np.abs(lat) > 90)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(f"row {row}: latitude {lat[row]} is outside [-90, 90]")


def _blocks(count: int, features: int) -> list[slice]:
    """Slices of 0..count−1 with at most _BLOCK_BYTES of float64 `features` each, and at least one item."""
    size = max(1, _BLOCK_BYTES // (8 * features))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _torch() -> Any:
    return need("torch", extra="torch", why="the reference backend")

"""The definition of embeddings: real spherical harmonics and the SIREN on them, in plain PyTorch float64.

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
from satclip_engine.geo.lonlat import check_latitudes
from satclip_engine.weights import Layers

if TYPE_CHECKING:
    import torch

_BLOCK_BYTES = 16 << 20  # of harmonics in memory at once


def harmonics(lonlat: np.ndarray, degrees: int) -> np.ndarray:  # (N, 2) float64 -> (N, L²) float64
    """Orthonormal real spherical harmonics of degree 0..L−1, column l² + l + m, at (lon, lat) in degrees."""
    lonlat = _checked(lonlat)
    values = np.empty((len(lonlat), degrees**2))
    for rows in blocks(len(lonlat), degrees**2):
        values[rows] = _features(lonlat[rows], degrees).T.numpy()
    return values


def encode(lonlat: np.ndarray, layers: Layers) -> np.ndarray:  # (N, 2) float64 -> (N, E) float64
    """Embeddings at (lon, lat) in degrees."""
    torch = _torch()
    lonlat = _checked(lonlat)
    # On the CPU whatever torch's default device is.
    weights = [torch.tensor(weight, device="cpu") for weight in layers.weights]
    biases = [torch.tensor(bias, device="cpu")[:, None] for bias in layers.biases]
    values = np.empty((len(lonlat), layers.embed_dim))
    for rows in blocks(len(lonlat), layers.degrees**2):
        hidden = _features(lonlat[rows], layers.degrees)  # [L², n], then [H, n]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            hidden = torch.sin(weight @ hidden + bias)
        values[rows] = (weights[-1] @ hidden + biases[-1]).T.numpy()
    return values


def encode_grid(
    lat: np.ndarray, lon: np.ndarray, layers: Layers
) -> np.ndarray:  # (H,), (W,) float64 -> (H, W, E) float64
    """Embeddings at every pair of a latitude and a longitude, in degrees."""
    lat, lon = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
    check_latitudes(lat)
    values = np.empty((len(lat), len(lon), layers.embed_dim))
    for rows in blocks(len(lat), max(1, len(lon)) * layers.degrees**2):
        pairs = np.stack(np.meshgrid(lon, lat[rows]), axis=-1)  # [h, W, 2]
        values[rows] = encode(pairs.reshape(-1, 2), layers).reshape(*pairs.shape[:2], -1)
    return values


def features(lonlat: torch.Tensor, degrees: int) -> torch.Tensor:  # (n, 2) float64 -> [L², n]
    """Harmonics at points whose latitudes are in [−90, 90] or not finite."""
    degree, order = _columns(degrees, lonlat.device)
    legendre, fourier = _torch().cat(_legendre(lonlat[:, 1], degrees)), fourier_basis(lonlat[:, 0], degrees)
    return legendre[degree * (degree + 1) // 2 + order.abs()] * fourier[order + degrees - 1]


def slopes(lonlat: torch.Tensor, degrees: int) -> tuple[torch.Tensor, torch.Tensor]:  # each [L², n]
    """∂Y/∂lon and ∂Y/∂lat per degree of angle; at a pole ∂Y/∂lat is that along the point's own meridian.

    ∂P̄_lm/∂θ = ½ √((l+m)(l−m+1)) P̄_l(m−1) − ½ √((l−m)(l+m+1)) P̄_l(m+1) for harmonics of equal norm, without
    a division by sin θ, hence right at the poles; ours have √2 more for m > 0. θ grows with lat.
    """
    torch = _torch()
    degree, order = _columns(degrees, lonlat.device)
    rows = [
        _torch().nn.functional.pad(row, (0, 0, 0, degrees - len(row)))
        for row in _legendre(lonlat[:, 1], degrees)
    ]
    legendre, fourier = _torch().stack(rows), fourier_basis(lonlat[:, 0], degrees)  # 0 for m > l
    l = torch.arange(degrees, dtype=torch.float64, device=lonlat.device)[:, None, None]  # noqa: E741
    m = torch.arange(degrees, dtype=torch.float64, device=lonlat.device)[:, None]
    lower = torch.sqrt(((l + m) * (l - m + 1)).clamp(min=0)) / 2
    upper = torch.sqrt(((l - m) * (l + m + 1)).clamp(min=0)) / 2
    lower[:, 1:2] *= math.sqrt(2)
    upper[:, :1] *= math.sqrt(2)
    slope = torch.zeros_like(legendre)
    slope[:, 1:] += lower[:, 1:] * legendre[:, :-1]
    slope[:, :-1] -= upper[:, :-1] * legendre[:, 1:]
    along_lon = -order[:, None] * legendre[degree, order.abs()] * fourier[degrees - 1 - order]
    along_lat = slope[degree, order.abs()] * fourier[order + degrees - 1]
    return torch.deg2rad(along_lon), torch.deg2rad(along_lat)


def _features(lonlat: np.ndarray, degrees: int) -> torch.Tensor:  # (n, 2) -> [L², n]
    return features(_torch().from_numpy(lonlat.copy()), degrees)


def _columns(degrees: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Degree l and order m of every column l² + l + m."""
    column = _torch().arange(degrees**2, device=device)
    degree = _torch().repeat_interleave(
        2 * _torch().arange(degrees, device=device) + 1, output_size=degrees**2
    )
    return degree, column - degree**2 - degree


def _legendre(lat: torch.Tensor, degrees: int) -> list[torch.Tensor]:  # (n,) -> [l + 1, n] of each degree l
    """P̄_lm(−sin lat) with the √2 of real harmonics in m ≥ 1, for m = 0..l.

    No step is in place, so that torch differentiates and transforms it (torch.func) to any order.
    """
    torch = _torch()
    x, s = _colatitude(lat)
    rows = [torch.full_like(x, math.sqrt(1 / (4 * math.pi))).masked_fill(x.isnan(), math.nan)[None]]
    for degree in range(1, degrees):
        # √2 enters at m = 1.
        top = rows[-1][-1:] * s * math.sqrt(3 if degree == 1 else 1 + 1 / (2 * degree))
        rows.append(torch.cat([*_next_degree(degree, x, rows), top]))
    return rows


def _next_degree(degree: int, x: torch.Tensor, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """P̄_lm for m < l from P̄_(l−1)m and, for m < l − 1, P̄_(l−2)m.

    Upwards in l the fully normalised recurrence is stable at every x. Where m = l − 1 the second term is 0.
    """
    torch = _torch()
    m = torch.arange(degree, dtype=torch.float64, device=x.device)[:, None]
    a = torch.sqrt((4 * degree**2 - 1) / (degree**2 - m**2))
    first = x * rows[-1]
    if degree == 1:
        return [a * first]
    b = torch.sqrt(((degree - 1) ** 2 - m[:-1] ** 2) / (4 * (degree - 1) ** 2 - 1))
    return [a[:-1] * (first[:-1] - b * rows[-2]), a[-1:] * first[-1:]]


def fourier_basis(lon: torch.Tensor, degrees: int) -> torch.Tensor:  # (n,) -> [2L − 1, n]
    """sin |m|φ for m = −(L−1)..−1, then cos mφ for m = 0..L−1, φ = lon + 180°."""
    torch = _torch()
    radians = torch.deg2rad(_wrapped(lon))
    m = torch.arange(degrees, device=lon.device)
    # cos mφ = (−1)^m cos(m lon); the sign costs no rounding.
    sign = 1 - 2 * (m % 2)
    angle = m[:, None] * radians
    cosine, sine = sign[:, None] * torch.cos(angle), sign[:, None] * torch.sin(angle)
    return torch.cat([sine[1:].flip(0), cosine])


def _colatitude(lat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos θ = −sin(lat) and sin θ = cos(lat), accurate near the poles and exactly (∓1, 0) at them.

    Beyond 45° both come from the distance to the pole, 90 − |lat|, which is exact in floating point.
    """
    torch = _torch()
    near, far = torch.deg2rad(lat), torch.deg2rad(90 - lat.abs())
    tropics = lat.abs() <= 45
    cosine = torch.where(tropics, -torch.sin(near), -torch.sign(lat) * torch.cos(far))
    return cosine, torch.where(tropics, torch.cos(near), torch.sin(far))


def _wrapped(lon: torch.Tensor) -> torch.Tensor:
    """The same longitude in [−180, 180]; both steps are exact."""
    torch = _torch()
    rest = torch.fmod(lon, 360)
    return torch.where(rest.abs() > 180, rest - 360 * torch.sign(rest), rest)


def _checked(lonlat: np.ndarray) -> np.ndarray:
    lonlat = np.asarray(lonlat, np.float64)
    if lonlat.ndim != 2 or lonlat.shape[1] != 2:
        raise ValueError(
            f"expected an array of shape (N, 2), longitude and latitude in degrees, got {lonlat.shape}"
        )
    check_latitudes(lonlat[:, 1])
    return lonlat


def blocks(count: int, features: int) -> list[slice]:
    """Slices of 0..count−1 with at most _BLOCK_BYTES of float64 `features` each, and at least one item."""
    size = max(1, _BLOCK_BYTES // (8 * features))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _torch() -> Any:
    try:
        import torch  # as torch.compile can trace it, which `need` is not
    except ImportError:
        return need("torch", extra="torch", why="the reference backend")
    return torch

"""GeoCLIP's location encoder, from its formula, with the weights that the package `geoclip` carries.

v = EqualEarth(lon, lat) · 66.50336/180. For each of three scales, with a stored B (256, 2):
[cos 2πvBᵀ, sin 2πvBᵀ] → three times (linear 1024, ReLU) → linear 512. The three are summed and divided by
their length. float32 throughout and in the order of the package's own class: the finest scale turns thousands
of times around the Earth, so that another order of multiplications alone changes embeddings by 6e-5.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from probing.packages import package_file

EQUAL_EARTH = (1.340264, -0.081106, 0.000893, 0.003796)  # Šavrič, Patterson and Jenny 2018
SCALE = 66.50336
SCALES = 3


def geoclip(lonlat: np.ndarray, seed: int = 0) -> np.ndarray:  # [n, 512]
    """Embeddings of points, longitude first. Raises MissingExtra when the package is not installed."""
    path = package_file(
        "geoclip", "model/weights/location_encoder_weights.pth", install="geoclip", why="row GeoCLIP"
    )
    with torch.inference_mode():
        return embed(torch.from_numpy(np.asarray(lonlat, np.float32)), _weights(path)).numpy()


def embed(lonlat: Tensor, weights: dict[str, Tensor]) -> Tensor:  # [n, 2] -> [n, 512]
    """The formula, on the package's tensors by their names."""
    plane = equal_earth(lonlat) * SCALE / 180
    total = torch.zeros(())
    for scale in range(SCALES):
        prefix = f"LocEnc{scale}."
        angles = 2 * math.pi * plane @ weights[prefix + "capsule.0.b"].T
        hidden = torch.cat([angles.cos(), angles.sin()], 1)
        for layer in ("capsule.1", "capsule.3", "capsule.5"):
            hidden = linear(
                hidden, weights[f"{prefix}{layer}.weight"], weights[f"{prefix}{layer}.bias"]
            ).relu()
        total = total + linear(hidden, weights[prefix + "head.0.weight"], weights[prefix + "head.0.bias"])
    return normalize(total, dim=1)


def equal_earth(lonlat: Tensor) -> Tensor:  # [n, 2] degrees -> [n, 2] x, y on a sphere of radius 1
    """The Equal Earth projection."""
    lon, lat = torch.deg2rad(lonlat).unbind(1)
    a1, a2, a3, a4 = EQUAL_EARTH
    root = torch.tensor(3.0).sqrt()
    t = torch.asin(root / 2 * torch.sin(lat))
    slope = 3 * (9 * a4 * t**8 + 7 * a3 * t**6 + 3 * a2 * t**2 + a1)
    x = 2 * root * lon * torch.cos(t) / slope
    return torch.stack([x, a4 * t**9 + a3 * t**7 + a2 * t**3 + a1 * t], 1)


@functools.lru_cache(1)
def _weights(path: Path) -> dict[str, Tensor]:
    return dict(torch.load(path, map_location="cpu", weights_only=True))

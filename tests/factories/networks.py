"""Networks and points of the parity table that all backends are compared by."""

from __future__ import annotations

from typing import Any

import numpy as np

from satclip_engine.weights import Layers


def network(degrees: int, sizes: tuple[int, ...], gain: float = 1.0, seed: int = 0) -> Layers:
    """SIREN initialisation, w0 = 30 then 1; `gain` multiplies the first weight as training does."""
    rng = np.random.default_rng(seed)
    weights, biases, inputs = [], [], degrees**2
    for i, outputs in enumerate(sizes):
        bound = 1 / inputs if i == 0 else np.sqrt(6 / inputs)
        w0 = 30 if i == 0 else 1
        weights.append(rng.uniform(-bound, bound, (outputs, inputs)) * w0 * (gain if i == 0 else 1))
        biases.append(rng.uniform(-bound, bound, outputs) * w0)
        inputs = outputs
    return Layers(degrees=degrees, weights=tuple(weights), biases=tuple(biases))


def scattered(count: int, seed: int = 0) -> Any:
    """Points (count, 2) as a tensor, none at a pole: one-sided gradients there have tests of their own."""
    import torch

    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform([-400, -89], [400, 89], (count, 2)))


def everywhere(count: int = 97, seed: int = 1) -> np.ndarray:
    """Random points, and those where implementations differ: poles, near them, date line, many turns."""
    rng = np.random.default_rng(seed)
    random = np.stack([rng.uniform(-180, 180, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))], 1)
    special = [
        (lon, lat)
        for lat in (90, -90, 90 - 1e-9, -89.999, 89.95, 60.1, 0)
        for lon in (0, 180, -180, 33.3, 539.5)
    ]
    return np.concatenate([random, special])


LATITUDES = np.array([-90, -66.5, -60.25, -10.1, 0, 10.1, 33.3, 60.25, 89.9999, 90])
LONGITUDES = np.concatenate([np.arange(-179.5, 180, 7.0), [7.5, 7.5, 190.5, 0.25, -180, 180, 90, -90, 0]])

NETWORKS = {
    "L=1": (1, (9, 7, 3), 1),
    "L=2": (2, (24, 8), 1),
    "L=10": (10, (512, 512, 256), 1),
    "L=40": (40, (512, 512, 256), 1),
    "L=40, trained gain": (40, (256, 256, 256), 20),
    "L=40, ragged": (40, (33, 70, 61, 37), 3),
    "L=40, three outputs": (40, (64, 64, 3), 5),
    "L=100": (100, (48, 48, 256), 1),
    "L=200": (200, (40, 40, 17), 5),
}


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(values - expected).max() / np.sqrt(np.mean(expected**2)))

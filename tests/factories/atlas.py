"""An atlas made for tests, and what tests ask of it."""

from __future__ import annotations

import numpy as np

from satclip_engine.weights import LocationWeights

PARIS = [[2.35, 48.86]]


def rough_weights(degrees: int = 16, hidden: int = 24, outputs: int = 8) -> LocationWeights:
    """A network whose lattice needs several zones; harmonics fall off as those of trained ones do."""
    rng = np.random.default_rng(7)
    degree = np.repeat(np.arange(degrees), 2 * np.arange(degrees) + 1)
    tensors = {
        "layers.0.weight": rng.normal(0, 0.03 / (1 + degree), (hidden, degrees**2)),
        "layers.0.bias": rng.normal(0, 0.05, hidden),
        "layers.1.weight": rng.normal(0, 0.4, (hidden, hidden)),
        "layers.1.bias": rng.normal(0, 0.4, hidden),
        "last_layer.weight": rng.normal(0, 0.5, (outputs, hidden)),
        "last_layer.bias": rng.normal(0, 0.5, outputs),
    }
    return LocationWeights(tensors, "orthonormal")


def places(count: int, seed: int = 11) -> np.ndarray:
    """Places all over the Earth, some of them where lattices have their edges."""
    random = np.random.default_rng(seed)
    lat = np.degrees(np.arcsin(random.uniform(-1.0, 1.0, count)))
    lon = random.uniform(-180.0, 180.0, count)
    edges = [(x, y) for x in (-180.0, 180.0, 179.999999, 0.0) for y in (-90.0, -89.999, 0.0, 89.999, 90.0)]
    return np.concatenate([np.stack([lon, lat], axis=-1), edges])

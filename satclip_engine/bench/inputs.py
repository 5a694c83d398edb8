"""Random networks and points to compute on, and the float64 reference's answers at some of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from satclip_engine.weights import Layers

LOGIT_SCALE = 14.3  # 1 / 0.07, where CLIP's training begins
_COMPARED_POINTS = 256  # of an answer; at L = 200 the reference takes a second for them


def siren(degrees: int, sizes: tuple[int, ...], seed: int = 0) -> Layers:
    """Network with SIREN initialisation, w0 = 30, then 1; `sizes`: outputs of its layers."""
    rng = np.random.default_rng(seed)
    weights, biases, inputs = [], [], degrees**2
    for index, outputs in enumerate(sizes):
        bound, w0 = (1 / inputs, 30.0) if index == 0 else (np.sqrt(6 / inputs), 1.0)
        weights.append(rng.uniform(-bound, bound, (outputs, inputs)) * w0)
        biases.append(rng.uniform(-bound, bound, outputs) * w0)
        inputs = outputs
    return Layers(degrees=degrees, weights=tuple(weights), biases=tuple(biases))


def multiply_adds(degrees: int, sizes: tuple[int, ...]) -> float:
    """Multiply-adds of a point through the dense layers; the harmonics themselves are not counted."""
    return float(sum(a * b for a, b in pairwise((degrees**2, *sizes))))


def grid_multiply_adds(degrees: int, sizes: tuple[int, ...]) -> float:
    """Multiply-adds of a product grid's pixel: a Fourier series of 2L − 1 terms replaces the first layer.

    What symmetries save and what a row costs once are not counted.
    """
    return float((2 * degrees - 1) * sizes[0] + sum(a * b for a, b in pairwise(sizes)))


def scattered(count: int, seed: int = 1) -> np.ndarray:
    """(N, 2) float64 longitude and latitude, uniform by area, in no order."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.uniform(-180, 180, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))], axis=1)


def pixel_centres(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """(H·W, 2) longitude and latitude of all pixels of a product grid, row by row."""
    return np.stack(np.meshgrid(lon, lat), axis=-1).reshape(-1, 2)


@dataclass(frozen=True, eq=False)
class Expected:
    """Reference embeddings at some of `lonlat`, computed when first compared with."""

    layers: Layers
    lonlat: np.ndarray  # (N, 2)

    @cached_property
    def rows(self) -> np.ndarray:
        """Numbers of the points that are compared: evenly spread, first and last included."""
        return np.unique(np.linspace(0, len(self.lonlat) - 1, _COMPARED_POINTS).astype(int))

    @cached_property
    def values(self) -> np.ndarray:  # (k, E) float64
        from satclip_engine import reference

        return reference.encode(self.lonlat[self.rows], self.layers)

    def error(self, answer: np.ndarray, within: float = 90.0) -> float:
        """max |Δ| / rms of an (N, E) answer at |latitude| ≤ `within`; ∞ where it is NaN."""
        near = np.abs(self.lonlat[self.rows, 1]) <= within
        return relative_error(np.asarray(answer)[self.rows[near]], self.values[near])


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    """max |Δ| / rms(expected); ∞ when an element is not finite or the shapes differ."""
    if values.shape != expected.shape:
        return float("inf")
    error = float(np.abs(values - expected).max() / np.sqrt(np.mean(np.square(expected))))
    return error if np.isfinite(error) else float("inf")

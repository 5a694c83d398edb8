"""Extremes of bands at points of the globe, the same on every machine.

Kernels of two instruction sets differ in a float32's last bits, and what is fitted to them would differ too.
So they only tell which points lie near an extreme of a band; these are evaluated in float64, where machines
agree to 1e-14.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from satclip_engine.backends.cpu import Cpu
from satclip_engine.backends.protocols import Call, Prepared
from satclip_engine.backends.table import resolve
from satclip_engine.errors import WeightsError
from satclip_engine.reference.forward import blocks
from satclip_engine.weights import Layers

_PROBES = 1024  # points whose float64 values tell how far float32 is off
# In largest errors of the probes: how near to an extreme a point is a candidate. Twice, because candidate and
# extreme both err, and as much again because 65536 points err more than the probes.
_NEAR = 4.0
# Of the largest value: the range of a band so constant that half of all points would be candidates. Nothing
# but float64 decides that either.
_CONSTANT = 2e-3
_CONSTANT_MARGIN = 1 / 8  # of its range among the probes, which are few
_CHUNK_VALUES = 1 << 20  # float32 values in memory at once


@dataclass(frozen=True, eq=False)
class Extremes:
    """Least and largest value of each band, (E,) float64."""

    low: np.ndarray
    high: np.ndarray

    def of_bands(self, index: np.ndarray) -> Extremes:
        return Extremes(self.low[index], self.high[index])

    def as_dict(self) -> dict[str, Any]:
        """For JSON; floats survive it exactly."""
        return {"low": self.low.tolist(), "high": self.high.tolist()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Extremes:
        return cls(*(np.asarray(content[name], np.float64) for name in ("low", "high")))


def network_extremes(layers: Layers, points: np.ndarray, threads: int, isa: str | None = None) -> Extremes:
    """Extremes of a network's bands at (n, 2) points.

    isa: instruction set of the kernels; default the best one. Raises WeightsError where values are not
    finite.
    """
    row = resolve("cpu")
    assert isinstance(row, Cpu)
    network = row.prepare(layers, threads, isa=isa)
    return extremes(network, lambda chosen: _evaluated(layers, chosen, threads), points, threads)


def extremes(
    network: Prepared, exactly: Callable[[np.ndarray], np.ndarray], points: np.ndarray, threads: int
) -> Extremes:
    """Extremes of bands at (n, 2) points, looked for with `network`; float64 values are those of `exactly`.

    Raises WeightsError where values are not finite.
    """
    probes = points[:: max(1, len(points) // _PROBES)]
    exact = exactly(probes)
    if not (np.abs(exact) <= np.finfo(np.float32).max).all():
        raise WeightsError(
            "the embedding is not finite everywhere: these weights hold NaN, infinity or enormous values"
        )
    low, high = exact.min(axis=0), exact.max(axis=0)
    largest = np.abs(exact).max(axis=0)
    errors = np.abs(network.encode(probes, call=Call(threads)) - exact).max(axis=0)
    near = _NEAR * np.maximum(errors, np.spacing(largest.astype(np.float32)))
    constant = high - low <= _CONSTANT * largest
    margin = np.where(constant, _CONSTANT_MARGIN * (high - low), 0.0)
    candidates = _candidates(network, points, np.where(constant, -np.inf, near), threads)
    if candidates.size:
        exact = exactly(points[candidates])
        low = np.where(constant, low, np.minimum(low, exact.min(axis=0)))
        high = np.where(constant, high, np.maximum(high, exact.max(axis=0)))
    return Extremes(low - margin, high + margin)


def _evaluated(layers: Layers, points: np.ndarray, threads: int) -> np.ndarray:
    """(n, E) float64 values of the network."""
    values = np.empty((len(points), layers.embed_dim))
    for rows in blocks(len(points), max(layers.degrees**2, *layers.widths)):
        hidden = Cpu().harmonics(points[rows], layers.degrees, threads)
        for weight, bias in zip(layers.weights[:-1], layers.biases[:-1], strict=True):
            hidden = np.sin(hidden @ weight.T + bias)
        values[rows] = hidden @ layers.weights[-1].T + layers.biases[-1]
    return values


def _candidates(network: Prepared, points: np.ndarray, near: np.ndarray, threads: int) -> np.ndarray:
    """Indices of points where a band lies within `near` (E,) of its extreme."""
    least, largest = _NearLeast(near), _NearLeast(near)
    step = max(1, _CHUNK_VALUES // network.embed_dim)
    for begin in range(0, len(points), step):
        values = network.encode(points[begin : begin + step], call=Call(threads))
        least.add(values, begin)
        largest.add(-values, begin)
    return np.union1d(least.points(), largest.points())


class _NearLeast:
    """Points near the least value of each band among those that are added bit by bit."""

    def __init__(self, near: np.ndarray) -> None:
        self._near, self._least = near, np.full(near.size, np.inf)
        self._listed: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, values: np.ndarray, first: int) -> None:
        """Values (n, E) of points that are numbered from `first` on."""
        self._least = np.minimum(self._least, values.min(axis=0))
        row, band = np.nonzero(values <= self._least + self._near)
        self._listed.append((row + first, band, values[row, band]))

    def points(self) -> np.ndarray:
        point, band, value = (np.concatenate(arrays) for arrays in zip(*self._listed, strict=True))
        return point[value <= (self._least + self._near)[band]]

"""Sampling regions: positions that a lattice must serve, from which random ones are drawn."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from satclip_engine.geo.pixels import PixelGrid

_POLAR_LATITUDE = 85.0  # degrees, beyond which circles are short


class SamplingRegion(Protocol):
    """Positions that a lattice must serve."""

    @property
    def count(self) -> int:
        """Number of positions."""

    @property
    def single(self) -> bool:
        """True where positions come one by one, not as rows of latitude."""

    def draw(self, count: int, seed: int) -> np.ndarray:
        """(n, 2) longitudes and latitudes of positions, one at random from each of equal strata, n ≤ count
        or a little more; all positions when there are no more. Without those outside the CRS's domain."""


class RasterRegion:
    """The pixels of a raster."""

    def __init__(self, grid: PixelGrid) -> None:
        self.grid, self.count, self.single = grid, math.prod(grid.shape), not grid.separable

    def draw(self, count: int, seed: int) -> np.ndarray:
        tried = count
        for _ in range(3):
            lonlat = self._strata(tried, seed)
            valid = lonlat[np.isfinite(lonlat).all(axis=1)]
            if len(valid) >= 0.9 * count or tried >= min(self.count, 64 * count):
                break
            tried = min(64 * count, tried * count // max(1, len(valid)) + 1)
        return valid

    def _strata(self, count: int, seed: int) -> np.ndarray:
        height, width = self.grid.shape
        if height * width <= count:
            return self.grid.lonlat().reshape(-1, 2)
        down = min(height, count, max(1, round((count * height / width) ** 0.5)))
        across = min(width, -(-count // down))
        random = np.random.Generator(np.random.PCG64([seed, down, across]))
        rows = _within(np.repeat(np.arange(down), across), down, height, random)
        columns = _within(np.tile(np.arange(across), down), across, width, random)
        return self.grid.pixel_lonlat(rows, columns)


class PointList:
    """Points of a list, (n, 2); those that are not finite do not count."""

    single = True

    def __init__(self, lonlat: np.ndarray) -> None:
        finite = np.isfinite(lonlat).all(axis=1)
        self.lonlat = lonlat if finite.all() else lonlat[finite]
        self.count = len(self.lonlat)

    def draw(self, count: int, seed: int) -> np.ndarray:
        if self.count <= count:
            return self.lonlat
        random = np.random.Generator(np.random.PCG64([seed, count]))
        return self.lonlat[_within(np.arange(count), count, self.count, random)]


class Globe:
    """All of the Earth, uniform by area."""

    single = True

    def __init__(self, count: int = 1 << 30) -> None:
        """count: of points that somebody may ask for."""
        self.count = count

    def draw(self, count: int, seed: int) -> np.ndarray:
        random = np.random.Generator(np.random.PCG64([seed, count]))
        x = (np.arange(count) + random.random(count)) / count  # strata of latitude, any longitude
        return np.stack([random.uniform(-180.0, 180.0, count), np.degrees(np.arcsin(2 * x - 1))], axis=-1)


def region_of(pixels_or_points: PixelGrid | np.ndarray) -> SamplingRegion:
    """The region of a grid's pixels or of (n, 2) listed points."""
    if isinstance(pixels_or_points, np.ndarray):
        return PointList(pixels_or_points)
    return RasterRegion(pixels_or_points)


def polar_positions(region: SamplingRegion, count: int, seed: int) -> np.ndarray:
    """Up to `count` positions of the region near a pole."""
    lonlat = region.draw(min(64 * count, region.count), seed)
    return lonlat[np.abs(lonlat[:, 1]) > _POLAR_LATITUDE][:count]


def nearby_positions(points: np.ndarray, distance: float, per_point: int, seed: int) -> np.ndarray:
    """Positions within a distance in degrees of (n, 2) points, `per_point` of each."""
    random = np.random.Generator(np.random.PCG64([seed, len(points)]))
    points = np.repeat(points, per_point, axis=0)
    shrink = np.maximum(np.cos(np.radians(points[:, 1])), 0.02)
    offset = random.uniform(-distance, distance, points.shape)
    lon, lat = points[:, 0] + offset[:, 0] / shrink, np.clip(points[:, 1] + offset[:, 1], -90.0, 90.0)
    return np.stack([lon, lat], axis=-1)


def _within(stratum: np.ndarray, strata: int, size: int, random: np.random.Generator) -> np.ndarray:
    """A random index from each stratum of equal parts of 0..size−1."""
    position = (stratum + random.random(stratum.size)) * (size / strata)
    return np.minimum(position.astype(np.int64), size - 1)

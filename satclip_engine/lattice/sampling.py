"""Where a reconstruction is to hold: the pixels of a raster, a list of places, or the whole Earth."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from satclip_engine.geo.pixels import PixelGrid

_CAP = 85.0  # degrees of latitude beyond which circles are short


class Region(Protocol):
    """What random positions are drawn from."""

    @property
    def count(self) -> int:
        """How many positions are wanted."""

    @property
    def single(self) -> bool:
        """Whether they come one by one, not as rows of latitude."""

    def draw(self, count: int, seed: int) -> np.ndarray:
        """(n, 2) longitudes and latitudes of positions, one at random from each of equal strata, n ≤ count
        or a little more; all positions when there are no more. None that is no place on Earth."""


class Pixels:
    """The pixels of a raster."""

    def __init__(self, grid: PixelGrid) -> None:
        self.grid, self.count, self.single = grid, grid.shape[0] * grid.shape[1], not grid.separable

    def draw(self, count: int, seed: int) -> np.ndarray:
        wanted = count
        for _ in range(3):
            places = self._strata(wanted, seed)
            valid = places[np.isfinite(places).all(axis=1)]
            if len(valid) >= 0.9 * count or wanted >= min(self.count, 64 * count):
                break
            wanted = min(64 * count, wanted * count // max(1, len(valid)) + 1)
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


class Listed:
    """Points of a list, (n, 2); those that are none do not count."""

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
    """All of the Earth, uniform by area. `count` is how many places somebody may ask for."""

    single = True

    def __init__(self, count: int = 1 << 30) -> None:
        self.count = count

    def draw(self, count: int, seed: int) -> np.ndarray:
        random = np.random.Generator(np.random.PCG64([seed, count]))
        x = (np.arange(count) + random.random(count)) / count  # strata of latitude, any longitude
        return np.stack([random.uniform(-180.0, 180.0, count), np.degrees(np.arcsin(2 * x - 1))], axis=-1)


def region_of(places: PixelGrid | np.ndarray) -> Region:
    """The region of a grid's pixels or of listed places."""
    return Listed(places) if isinstance(places, np.ndarray) else Pixels(places)


def caps(region: Region, count: int, seed: int) -> np.ndarray:
    """Up to `count` positions of the region near a pole."""
    places = region.draw(min(64 * count, region.count), seed)
    return places[np.abs(places[:, 1]) > _CAP][:count]


def near(places: np.ndarray, distance: float, each: int, seed: int) -> np.ndarray:
    """Positions within a distance in degrees of some places, `each` of every one."""
    random = np.random.Generator(np.random.PCG64([seed, len(places)]))
    places = np.repeat(places, each, axis=0)
    shrink = np.maximum(np.cos(np.radians(places[:, 1])), 0.02)
    off = random.uniform(-distance, distance, places.shape)
    lon, lat = places[:, 0] + off[:, 0] / shrink, np.clip(places[:, 1] + off[:, 1], -90.0, 90.0)
    return np.stack([lon, lat], axis=-1)


def _within(stratum: np.ndarray, strata: int, size: int, random: np.random.Generator) -> np.ndarray:
    """A random index from each stratum of equal parts of 0..size−1."""
    at = (stratum + random.random(stratum.size)) * (size / strata)
    return np.minimum(at.astype(np.int64), size - 1)

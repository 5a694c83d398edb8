"""PixelGrid, the interface of all rasters, and those without a transform: rectilinear and curvilinear grids.

Degrees, longitude first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from satclip_engine._forks import cached_property
from satclip_engine.geo.lonlat import at_pole, check_latitudes

Index: TypeAlias = "slice | np.ndarray | Sequence[int] | None"


class PixelGrid(Protocol):
    """Rows and columns of pixels and their locations, computed where they are asked for."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def separable(self) -> bool:
        """True where latitude depends on the row alone and longitude on the column alone."""

    def lat(self, rows: Index = None) -> np.ndarray:
        """Latitudes of rows, (h,) float64; NaN beyond a pole. Separable ones only."""

    def lon(self, cols: Index = None) -> np.ndarray:
        """Longitudes of columns, (w,) float64. Separable ones only."""

    def lonlat(self, rows: Index = None, cols: Index = None) -> np.ndarray:
        """Longitude and latitude of `rows` × `cols`, (h, w, 2) float64; NaN outside the CRS's domain."""

    def pixel_lonlat(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Longitude and latitude of single pixels, (n, 2) float64."""

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Hashable identity: all locations follow from it."""


class RectilinearGrid:
    """Latitudes (H,) × longitudes (W,), evenly spaced or not."""

    separable = True

    def __init__(self, lat: np.ndarray, lon: np.ndarray) -> None:
        """Raises UsageError for a latitude beyond a pole."""
        self._lat, self._lon = at_pole(_degrees(lat)), _degrees(lon)
        check_latitudes(self._lat)
        self.shape = self._lat.size, self._lon.size

    def lat(self, rows: Index = None) -> np.ndarray:
        return np.ascontiguousarray(self._lat[_or_all(rows)])

    def lon(self, cols: Index = None) -> np.ndarray:
        return np.ascontiguousarray(self._lon[_or_all(cols)])

    def lonlat(self, rows: Index = None, cols: Index = None) -> np.ndarray:
        return np.stack(np.meshgrid(self.lon(cols), self.lat(rows)), axis=-1)

    def pixel_lonlat(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        return np.stack([self._lon[cols], self._lat[rows]], axis=-1)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return self._token

    @cached_property
    def _token(self) -> tuple[Any, ...]:
        return ("satclip_engine.RectilinearGrid", _digest(self._lat), _digest(self._lon))


class CurvilinearGrid:
    """Free longitudes and latitudes, both (H, W)."""

    separable = False

    def __init__(self, lon: np.ndarray, lat: np.ndarray) -> None:
        """Raises UsageError for a latitude beyond a pole."""
        lon, lat = np.broadcast_arrays(_degrees(lon), _degrees(lat))
        lat = at_pole(lat)
        check_latitudes(lat)
        self._lonlat = np.stack([lon, lat], axis=-1)
        self.shape = self._lonlat.shape[0], self._lonlat.shape[1]

    def lat(self, rows: Index = None) -> np.ndarray:
        raise TypeError("free points have no latitude of a row")

    def lon(self, cols: Index = None) -> np.ndarray:
        raise TypeError("free points have no longitude of a column")

    def lonlat(self, rows: Index = None, cols: Index = None) -> np.ndarray:
        return np.ascontiguousarray(self._lonlat[_or_all(rows)][:, _or_all(cols)])

    def pixel_lonlat(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        return self._lonlat[rows, cols]

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return self._token

    @cached_property
    def _token(self) -> tuple[Any, ...]:
        return ("satclip_engine.CurvilinearGrid", _digest(self._lonlat))


def indices(index: Index, size: int) -> np.ndarray:
    """Row or column numbers, (k,) int64, of a slice, an array of numbers from 0 on, or everything (None)."""
    if index is None:
        index = slice(None)
    if isinstance(index, slice):
        numbers = range(size)[index]
        return np.arange(numbers.start, numbers.stop, numbers.step, dtype=np.int64)
    return np.asarray(index, dtype=np.int64)


def _degrees(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"longitudes and latitudes must be real numbers, not {array.dtype}")
    return array.astype(np.float64)


def _or_all(index: Index) -> Any:
    return slice(None) if index is None else index


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).ravel().data.cast("B")).hexdigest()

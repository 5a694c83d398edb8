"""Rasters of places that no transform describes: irregular latitudes × longitudes, and free points.

Both speak as a Grid does, so that an Encoder evaluates them alike. Degrees, longitude first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from satclip_engine.errors import UsageError

if TYPE_CHECKING:
    from satclip_engine.backends.protocols import Check, Prepared

Index: TypeAlias = "slice | np.ndarray | Sequence[int] | None"


class PixelGrid(Protocol):
    """Rows and columns of places on Earth, computed where they are asked for."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def separable(self) -> bool:
        """Whether latitude depends on the row alone and longitude on the column alone."""

    def lat(self, rows: Index = None) -> np.ndarray:
        """Latitudes of rows, (h,) float64; NaN where there is no place. Separable ones only."""

    def lon(self, cols: Index = None) -> np.ndarray:
        """Longitudes of columns, (w,) float64. Separable ones only."""

    def lonlat(self, rows: Index = None, cols: Index = None) -> np.ndarray:
        """Longitude and latitude of `rows` × `cols`, (h, w, 2) float64; NaN where there is no place."""

    def pixel_lonlat(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Longitude and latitude of single pixels, (n, 2) float64."""


@runtime_checkable
class Tiled(Protocol):
    """A pixel grid that has its own way of going through a network, tile by tile."""

    def evaluate(
        self,
        network: Prepared,
        rows: Index,
        cols: Index,
        out: np.ndarray | None,
        threads: int,
        check: Check | None,
    ) -> np.ndarray:
        """The embeddings of `rows` × `cols`, (h, w, E)."""


class RectilinearGrid:
    """Latitudes (H,) × longitudes (W,), evenly spaced or not."""

    separable = True

    def __init__(self, lat: np.ndarray, lon: np.ndarray) -> None:
        """Raises UsageError for a latitude beyond a pole."""
        self._lat, self._lon = _degrees(lat), _degrees(lon)
        _check_latitude(self._lat)
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
        return ("satclip_engine.RectilinearGrid", _digest(self._lat), _digest(self._lon))


class CurvilinearGrid:
    """Free longitudes and latitudes, both (H, W)."""

    separable = False

    def __init__(self, lon: np.ndarray, lat: np.ndarray) -> None:
        """Raises UsageError for a latitude beyond a pole."""
        lon, lat = np.broadcast_arrays(_degrees(lon), _degrees(lat))
        _check_latitude(lat)
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


def _check_latitude(lat: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        bad = (np.abs(lat) > 90.0) & np.isfinite(lat)
    if bad.any():
        index = np.unravel_index(int(np.argmax(bad)), bad.shape)
        where = ", ".join(str(int(i)) for i in index)
        raise UsageError(f"latitude {lat[index]} at index {where} is outside [-90, 90]")


def _or_all(index: Index) -> Any:
    return slice(None) if index is None else index


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()

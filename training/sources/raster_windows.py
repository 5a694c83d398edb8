"""Windows of a raster as float32 images, and conversion between its pixels and longitudes, latitudes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from satclip_engine.errors import DataError, UsageError, one_line
from satclip_engine.geo.crs import full_turn, is_lonlat, parse_crs, to_lonlat, transformers
from satclip_engine.geo.lonlat import beyond_pole
from satclip_engine.training.sources.bands import BandReader
from satclip_engine.training.sources.gdal_files import georeference, open_raster, read_errors

_GLOBE = (-180.0, -90.0, 180.0, 90.0)
_MAX_WEST = 360.0  # degrees, of bounds either way
_TOLERANCE_PIXELS = 0.5  # by which a full turn, or a location projected back, may differ


class RasterWindows:
    """An open raster. Small ones are loaded into memory; others are read window by window, by any thread."""

    def __init__(
        self,
        path: str,  # or GDAL name
        *,
        bounds: tuple[float, float, float, float] | None,
        bands: Sequence[int] | None,
        divisor: float | None,
        overlap: int,  # columns that a window may reach beyond the antimeridian
        memory: int,  # bytes up to which the raster is loaded
    ) -> None:
        self.path = path
        self._local = threading.local()
        dataset = self._dataset()
        self.reader = BandReader(dataset, path, bands=bands, divisor=divisor)
        self.bands, self.divisor = self.reader.bands, self.reader.divisor
        self.height, self.width = dataset.shape
        self._locate(dataset, bounds)
        dtype = np.dtype(self.reader.dtype)
        self.all_valid = not self.reader.has_gaps and dtype.kind in "iu"
        size = self.height * self.width * len(self.bands) * dtype.itemsize
        self._overlap = overlap if self.wraps else 0
        self._loaded: np.ndarray | None = None
        self._loaded_gaps: np.ndarray | None = None
        if size <= memory:
            self._loaded, self._loaded_gaps = self._load(dataset)

    def _dataset(self) -> Any:
        """This thread's own handle on the file."""
        if not hasattr(self._local, "dataset"):
            try:
                self._local.dataset = open_raster(self.path)
            except read_errors() as error:
                raise DataError(f"{self.path} cannot be read as a raster ({one_line(error)})") from error
        return self._local.dataset

    def _locate(self, dataset: Any, bounds: tuple[float, float, float, float] | None) -> None:
        """Set the transform from pixels to degrees: the file's georeference, or bounds in degrees."""
        reference = georeference(dataset)
        if reference is not None and bounds is not None:
            raise UsageError(
                f"bounds: {self.path} is georeferenced: leave them out, they are for images that are not",
                argument="bounds",
            )
        if reference is None and dataset.gcps[0]:
            raise DataError(f"{self.path} is located by ground control points: warp it first (gdalwarp)")
        if reference is None and bounds is None:
            raise UsageError(
                f"bounds: {self.path} has no georeference: give bounds (west, south, east, north) in "
                "degrees, -180 -90 180 90 for the whole globe",
                argument="bounds",
            )
        if bounds is not None:
            west, south, east, north = _check_bounds(bounds)
            self._wkt: str | None = None
            self._affine = ((east - west) / self.width, 0.0, west, 0.0, (south - north) / self.height, north)
            turn = 360.0
        elif reference is not None:
            crs = parse_crs(reference[0])
            self._wkt = None if is_lonlat(crs) else crs.to_wkt()
            self._affine = tuple(reference[1])[:6]
            turn = full_turn(crs)
            if not np.isfinite(self._affine).all() or reference[1].determinant == 0:
                raise DataError(f"{self.path} has a transform that cannot be inverted: {self._affine}")
        a, b, *_ = self._affine
        self.wraps = b == 0.0 and abs(abs(a) * self.width - turn) <= _TOLERANCE_PIXELS * abs(a)

    def _load(self, dataset: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Load all bands and the mask of pixels without data; global rasters repeat their first columns."""
        try:
            values, gaps = self.reader.read(dataset)
        except read_errors() as error:
            raise DataError(f"{self.path} is corrupt or truncated ({one_line(error)})") from error
        if self._overlap:
            values = np.concatenate([values, values[:, :, : self._overlap]], axis=2)
            gaps = None if gaps is None else np.concatenate([gaps, gaps[:, : self._overlap]], axis=1)
        return values, gaps

    def lonlat_bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees of a box around the raster; east may exceed 180."""
        a, b, c, d, e, f = self._affine
        columns, rows = np.array([0, self.width, 0, self.width]), np.array([0, 0, self.height, self.height])
        x, y = a * columns + b * rows + c, d * columns + e * rows + f
        if self._wkt is None:
            return x.min(), max(y.min(), -90.0), x.max(), min(y.max(), 90.0)
        corners = (x.min(), y.min(), x.max(), y.max())
        bounds = transformers(self._wkt)[0].transform_bounds(*corners, densify_pts=101, errcheck=False)
        if not np.isfinite(bounds).all():
            return _GLOBE
        west, south, east, north = bounds
        return west, south, east + 360.0 if east < west else east, north

    def pixel_coordinates(self, lonlat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns and rows of locations, counted from the outer corner; infinite outside the CRS's domain."""
        x, y = lonlat.T
        if self._wkt is not None:
            x, y = transformers(self._wkt)[1].transform(x, y)
        a, b, c, d, e, f = self._affine
        with np.errstate(invalid="ignore"):
            dx, dy = x - c, y - f
            return (e * dx - b * dy) / (a * e - b * d), (a * dy - d * dx) / (a * e - b * d)

    def pixel_lonlat(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Degrees of columns and rows, (n, 2); NaN for those outside the CRS's domain or beyond a pole."""
        a, b, c, d, e, f = self._affine
        x, y = a * columns + b * rows + c, d * columns + e * rows + f
        if self._wkt is not None:
            lon, lat, back_x, back_y = to_lonlat(self._wkt, x, y)
            with np.errstate(invalid="ignore"):
                outside = np.hypot(back_x - x, back_y - y) > _TOLERANCE_PIXELS * np.hypot(a, d)
            x, y = np.where(outside, np.nan, lon), np.where(outside, np.nan, lat)
        valid = np.isfinite(x) & np.isfinite(y) & ~beyond_pole(y)
        return np.where(valid[:, None], np.stack([(x + 180.0) % 360.0 - 180.0, y], axis=1), np.nan)

    def read(self, columns: np.ndarray, rows: np.ndarray, patch: int) -> tuple[np.ndarray, np.ndarray]:
        """Read (n, C, patch, patch) float32, and the mask of their pixels without data, which are 0.

        columns, rows: of the upper left pixels. Raises DataError for a damaged file.
        """
        stored, gaps = self.read_stored(columns, rows, patch)
        images = self.reader.to_float(stored)
        gaps = gaps | ~np.isfinite(images).all(axis=1)
        if gaps.any():
            images *= ~gaps[:, None]
            np.nan_to_num(images, copy=False, posinf=0.0, neginf=0.0)
        return images, gaps

    def read_stored(self, columns: np.ndarray, rows: np.ndarray, patch: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the same as (n, C, patch, patch) stored values, and the mask of gaps (n, patch, patch)."""
        if self._loaded is not None:
            view = np.lib.stride_tricks.sliding_window_view(self._loaded, (patch, patch), axis=(1, 2))
            stored = view[:, rows, columns].swapaxes(0, 1)
            gaps = np.zeros((len(rows), patch, patch), bool)
            if self._loaded_gaps is not None:
                gaps = np.lib.stride_tricks.sliding_window_view(self._loaded_gaps, (patch, patch))[
                    rows, columns
                ]
        else:
            pairs = [self._read_window(int(x), int(y), patch) for x, y in zip(columns, rows, strict=True)]
            stored = np.stack([values for values, _ in pairs])
            gaps = np.stack([missing for _, missing in pairs])
        return stored, gaps

    def _read_window(self, column: int, row: int, patch: int) -> tuple[np.ndarray, np.ndarray]:
        """Read a window from the file; in two halves where it crosses the antimeridian."""
        from rasterio.windows import Window

        dataset = self._dataset()
        first = min(patch, self.width - column)
        windows = [Window(column, row, first, patch)]
        if first < patch:
            windows.append(Window(0, row, patch - first, patch))
        try:
            pieces = [self.reader.read(dataset, window) for window in windows]
        except read_errors() as error:
            raise DataError(f"{self.path} is corrupt or truncated at column {column}, row {row}") from error
        values = np.concatenate([piece for piece, _ in pieces], axis=2)
        gaps = [np.zeros(piece.shape[1:], bool) if mask is None else mask for piece, mask in pieces]
        return values, np.concatenate(gaps, axis=1)


def _check_bounds(bounds: Sequence[float]) -> tuple[float, float, float, float]:
    west, south, east, north = (float(value) for value in bounds)
    if not (-90.0 <= south < north <= 90.0 and west < east <= west + 360.0 and abs(west) <= _MAX_WEST):
        raise UsageError(
            f"bounds: expected west, south, east, north in degrees with west < east and south < north, got "
            f"{west:g} {south:g} {east:g} {north:g}",
            argument="bounds",
        )
    return west, south, east, north

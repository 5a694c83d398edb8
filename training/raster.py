"""A raster that patches are cut from: where its pixels lie on Earth, and windows of it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from satclip_engine._optional import need
from satclip_engine.errors import DataError, UsageError
from satclip_engine.geo.crs import full_turn, is_lonlat, parse_crs, to_lonlat, transformers
from satclip_engine.training.image_files import choose_bands, choose_divisor

_GLOBE = (-180.0, -90.0, 180.0, 90.0)
_SAME = 0.5  # of a pixel, by which a full turn or a place's way back may differ


class PatchRaster:
    """An open raster. Small ones are held in memory; others are read window by window, by any thread."""

    def __init__(
        self,
        path: Path,
        *,
        bounds: tuple[float, float, float, float] | None,
        bands: Sequence[int] | None,
        divisor: float | None,
        overlap: int,  # columns that a window may reach beyond the antimeridian
        memory: int,  # bytes up to which the raster is held
    ) -> None:
        self.path = path
        self._local = threading.local()
        dataset = self._dataset()
        self.bands = choose_bands(dataset, bands, str(path))
        self.divisor = choose_divisor(dataset.dtypes[0], divisor, str(path))
        self.height, self.width = dataset.shape
        self._locate(dataset, bounds)
        self._masked = _has_mask(dataset)
        self.all_valid = not self._masked and np.dtype(dataset.dtypes[0]).kind in "iu"
        size = self.height * self.width * len(self.bands) * np.dtype(dataset.dtypes[0]).itemsize
        self._overlap = overlap if self.wraps else 0
        self._held: np.ndarray | None = None
        self._gaps: np.ndarray | None = None
        if size <= memory:
            self._held, self._gaps = self._hold(dataset)

    def _dataset(self) -> Any:
        """This thread's own handle on the file."""
        if not hasattr(self._local, "dataset"):
            rasterio = need("rasterio", extra="train", why="reading rasters")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                    self._local.dataset = rasterio.open(self.path)
            except rasterio.errors.RasterioError as error:
                raise DataError(f"{self.path} cannot be read as a raster ({error})") from error
        return self._local.dataset

    def _locate(self, dataset: Any, bounds: tuple[float, float, float, float] | None) -> None:
        """Find the way from pixels to places: by the file's georeference, or by bounds in degrees."""
        if dataset.crs is not None and bounds is not None:
            raise UsageError(f"{self.path} is georeferenced: bounds are for images that are not")
        if dataset.crs is None and bounds is None:
            raise UsageError(
                f"{self.path} has no georeference: give bounds (west, south, east, north) in degrees, "
                "-180 -90 180 90 for the whole globe"
            )
        if bounds is not None:
            west, south, east, north = _checked(bounds)
            self._wkt: str | None = None
            self._affine = ((east - west) / self.width, 0.0, west, 0.0, (south - north) / self.height, north)
            turn = 360.0
        else:
            crs = parse_crs(dataset.crs)
            self._wkt = None if is_lonlat(crs) else crs.to_wkt()
            self._affine = tuple(dataset.transform)[:6]
            turn = full_turn(crs)
        a, b, *_ = self._affine
        self.wraps = b == 0.0 and abs(abs(a) * self.width - turn) <= _SAME * abs(a)

    def _hold(self, dataset: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """All bands, and which pixels are without data; for global rasters the first columns come again."""
        rasterio = need("rasterio", extra="train", why="reading rasters")
        try:
            values = dataset.read(list(self.bands))
            gaps = dataset.dataset_mask() == 0 if self._masked else None
        except rasterio.errors.RasterioError as error:
            raise DataError(f"{self.path} is corrupt or truncated ({error})") from error
        if self._overlap:
            values = np.concatenate([values, values[:, :, : self._overlap]], axis=2)
            gaps = None if gaps is None else np.concatenate([gaps, gaps[:, : self._overlap]], axis=1)
        return values, gaps

    def box(self) -> tuple[float, float, float, float]:
        """West, south, east, north of a box in degrees around the raster; east may exceed 180."""
        a, b, c, d, e, f = self._affine
        columns, rows = np.array([0, self.width, 0, self.width]), np.array([0, 0, self.height, self.height])
        x, y = a * columns + b * rows + c, d * columns + e * rows + f
        if self._wkt is None:
            return x.min(), max(y.min(), -90.0), x.max(), min(y.max(), 90.0)
        corners = (x.min(), y.min(), x.max(), y.max())
        box = transformers(self._wkt)[0].transform_bounds(*corners, densify_pts=101, errcheck=False)
        if not np.isfinite(box).all():
            return _GLOBE
        west, south, east, north = box
        return west, south, east + 360.0 if east < west else east, north

    def pixels(self, lonlat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns and rows of places, counted from the outer corner; infinite where there are none."""
        x, y = lonlat.T
        if self._wkt is not None:
            x, y = transformers(self._wkt)[1].transform(x, y)
        a, b, c, d, e, f = self._affine
        with np.errstate(invalid="ignore"):
            dx, dy = x - c, y - f
            return (e * dx - b * dy) / (a * e - b * d), (a * dy - d * dx) / (a * e - b * d)

    def places(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(n, 2) degrees of columns and rows; NaN for those outside the projection's domain."""
        a, b, c, d, e, f = self._affine
        x, y = a * columns + b * rows + c, d * columns + e * rows + f
        if self._wkt is not None:
            lon, lat, back_x, back_y = to_lonlat(self._wkt, x, y)
            with np.errstate(invalid="ignore"):
                off = np.hypot(back_x - x, back_y - y) > _SAME * np.hypot(a, d)
            x, y = np.where(off, np.nan, lon), np.where(off, np.nan, lat)
        return np.stack([(x + 180.0) % 360.0 - 180.0, y], axis=1)

    def windows(self, columns: np.ndarray, rows: np.ndarray, patch: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, C, patch, patch) float32 and their pixels without data, which are 0, (n, patch, patch).

        columns, rows: of the upper left pixels. Raises DataError for a damaged file.
        """
        if self._held is not None:
            view = np.lib.stride_tricks.sliding_window_view(self._held, (patch, patch), axis=(1, 2))
            stored = view[:, rows, columns].swapaxes(0, 1)
            gaps = np.zeros((len(rows), patch, patch), bool)
            if self._gaps is not None:
                gaps = np.lib.stride_tricks.sliding_window_view(self._gaps, (patch, patch))[rows, columns]
        else:
            pairs = [self._window(int(x), int(y), patch) for x, y in zip(columns, rows, strict=True)]
            stored = np.stack([values for values, _ in pairs])
            gaps = np.stack([missing for _, missing in pairs])
        images = stored.astype(np.float32) / np.float32(self.divisor)
        gaps = gaps | ~np.isfinite(images).all(axis=1)
        if gaps.any():
            images *= ~gaps[:, None]
            np.nan_to_num(images, copy=False, posinf=0.0, neginf=0.0)
        return images, gaps

    def _window(self, column: int, row: int, patch: int) -> tuple[np.ndarray, np.ndarray]:
        """A window read from the file; in two parts where it crosses the antimeridian."""
        rasterio = need("rasterio", extra="train", why="reading rasters")
        from rasterio.windows import Window

        dataset = self._dataset()
        first = min(patch, self.width - column)
        parts = [Window(column, row, first, patch)]
        if first < patch:
            parts.append(Window(0, row, patch - first, patch))
        try:
            values = np.concatenate([dataset.read(list(self.bands), window=part) for part in parts], axis=2)
            if not self._masked:
                return values, np.zeros((patch, patch), bool)
            mask = np.concatenate([dataset.dataset_mask(window=part) for part in parts], axis=1)
        except rasterio.errors.RasterioError as error:
            raise DataError(f"{self.path} is corrupt or truncated at column {column}, row {row}") from error
        return values, mask == 0


def _has_mask(dataset: Any) -> bool:
    from rasterio.enums import MaskFlags

    return any(MaskFlags.all_valid not in flags for flags in dataset.mask_flag_enums)


def _checked(bounds: Sequence[float]) -> tuple[float, float, float, float]:
    west, south, east, north = (float(value) for value in bounds)
    if not (-90.0 <= south < north <= 90.0 and west < east <= west + 360.0):
        raise UsageError(
            f"bounds must be west, south, east, north in degrees with west < east and south < north, not "
            f"{west:g} {south:g} {east:g} {north:g}"
        )
    return west, south, east, north

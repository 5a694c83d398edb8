"""Source of training patches that are cut from a raster at random locations.

Locations are uniform on the sphere within the raster (so a global raster's poles are not overrepresented) and
fixed by a seed. A patch is a window of whole pixels; its location is the window's exact centre. Global
rasters in degrees are continued across the antimeridian.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from satclip_engine.errors import DataError, UsageError
from satclip_engine.training.sources.bands import class_note
from satclip_engine.training.sources.gdal_files import file_identity, name_within
from satclip_engine.training.sources.raster_windows import RasterWindows
from satclip_engine.training.sources.source import SkippedImage, fingerprint

_LOADED_BYTES = 1 << 30  # of a raster that is loaded rather than read window by window
_MAX_NODATA_SHARE = 0.1  # of a patch's pixels that may be without data; they become 0
_WATER_DEVIATION = 0.01  # after division, that no band of a patch of plain water reaches
_WATER_MEAN = 0.25  # nor its mean over all bands; snow, ice and salt are flat too, but bright
_BLOCK_PATCHES = 4096  # that are read and judged at once
_MIN_DRAWN_LOCATIONS = 1 << 16  # in a round
_MAX_ROUNDS = 200  # of drawing, before the raster is taken to have no more
_EXHAUSTED_SHARE = 0.01  # new windows of those drawn; several such rounds in a row are the end
_EXHAUSTED_ROUNDS = 5
_NOTED_PATCHES = 64  # that are looked at for classes
_MEASURED_PATCHES = 1000  # whose overlap with others is measured


class RasterPatches:
    """Up to `count` different patches of patch×patch pixels.

    bounds: west, south, east, north in degrees, for images without georeference (row 0 is the north).
    bands, divisor: as for files of images.
    water_kept: the share of patches of plain water (flat and dark) that is kept. Those of ice and desert all
        stay: there are few, and the encoder has to know those locations.
    memory: bytes up to which the raster is loaded rather than read window by window.

    Raises UsageError for a raster without georeference or bounds, DataError where no patch fits. A raster
    with fewer different patches than `count` gives those and a note.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        patch: int = 16,
        count: int = 100_000,
        seed: int = 0,
        bounds: tuple[float, float, float, float] | None = None,
        bands: Sequence[int] | None = None,
        divisor: float | None = None,
        water_kept: float = 1.0,
        memory: int = _LOADED_BYTES,
    ) -> None:
        path = os.fspath(path)
        _check_options(patch, count, water_kept)
        identity = file_identity(path)
        if identity is None:
            raise DataError(f"{path}: no such file")
        self.name, self.patch = path, patch
        self.skipped: tuple[SkippedImage, ...] = ()
        self.max_skipped = 0
        self._raster = RasterWindows(
            path, bounds=bounds, bands=bands, divisor=divisor, overlap=patch - 1, memory=memory
        )
        if patch > min(self._raster.height, self._raster.width):
            raise DataError(
                f"patch: {path} has {self._raster.height}×{self._raster.width} pixels, less than a patch of "
                f"{patch}: give a smaller one",
                argument="patch",
            )
        self._columns, self._rows = self._draw(count, np.random.default_rng(seed), water_kept)
        self.lonlat = self._raster.pixel_lonlat(self._columns + patch / 2, self._rows + patch / 2)
        self.notes = tuple(self._notes(count))
        size, changed = identity
        options: dict[str, Any] = {
            "bytes": size,
            "changed": changed,
            "patch": patch,
            "bands": self._raster.bands,
            "divisor": self._raster.divisor,
            **self._fingerprint_of_form(),
        }
        self.fingerprint = fingerprint("raster patches", options, self._columns, self._rows, self.lonlat)

    def _fingerprint_of_form(self) -> dict[str, Any]:
        """Further properties of the raster that decide values; empty for plain files."""
        reader = self._raster.reader
        form = {"scaled": reader.scaled, "palette": reader.palette is not None}
        within = name_within(self.name)
        return {name: value for name, value in {**form, "within": within}.items() if value}

    def _notes(self, count: int) -> list[str]:
        drawn, reader = len(self.lonlat), self._raster.reader
        fewer = [] if drawn == count else [f"{self.name} holds {drawn} different patches, not {count}"]
        if reader.palette is not None or reader.scaled or len(reader.bands) != 1:
            return fewer
        columns, rows = self._columns[:_NOTED_PATCHES], self._rows[:_NOTED_PATCHES]
        stored, _ = self._raster.read_stored(columns, rows, self.patch)
        return fewer + class_note(stored.ravel(), reader.divisor, self.name)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def channels(self) -> int:
        return len(self._raster.bands)

    @property
    def size(self) -> tuple[int, int]:
        return self.patch, self.patch

    def read(self, indices: Iterable[int]) -> list[np.ndarray | SkippedImage]:
        """Read (C, patch, patch) float32 for each index."""
        index = np.fromiter(indices, np.int64)
        return list(self._raster.read(self._columns[index], self._rows[index], self.patch)[0])

    def overlapping_share(self, patches: np.ndarray, others: np.ndarray) -> float:
        """Share of the patches, of a thousand of them at most, that share a pixel with one of the others."""
        cells: dict[tuple[int, int], list[int]] = {}
        for other in others:
            cells.setdefault(self._cell(int(other)), []).append(int(other))
        spread = np.linspace(0, len(patches) - 1, min(len(patches), _MEASURED_PATCHES)).astype(int)
        measured = [int(patch) for patch in patches[spread]]
        return sum(self._overlaps(patch, cells) for patch in measured) / max(1, len(measured))

    def _cell(self, index: int) -> tuple[int, int]:
        """Cell of a patch's corner, in a lattice of cells as large as patches."""
        return int(self._columns[index]) // self.patch, int(self._rows[index]) // self.patch

    def _overlaps(self, index: int, cells: dict[tuple[int, int], list[int]]) -> bool:
        """True where a patch shares a pixel with one of those in the cells around it."""
        width = self._raster.width
        column, row = self._cell(index)
        columns = {column - 1, column, column + 1}
        if self._raster.wraps:
            columns = {c % -(-width // self.patch) for c in range(column - 2, column + 3)}
        near = [other for c in columns for r in range(row - 1, row + 2) for other in cells.get((c, r), ())]
        across = np.abs(self._columns[near] - self._columns[index])
        if self._raster.wraps:
            across = np.minimum(across, width - across)
        down = np.abs(self._rows[near] - self._rows[index])
        return bool(((across < self.patch) & (down < self.patch)).any())

    def _draw(self, count: int, rng: np.random.Generator, water_kept: float) -> tuple[np.ndarray, np.ndarray]:
        """Draw different usable patches; their upper left columns and rows, in the order of drawing."""
        bounds = self._raster.lonlat_bounds()
        drawn = np.empty(0, np.int64)  # every window so far, usable or not, as row · width + column
        accepted: list[np.ndarray] = []
        total = exhausted = 0
        for _ in range(_MAX_ROUNDS):
            lonlat = _uniform_on_sphere(rng, max(count, _MIN_DRAWN_LOCATIONS), bounds)
            windows = self._windows_at(lonlat)
            unseen = windows[~np.isin(windows, drawn)]
            drawn = np.concatenate([drawn, unseen])
            usable = unseen[self._usable(unseen, rng, water_kept, count - total)]
            accepted.append(usable)
            total += len(usable)
            exhausted = exhausted + 1 if len(unseen) <= _EXHAUSTED_SHARE * len(windows) else 0
            if total >= count or exhausted == _EXHAUSTED_ROUNDS:
                break
        numbers = np.concatenate(accepted)[:count]
        if not numbers.size:
            raise DataError(
                f"{self.name}: no patch of {self.patch} pixels lies inside the CRS's domain and holds data: "
                "give a smaller patch or another raster"
            )
        return numbers % self._raster.width, numbers // self._raster.width

    def _windows_at(self, lonlat: np.ndarray) -> np.ndarray:
        """Windows whose centres are nearest to locations, as row · width + column; each once, in order."""
        raster, half = self._raster, self.patch / 2
        columns, rows = raster.pixel_coordinates(lonlat)
        if raster.wraps:
            columns = columns % raster.width
        inside = np.isfinite(columns) & np.isfinite(rows)
        columns = np.floor(columns[inside] - half + 0.5).astype(np.int64)
        rows = np.floor(rows[inside] - half + 0.5).astype(np.int64)
        if raster.wraps:
            columns %= raster.width
        inside = (rows >= 0) & (rows + self.patch <= raster.height)
        inside &= (columns >= 0) & ((columns + self.patch <= raster.width) | raster.wraps)
        columns, rows = columns[inside], rows[inside]
        in_domain = np.isfinite(raster.pixel_lonlat(columns + half, rows + half)).all(axis=1)
        numbers = (rows * raster.width + columns)[in_domain]
        return numbers[np.sort(np.unique(numbers, return_index=True)[1])]

    def _usable(
        self, numbers: np.ndarray, rng: np.random.Generator, water_kept: float, needed: int
    ) -> np.ndarray:
        """Mask of the windows that hold data and are no water, or water that is kept; `needed` suffice."""
        usable = np.zeros(len(numbers), bool)
        if self._raster.all_valid and water_kept == 1.0:
            usable[:needed] = True
            return usable
        lots = rng.random(len(numbers))
        for start in range(0, len(numbers), _BLOCK_PATCHES):
            if usable.sum() >= needed:
                break
            block = slice(start, start + _BLOCK_PATCHES)
            rows, columns = np.divmod(numbers[block], self._raster.width)
            images, gaps = self._raster.read(columns, rows, self.patch)
            flat = images.std(axis=(2, 3)).max(axis=1) < _WATER_DEVIATION
            water = flat & (images.mean(axis=(1, 2, 3)) < _WATER_MEAN)
            has_data = gaps.mean(axis=(1, 2)) <= _MAX_NODATA_SHARE
            usable[block] = has_data & (~water | (lots[block] < water_kept))
        return usable


def _uniform_on_sphere(
    rng: np.random.Generator, count: int, bounds: tuple[float, float, float, float]
) -> np.ndarray:
    """Draw (count, 2) degrees, uniform by area within west, south, east, north."""
    west, south, east, north = bounds
    lon = rng.uniform(west, east, count)
    sine = rng.uniform(np.sin(np.radians(south)), np.sin(np.radians(north)), count)
    return np.stack([lon, np.degrees(np.arcsin(sine))], axis=1)


def _check_options(patch: int, count: int, water_kept: float) -> None:
    for name, value in (("patch", patch), ("count", count)):
        if value < 1:
            raise UsageError(f"{name}: expected at least 1, got {value}", argument=name)
    if not 0.0 <= water_kept <= 1.0:
        raise UsageError(
            f"water_kept: expected a number between 0 and 1, got {water_kept}", argument="water_kept"
        )

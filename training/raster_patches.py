"""A source of patches that are cut from a raster on the fly.

Places are uniform on the sphere within the raster (so a global raster's poles are not overrepresented) and
fixed by a seed. A patch is a window of whole pixels; its place is the window's exact centre. Global rasters
in degrees are continued across the antimeridian.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from satclip_engine.errors import DataError, UsageError
from satclip_engine.training.raster import PatchRaster
from satclip_engine.training.source import Skipped, fingerprint

_MEMORY = 1 << 30  # bytes of a raster that is held rather than read window by window
_NODATA_SHARE = 0.1  # of a patch's pixels that may be without data; they become 0
_FLAT = 0.01  # deviation, after division, below which every band of a patch of plain water stays
_DARK = 0.25  # and its mean over all bands; snow, ice and salt are flat too, but bright
_BLOCK = 4096  # patches that are looked at at once
_DRAWN = 1 << 16  # places that are drawn at least at once
_ROUNDS = 200  # of drawing, before the raster is taken to have no more
_FEW = 0.01  # new windows in a round, of those drawn; several such rounds in a row are the end
_FEW_ROUNDS = 5


class RasterPatches:
    """`count` different patches of patch×patch pixels.

    bounds: west, south, east, north in degrees, for images without georeference (row 0 is the north).
    bands, divisor: as for files of images.
    water_kept: the share of patches of plain water (flat and dark) that is kept. Those of ice and desert all
        stay: there are few, and what is trained has to know those places.

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
        memory: int = _MEMORY,
    ) -> None:
        path = Path(path)
        _check_options(patch, count, water_kept)
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        self.name, self.patch = str(path), patch
        self.skipped: tuple[Skipped, ...] = ()
        self.max_skipped = 0
        self._raster = PatchRaster(
            path, bounds=bounds, bands=bands, divisor=divisor, overlap=patch - 1, memory=memory
        )
        if patch > min(self._raster.height, self._raster.width):
            raise DataError(
                f"{path} has {self._raster.height}×{self._raster.width} pixels, less than a patch of {patch}"
            )
        self._columns, self._rows = self._draw(count, np.random.default_rng(seed), water_kept)
        self.lonlat = self._raster.places(self._columns + patch / 2, self._rows + patch / 2)
        found = len(self.lonlat)
        self.notes = () if found == count else (f"{path} holds {found} different patches, not {count}",)
        stat = path.stat()
        options: dict[str, Any] = {
            "bytes": stat.st_size,
            "changed": stat.st_mtime_ns,
            "patch": patch,
            "bands": self._raster.bands,
            "divisor": self._raster.divisor,
        }
        self.fingerprint = fingerprint("raster patches", options, self._columns, self._rows, self.lonlat)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def channels(self) -> int:
        return len(self._raster.bands)

    @property
    def size(self) -> tuple[int, int]:
        return self.patch, self.patch

    def read(self, indices: Iterable[int]) -> list[np.ndarray | Skipped]:
        """(C, patch, patch) float32 for each index."""
        chosen = np.fromiter(indices, np.int64)
        return list(self._raster.windows(self._columns[chosen], self._rows[chosen], self.patch)[0])

    def _draw(self, count: int, rng: np.random.Generator, water_kept: float) -> tuple[np.ndarray, np.ndarray]:
        """Upper left columns and rows of different usable patches, in the order in which they were drawn."""
        box = self._raster.box()
        seen = np.empty(0, np.int64)  # every window drawn so far, usable or not, as one number
        kept: list[np.ndarray] = []
        found = few = 0
        for _ in range(_ROUNDS):
            drawn = self._windows_at(_uniform_on_sphere(rng, max(count, _DRAWN), box))
            fresh = drawn[~np.isin(drawn, seen)]
            seen = np.concatenate([seen, fresh])
            usable = fresh[self._usable(fresh, rng, water_kept, count - found)]
            kept.append(usable)
            found += len(usable)
            few = few + 1 if len(fresh) <= _FEW * len(drawn) else 0
            if found >= count or few == _FEW_ROUNDS:
                break
        numbers = np.concatenate(kept)[:count]
        if not numbers.size:
            raise DataError(f"{self.name}: no patch of {self.patch} pixels lies on Earth and holds data")
        return numbers % self._raster.width, numbers // self._raster.width

    def _windows_at(self, lonlat: np.ndarray) -> np.ndarray:
        """The windows whose centres are nearest to places, as row · width + column; each once, in order."""
        raster, half = self._raster, self.patch / 2
        columns, rows = raster.pixels(lonlat)
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
        on_earth = np.isfinite(raster.places(columns + half, rows + half)).all(axis=1)
        numbers = (rows * raster.width + columns)[on_earth]
        return numbers[np.sort(np.unique(numbers, return_index=True)[1])]

    def _usable(
        self, numbers: np.ndarray, rng: np.random.Generator, water_kept: float, wanted: int
    ) -> np.ndarray:
        """Which windows hold data, and are not of plain water or are ones that are kept; `wanted` suffice."""
        usable = np.zeros(len(numbers), bool)
        if self._raster.all_valid and water_kept == 1.0:
            usable[:wanted] = True
            return usable
        lots = rng.random(len(numbers))
        for start in range(0, len(numbers), _BLOCK):
            if usable.sum() >= wanted:
                break
            block = slice(start, start + _BLOCK)
            rows, columns = np.divmod(numbers[block], self._raster.width)
            images, gaps = self._raster.windows(columns, rows, self.patch)
            flat = images.std(axis=(2, 3)).max(axis=1) < _FLAT
            water = flat & (images.mean(axis=(1, 2, 3)) < _DARK)
            usable[block] = (gaps.mean(axis=(1, 2)) <= _NODATA_SHARE) & (~water | (lots[block] < water_kept))
        return usable


def _uniform_on_sphere(
    rng: np.random.Generator, count: int, box: tuple[float, float, float, float]
) -> np.ndarray:
    """(count, 2) degrees, uniform by area within west, south, east, north."""
    west, south, east, north = box
    lon = rng.uniform(west, east, count)
    sine = rng.uniform(np.sin(np.radians(south)), np.sin(np.radians(north)), count)
    return np.stack([lon, np.degrees(np.arcsin(sine))], axis=1)


def _check_options(patch: int, count: int, water_kept: float) -> None:
    if patch < 1 or count < 1:
        raise UsageError(f"patch and count must be at least 1, not {patch} and {count}")
    if not 0.0 <= water_kept <= 1.0:
        raise UsageError(f"water_kept must lie between 0 and 1, not {water_kept}")

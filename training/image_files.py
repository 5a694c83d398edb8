"""A source of patches that are files: one image a file, all of one shape."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from satclip_engine._optional import need
from satclip_engine.errors import DataError, UsageError
from satclip_engine.training.source import Skipped, allowed_skips, check_skipped, fingerprint, first_ones

# What values are divided by when the user does not say: reflectances are stored times 10,000.
_DIVISORS = {"uint8": 255.0, "uint16": 10000.0, "int16": 10000.0, "float32": 1.0, "float64": 1.0}
_NODATA_SHARE = 0.1  # of an image's pixels that may be without data; they become 0
_PROBED = 50  # files that are tried for one that can be opened


@dataclass(frozen=True)
class Layout:
    """What every image is, and how its values become the (C, H, W) that a model sees."""

    bands: tuple[int, ...]  # numbers of the bands that are read, from 1
    stored_bands: int  # how many a file must have
    size: tuple[int, int]  # height, width
    divisor: float
    dtype: str | None = None  # what files must hold; None takes any
    crop: bool = False  # larger images are cut at their centre instead of being skipped
    zero_channel: int | None = None  # where a channel of zeros is put

    @property
    def channels(self) -> int:
        return len(self.bands) + (self.zero_channel is not None)


class ImageFiles:
    """Images in files, with places from an index or from the files themselves."""

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        lonlat: np.ndarray,  # (N, 2) float64 degrees
        layout: Layout,
        *,
        stats: Sequence[tuple[int, int]],  # bytes and time of change (ns) of each file
        skipped: Sequence[Skipped] = (),
        notes: Sequence[str] = (),
        max_skipped: int | None = None,
    ) -> None:
        total = len(files) + len(skipped)
        self.name, self.layout = name, layout
        self.lonlat = lonlat
        self.skipped, self.notes = tuple(skipped), tuple(notes)
        self.max_skipped = allowed_skips(total, max_skipped)
        self._files = list(files)
        check_skipped(self.skipped, total, self.max_skipped, name)
        names = "\0".join(file.name for file in files).encode()
        self.fingerprint = fingerprint(
            "image files", asdict(layout), names, lonlat, np.asarray(stats, np.int64).reshape(-1, 2)
        )

    def __len__(self) -> int:
        return len(self._files)

    @property
    def channels(self) -> int:
        return self.layout.channels

    @property
    def size(self) -> tuple[int, int]:
        return self.layout.size

    def read(self, indices: Iterable[int]) -> list[np.ndarray | Skipped]:
        """(C, H, W) float32 for each index, or why there is none."""
        return [self._read(self._files[int(index)]) for index in indices]

    def _read(self, file: Path) -> np.ndarray | Skipped:
        rasterio = _rasterio()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                with rasterio.open(file) as dataset:
                    wrong = self._misfit(dataset)
                    return Skipped(str(file), wrong) if wrong else self._values(file, dataset)
        except (rasterio.errors.RasterioError, OSError) as error:
            return Skipped(str(file), unreadable(file, error))

    def _misfit(self, dataset: Any) -> str:
        """In words, how a file departs from the layout; empty when it does not."""
        layout = self.layout
        if dataset.count != layout.stored_bands:
            return f"{dataset.count} bands, expected {layout.stored_bands}"
        height, width = layout.size
        fits = (
            dataset.height >= height and dataset.width >= width
            if layout.crop
            else dataset.shape == layout.size
        )
        if not fits:
            least = "at least " if layout.crop else ""
            return f"{dataset.height}×{dataset.width} pixels, expected {least}{height}×{width}"
        if layout.dtype and dataset.dtypes[0] != layout.dtype:
            return f"values are {dataset.dtypes[0]}, expected {layout.dtype}"
        return ""

    def _values(self, file: Path, dataset: Any) -> np.ndarray | Skipped:
        from rasterio.enums import MaskFlags
        from rasterio.windows import Window

        layout = self.layout
        height, width = layout.size
        window = Window((dataset.width - width) // 2, (dataset.height - height) // 2, width, height)
        stored = dataset.read(list(layout.bands), window=window)
        image = np.zeros((layout.channels, height, width), np.float32)
        channels = (channel for channel in range(layout.channels) if channel != layout.zero_channel)
        for channel, band in zip(channels, stored, strict=True):
            np.divide(band.astype(np.float32), np.float32(layout.divisor), out=image[channel])
        missing = ~np.isfinite(image).all(axis=0)
        if any(MaskFlags.all_valid not in flags for flags in dataset.mask_flag_enums):
            missing |= dataset.dataset_mask(window=window) == 0
        if missing.any():
            if missing.mean() > _NODATA_SHARE:
                return Skipped(str(file), f"{100 * missing.mean():.0f} % of its pixels hold no data")
            image[:, missing] = 0.0
        return image


def probe_layout(
    files: Sequence[Path],
    *,
    bands: Sequence[int] | None,
    size: int | tuple[int, int] | None,
    divisor: float | None,
) -> Layout:
    """The layout of the first file that can be opened; the user's wishes come first. Raises DataError."""
    rasterio = _rasterio()
    failures = []
    for file in files[:_PROBED]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                with rasterio.open(file) as dataset:
                    return _layout_of(dataset, file, bands, size, divisor)
        except (rasterio.errors.RasterioError, OSError) as error:
            failures.append(f"{file} ({unreadable(file, error)})")
    raise DataError(f"none of the first {len(failures)} images can be opened: {first_ones(failures, '; ')}")


def _layout_of(
    dataset: Any,
    file: Path,
    bands: Sequence[int] | None,
    size: int | tuple[int, int] | None,
    divisor: float | None,
) -> Layout:
    chosen = choose_bands(dataset, bands, str(file))
    wanted = (size, size) if isinstance(size, int) else size
    return Layout(
        bands=chosen,
        stored_bands=dataset.count,
        size=wanted or dataset.shape,
        divisor=choose_divisor(dataset.dtypes[0], divisor, str(file)),
        dtype=dataset.dtypes[0],
        crop=wanted is not None,
    )


def choose_bands(dataset: Any, bands: Sequence[int] | None, where: str) -> tuple[int, ...]:
    """Band numbers from 1: those asked for, or all that are no transparency. Raises UsageError."""
    from rasterio.enums import ColorInterp

    if bands is None:
        meanings = zip(dataset.indexes, dataset.colorinterp, strict=True)
        return tuple(index for index, meaning in meanings if meaning != ColorInterp.alpha)
    missing = [band for band in bands if band not in dataset.indexes]
    if missing or not bands:
        raise UsageError(
            f"{where} has bands 1 to {dataset.count}, not {', '.join(map(str, missing)) or 'none'}"
        )
    return tuple(bands)


def choose_divisor(dtype: str, divisor: float | None, where: str) -> float:
    """What values are divided by. Raises UsageError where neither the user nor the type says."""
    if divisor is not None:
        if not divisor > 0:
            raise UsageError(f"divisor must be positive, not {divisor}")
        return float(divisor)
    if dtype not in _DIVISORS:
        raise UsageError(f"{where} holds {dtype}: say what its values are to be divided by (divisor)")
    return _DIVISORS[dtype]


def unreadable(file: Path, error: Exception) -> str:
    """Why a file cannot be read, in few words."""
    if not os.path.lexists(file):
        return "missing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "Read failed" in said or "not recognized" in said:
        return "corrupt or truncated" if file.stat().st_size else "empty"
    return said


def _rasterio() -> Any:
    return need("rasterio", extra="train", why="reading images")

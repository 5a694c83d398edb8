"""Source of training images in files: one image a file, all of one shape."""

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
from satclip_engine.training.sources.source import (
    SkippedImage,
    check_skipped,
    fingerprint,
    join_first,
    skip_limit,
)

# By dtype, where the user names no divisor: reflectances are stored times 10,000.
_DIVISORS = {"uint8": 255.0, "uint16": 10000.0, "int16": 10000.0, "float32": 1.0, "float64": 1.0}
_MAX_NODATA_SHARE = 0.1  # of an image's pixels that may be without data; they become 0
_MAX_PROBED_FILES = 50  # that are tried for one that can be opened


@dataclass(frozen=True)
class ImageLayout:
    """Bands, size and type of every image, and the scale by which stored values become (C, H, W) float32."""

    bands: tuple[int, ...]  # numbers of the bands that are read, from 1
    stored_bands: int  # that a file must have
    size: tuple[int, int]  # height, width
    divisor: float
    dtype: str | None = None  # of the files; None takes any
    crop: bool = False  # larger images are cut at their centre instead of being skipped
    zero_channel: int | None = None  # position at which a channel of zeros is inserted

    @property
    def channels(self) -> int:
        return len(self.bands) + (self.zero_channel is not None)


class ImageFiles:
    """Images in files, with locations from an index or from the files themselves."""

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        lonlat: np.ndarray,  # (N, 2) float64 degrees
        layout: ImageLayout,
        *,
        stats: Sequence[tuple[int, int]],  # bytes and time of change (ns) of each file
        skipped: Sequence[SkippedImage] = (),
        notes: Sequence[str] = (),
        max_skipped: int | None = None,
    ) -> None:
        total = len(files) + len(skipped)
        self.name, self.layout = name, layout
        self.lonlat = lonlat
        self.skipped, self.notes = tuple(skipped), tuple(notes)
        self.max_skipped = skip_limit(total, max_skipped)
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

    def read(self, indices: Iterable[int]) -> list[np.ndarray | SkippedImage]:
        """Read (C, H, W) float32 for each index; an image that cannot be used comes as SkippedImage."""
        return [self._read(self._files[int(index)]) for index in indices]

    def _read(self, file: Path) -> np.ndarray | SkippedImage:
        rasterio = _rasterio()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                with rasterio.open(file) as dataset:
                    mismatch = self._mismatch(dataset)
                    return SkippedImage(str(file), mismatch) if mismatch else self._values(file, dataset)
        except (rasterio.errors.RasterioError, OSError) as error:
            return SkippedImage(str(file), read_failure(file, error))

    def _mismatch(self, dataset: Any) -> str:
        """Difference of a file from the layout, in words; empty when there is none."""
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

    def _values(self, file: Path, dataset: Any) -> np.ndarray | SkippedImage:
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
            if missing.mean() > _MAX_NODATA_SHARE:
                return SkippedImage(str(file), f"{100 * missing.mean():.0f} % of its pixels hold no data")
            image[:, missing] = 0.0
        return image


def probe_layout(
    files: Sequence[Path],
    *,
    bands: Sequence[int] | None,
    size: int | tuple[int, int] | None,
    divisor: float | None,
) -> ImageLayout:
    """Take the layout of the first file that can be opened; what the user asks for comes first.

    Raises DataError when none can be opened.
    """
    rasterio = _rasterio()
    failures = []
    for file in files[:_MAX_PROBED_FILES]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                with rasterio.open(file) as dataset:
                    return _layout_of(dataset, file, bands, size, divisor)
        except (rasterio.errors.RasterioError, OSError) as error:
            failures.append(f"{file} ({read_failure(file, error)})")
    raise DataError(f"none of the first {len(failures)} images can be opened: {join_first(failures, '; ')}")


def _layout_of(
    dataset: Any,
    file: Path,
    bands: Sequence[int] | None,
    size: int | tuple[int, int] | None,
    divisor: float | None,
) -> ImageLayout:
    asked_size = (size, size) if isinstance(size, int) else size
    return ImageLayout(
        bands=choose_bands(dataset, bands, str(file)),
        stored_bands=dataset.count,
        size=asked_size or dataset.shape,
        divisor=choose_divisor(dataset.dtypes[0], divisor, str(file)),
        dtype=dataset.dtypes[0],
        crop=asked_size is not None,
    )


def choose_bands(dataset: Any, bands: Sequence[int] | None, path: str) -> tuple[int, ...]:
    """Band numbers from 1: those asked for, or all but transparency. Raises UsageError."""
    from rasterio.enums import ColorInterp

    if bands is None:
        meanings = zip(dataset.indexes, dataset.colorinterp, strict=True)
        return tuple(index for index, meaning in meanings if meaning != ColorInterp.alpha)
    missing = [band for band in bands if band not in dataset.indexes]
    if missing or not bands:
        numbers = ", ".join(map(str, missing)) or "none"
        raise UsageError(f"bands: {path} has bands 1 to {dataset.count}, not {numbers}", argument="bands")
    return tuple(bands)


def choose_divisor(dtype: str, divisor: float | None, path: str) -> float:
    """Divisor of stored values: the user's, or the usual one of the dtype. Raises UsageError without one."""
    if divisor is not None:
        if not divisor > 0:
            raise UsageError(f"divisor: expected a positive number, got {divisor}", argument="divisor")
        return float(divisor)
    if dtype not in _DIVISORS:
        raise UsageError(
            f"divisor: {path} holds {dtype}, whose scale is not known: give what its values are to be "
            "divided by",
            argument="divisor",
        )
    return _DIVISORS[dtype]


def read_failure(file: Path, error: Exception) -> str:
    """Reason why a file cannot be read, in few words."""
    if not os.path.lexists(file):
        return "missing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "Read failed" in message or "not recognized" in message:
        return "corrupt or truncated" if file.stat().st_size else "empty"
    return message


def _rasterio() -> Any:
    return need("rasterio", extra="train", why="reading images")

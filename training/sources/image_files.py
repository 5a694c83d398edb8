"""Source of training images in files: one image a file, all of one shape."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from satclip_engine.errors import DataError, SatclipError
from satclip_engine.progress import size_text
from satclip_engine.training.locations import join_first
from satclip_engine.training.sources.bands import BandReader, class_note
from satclip_engine.training.sources.gdal_files import open_raster, read_errors, read_failure
from satclip_engine.training.sources.source import (
    SkippedImage,
    check_skipped,
    fingerprint,
    skip_limit,
)

_MAX_NODATA_SHARE: Final = 0.1  # of an image's pixels that may be without data; they become 0
_PROBED_FILES: Final = 21  # evenly spread, whose commonest layout is taken
_MAX_PROBED_FILES: Final = 50  # that are tried for one that can be opened
_LARGE_IMAGE_BYTES: Final = 64 << 20  # as float32, from which images are said to need memory
_NOTED_IMAGES: Final = 8  # that are looked at for classes


@dataclass(frozen=True)
class ImageLayout:
    """Bands, size and type of every image, and the scale by which stored values become (C, H, W) float32."""

    bands: tuple[int, ...]  # numbers of the bands that are read, from 1
    stored_bands: int  # of the file that the layout was taken from
    size: tuple[int, int]  # height, width
    divisor: float
    dtype: str | None = None  # of the files; None takes any
    crop: bool = False  # larger images are cut at their centre instead of being skipped
    zero_channel: int | None = None  # position at which a channel of zeros is inserted
    colours: int | None = None  # bands without transparency, that a file must have; None: stored_bands
    every_band: bool = False  # all of them are read, rather than those that the user asked for
    own_scale: bool = False  # of each file; otherwise all values are divided by `divisor`
    scaled: bool = False  # the files have scale and offset, and these are used
    palette: bool = False  # colours come from palettes

    @property
    def channels(self) -> int:
        return len(self.bands) + (self.zero_channel is not None)

    def identity(self) -> dict[str, Any]:
        """All that decides an image's values."""
        plain = ("colours", "every_band", "own_scale")
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in plain and (value or name not in ("scaled", "palette"))
        }


class ImageFiles:
    """Images in files, with locations from an index or from the files themselves."""

    def __init__(
        self,
        name: str,
        files: Sequence[str],  # paths and GDAL names
        lonlat: np.ndarray,  # (N, 2) float64 degrees
        layout: ImageLayout,
        *,
        stats: Sequence[tuple[int, int]],  # bytes and time of change (ns) of each file
        skipped: Sequence[SkippedImage] = (),
        notes: Sequence[str] = (),
        max_skipped: int | None = None,
    ) -> None:
        total = len(files) + len(skipped)
        self._files = list(files)
        self.name, self.layout = name, layout
        self.lonlat = lonlat
        self.skipped = tuple(skipped)
        self.max_skipped = skip_limit(total, max_skipped)
        check_skipped(self.skipped, total, self.max_skipped, name)
        self.notes = (*notes, *self._notes())
        names = "\0".join(os.path.basename(file) for file in files).encode("utf-8", "surrogateescape")
        self.fingerprint = fingerprint(
            "image files", layout.identity(), names, lonlat, np.asarray(stats, np.int64).reshape(-1, 2)
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

    def _read(self, file: str) -> np.ndarray | SkippedImage:
        try:
            with open_raster(file) as dataset:
                return self._values(file, dataset)
        except read_errors(SatclipError) as error:
            return SkippedImage(file, read_failure(file, error))

    def _values(self, file: str, dataset: Any) -> np.ndarray | SkippedImage:
        layout = self.layout
        reader = BandReader(
            dataset,
            file,
            bands=None if layout.every_band else layout.bands,
            divisor=None if layout.own_scale else layout.divisor,
        )
        if mismatch := self._mismatch(dataset, reader):
            return SkippedImage(file, mismatch)
        stored, gaps = reader.read(dataset, _centre(dataset, layout.size))
        read = reader.to_float(stored)
        missing = ~np.isfinite(read).all(axis=0)
        missing = missing if gaps is None else missing | gaps
        if missing.mean() > _MAX_NODATA_SHARE:
            return SkippedImage(file, f"{100 * missing.mean():.0f} % of its pixels hold no data")
        read[:, missing] = 0.0
        if layout.zero_channel is None:
            return read
        return np.insert(read, layout.zero_channel, 0.0, axis=0)

    def _mismatch(self, dataset: Any, reader: BandReader) -> str:
        """Difference of a file from the layout, in words; empty when there is none."""
        layout = self.layout
        colours = layout.colours or layout.stored_bands
        if len(reader.opaque) != colours:
            return f"{len(reader.opaque)} bands, expected {colours}"
        height, width = layout.size
        fits = (
            dataset.height >= height and dataset.width >= width
            if layout.crop
            else dataset.shape == layout.size
        )
        if not fits:
            least = "at least " if layout.crop else ""
            return f"{dataset.height}×{dataset.width} pixels, expected {least}{height}×{width}"
        if layout.dtype and reader.dtype != layout.dtype:
            return f"values are {reader.dtype}, expected {layout.dtype}"
        if reader.scaled != layout.scaled:
            return "a scale and offset" if reader.scaled else "no scale and offset, which the others have"
        return ""

    def _notes(self) -> list[str]:
        """Notes on the images: their memory, and values that look like classes."""
        height, width = self.size
        size = 4 * self.channels * height * width
        large = (
            f"an image of {height}×{width} pixels takes {size_text(size)}, and several are in memory at "
            "once with their views: where that is too much, cut the images up, or read with fewer threads"
        )
        return [large] * (size >= _LARGE_IMAGE_BYTES) + self._class_note()

    def _class_note(self) -> list[str]:
        layout = self.layout
        if layout.channels != 1 or layout.scaled or not (layout.dtype or "").lstrip("u").startswith("int"):
            return []
        images = [
            image
            for image in self.read(range(min(_NOTED_IMAGES, len(self))))
            if not isinstance(image, SkippedImage)
        ]
        stored = [np.rint(image * layout.divisor).astype(np.int64).ravel() for image in images]
        return class_note(np.concatenate(stored), layout.divisor, self.name) if stored else []


def _centre(dataset: Any, size: tuple[int, int]) -> Any:
    """Window of that size at the centre of a raster."""
    from rasterio.windows import Window

    height, width = size
    return Window((dataset.width - width) // 2, (dataset.height - height) // 2, width, height)


class _StoredForm(NamedTuple):
    """Properties that images must have in common."""

    colours: int
    size: tuple[int, int] | None  # None: any, because they are cut
    dtype: str
    scaled: bool


def probe_layout(
    files: Sequence[str],
    *,
    bands: Sequence[int] | None,
    size: int | tuple[int, int] | None,
    divisor: float | None,
) -> ImageLayout:
    """Take the layout that most of some files have; what the user asks for comes first.

    Raises DataError when none can be opened.
    """
    asked_size = (size, size) if isinstance(size, int) else size
    spread = np.linspace(0, len(files) - 1, min(len(files), _PROBED_FILES)).astype(int)
    forms, failures = _stored_forms([files[index] for index in spread], asked_size)
    for file in files[:_MAX_PROBED_FILES]:
        if forms:
            break
        forms, more = _stored_forms([file], asked_size)
        failures |= more
    if not forms:
        reasons = [f"{file} ({reason})" for file, reason in failures.items()]
        raise DataError(f"none of {len(reasons)} images can be opened: {join_first(reasons, '; ')}")
    common = Counter(forms.values()).most_common(1)[0][0]  # of equals the first
    file = next(file for file, form in forms.items() if form == common)
    with open_raster(file) as dataset:
        reader = BandReader(dataset, file, bands=bands, divisor=divisor)
        return ImageLayout(
            bands=reader.bands,
            stored_bands=dataset.count,
            size=asked_size or dataset.shape,
            divisor=reader.divisor,
            dtype=reader.dtype,
            crop=asked_size is not None,
            colours=len(reader.opaque),
            every_band=bands is None,
            own_scale=divisor is None,
            scaled=reader.scaled,
            palette=reader.palette is not None,
        )


def _stored_forms(
    files: Sequence[str], asked_size: tuple[int, int] | None
) -> tuple[dict[str, _StoredForm], dict[str, str]]:
    """Forms of the files that can be opened, and why others cannot."""
    forms, failures = {}, {}
    for file in files:
        try:
            with open_raster(file) as dataset:
                reader = BandReader(dataset, file, divisor=1.0)
                size = None if asked_size else dataset.shape
                forms[file] = _StoredForm(len(reader.opaque), size, reader.dtype, reader.tagged)
        except read_errors(DataError) as error:
            failures[file] = read_failure(file, error)
    return forms, failures

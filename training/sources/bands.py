"""Bands of an open raster as channels: palettes as colours, transparency and masks as gaps, scale and offset.

| in the file | what is read |
|---|---|
| a palette, also of 16 bits | red, green, blue; entries without opacity are gaps |
| an alpha band, a mask inside or beside the file | gaps, no channel |
| one, two or four bits a pixel | grey between 0 and 1 |
| scale and offset of a band | value = stored · scale + offset, unless a divisor is asked for |
| CMYK, YCbCr | red, green, blue, as GDAL converts them; other colour spaces are refused |
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from satclip_engine.errors import DataError, UsageError
from satclip_engine.training.sources.gdal_files import check_has_bands

# By dtype, where neither the user names a divisor nor the file a scale: reflectances are stored times 10,000.
_DIVISORS: Final = {"uint8": 255.0, "uint16": 10000.0, "int16": 10000.0, "float32": 1.0, "float64": 1.0}
_FOREIGN_COLOURS: Final = (
    *("hue", "saturation", "lightness", "cyan", "magenta", "yellow", "black"),
    *("Y", "Cb", "Cr"),
)
_COLOURS: Final = 3  # red, green, blue
_MAX_CLASSES: Final = 64  # different values of a band that looks like a map of classes
_PIXELS_PER_CLASS: Final = 50  # that are looked at, at least


class BandReader:
    """Reads bands of an open raster, and says how.

    bands: numbers from 1; by default all but transparency. A palette gives 1, 2, 3: red, green, blue.
    divisor: of stored values; by default by the file's scale and offset, or by what is usual for its type.

    Raises DataError for what holds no bands or no colours that are known, UsageError for bands that it does
    not have and for a type whose divisor is not known.
    """

    def __init__(
        self,
        dataset: Any,
        path: str | os.PathLike[str],
        *,
        bands: Sequence[int] | None = None,
        divisor: float | None = None,
    ) -> None:
        name = os.fspath(path)
        check_has_bands(dataset, name)
        _check_colours(dataset, name)
        self.palette = _palette(dataset)  # (N, 4) red, green, blue, opacity of every index
        self._bits = _bits(dataset)
        self.opaque = _opaque_bands(dataset)
        if self.palette is not None:
            self._index_band = self.opaque[0]
            grey = self._bits == 1 and _is_grey(self.palette)
            self.opaque = (1,) if grey else (1, 2, 3)
        present = dataset.indexes if self.palette is None else self.opaque
        self.bands = self.opaque if bands is None else check_bands(bands, present, name)
        self.dtype = "uint8" if self.palette is not None else dataset.dtypes[self.bands[0] - 1]
        self._scale, self._offset = self._tags(dataset, name)
        self.tagged = bool((self._scale != 1.0).any() or (self._offset != 0.0).any())
        self.scaled = self.tagged and divisor is None
        bits = 8 if self.palette is not None else self._bits
        self.divisor = 1.0 if self.scaled else choose_divisor(self.dtype, divisor, name, bits=bits)
        transparent = self.palette is not None and bool((self.palette[:, _COLOURS] == 0).any())
        self.has_gaps = transparent or _is_masked(dataset)

    def _tags(self, dataset: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Scale and offset of each band."""
        if self.palette is not None:
            return np.ones(len(self.bands)), np.zeros(len(self.bands))
        scale = np.array([dataset.scales[band - 1] for band in self.bands], np.float64)
        offset = np.array([dataset.offsets[band - 1] for band in self.bands], np.float64)
        if not (np.isfinite(scale).all() and np.isfinite(offset).all() and (scale != 0).all()):
            raise DataError(f"{name}: its scale or offset is 0 or no number")
        return scale, offset

    def read(self, dataset: Any, window: Any = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Read stored values (C, h, w) and the mask (h, w) of pixels without data; None where all have."""
        if self.palette is None:
            return dataset.read(list(self.bands), window=window), self._gaps(dataset, window)
        index = dataset.read(self._index_band, window=window)
        colours = self.palette[index]
        values = np.stack([colours[..., band - 1] for band in self.bands])
        if not self.has_gaps:
            return values, None
        gaps = colours[..., _COLOURS] == 0
        return values, gaps | (dataset.dataset_mask(window=window) == 0) if _is_masked(dataset) else gaps

    def _gaps(self, dataset: Any, window: Any) -> np.ndarray | None:
        """Mask of pixels without data.

        0 in integers and anything in 8 bits may be a value too, so there all bands must be nodata.
        """
        from rasterio.enums import MaskFlags

        if not _is_masked(dataset):
            return None
        nodata = [dataset.nodatavals[band - 1] for band in self.bands]
        flags = [dataset.mask_flag_enums[band - 1] for band in self.bands]
        is_value = self.dtype == "uint8" or all(value in (None, 0) for value in nodata)
        if not is_value and any(MaskFlags.nodata in flag for flag in flags):
            return (dataset.read_masks(list(self.bands), window=window) == 0).any(axis=0)
        return dataset.dataset_mask(window=window) == 0

    def to_float(self, stored: np.ndarray) -> np.ndarray:  # (..., C, h, w)
        """Stored values as float32: by the file's scale and offset, or divided."""
        if self.scaled:
            scale, offset = self._scale[:, None, None], self._offset[:, None, None]
            return (stored * scale + offset).astype(np.float32)
        return stored.astype(np.float32) / np.float32(self.divisor)


def choose_divisor(dtype: str, divisor: float | None, path: str, *, bits: int = 8) -> float:
    """Divisor of stored values: the user's, or the usual one of the type. Raises UsageError without one."""
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
    return float(2**bits - 1) if dtype == "uint8" and bits < 8 else _DIVISORS[dtype]


def class_note(stored: np.ndarray, divisor: float, name: str) -> list[str]:
    """A note when the stored values of a band look like numbers of classes."""
    classes = np.unique(stored)
    is_few = 2 < classes.size <= min(_MAX_CLASSES, stored.size // _PIXELS_PER_CLASS)
    if stored.dtype.kind not in "iu" or not is_few:
        return []
    return [
        f"{name} holds {classes.size} different whole numbers, {classes[0]} to {classes[-1]}: if they are "
        f"classes, their order and distance mean nothing, and yet {classes[-1]} is read as "
        f"{classes[-1] / divisor:.3g}: give one band of zeros and ones a class"
    ]


def _check_colours(dataset: Any, name: str) -> None:
    foreign = [meaning.name for meaning in dataset.colorinterp if meaning.name in _FOREIGN_COLOURS]
    if foreign:
        raise DataError(f"{name}: its bands are {', '.join(foreign)}: convert it to red, green and blue")
    if any("complex" in dtype for dtype in dataset.dtypes):
        raise DataError(f"{name}: its values are complex numbers: give a raster of real ones")


def _opaque_bands(dataset: Any) -> tuple[int, ...]:
    """Numbers of all bands but transparency."""
    from rasterio.enums import ColorInterp

    meanings = zip(dataset.indexes, dataset.colorinterp, strict=True)
    return tuple(index for index, meaning in meanings if meaning != ColorInterp.alpha)


def _palette(dataset: Any) -> np.ndarray | None:
    """Colours of a paletted raster, (N, 4) uint8 for all N values of its type; None for others.

    Values that the palette does not have are transparent.
    """
    from rasterio.enums import ColorInterp

    bands = _opaque_bands(dataset)
    if len(bands) != 1 or dataset.colorinterp[bands[0] - 1] != ColorInterp.palette:
        return None
    if dataset.dtypes[bands[0] - 1] not in ("uint8", "uint16"):
        return None
    entries = dataset.colormap(bands[0])
    table = np.zeros((np.iinfo(dataset.dtypes[bands[0] - 1]).max + 1, 4), np.uint8)
    table[list(entries)] = list(entries.values())
    return table


def _is_grey(palette: np.ndarray) -> bool:
    return bool((palette[:, :_COLOURS] == palette[:, :1]).all())


def _bits(dataset: Any) -> int:
    """Bits of a pixel; 8 where the file does not say."""
    bits = dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", "")
    return int(bits) if bits.isdigit() and int(bits) > 0 else 8


def _is_masked(dataset: Any) -> bool:
    from rasterio.enums import MaskFlags

    return any(MaskFlags.all_valid not in flags for flags in dataset.mask_flag_enums)


def check_bands(bands: Sequence[int], present: Sequence[int], path: str) -> tuple[int, ...]:
    """Numbers of bands as they were asked for. Raises UsageError for those that are not among the present."""
    missing = [band for band in bands if band not in present]
    if missing or not bands:
        numbers = ", ".join(map(str, missing)) or "none"
        raise UsageError(f"bands: {path} has bands 1 to {len(present)}, not {numbers}", argument="bands")
    return tuple(bands)

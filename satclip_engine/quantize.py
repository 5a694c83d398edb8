"""Quantisation: integer codes with a scale and an offset per band, or floats, as a raster stores them.

    value = code · scale + offset

int8 uses codes −127..127 and int16 −32767..32767; the one code below them means "no data" and is never
produced by data. Floats mean themselves and NaN is no data. Scale and offset are float32 numbers (kept as
float64), so that GDAL's decimal tags hold them exactly.

A quantiser is fitted to a sample of the raster's own pixels. What lies beyond the largest code is clipped,
counted and reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from satclip_engine.backends.protocols import Call, Prepared, Quantise
from satclip_engine.errors import Argument, UsageError

# Pixels evaluated to find every band's range; rasters of up to as many are evaluated completely.
SAMPLE_PIXELS = 1 << 16
# By how much a sampled range is widened at either end, as a fraction of it. With 65536 pixels a tail of a
# Gaussian band reaches beyond the sample with about 1.5e-5 of its values; a quarter of a standard deviation
# more leaves a third of that, so that all of 256 bands stay below MAX_CLIPPED.
RANGE_MARGIN = 0.03
MAX_CLIPPED = 1e-4  # of a band's values; more is reported as a warning
# Samples taken until enough pixels have data: a projection's domain may be a small part of the raster.
SAMPLING_ROUNDS = 4
MIN_VALID_SHARE = 1 / 8  # of the sample


@dataclass(frozen=True)
class SampleType:
    """Storage of one dtype in a TIFF: the tags BitsPerSample, SampleFormat, Predictor, GDAL_NODATA."""

    name: str
    largest_code: int | None  # None for floats
    sample_format: int  # 2 signed integer, 3 float
    predictor: int  # 2 differences of integers, 3 of the byte planes of floats

    @property
    def bytes(self) -> int:
        return np.dtype(self.name).itemsize

    @property
    def nodata(self) -> str:
        """The value that means no data, as GDAL_NODATA writes it."""
        return "nan" if self.largest_code is None else str(-self.largest_code - 1)


SAMPLE_TYPES = {
    "int8": SampleType("int8", 127, 2, 2),
    "int16": SampleType("int16", 32767, 2, 2),
    "float16": SampleType("float16", None, 3, 3),
    "float32": SampleType("float32", None, 3, 3),
}


@dataclass(frozen=True, eq=False)
class Quantiser:
    """Scale and offset of every band of a raster; None for floats."""

    sample: SampleType
    scale: np.ndarray | None = None  # (E,) float64
    offset: np.ndarray | None = None  # (E,) float64

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Stored numbers for (..., E) values: the definition that the compiled kernel is tested against."""
        values = np.asarray(values, np.float32)
        if self.scale is None or self.offset is None:
            return values.astype(self.sample.name)
        return self.quantise.codes(values, self.sample.name)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Values (float64, NaN for no data) of (..., E) stored numbers, as GDAL's readers compute them."""
        if self.scale is None or self.offset is None:
            return np.asarray(codes, np.float64)
        missing = codes == int(self.sample.nodata)
        return np.where(missing, np.nan, codes * self.scale + self.offset)

    @property
    def inverse_scale(self) -> np.ndarray:
        """Factors of values, (E,) float32: 1 / scale. Integers only."""
        assert self.scale is not None
        return (1.0 / self.scale).astype(np.float32)

    @property
    def quantise(self) -> Quantise:
        """The rule by which kernels make codes. Integers only."""
        assert self.offset is not None
        return Quantise(self.inverse_scale, self.offset.astype(np.float32))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; floats survive it exactly."""
        return {
            "dtype": self.sample.name,
            "scale": None if self.scale is None else self.scale.tolist(),
            "offset": None if self.offset is None else self.offset.tolist(),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Quantiser:
        scale, offset = content["scale"], content["offset"]
        return cls(
            SAMPLE_TYPES[content["dtype"]],
            None if scale is None else np.asarray(scale, np.float64),
            None if offset is None else np.asarray(offset, np.float64),
        )


@dataclass(eq=False)
class QuantisationStatistics:
    """Counts of what quantising did to the pixels of the raster (overviews not counted).

    Adding them is exact in any order.
    """

    clipped: np.ndarray  # (E,) int64 values beyond the largest code
    overshoot: np.ndarray  # (E,) float32 the farthest of them, in codes (floats: in value)
    valid: int = 0  # pixels with data
    pixels: int = field(default=0)

    @classmethod
    def zero(cls, bands: int) -> QuantisationStatistics:
        return cls(np.zeros(bands, np.int64), np.zeros(bands, np.float32))

    def add(self, other: QuantisationStatistics) -> None:
        self.clipped += other.clipped
        np.maximum(self.overshoot, other.overshoot, out=self.overshoot)
        self.valid += other.valid
        self.pixels += other.pixels


def sample_type(dtype: str) -> SampleType:
    """The storage of a dtype by name. Raises UsageError for one that rasters cannot have."""
    if dtype not in SAMPLE_TYPES:
        raise UsageError(f"dtype must be one of {', '.join(SAMPLE_TYPES)}, not {dtype!r}", argument="dtype")
    return SAMPLE_TYPES[dtype]


def fit(sample: SampleType, low: np.ndarray, high: np.ndarray, *, complete: bool) -> Quantiser:
    """A quantiser for bands whose values were seen between `low` and `high`, (E,) each.

    complete: every pixel was seen, so no margin is needed. A band that is constant keeps its value exactly as
    its offset, and any deviation from it counts as clipped.
    """
    if sample.largest_code is None:
        return Quantiser(sample)
    low, high = low.astype(np.float64), high.astype(np.float64)
    margin = 0.0 if complete else RANGE_MARGIN
    half = (high - low) * (0.5 + margin)
    offset = ((low + high) / 2).astype(np.float32).astype(np.float64)
    # Rounding the offset moves the ends of the range by as much.
    half += np.abs(offset - (low + high) / 2)
    floor = np.maximum(np.abs(offset), 1e-30) * 2.0**-23
    scale = np.maximum(half / sample.largest_code, floor).astype(np.float32)
    scale = np.where(
        scale.astype(np.float64) * sample.largest_code < half, np.nextafter(scale, np.float32(np.inf)), scale
    )
    return Quantiser(sample, scale.astype(np.float64), offset)


def sample_indices(shape: tuple[int, int], pixels: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of a stratified sample of a raster: a list of (rows, columns) whose products are the
    sample.

    One jittered row and column in each of equally high rows and equally wide columns; columns change every
    few rows. All pixels when there are no more than `pixels`. The same for the same arguments everywhere.
    """
    height, width = shape
    if height * width <= pixels:
        return [(rows, np.arange(width)) for rows in np.array_split(np.arange(height), -(-height // 16))]
    # As square as pixels allow, but never fewer than 64 rows or columns where the raster has them.
    square = round((pixels * height / width) ** 0.5)
    down = max(min(height, 64), min(square, height, pixels // min(width, 64)))
    across = min(width, max(1, pixels // down))
    random = np.random.Generator(np.random.PCG64(seed))

    def strata(size: int, count: int) -> np.ndarray:
        edges = np.linspace(0, size, count + 1)
        return np.minimum(np.floor(edges[:-1] + random.random(count) * np.diff(edges)), size - 1).astype(
            np.int64
        )

    rows = np.unique(strata(height, down))
    return [(chunk, np.unique(strata(width, across))) for chunk in np.array_split(rows, -(-rows.size // 16))]


def find_quantiser(network: Prepared, grid: Any, sample: SampleType, threads: int) -> Quantiser:
    """Fit a quantiser to a stratified sample of the grid's pixels.

    Raises UsageError when none of them has data.
    """
    low = np.full(network.embed_dim, np.inf, np.float32)
    high = -low
    valid_pixels, complete = 0, grid.shape[0] * grid.shape[1] <= SAMPLE_PIXELS
    for seed in range(SAMPLING_ROUNDS):
        for rows, columns in sample_indices(grid.shape, SAMPLE_PIXELS, seed):
            values = network.encode_pixels(grid, rows, columns, call=Call(threads))
            pixels = values.reshape(-1, network.embed_dim)
            valid = pixels[~np.isnan(pixels[:, 0])]
            valid_pixels += len(valid)
            if len(valid):
                np.minimum(low, valid.min(axis=0), out=low)
                np.maximum(high, valid.max(axis=0), out=high)
        if (
            complete
            or valid_pixels >= SAMPLE_PIXELS * MIN_VALID_SHARE
            or (sample.largest_code is None and valid_pixels)
        ):
            break
    if not valid_pixels:
        height, width = grid.shape
        raise UsageError(
            f"none of the {height} × {width} pixels lies on Earth: they are outside the domain of CRS "
            f"{grid.crs}; choose other ",
            Argument("bounds"),
            argument="grid",
        )
    return fit(sample, low, high, complete=complete)

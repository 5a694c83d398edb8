"""Quantisation: integer codes with a scale and an offset per band, or floats, as a raster stores them.

    value = code · scale + offset

int8 uses codes −127..127 and int16 −32767..32767; the one code below them means "no data" and is never
produced by data. uint8 is int8 with 128 added, so that data are 1..255 and no data is 0, which tools fill in
where they know nothing. Floats mean themselves and NaN is no data.

All three are one grid of values: for the same range int16's step is a 256th of int8's, and zero of the
offset's. Scales have few digits and offsets are whole steps, so that both, uint8's offset too, are float32
numbers, and so that ranges that differ in their last bits give the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from satclip_engine.backends.protocols import Quantise
from satclip_engine.errors import UsageError

# By how much a sampled range is widened at either end, as a fraction of it. With 65536 points a tail of a
# Gaussian band reaches beyond the sample with about 1.5e-5 of its values; a quarter of a standard deviation
# more leaves a third of that, so that all of 256 bands stay below MAX_CLIPPED.
RANGE_MARGIN = 0.03
MAX_CLIPPED = 1e-4  # of a band's values; more is reported as a warning
_STEPS = 127  # of int8 on either side of the offset
_SCALE_BITS = 12  # significant ones of a scale, fewer where an offset is many steps
_FLOAT32_BITS = 24


@dataclass(frozen=True)
class SampleType:
    """Storage of one dtype in a TIFF: the tags BitsPerSample, SampleFormat, Predictor, GDAL_NODATA."""

    name: str
    largest_code: int | None  # None for floats
    sample_format: int  # 1 unsigned integer, 2 signed, 3 float
    predictor: int  # 2 differences of integers, 3 of the byte planes of floats
    zero: int = 0  # added to all codes
    step: float = 1.0  # in those of int8, for the same range

    @property
    def bytes(self) -> int:
        return np.dtype(self.name).itemsize

    @property
    def nodata(self) -> str:
        """The value that means no data, as GDAL_NODATA writes it."""
        return "nan" if self.largest_code is None else str(self.zero - self.largest_code - 1)


SAMPLE_TYPES = {
    "int8": SampleType("int8", 127, 2, 2),
    "uint8": SampleType("uint8", 127, 1, 2, zero=128),
    "int16": SampleType("int16", 32767, 2, 2, step=2.0**-8),
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
        signed = self.quantise.codes(values, f"int{8 * self.sample.bytes}")
        return (signed.astype(np.int32) + self.sample.zero).astype(self.sample.name)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Values (float64, NaN for no data) of (..., E) stored numbers, as GDAL's readers compute them."""
        if self.scale is None or self.offset is None:
            return np.asarray(codes, np.float64)
        missing = codes == int(self.sample.nodata)
        return np.where(missing, np.nan, codes * self.scale + self.offset)

    @property
    def quantise(self) -> Quantise:
        """The rule by which kernels make signed codes. Integers only."""
        assert self.scale is not None
        assert self.offset is not None
        centre = self.offset + self.sample.zero * self.scale
        return Quantise((1.0 / self.scale).astype(np.float32), centre.astype(np.float32))

    @property
    def factors(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The same as kernels that store floats too take it: None of these."""
        return (None, None) if self.scale is None else self.quantise

    @property
    def is_common(self) -> bool:
        """True where all bands have one scale and offset."""
        pairs = (self.scale, self.offset)
        return all(values is None or bool((values == values[0]).all()) for values in pairs)

    def of_type(self, sample: SampleType) -> Quantiser:
        """Codes of another integer type for the same values."""
        assert self.scale is not None
        assert self.offset is not None
        scale = self.scale * (sample.step / self.sample.step)
        return Quantiser(sample, scale, self.offset + self.sample.zero * self.scale - sample.zero * scale)

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


def fit(sample: SampleType, low: np.ndarray, high: np.ndarray, *, margin: float = 0.0) -> Quantiser:
    """A quantiser for bands whose values lie between `low` and `high`, (E,) each.

    margin: of the range, added at either end. A band that is constant keeps its value as its offset, to
    float32's precision, and what deviates from it by 2e-5 of it counts as clipped.
    """
    if sample.largest_code is None:
        return Quantiser(sample)
    low, high = low.astype(np.float64), high.astype(np.float64)
    centre, half = (low + high) / 2, (high - low) * (0.5 + margin)
    # Rounding the offset to whole steps moves the ends of the range by half of one.
    least = np.maximum(np.spacing(np.abs(centre).astype(np.float32)).astype(np.float64), 1e-30)
    scale = np.maximum(half / (_STEPS - 0.5), least)
    digits = np.ceil(np.log2(np.abs(centre) / scale + 2 * (_STEPS + 1)))  # of the offset, in steps
    unit = np.ldexp(1.0, np.frexp(scale)[1] - np.clip(_FLOAT32_BITS - digits, 1, _SCALE_BITS).astype(int))
    scale = np.ceil(scale / unit) * unit
    return Quantiser(SAMPLE_TYPES["int8"], scale, np.rint(centre / scale) * scale).of_type(sample)

"""Packing of an atlas's nodes into the numbers of its arrays, and back.

float16, float32   the values themselves
int16              codes: value = code · scale + offset, (E,) each. A smooth field's codes are predicted well
                   by their neighbours, so within each chunk third differences along rows and then along
                   columns are stored, with the sign in the lowest bit: 0, −1, 1, −2 … become 0, 1, 2, 3 …
                   Everything is modulo 2¹⁶. Compressed, they take half of what codes take.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from satclip_engine.lattice.nodes import BLOCK_COLUMNS

NODE_DTYPES = ("int16", "float16", "float32")
DIFFERENCES = 3  # along each axis; 2 or 4 take more: 0.59, 0.54, 0.56 of the bytes with the default weights
_LARGEST_CODE = 32767
_RANGE_MARGIN = 0.03  # of a band's range, on either side of what a sample showed


@dataclass(frozen=True, eq=False)
class Packing:
    """A dtype, and scale and offset of its numbers, (E,) float32 each."""

    dtype: str
    scale: np.ndarray
    offset: np.ndarray

    @property
    def fill(self) -> int | float:
        """Fill value of chunks that were not written; it is no code."""
        return -_LARGEST_CODE - 1 if self.dtype == "int16" else float("nan")

    def half_step(self, largest: np.ndarray) -> np.ndarray:
        """The largest rounding error of a stored node, (E,), in bands of that largest size."""
        if self.dtype == "int16":
            return self.scale.astype(np.float64) / 2
        return largest * 2.0 ** (-11 if self.dtype == "float16" else -24)

    def codes(self, values: np.ndarray) -> np.ndarray:
        """(h, w, E) values in the arrays' dtype, int16 as codes. Raises RangeExceeded if they do not fit."""
        if self.dtype != "int16":
            with np.errstate(over="ignore"):
                floats = values.astype(self.dtype)
            if not np.isfinite(floats).all():
                raise RangeExceeded(*_range(values))
            return floats
        scaled = np.rint((values - self.offset) / self.scale)
        if not (np.abs(scaled) <= _LARGEST_CODE).all():
            raise RangeExceeded(*_range(values))
        return scaled.astype(np.int16)

    def values(self, codes: np.ndarray, index: np.ndarray | None = None) -> np.ndarray:
        """Values of codes given as float32 numbers, (..., E); of some of the bands when an index is given."""
        values = codes if index is None else codes[..., index]
        if self.dtype == "int16":
            scale, offset = (a if index is None else a[index] for a in (self.scale, self.offset))
            values *= scale
            values += offset
        return values


class RangeExceeded(Exception):
    """Values that a packing has no codes for; holds the least and the largest of each band."""

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.low, self.high = low, high


def make_packing(dtype: str, low: np.ndarray, high: np.ndarray) -> Packing:
    """A packing for bands of about these ranges, (E,) each."""
    if dtype != "int16":
        return Packing(dtype, np.ones(low.size, np.float32), np.zeros(low.size, np.float32))
    # A constant band still has rounding.
    span = np.maximum((high - low) * (1 + 2 * _RANGE_MARGIN), 1e-5 * np.maximum(np.abs(low), np.abs(high)))
    scale = np.maximum(span / (2 * _LARGEST_CODE), 1e-30)
    return Packing(dtype, scale.astype(np.float32), ((low + high) / 2).astype(np.float32))


def _range(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.min(axis=(0, 1)).astype(np.float64), values.max(axis=(0, 1)).astype(np.float64)


def differenced(codes: np.ndarray) -> np.ndarray:
    """One row of chunks of int16 codes, (16, w, E), as they are stored."""
    out = np.empty_like(codes)
    for left in range(0, codes.shape[1], BLOCK_COLUMNS):
        chunk = codes[:, left : left + BLOCK_COLUMNS].copy()
        for axis in (0, 1):
            for _ in range(DIFFERENCES):
                first = chunk[:1] if axis == 0 else chunk[:, :1]
                chunk = np.diff(chunk, axis=axis, prepend=np.zeros_like(first))
        out[:, left : left + BLOCK_COLUMNS] = (chunk << 1) ^ (chunk >> 15)
    return out


def undifferenced(chunk: np.ndarray) -> np.ndarray:
    """The codes of one stored chunk, (h, w, E) int16."""
    unsigned = chunk.view(np.uint16)
    codes = ((unsigned >> 1) ^ (np.uint16(0) - (unsigned & 1))).view(np.int16)
    for axis in (1, 0):
        for _ in range(DIFFERENCES):
            np.cumsum(codes, axis=axis, dtype=np.int16, out=codes)
    return codes

"""Quantised results: integer codes of values, as csrc/cpu/raster.h stores them.

code = (value − offset)·inverse_scale, rounded to the nearest even, within ±127 or ±32767; NaN → nodata
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.launch import Work, cdiv, config, launch

_TYPES = {"int8": torch.int8, "int16": torch.int16}
_ROUNDING = tl.constexpr(12582912.0)  # 1.5·2²³: adding it rounds to an integer


@dataclass(frozen=True)
class Quantise:
    """How values become codes. inverse_scale, offset: (E,) float32 on the device of the values."""

    dtype: str  # "int8" or "int16"
    inverse_scale: Tensor
    offset: Tensor

    def __post_init__(self) -> None:
        if self.dtype not in _TYPES:
            raise ValueError(f"codes are int8 or int16, not {self.dtype}")

    @property
    def type(self) -> torch.dtype:
        return _TYPES[self.dtype]

    @property
    def bits(self) -> int:
        return torch.iinfo(self.type).bits


@triton.jit
def codes(value, inverse_scale, offset, BITS: tl.constexpr):
    """Codes of a float32 tile, one row of constants for all its rows: (n, E), (E,), (E,) → (n, E) int8 or int16."""
    LIMIT: tl.constexpr = 2 ** (BITS - 1) - 1
    code = (value - offset[None, :]) * inverse_scale[None, :]
    code = tl.where(code > LIMIT, LIMIT, tl.where(code < -LIMIT, -LIMIT, code))
    code = (code + _ROUNDING) - _ROUNDING
    code = tl.where(code == code, code, -LIMIT - 1)
    return code.to(tl.int8) if BITS == 8 else code.to(tl.int16)


@triton.jit
def _quantise(
    values,
    out,
    inverse_scale,
    offset,
    count,
    width,
    BITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    unit = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    mask = (row < count)[:, None] & (unit < width)[None, :]
    at = row[:, None].to(tl.int64) * width + unit[None, :]
    scales = tl.load(inverse_scale + unit, unit < width, 0.0)
    offsets = tl.load(offset + unit, unit < width, 0.0)
    value = tl.load(values + at, mask, 0.0)
    tl.store(out + at, codes(value, scales, offsets, BITS), mask)


def quantise(values: Tensor, how: Quantise, out: Tensor) -> Tensor:
    """Codes of (N, E) float32 into `out`, contiguous like them."""
    count, width = values.shape
    shape = config("quantise", values.device)
    launch(
        _quantise,
        (cdiv(count, shape["BLOCK_N"]), cdiv(width, shape["BLOCK_E"])),
        shape,
        Work(fp32=2 * count * width, bytes=count * width * (4 + how.bits // 8)),
        values=values,
        out=out,
        inverse_scale=how.inverse_scale,
        offset=how.offset,
        count=count,
        width=width,
        BITS=how.bits,
    )
    return out

"""float32 products on 16-bit tensor cores: x = 2^k · (high + low), float16 each.

    high, low = split(x · up(largest))                            # inside a kernel
    sums = multiplied(high, low, other_high, other_low, sums)     # three products for one of float32
    sums · down(largest) · down(other's largest)

high takes the first 11 bits of x, low the next 11 and their sign, so a pair errs by 2⁻²³ |x|, and elements
below 2⁻¹⁶ of the largest by 2⁻³⁹ of it. low · low, 2⁻²² of a product, is left out. Why not 3×TF32, whose
parts have 11 bits as well: the same tensor cores multiply halves twice as fast, and weights can be split
beforehand. k is shared by what is summed up together, a row of a weight for instance, and comes from its
largest finite element, so that an element that is not finite spoils nothing but its own row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.launch import Work, cdiv, config, launch

PASSES = 3  # products of halves that make one of float32
_PROGRAMS = 1024


@triton.jit
def up(largest):
    """2^−k, which takes the largest element to [2¹⁴, 2¹⁵): float16 ends at 2¹⁶ and, downwards, at 2⁻²⁴."""
    exponent = tl.minimum(268 - (largest.to(tl.int32, bitcast=True) >> 23), 253)
    return (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def down(largest):
    """2^k."""
    exponent = tl.minimum(268 - (largest.to(tl.int32, bitcast=True) >> 23), 253)
    return ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def split(x):
    """float32 up to 65 504 in size → high, low."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def multiplied(a_high, a_low, b_high, b_low, sums):
    """sums + a · b. The small products first: tensor cores cut what they add off at 2⁻²³ of the sum."""
    sums = tl.dot(a_low, b_high, sums)
    sums = tl.dot(a_high, b_low, sums)
    return tl.dot(a_high, b_high, sums)


@triton.jit
def added(a_high, a_low, b_high, b_low, sums):
    """sums + a · b, added in float32: for long sums.

    Tensor cores cut every addition off, three for 16 elements, always towards zero: over 1600 elements that
    alone would come to some 1e-5, where float32 rounds to the nearest.
    """
    return sums + multiplied(a_high, a_low, b_high, b_low, tl.zeros_like(sums))


@triton.jit
def _largest(x, parts, count, BLOCK: tl.constexpr):
    most = tl.zeros((BLOCK,), tl.float32)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    for start in range(first, count, tl.num_programs(0) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        size = tl.abs(tl.load(x + at, mask=at < count, other=0.0))
        most = tl.maximum(most, tl.where(size < float("inf"), size, 0.0))
    tl.store(parts + tl.program_id(0), tl.max(most, 0))


def largest(x: Tensor) -> Tensor:
    """() float32: the largest finite element of a contiguous float32 tensor in size, 0 if there is none."""
    shape = config("largest", x.device)
    programs = max(1, min(_PROGRAMS, cdiv(x.numel(), shape["BLOCK"])))
    parts = x.new_zeros(programs)
    launch(
        _largest,
        (programs,),
        shape,
        Work(bytes=4 * x.numel()),
        x=x,
        parts=parts,
        count=x.numel(),
    )
    return parts.amax()


@triton.jit
def _halves(
    x,  # [rows, ...] by its strides
    column,  # [width]: which element of a row comes where, −1 for zero; or None
    values,  # [2, rows, width]
    sizes,  # [rows]
    rows,
    width,
    stride_row,
    stride_column,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    most = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        size = tl.abs(_row(x + row * stride_row, column, start, width, stride_column, BLOCK))
        most = tl.maximum(most, tl.where(size < float("inf"), size, 0.0))
    size = tl.max(most, 0)
    tl.store(sizes + row, size)
    for start in range(0, width, BLOCK):
        value = _row(x + row * stride_row, column, start, width, stride_column, BLOCK)
        high, low = split(value * up(size))
        at = start + tl.arange(0, BLOCK)
        to = values + row * width + at
        tl.store(to, high, at < width)
        tl.store(to + tl.cast(rows, tl.int64) * width, low, at < width)


@triton.jit
def _row(x, column, start, width, stride, BLOCK: tl.constexpr):
    at = start + tl.arange(0, BLOCK)
    mask = at < width
    if column is not None:
        at = tl.load(column + at, mask, -1)
        mask = at >= 0
    return tl.load(x + at.to(tl.int64) * stride, mask, 0.0)


@dataclass(frozen=True)
class Halves:
    """The rows of a matrix as pairs of float16."""

    values: Tensor  # (2, rows, width) float16, contiguous: high and low
    largest: Tensor  # (rows,) float32, the largest finite element of each in size


def halves(x: Tensor, columns: Tensor | None = None) -> Halves:
    """Split the rows of (M, K) float32, of any strides; with `columns` (K',) its columns of those numbers.

    Columns of number −1 are zero.
    """
    rows, width = len(x), x.shape[1] if columns is None else len(columns)
    values = torch.empty((2, rows, width), dtype=torch.float16, device=x.device)
    pair, shape = Halves(values, x.new_empty(rows)), config("halves", x.device)
    launch(
        _halves,
        (rows,),
        shape,
        Work(bytes=4 * x.numel() + 2 * values.numel()),
        x=x,
        column=columns,
        values=values,
        sizes=pair.largest,
        rows=rows,
        width=width,
        stride_row=x.stride(0),
        stride_column=x.stride(1),
    )
    return pair

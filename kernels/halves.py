"""float32 rows as pairs of float16, x = 2^k · (high + low), one k a tensor: for exact products of matrices.

    pair = halves(x, BLOCK_E)                        # x (n, E) float32
    high, low = tile(pair.values, ...)               # inside a kernel
    sum = multiplied(high, low, other_high, other_low, sum)   # times down(largest) · down(other largest)

high takes the first 11 bits of x and low the next 11 after its sign, so a pair errs by 2⁻²³ |x| at
most, and that of an element below 2⁻¹⁶ of the largest by 2⁻³⁹ of the largest. Three products of halves
make one of float32; what is left out, low · low, is 2⁻²² of it at most and 2⁻²⁵ as a rule. Why not
3×TF32, which leaves out as much: tensor cores multiply halves twice as fast, pairs take the memory of
float32, and both sides of a product come straight from shared memory. Triton makes TF32 parts anew for
every product and needs 320 KB of shared memory and more for blocks of 64 rows at E = 256; an H100 has
227.

k comes from the largest finite element, so an element that is not finite spoils its own row only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.launch import Work, cdiv, config, launch

ROWS = 128  # rows are padded to a multiple: every block of rows divides it, and tiles need no masks
_PROGRAMS = 1024


@triton.jit
def down(largest):
    """2^k: what a pair is to be multiplied by. The largest element has an exponent of 14 in high."""
    exponent = tl.minimum(268 - (largest.to(tl.int32, bitcast=True) >> 23), 253)
    return ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _up(largest):
    exponent = tl.minimum(268 - (largest.to(tl.int32, bitcast=True) >> 23), 253)
    return (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def split(x):
    """x, at most 65 504 in size → high, low."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def tile(values, plane, rows, element, WIDTH: tl.constexpr, BLOCK_E: tl.constexpr):
    """high, low of BLOCK_E elements of the rows, from `element` on: (len(rows), BLOCK_E) each."""
    elements = element + tl.arange(0, BLOCK_E)
    at = values + rows.to(tl.int64)[:, None] * WIDTH + elements[None, :]
    return tl.load(at), tl.load(at + plane)


@triton.jit
def multiplied(x_high, x_low, y_high, y_low, sum):
    """sum + x · y. Small products first: tensor cores cut off what they add, at 2⁻²³ of the sum so far."""
    sum = tl.dot(x_low, y_high, sum)
    sum = tl.dot(x_high, y_low, sum)
    return tl.dot(x_high, y_high, sum)


@triton.jit
def products(
    x_high,
    x_low,
    y_high,
    y_low,
    x,
    y,
    x_plane,
    y_plane,
    x_rows,
    y_rows,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Rows of x times rows of y: the tiles at hand if these are whole rows, else BLOCK_K elements a time."""
    sum = tl.zeros((x_rows.shape[0], y_rows.shape[0]), tl.float32)
    if x_high.shape[1] == WIDTH and y_high.shape[1] == WIDTH:
        sum = multiplied(x_high, x_low, tl.trans(y_high), tl.trans(y_low), sum)
    else:
        for element in range(0, WIDTH, BLOCK_K):
            left_high, left_low = tile(x, x_plane, x_rows, element, WIDTH, BLOCK_K)
            right_high, right_low = tile(y, y_plane, y_rows, element, WIDTH, BLOCK_K)
            sum = multiplied(left_high, left_low, tl.trans(right_high), tl.trans(right_low), sum)
    return sum


@triton.jit
def _halves_largest(x, parts, count, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr):
    most = tl.zeros((BLOCK,), tl.float32)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    for start in range(first, count, PROGRAMS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        size = tl.abs(tl.load(x + at, mask=at < count, other=0.0))
        most = tl.maximum(most, tl.where(size < float("inf"), size, 0.0))
    tl.store(parts + tl.program_id(0), tl.max(most, 0))


@triton.jit
def _halves_split(
    x, largest, values, plane, rows, EMBED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, element = at // WIDTH, at % WIDTH
    present = (row < rows) & (element < EMBED)
    value = tl.load(x + row * EMBED + element, mask=present, other=0.0)
    high, low = split(value * _up(tl.load(largest)))
    tl.store(values + at, high, mask=at < plane)
    tl.store(values + plane + at, low, mask=at < plane)


@dataclass(frozen=True)
class Halves:
    """A tensor of float32 as pairs."""

    values: Tensor  # (2, rows padded, width) float16: high and low; zeros in what is padded
    largest: Tensor  # () float32, the largest finite element in size

    @property
    def width(self) -> int:
        """Elements of a row, padded."""
        return self.values.shape[2]

    @property
    def plane(self) -> int:
        """Elements from high to low."""
        return self.values.shape[1] * self.values.shape[2]


def halves(x: Tensor, block: int) -> Halves:
    """x (n, E) float32, contiguous, its rows padded to a multiple of `block` elements."""
    rows, embed = x.shape
    shape = config("halves_largest", x.device)
    programs = max(1, min(_PROGRAMS, cdiv(x.numel(), shape["BLOCK"])))
    parts = x.new_empty(programs)
    launch(
        _halves_largest,
        (programs,),
        shape,
        Work(bytes=4 * x.numel()),
        x=x,
        parts=parts,
        count=x.numel(),
        PROGRAMS=programs,
    )
    values = x.new_empty((2, ROWS * cdiv(rows, ROWS), block * cdiv(embed, block)), dtype=torch.float16)
    pair = Halves(values, parts.amax())
    shape = config("halves_split", x.device)
    launch(
        _halves_split,
        (cdiv(pair.plane, shape["BLOCK"]),),
        shape,
        Work(bytes=4 * x.numel() + 2 * values.numel()),
        x=x,
        largest=pair.largest,
        values=values,
        plane=pair.plane,
        rows=rows,
        EMBED=embed,
        WIDTH=pair.width,
    )
    return pair

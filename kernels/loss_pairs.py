"""Both sides of the contrastive loss as pairs of halves (halves.py), one scale a side: operands of products.

    pair = pairs(x, BLOCK_E)                         # x (n, E) float32
    high, low = tile(pair.values, ...)               # inside a kernel

Rows and elements are padded with zeros, so that tiles need no masks. Pairs take the memory of float32,
and both sides of a product come straight from shared memory; as 3×TF32, Triton would make the parts
anew for every product and take 320 KB of shared memory and more for a block at E = 256, where an H100
has 227.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.halves import largest, multiplied, split, up
from satclip_engine.kernels.launch import Work, cdiv, config, launch

ROWS = 128  # rows are padded to a multiple: every block of rows divides it, and tiles need no masks


@triton.jit
def tile(values, plane, rows, element, WIDTH: tl.constexpr, BLOCK_E: tl.constexpr):
    """high, low of BLOCK_E elements of the rows, from `element` on: (len(rows), BLOCK_E) each."""
    elements = element + tl.arange(0, BLOCK_E)
    at = values + rows.to(tl.int64)[:, None] * WIDTH + elements[None, :]
    return tl.load(at), tl.load(at + plane)


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
def _loss_pairs(
    x, largest, values, plane, rows, EMBED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, element = at // WIDTH, at % WIDTH
    present = (row < rows) & (element < EMBED)
    value = tl.load(x + row * EMBED + element, mask=present, other=0.0)
    high, low = split(value * up(tl.load(largest)))
    tl.store(values + at, high, mask=at < plane)
    tl.store(values + plane + at, low, mask=at < plane)


@dataclass(frozen=True)
class Pairs:
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


def pairs(x: Tensor, block: int) -> Pairs:
    """x (n, E) float32, contiguous, its rows padded to a multiple of `block` elements."""
    rows, embed = x.shape
    values = x.new_empty((2, ROWS * cdiv(rows, ROWS), block * cdiv(embed, block)), dtype=torch.float16)
    pair = Pairs(values, largest(x))
    shape = config("loss_pairs", x.device)
    launch(
        _loss_pairs,
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

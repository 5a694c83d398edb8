"""float32 matrices split into pairs of float16 (device_functions/split_fp16.py): operands of tensor cores.

split_rows(weight)            # (M, K): a scale for every row
split_padded(x, BLOCK_E)      # (n, E): one scale; padded with zeros, so that tiles need no masks
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.device_functions.split_fp16 import scale_up, split
from satclip_engine.kernels.launch import Work, cdiv, launch, select_config

PADDED_ROWS = 128  # rows are padded to a multiple: every block of rows divides it, and tiles need no masks
_MAX_PROGRAMS = 1024  # of a search for the largest element


@triton.jit
def _largest(x, partial, count, BLOCK: tl.constexpr):
    largest = tl.zeros((BLOCK,), tl.float32)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    for start in range(first, count, tl.num_programs(0) * BLOCK):
        index = start + tl.arange(0, BLOCK)
        size = tl.abs(tl.load(x + index, mask=index < count, other=0.0))
        largest = tl.maximum(largest, tl.where(size < float("inf"), size, 0.0))
    tl.store(partial + tl.program_id(0), tl.max(largest, 0))


def largest(x: Tensor) -> Tensor:
    """Find the size of the largest finite element of a contiguous float32 tensor: () float32, or 0."""
    config = select_config("largest", x.device)
    programs = max(1, min(_MAX_PROGRAMS, cdiv(x.numel(), config["BLOCK"])))
    partial = x.new_zeros(programs)
    launch(
        _largest,
        (programs,),
        config,
        Work(bytes=4 * x.numel()),
        x=x,
        partial=partial,
        count=x.numel(),
    )
    return partial.amax()


@triton.jit
def _split_rows(
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
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        size = tl.abs(_load_columns(x + row * stride_row, column, start, width, stride_column, BLOCK))
        largest = tl.maximum(largest, tl.where(size < float("inf"), size, 0.0))
    size = tl.max(largest, 0)
    tl.store(sizes + row, size)
    for start in range(0, width, BLOCK):
        value = _load_columns(x + row * stride_row, column, start, width, stride_column, BLOCK)
        high, low = split(value * scale_up(size))
        index = start + tl.arange(0, BLOCK)
        pointers = values + row * width + index
        tl.store(pointers, high, index < width)
        tl.store(pointers + tl.cast(rows, tl.int64) * width, low, index < width)


@triton.jit
def _load_columns(x, column, start, width, stride, BLOCK: tl.constexpr):
    index = start + tl.arange(0, BLOCK)
    mask = index < width
    if column is not None:
        index = tl.load(column + index, mask, -1)
        mask = index >= 0
    return tl.load(x + index.to(tl.int64) * stride, mask, 0.0)


@dataclass(frozen=True)
class SplitRows:
    """The rows of a matrix as pairs of float16, each row with a scale of its own."""

    values: Tensor  # (2, rows, width) float16, contiguous: high and low
    largest: Tensor  # (rows,) float32, the largest finite element of each in size


def split_rows(x: Tensor, columns: Tensor | None = None) -> SplitRows:
    """Split the rows of (M, K) float32, of any strides; with `columns` (K',) its columns of those numbers.

    Columns of number −1 are zero.
    """
    rows, width = len(x), x.shape[1] if columns is None else len(columns)
    values = torch.empty((2, rows, width), dtype=torch.float16, device=x.device)
    operand, config = SplitRows(values, x.new_empty(rows)), select_config("split_rows", x.device)
    launch(
        _split_rows,
        (rows,),
        config,
        Work(bytes=4 * x.numel() + 2 * values.numel()),
        x=x,
        column=columns,
        values=values,
        sizes=operand.largest,
        rows=rows,
        width=width,
        stride_row=x.stride(0),
        stride_column=x.stride(1),
    )
    return operand


@triton.jit
def _split_padded(
    x, largest, values, plane, rows, EMBED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, element = index // WIDTH, index % WIDTH
    present = (row < rows) & (element < EMBED)
    value = tl.load(x + row * EMBED + element, mask=present, other=0.0)
    high, low = split(value * scale_up(tl.load(largest)))
    tl.store(values + index, high, mask=index < plane)
    tl.store(values + plane + index, low, mask=index < plane)


@dataclass(frozen=True)
class SplitPadded:
    """A matrix as pairs of float16 with one scale, padded with zeros.

    Pairs take the memory of float32, and both sides of a product come straight from shared memory; as
    3×TF32, Triton would make the parts anew for every product and take 320 KB of shared memory and more for
    a block at E = 256, where an H100 has 227.
    """

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


def split_padded(x: Tensor, block: int) -> SplitPadded:
    """Split x (n, E) float32, contiguous; its rows are padded to a multiple of `block` elements."""
    rows, embed = x.shape
    values = x.new_empty(
        (2, PADDED_ROWS * cdiv(rows, PADDED_ROWS), block * cdiv(embed, block)), dtype=torch.float16
    )
    operand = SplitPadded(values, largest(x))
    config = select_config("split_padded", x.device)
    launch(
        _split_padded,
        (cdiv(operand.plane, config["BLOCK"]),),
        config,
        Work(bytes=4 * x.numel() + 2 * values.numel()),
        x=x,
        largest=operand.largest,
        values=values,
        plane=operand.plane,
        rows=rows,
        EMBED=embed,
        WIDTH=operand.width,
    )
    return operand

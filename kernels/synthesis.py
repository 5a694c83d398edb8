"""The first layer of a product grid as float32 pre-activations: the Fourier series of rows at columns."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.launch import Work, cdiv, config, launch
from satclip_engine.kernels.stack import Stack
from satclip_engine.kernels.tile import block, product


@triton.jit
def _synthesis(
    waves,  # [≥ columns][DEPTH] float16
    panels,  # [rows][DEPTH][WIDTH] float16
    factor,  # float32, one number: what undoes the scale of the panels
    biases,  # [WIDTH] float32, scaled like them
    out,  # [rows][columns][units] float32
    columns,
    units,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    UNITS: tl.constexpr = block(BLOCK_N, WIDTH)
    tile, across = tl.program_id(0) // (WIDTH // UNITS), tl.cdiv(columns, BLOCK_P)
    row = (tile // across).to(tl.int64)
    first = tl.program_id(0) % (WIDTH // UNITS) * UNITS
    left = waves + (tile % across).to(tl.int64) * (BLOCK_P * DEPTH)
    right = panels + row * (DEPTH * WIDTH) + first
    column = (tile % across) * BLOCK_P + tl.arange(0, BLOCK_P)
    unit = first + tl.arange(0, UNITS)
    start = tl.load(biases + unit)
    value = product(left, right, start, DEPTH, WIDTH, BLOCK_P, UNITS, BLOCK_K) * tl.load(factor)
    to = out + (row * columns + column)[:, None] * units + unit[None, :]
    tl.store(to, value, (column < columns)[:, None] & (unit < units)[None, :])


def synthesis(waves: Tensor, panels: Tensor, stack: Stack, out: Tensor) -> Tensor:
    """Pre-activations into `out`, (h, w, units) float32, contiguous. waves: of w up to a multiple of BLOCK_P."""
    rows, columns, units = out.shape
    _, depth, width = panels.shape
    shape = config("synthesis", out.device)
    launch(
        _synthesis,
        (rows * cdiv(columns, shape["BLOCK_P"]) * (width // block(shape["BLOCK_N"], width)),),
        shape,
        Work(
            half=rows * columns * depth * width,
            bytes=2 * waves.numel() + 2 * panels.numel() + 4 * out.numel(),
        ),
        waves=waves,
        panels=panels,
        factor=stack.factors,
        biases=stack.biases,
        out=out,
        columns=columns,
        units=units,
        DEPTH=depth,
        WIDTH=width,
    )
    return out

"""All layers of a product grid's pixels in one kernel, with 16-bit operands: what "fast" is.

A program keeps to itself from pixels to embeddings: for a tile of one row it goes through the layers, each a
product (tile.py) with bias and sine in its epilogue; activations pass from layer to layer through a scratch of its
own, which stays in the L2 cache because programs are as many as processors and take tile after tile. The first layer's
operands are the columns' waves and the row's panel, whose split halves make its sums as good as float32.

Why not in registers: 512 units of 64 pixels in float32 fill half of a processor's registers, so weights would be
streamed from L2 once for 64 pixels, 12 KB a pixel, more than the detour of 128 pixels' activations costs.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.launch import Work, cdiv, config, launch
from satclip_engine.kernels.stack import Stack
from satclip_engine.kernels.store import Quantise, codes
from satclip_engine.kernels.tile import block, product
from satclip_engine.kernels.turns import sine_of_turns


@triton.jit
def _hidden(
    left,
    right,
    factor,
    biases,
    to,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A layer with its sine, as the next one's operand: rows of WIDTH at `to`."""
    UNITS: tl.constexpr = block(BLOCK_N, WIDTH)
    for first in tl.range(0, WIDTH, UNITS, disable_licm=True):
        unit = first + tl.arange(0, UNITS)
        start = tl.load(biases + unit)
        value = product(left, right + first, start, DEPTH, WIDTH, BLOCK_P, UNITS, BLOCK_K) * tl.load(factor)
        at = to + tl.arange(0, BLOCK_P)[:, None] * WIDTH + unit[None, :]
        tl.store(at, sine_of_turns(value).to(tl.float16))


@triton.jit
def _last(
    left,
    right,
    factor,
    biases,
    inverse_scale,
    offset,
    out,
    count,
    units,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The last layer, stored as it is or quantised: `count` pixels of `units` at `out`."""
    UNITS: tl.constexpr = block(BLOCK_E, WIDTH)
    place = tl.arange(0, BLOCK_P)
    for first in tl.range(0, WIDTH, UNITS, disable_licm=True):
        unit = first + tl.arange(0, UNITS)
        start = tl.load(biases + unit)
        value = product(left, right + first, start, DEPTH, WIDTH, BLOCK_P, UNITS, BLOCK_K) * tl.load(factor)
        at = out + place[:, None] * units + unit[None, :]
        mask = (place < count)[:, None] & (unit < units)[None, :]
        if BITS:
            scales, offsets = (
                tl.load(inverse_scale + unit, unit < units, 0.0),
                tl.load(offset + unit, unit < units, 0.0),
            )
            tl.store(at, codes(value, scales, offsets, BITS), mask)
        else:
            tl.store(at, value, mask)


@triton.jit
def _pixels(
    waves,  # [≥ columns][SIZES[0]] float16
    panels,  # [rows][SIZES[0]][SIZES[1]] float16
    weights,
    factors,
    biases,  # see Stack
    inverse_scale,
    offset,  # [units] float32, or None
    scratch,  # [programs][2][BLOCK_P][WIDEST] float16
    out,  # [rows][columns][units] float32 or BITS wide; rows lie row_stride apart
    columns,
    tiles,
    row_stride,
    units,
    SIZES: tl.constexpr,
    LAYERS: tl.constexpr,
    WEIGHTS_AT: tl.constexpr,
    UNITS_AT: tl.constexpr,
    WIDEST: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    own = scratch + tl.program_id(0).to(tl.int64) * (2 * BLOCK_P * WIDEST)
    across = tl.cdiv(columns, BLOCK_P)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), disable_licm=True):
        row, column = (tile // across).to(tl.int64), (tile % across) * BLOCK_P
        left = waves + column.to(tl.int64) * SIZES[0]
        right = panels + row * (SIZES[0] * SIZES[1])
        for layer in tl.static_range(LAYERS - 1):
            to = own + (layer % 2) * (BLOCK_P * WIDEST)
            _hidden(
                left,
                right,
                factors + layer,
                biases + UNITS_AT[layer],
                to,
                SIZES[layer],
                SIZES[layer + 1],
                BLOCK_P,
                BLOCK_N,
                BLOCK_K,
            )
            tl.debug_barrier()  # what one warp has stored others load
            left = to
            right = weights + WEIGHTS_AT[layer]
        _last(
            left,
            right,
            factors + LAYERS - 1,
            biases + UNITS_AT[LAYERS - 1],
            inverse_scale,
            offset,
            out + row * row_stride + column.to(tl.int64) * units,
            columns - column,
            units,
            SIZES[LAYERS - 1],
            SIZES[LAYERS],
            BITS,
            BLOCK_P,
            BLOCK_E,
            BLOCK_K,
        )
        tl.debug_barrier()  # the next tile's first layer overwrites the last one's operand


def pixels(
    waves: Tensor,
    panels: Tensor,
    stack: Stack,
    out: Tensor,
    quantise: Quantise | None,
    scratch: Tensor,
) -> Tensor:
    """Embeddings or their codes into `out`, (h, w, E) with contiguous pixels that follow each other."""
    rows, columns, units = out.shape
    shape = config("pixels", out.device)
    tiles = rows * cdiv(columns, shape["BLOCK_P"])
    inner = [a * b for a, b in zip(stack.sizes, stack.sizes[1:], strict=False)]
    launch(
        _pixels,
        (min(tiles, len(scratch)),),
        shape,
        _work(stack, out, inner),
        waves=waves,
        panels=panels,
        weights=stack.weights,
        factors=stack.factors,
        biases=stack.biases,
        inverse_scale=None if quantise is None else quantise.inverse_scale,
        offset=None if quantise is None else quantise.offset,
        scratch=scratch,
        out=out,
        columns=columns,
        tiles=tiles,
        row_stride=out.stride(0),
        units=units,
        SIZES=stack.sizes,
        LAYERS=len(stack.sizes) - 1,
        WEIGHTS_AT=tuple(itertools.accumulate(inner[1:], initial=0)),
        UNITS_AT=tuple(itertools.accumulate(stack.sizes[1:], initial=0)),
        WIDEST=_widest(stack),
        BITS=0 if quantise is None else quantise.bits,
    )
    return out


def scratch(stack: Stack, device: torch.device) -> Tensor:
    """Room for the programs' activations, 256 KB each with 512 units."""
    shape = config("pixels", device)
    # Registers hold the sums of eight warps on a processor, whether one program has them or several.
    programs = _processors(device) * max(1, 8 // shape.warps)
    return torch.empty((programs, 2, shape["BLOCK_P"], _widest(stack)), dtype=torch.float16, device=device)


def _processors(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    # Of an H100 where launches are recorded; interpreted, few, so that a program gets several tiles.
    return 132 if device.type == "meta" else 2


def _widest(stack: Stack) -> int:
    return max(stack.sizes[1:])


def _work(stack: Stack, out: Tensor, inner: list[int]) -> Work:
    rows, columns, _ = out.shape
    return Work(
        half=rows * columns * sum(inner),
        fp32=10 * rows * columns * sum(stack.sizes[1:-1]),
        bytes=2 * rows * inner[0] + 2 * columns * stack.sizes[0] + out.element_size() * out.numel(),
    )

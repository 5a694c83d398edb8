"""All layers of a product grid's pixels in one kernel.

For a tile of one row's pixels a program goes through the layers, each a product (tile.py) with bias and sine
in its epilogue. Activations pass from layer to layer through a scratch of its own, which stays in the L2
cache, because there are as many programs as processors and they take tile after tile. The first layer's
operands are the columns' waves and the row's panel, in pairs of halves, as good as float32; with "exact" so
are those of the later layers, with "fast" they are float16.

Why activations do not stay in registers: 512 units of 64 pixels in float32 fill half of a processor's, and
weights would come from L2 once for 64 pixels, 12 KB a pixel. With tiles of 128 pixels they take 6 KB, and the
activations' detour as much.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.halves import PASSES, split
from satclip_engine.kernels.launch import Work, cdiv, config, launch
from satclip_engine.kernels.sine import sine
from satclip_engine.kernels.stack import Stack
from satclip_engine.kernels.store import Quantise, codes
from satclip_engine.kernels.tile import block, product
from satclip_engine.kernels.tuning import Config
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
    PAIRS: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A layer with its sine, the next one's left operand, at `to`."""
    UNITS: tl.constexpr = block(BLOCK_N, WIDTH)
    place = tl.arange(0, BLOCK_P)
    for first in tl.range(0, WIDTH * tl.num_programs(1), UNITS, disable_licm=True):
        unit = first + tl.arange(0, UNITS)
        start = tl.load(biases + unit)
        value = product(left, right + first, start, DEPTH, WIDTH, PAIRS, EXACT, BLOCK_P, UNITS, BLOCK_K)
        value *= tl.load(factor)
        if EXACT:
            high, low = split(sine(value))
            at = to + place[:, None] * (2 * WIDTH) + unit[None, :]
            tl.store(at, high)
            tl.store(at + WIDTH, low)
        else:
            at = to + place[:, None] * WIDTH + unit[None, :]
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
    PAIRS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The last layer, stored as it is or quantised: `count` pixels of `units` at `out`."""
    UNITS: tl.constexpr = block(BLOCK_E if BITS else min(BLOCK_E, 64), WIDTH)  # floats take more registers
    place = tl.arange(0, BLOCK_P)
    for first in tl.range(0, WIDTH * tl.num_programs(1), UNITS, disable_licm=True):
        unit = first + tl.arange(0, UNITS)
        start = tl.load(biases + unit)
        value = product(left, right + first, start, DEPTH, WIDTH, PAIRS, PAIRS, BLOCK_P, UNITS, BLOCK_K)
        value *= tl.load(factor)
        at = out + place[:, None] * units + unit[None, :]
        inside = unit < units
        mask = (place < count)[:, None] & inside[None, :]
        if BITS:
            scales, offsets = tl.load(inverse_scale + unit, inside, 0.0), tl.load(offset + unit, inside, 0.0)
            tl.store(at, codes(value, scales, offsets, BITS), mask)
        else:
            tl.store(at, value, mask)


@triton.jit
def _pixels(
    waves,  # [≥ columns][2][SIZES[0]] float16
    panels,  # [rows][2][SIZES[0]][SIZES[1]] float16
    weights,
    factors,
    biases,  # see Stack
    inverse_scale,
    offset,  # [units] float32, or None
    scratch,  # [programs][2][ROOM] float16
    out,  # [rows][columns][units] float32 or BITS wide; rows lie row_stride apart
    columns,
    tiles,
    row_stride,
    units,
    SIZES: tl.constexpr,
    LAYERS: tl.constexpr,
    WEIGHTS_AT: tl.constexpr,
    UNITS_AT: tl.constexpr,
    ROOM: tl.constexpr,
    EXACT: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    own = scratch + tl.program_id(0).to(tl.int64) * (2 * ROOM)
    across = tl.cdiv(columns, BLOCK_P)
    # Without code motion out of the loop, which would keep all layers' addresses in registers.
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), disable_licm=True):
        row, column = (tile // across).to(tl.int64), (tile % across) * BLOCK_P
        left = waves + column.to(tl.int64) * (2 * SIZES[0])
        right = panels + row * (2 * SIZES[0] * SIZES[1])
        for layer in tl.static_range(LAYERS - 1):
            to = own + (layer % 2) * ROOM
            _hidden(
                left,
                right,
                factors + layer,
                biases + UNITS_AT[layer],
                to,
                SIZES[layer],
                SIZES[layer + 1],
                layer == 0 or EXACT,
                EXACT,
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
            LAYERS == 1 or EXACT,
            BITS,
            BLOCK_P,
            BLOCK_E,
            BLOCK_K,
        )
        tl.debug_barrier()  # the next tile's first layer may overwrite the last one's operand


def pixels(
    waves: Tensor, panels: Tensor, stack: Stack, out: Tensor, quantise: Quantise | None, scratch: Tensor
) -> Tensor:
    """Embeddings or their codes into `out`, (h, w, E), whose pixels follow each other within a row.

    waves: of w columns up to a multiple of BLOCK_P, of `shape`.
    """
    rows, columns, units = out.shape
    tuned = shape(stack, out.device)
    tiles = rows * cdiv(columns, tuned["BLOCK_P"])
    layers = _weights(stack)
    launch(
        _pixels,
        (min(tiles, len(scratch)),),
        tuned,
        _work(stack, out),
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
        WEIGHTS_AT=tuple(itertools.accumulate(layers, initial=0)),
        UNITS_AT=tuple(itertools.accumulate(stack.sizes[1:], initial=0)),
        ROOM=scratch.shape[2],
        EXACT=stack.pairs,
        BITS=0 if quantise is None else quantise.bits,
    )
    return out


def shape(stack: Stack, device: torch.device) -> Config:
    """How the kernel is started."""
    return config("pixels" if stack.pairs else "pixels_fast", device)


def scratch(stack: Stack, device: torch.device) -> Tensor:
    """Room for the programs' activations; with "fast" and 512 units 256 KB each."""
    tuned = shape(stack, device)
    widest = max(stack.sizes[1:-1], default=0) * (2 if stack.pairs else 1)
    # Registers hold the sums of eight warps on a processor, whether one program has them or several.
    programs = _processors(device) * max(1, 8 // tuned.warps)
    return torch.empty((programs, 2, tuned["BLOCK_P"] * widest), dtype=torch.float16, device=device)


def _processors(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    # Of an H100 where launches are recorded; interpreted, few, so that a program gets several tiles.
    return 132 if device.type == "meta" else 2


def _weights(stack: Stack) -> list[int]:
    """How many numbers each layer after the first has in `stack.weights`."""
    inner = stack.sizes[1:]
    return [a * b * (2 if stack.pairs else 1) for a, b in itertools.pairwise(inner)]


def _work(stack: Stack, out: Tensor) -> Work:
    rows, columns, _ = out.shape
    first = stack.sizes[0] * stack.sizes[1]
    later = sum(a * b for a, b in itertools.pairwise(stack.sizes[1:]))
    return Work(
        half=rows * columns * (PASSES * first + (PASSES if stack.pairs else 1) * later),
        fp32=(18 if stack.pairs else 9) * rows * columns * sum(stack.sizes[1:-1]),
        bytes=4 * rows * first
        + 4 * columns * stack.sizes[0]
        + 2 * stack.weights.numel()
        + out.element_size() * out.numel(),
    )

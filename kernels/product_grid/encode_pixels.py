"""Embeddings of a product grid's pixels: all layers in one kernel.

For a tile of one row's pixels a program goes through the layers, each a product (tile_dot.py) with bias and
sine in its epilogue. Activations pass from layer to layer through a scratch of its own, which stays in the L2
cache, because there are as many programs as processors and they take tile after tile. The first layer's
operands are the columns' Fourier basis and the row's coefficients, in split-fp16, as good as float32; with
"exact" so are those of the later layers, with "fast" they are float16.

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

from satclip_engine.kernels.device_functions.quantise import DeviceQuantise, codes
from satclip_engine.kernels.device_functions.sin2pi import sin2pi
from satclip_engine.kernels.device_functions.sine import sine
from satclip_engine.kernels.device_functions.split_fp16 import PASSES, split
from satclip_engine.kernels.launch import Work, cdiv, launch, select_config
from satclip_engine.kernels.product_grid.packed_layers import PackedLayers
from satclip_engine.kernels.product_grid.tile_dot import block_size, tile_dot
from satclip_engine.kernels.tuning import Config


@triton.jit
def _hidden_layer(
    left,
    right,
    factor,
    biases,
    result,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLIT: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute a layer with its sine, the next one's left operand, at `result`."""
    UNITS: tl.constexpr = block_size(BLOCK_N, WIDTH)
    pixel = tl.arange(0, BLOCK_P)
    for first in tl.range(0, WIDTH * tl.num_programs(1), UNITS, disable_licm=True):
        unit = first + tl.arange(0, UNITS)
        start = tl.load(biases + unit)
        value = tile_dot(left, right + first, start, DEPTH, WIDTH, SPLIT, EXACT, BLOCK_P, UNITS, BLOCK_K)
        value *= tl.load(factor)
        if EXACT:
            high, low = split(sine(value))
            pointers = result + pixel[:, None] * (2 * WIDTH) + unit[None, :]
            tl.store(pointers, high)
            tl.store(pointers + WIDTH, low)
        else:
            pointers = result + pixel[:, None] * WIDTH + unit[None, :]
            tl.store(pointers, sin2pi(value).to(tl.float16))


@triton.jit
def _last_layer(
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
    SPLIT: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute the last layer and store it, as it is or quantised: `count` pixels of `units` at `out`."""
    UNITS: tl.constexpr = block_size(
        BLOCK_E if BITS else min(BLOCK_E, 64), WIDTH
    )  # floats take more registers
    pixel = tl.arange(0, BLOCK_P)
    for first in tl.range(0, WIDTH * tl.num_programs(1), UNITS, disable_licm=True):
        unit = first + tl.arange(0, UNITS)
        start = tl.load(biases + unit)
        value = tile_dot(left, right + first, start, DEPTH, WIDTH, SPLIT, SPLIT, BLOCK_P, UNITS, BLOCK_K)
        value *= tl.load(factor)
        pointers = out + pixel[:, None] * units + unit[None, :]
        inside = unit < units
        mask = (pixel < count)[:, None] & inside[None, :]
        if BITS:
            scales, offsets = tl.load(inverse_scale + unit, inside, 0.0), tl.load(offset + unit, inside, 0.0)
            tl.store(pointers, codes(value, scales, offsets, BITS), mask)
        else:
            tl.store(pointers, value, mask)


@triton.jit
def _pixels(
    basis,  # [≥ columns][2][SIZES[0]] float16
    coefficients,  # [rows][2][SIZES[0]][SIZES[1]] float16
    weights,
    factors,
    biases,  # see PackedLayers
    inverse_scale,
    offset,  # [units] float32, or None
    scratch,  # [programs][2][ACTIVATIONS] float16
    out,  # [rows][columns][units] float32 or BITS wide; rows lie row_stride apart
    columns,
    tiles,
    row_stride,
    units,
    SIZES: tl.constexpr,
    LAYERS: tl.constexpr,
    WEIGHT_OFFSETS: tl.constexpr,
    BIAS_OFFSETS: tl.constexpr,
    ACTIVATIONS: tl.constexpr,
    EXACT: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    own = scratch + tl.program_id(0).to(tl.int64) * (2 * ACTIVATIONS)
    across = tl.cdiv(columns, BLOCK_P)
    # Without code motion out of the loop, which would keep all layers' addresses in registers.
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), disable_licm=True):
        row, column = (tile // across).to(tl.int64), (tile % across) * BLOCK_P
        left = basis + column.to(tl.int64) * (2 * SIZES[0])
        right = coefficients + row * (2 * SIZES[0] * SIZES[1])
        for layer in tl.static_range(LAYERS - 1):
            result = own + (layer % 2) * ACTIVATIONS
            _hidden_layer(
                left,
                right,
                factors + layer,
                biases + BIAS_OFFSETS[layer],
                result,
                SIZES[layer],
                SIZES[layer + 1],
                layer == 0 or EXACT,
                EXACT,
                BLOCK_P,
                BLOCK_N,
                BLOCK_K,
            )
            tl.debug_barrier()  # what one warp has stored others load
            left = result
            right = weights + WEIGHT_OFFSETS[layer]
        _last_layer(
            left,
            right,
            factors + LAYERS - 1,
            biases + BIAS_OFFSETS[LAYERS - 1],
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


def encode_pixels(
    basis: Tensor,
    coefficients: Tensor,
    layers: PackedLayers,
    out: Tensor,
    quantise: DeviceQuantise | None,
    scratch: Tensor,
) -> Tensor:
    """Compute embeddings or their codes into `out`, (h, w, E), whose pixels follow each other within a row.

    basis: of w columns up to a multiple of BLOCK_P, see `pixel_config`.
    """
    rows, columns, units = out.shape
    config = pixel_config(layers, out.device)
    tiles = rows * cdiv(columns, config["BLOCK_P"])
    weight_sizes = _weight_sizes(layers)
    launch(
        _pixels,
        (min(tiles, len(scratch)),),
        config,
        _work(layers, out),
        basis=basis,
        coefficients=coefficients,
        weights=layers.weights,
        factors=layers.factors,
        biases=layers.biases,
        inverse_scale=None if quantise is None else quantise.inverse_scale,
        offset=None if quantise is None else quantise.offset,
        scratch=scratch,
        out=out,
        columns=columns,
        tiles=tiles,
        row_stride=out.stride(0),
        units=units,
        SIZES=layers.sizes,
        LAYERS=len(layers.sizes) - 1,
        WEIGHT_OFFSETS=tuple(itertools.accumulate(weight_sizes, initial=0)),
        BIAS_OFFSETS=tuple(itertools.accumulate(layers.sizes[1:], initial=0)),
        ACTIVATIONS=scratch.shape[2],
        EXACT=layers.exact,
        BITS=0 if quantise is None else quantise.bits,
    )
    return out


def pixel_config(layers: PackedLayers, device: torch.device) -> Config:
    """Configuration of the kernel on a device."""
    return select_config("pixels" if layers.exact else "pixels_fast", device)


def scratch(layers: PackedLayers, device: torch.device) -> Tensor:
    """Allocate memory for the programs' activations; with "fast" and 512 units 256 KB each."""
    config = pixel_config(layers, device)
    widest = max(layers.sizes[1:-1], default=0) * (2 if layers.exact else 1)
    # Registers hold the sums of eight warps on a processor, whether one program has them or several.
    programs = _processors(device) * max(1, 8 // config.warps)
    return torch.empty((programs, 2, config["BLOCK_P"] * widest), dtype=torch.float16, device=device)


def _processors(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    # Of an H100 where launches are recorded; interpreted, few, so that a program gets several tiles.
    return 132 if device.type == "meta" else 2


def _weight_sizes(layers: PackedLayers) -> list[int]:
    """Number of elements of each layer after the first in `layers.weights`."""
    inner = layers.sizes[1:]
    return [a * b * (2 if layers.exact else 1) for a, b in itertools.pairwise(inner)]


def _work(layers: PackedLayers, out: Tensor) -> Work:
    rows, columns, _ = out.shape
    first = layers.sizes[0] * layers.sizes[1]
    later = sum(a * b for a, b in itertools.pairwise(layers.sizes[1:]))
    return Work(
        half=rows * columns * (PASSES * first + (PASSES if layers.exact else 1) * later),
        fp32=(18 if layers.exact else 9) * rows * columns * sum(layers.sizes[1:-1]),
        bytes=4 * rows * first
        + 4 * columns * layers.sizes[0]
        + 2 * layers.weights.numel()
        + out.element_size() * out.numel(),
    )

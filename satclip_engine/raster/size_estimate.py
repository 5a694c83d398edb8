"""A look at a raster before it is made: how well its tiles compress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from satclip_engine import _C
from satclip_engine.backends.protocols import Call, Prepared
from satclip_engine.quantize import Quantiser, Tally
from satclip_engine.raster.codec import Codec, compressor
from satclip_engine.raster.tiling import Plan

_WINDOWS = 8  # small windows compressed to estimate the file's size; half as many for every overview
_WINDOW = 64  # pixels along their sides
_INDEX_BYTES = 20  # of file a tile takes beside its data: offset, count, leader, trailer


@dataclass(frozen=True)
class Need:
    """Disk space in bytes, estimated."""

    file: int
    peak: int  # of file and spool together


def estimate(network: Prepared, grid: Any, plan: Plan, quantiser: Quantiser, codec: Codec) -> Need:
    """How much disk the run will take, from a few windows of every level compressed on trial.

    Overviews are sampled by themselves: neighbours differ more there, and a pixel takes half as much again as
    on the level below.
    """
    tiles = sum(level.tiles for level in plan.levels)
    file = tiles * plan.bands * _INDEX_BYTES + (1 << 16)
    for number, level in enumerate(plan.levels):
        rate = _bytes_per_pixel(network, grid, plan, number, quantiser, codec)
        file += int(rate * level.height * level.width)
    remainders = sum(
        4
        * plan.bands
        * plan.levels[tier.first + tier.count].height
        * plan.levels[tier.first + tier.count].width
        for tier in plan.tiers
        if tier.remainder
    )
    return Need(file, file + max(file, remainders))


def _bytes_per_pixel(
    network: Prepared, grid: Any, plan: Plan, number: int, quantiser: Quantiser, codec: Codec
) -> float:
    """What compression leaves of a level's pixels, all bands together.

    An overview's pixels are replaced by every 2ⁿth one of full resolution, whose means they are.
    """
    level, step, side = plan.levels[number], 2**number, min(_WINDOW, plan.blocksize)
    compress = compressor(codec)
    spent = pixels = 0
    tally = Tally.zero(plan.bands)
    integer = quantiser.scale is not None and quantiser.offset is not None
    for row, column in _window_corners((level.height, level.width), side, max(1, _WINDOWS >> number)):
        rows = np.arange(row, min(row + side, level.height)) * step
        columns = np.arange(column, min(column + side, level.width)) * step
        block = network.encode_pixels(grid, rows, columns, call=Call(plan.threads))
        tiles = np.zeros((1, plan.bands, side, side), quantiser.sample.name)
        _C.pack_tiles(
            block,
            tiles,
            first_row=0,
            dtype=quantiser.sample.name,
            predictor=codec.predictor(quantiser.sample),
            inverse_scale=quantiser.inverse_scale if integer else None,
            offset=quantiser.offset.astype(np.float32) if quantiser.offset is not None else None,
            clipped=tally.clipped,
            excess=tally.excess,
            valid=np.zeros(1, np.int64),
        )
        spent += sum(len(compress(tile)) for tile in tiles[0])
        pixels += block.shape[0] * block.shape[1]
    return spent / pixels


def _window_corners(shape: tuple[int, int], side: int, count: int) -> list[tuple[int, int]]:
    """Upper left corners of windows spread over a raster, the same every time."""
    down, across = max(1, shape[0] - side), max(1, shape[1] - side)
    fractions = (np.arange(count) + 0.5) / count
    # The golden ratio spreads columns evenly whatever the number of windows.
    corners = {(int(f * down), int((k * 0.6180339887 + 0.3) % 1 * across)) for k, f in enumerate(fractions)}
    return sorted((min(r, shape[0] - 1), min(c, shape[1] - 1)) for r, c in corners)

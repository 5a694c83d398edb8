"""Estimate of a raster's size on disk before it is made, by compressing sample windows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from satclip_engine import _C
from satclip_engine.backends.protocols import Call, Prepared
from satclip_engine.quantize import QuantisationStatistics, Quantiser
from satclip_engine.raster.codec import Codec, compressor
from satclip_engine.raster.tiling import Tiling

SAMPLE_WINDOWS = 8  # windows compressed to estimate the file's size; half as many for every overview
WINDOW_PIXELS = 64  # along a window's side
PLANE_OVERHEAD_BYTES = 20  # of a tile's plane beside its data: offset, count, leader, trailer


@dataclass(frozen=True)
class DiskEstimate:
    """Disk space in bytes, estimated, and the work of filling it."""

    file: int
    peak: int  # of file and spool together
    packing_seconds: float = 0.0  # of one thread: codes, tiles and compression of all levels


def estimate_disk(
    network: Prepared, grid: Any, tiling: Tiling, quantiser: Quantiser, codec: Codec, head: int
) -> DiskEstimate:
    """Disk space of a run, from a few windows of every level compressed on trial.

    head: bytes of the IFDs and their values, tile indexes not counted.
    Overviews are sampled by themselves: neighbours differ more there, and a pixel takes half as much again as
    on the level below.
    """
    tile_count = sum(level.tiles for level in tiling.levels)
    file = tile_count * tiling.planes * PLANE_OVERHEAD_BYTES + head
    packing = 0.0
    for number, level in enumerate(tiling.levels):
        rate, seconds = _cost_of_a_pixel(network, grid, tiling, number, quantiser, codec)
        file += int(rate * level.height * level.width)
        packing += seconds * level.height * level.width
    carried_over = sum(
        4
        * tiling.bands
        * tiling.levels[pyramid_pass.first + pyramid_pass.count].height
        * tiling.levels[pyramid_pass.first + pyramid_pass.count].width
        for pyramid_pass in tiling.passes
        if pyramid_pass.carries_over
    )
    return DiskEstimate(file, file + max(file, carried_over), packing)


def _cost_of_a_pixel(
    network: Prepared, grid: Any, tiling: Tiling, number: int, quantiser: Quantiser, codec: Codec
) -> tuple[float, float]:
    """Bytes that compression leaves of a level's pixel, all bands together, and seconds of packing them.

    An overview's pixels are replaced by every 2ⁿth one of full resolution, whose means they are.
    """
    level, step, side = tiling.levels[number], 2**number, min(WINDOW_PIXELS, tiling.blocksize)
    window = WINDOW_PIXELS // side * side
    compress = compressor(codec)
    spent = pixels = 0
    seconds = 0.0
    for row, column in _window_corners((level.height, level.width), window, max(1, SAMPLE_WINDOWS >> number)):
        rows = np.arange(row, min(row + window, level.height)) * step
        columns = np.arange(column, min(column + window, level.width)) * step
        block = network.encode_pixels(grid, rows, columns, call=Call(tiling.threads))
        started = time.perf_counter()
        for top in range(0, len(rows), side):
            tiles = _packed(block[top : top + side], side, tiling, quantiser, codec)
            planes = tiles if tiling.interleaved else tiles.reshape(-1, side, side)
            spent += sum(len(compress(plane)) for plane in planes)
        seconds += time.perf_counter() - started
        pixels += block.shape[0] * block.shape[1]
    return spent / pixels, seconds / pixels


def _packed(pixels: np.ndarray, side: int, tiling: Tiling, quantiser: Quantiser, codec: Codec) -> np.ndarray:
    """A row of tiles as the raster would have them."""
    count, statistics = -(-pixels.shape[1] // side), QuantisationStatistics.zero(tiling.bands)
    tiles = np.zeros((count, *tiling.tile_shape(side)), quantiser.sample.name)
    inverse_scale, offset = quantiser.factors
    _C.pack_tiles(
        pixels,
        tiles,
        first_row=0,
        dtype=quantiser.sample.name,
        predictor=codec.predictor(quantiser.sample),
        inverse_scale=inverse_scale,
        offset=offset,
        clipped=statistics.clipped,
        overshoot=statistics.overshoot,
        valid=np.zeros(count, np.int64),
        interleaved=tiling.interleaved,
    )
    return tiles


def _window_corners(shape: tuple[int, int], side: int, count: int) -> list[tuple[int, int]]:
    """Upper left corners of windows spread over a raster, the same every time."""
    down, across = max(1, shape[0] - side), max(1, shape[1] - side)
    fractions = (np.arange(count) + 0.5) / count
    # The golden ratio spreads columns evenly whatever the number of windows.
    corners = {(int(f * down), int((k * 0.6180339887 + 0.3) % 1 * across)) for k, f in enumerate(fractions)}
    return sorted((min(r, shape[0] - 1), min(c, shape[1] - 1)) for r, c in corners)

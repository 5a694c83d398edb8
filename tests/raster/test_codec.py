"""LERC's bytes: what was in memory before leaves no trace in them, and every tile fits."""

from __future__ import annotations

import functools
import re

import imagecodecs
import numpy as np
import pytest

from satclip_engine.geo.grid import make_grid
from satclip_engine.raster.codec import CODECS, compressor
from satclip_engine.raster.write import write_raster as write_raster_by_plan

# What is tested here is the writing of pixels, whoever computes them.
write_raster = functools.partial(write_raster_by_plan, exact=True)


def test_lerc_tiles_are_the_same_bytes_whatever_memory_held_before(tiny, tmp_path):
    """LERC's Huffman coder counts four bytes at the end of 8-bit tiles that it does not write."""
    grid, contents = make_grid(resolution=1.0), set()
    for number in range(4):
        noise = [np.full(size, number + 1, "u1") for size in range(3000, 5000, 50)]
        del noise
        write_raster(tiny, tmp_path / "a.tif", grid, compress="lerc", overwrite=True, threads=1 + number % 2)
        contents.add((tmp_path / "a.tif").read_bytes())
    (content,) = contents
    starts = [match.start() for match in re.finditer(b"Lerc2 ", content)]
    sizes = [int.from_bytes(content[start - 4 : start], "little") for start in starts]
    tails = {content[start + size - 4 : start + size] for start, size in zip(starts, sizes, strict=True)}
    assert len(starts) > 100
    assert tails == {bytes(4)}


@pytest.mark.parametrize("dtype", ["int8", "int16", "float32"])
@pytest.mark.parametrize("side", [16, 64, 256])
def test_tiles_of_noise_fit_into_the_room_that_lerc_gets(dtype, side):
    random = np.random.default_rng(side)
    tile = random.integers(0, 256, side * side * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    tile = tile.reshape(side, side)
    if dtype == "float32":
        tile = np.where(np.isfinite(tile), tile, 1).astype(dtype)
        tile[random.random(tile.shape) < 0.3] = np.nan
    decoded = imagecodecs.lerc_decode(compressor(CODECS["lerc"])(tile))
    values = ~np.isnan(tile) if dtype == "float32" else slice(None)
    np.testing.assert_array_equal(decoded[values], tile[values])

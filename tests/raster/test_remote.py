"""Reading over HTTP: requests and bytes that GDAL needs, counted by a server on loopback."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio

from satclip_engine.bench.remote import RangeServer, write_stand_in
from satclip_engine.encoder import load
from satclip_engine.geo.grid import make_grid
from satclip_engine.options import INTERLEAVES
from satclip_engine.raster.tiling import choose_blocksize, make_tiling
from satclip_engine.raster.write import write_raster

LARGE_SHAPE = (11_600, 11_600)
PIXELS = ((9000, 4000), (100, 11_000))  # row and column


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A folder that is served over HTTP and counts what is asked for, as GDAL reads it."""
    folder = tmp_path_factory.mktemp("served")
    with RangeServer(folder) as server, rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        yield server


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tile of all 256 bands with pixels so far apart that it compresses badly."""
    path = tmp_path_factory.mktemp("source") / "tile.tif"
    grid = make_grid(resolution=1.0, bounds=(0, 40, 16, 56))
    write_raster(load("default"), path, grid, interleave="pixel")
    return path


def test_a_cold_pixel_of_256_bands_of_ten_gigabytes_is_four_requests_and_300_kilobytes(server, source):
    blocksize = choose_blocksize(LARGE_SHAPE, 1, 16)
    tiling = make_tiling(
        LARGE_SHAPE, 256, 1, blocksize, threads=1, memory=1 << 40, mirrored=False, interleave="pixel"
    )
    tiles = [(0, row // blocksize, column // blocksize) for row, column in PIXELS]
    assert write_stand_in(source, server.folder / "large.tif", tiling, tiles) > 10e9
    with rasterio.open(source) as dataset:
        expected = dataset.read()
        west, north, step = dataset.transform.c, dataset.transform.f, dataset.transform.a
    server.reset()
    with rasterio.open(f"/vsicurl/{server.url('large.tif')}") as dataset:
        for row, column in PIXELS:
            lonlat = west + (column + 0.5) * step, north - (row + 0.5) * step
            np.testing.assert_array_equal(
                next(dataset.sample([lonlat])), expected[:, row % blocksize, column % blocksize]
            )
            requests, received = server.cost
            assert requests <= 4, server.ranges
            assert received <= 300_000
            server.reset()


@pytest.mark.parametrize("interleave", INTERLEAVES)
def test_values_over_http_are_those_of_the_file_and_a_tile_is_read_at_once(tiny, server, interleave):
    path = server.folder / f"world-{interleave}.tif"
    write_raster(tiny, path, make_grid(resolution=0.5), interleave=interleave)
    window = ((200, 201), (400, 401))
    with rasterio.open(f"/vsicurl/{server.url(path.name)}") as dataset:
        server.reset()
        values = dataset.read(window=window)
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(values, dataset.read(window=window))
    if interleave != "band":
        assert server.cost[0] <= 2  # GDAL reads whole 16 kB pieces; a tile may lie in two

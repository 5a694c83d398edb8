"""Reading over HTTP: requests and bytes that GDAL needs, counted by a server on loopback."""

from __future__ import annotations

import os

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


@pytest.fixture(scope="module")
def large(server, source):
    """A raster of ten gigabytes, of whose tiles only those of two pixels are there."""
    blocksize = choose_blocksize(LARGE_SHAPE, 1, 16)
    tiling = make_tiling(
        LARGE_SHAPE, 256, 1, blocksize, threads=1, memory=1 << 40, mirrored=False, interleave="pixel"
    )
    tiles = [(0, row // blocksize, column // blocksize) for row, column in PIXELS]
    assert write_stand_in(source, server.folder / "large.tif", tiling, tiles) > 10e9
    return server.folder / "large.tif"


@pytest.mark.parametrize(
    ("settings", "requests"),
    # GDAL asks for the size first (HEAD), then for header, metadata, an entry of the index and the tile; with
    # the second setting it reads header and metadata at once.
    [({}, 5), ({"GDAL_INGESTED_BYTES_AT_OPEN": "131072"}, 4)],
    ids=["as it is", "ingesting the header"],
)
def test_a_cold_pixel_of_256_bands_of_ten_gigabytes_takes_a_few_short_reads(
    server, source, large, settings, requests
):
    with rasterio.open(source) as dataset:
        expected = dataset.read()
        side, _ = dataset.block_shapes[0]
    row, column = PIXELS[0]
    url = _renamed(server, large)
    server.reset()
    with rasterio.Env(**settings), rasterio.open(url) as dataset:
        values = next(dataset.sample([dataset.xy(row, column)]))
    np.testing.assert_array_equal(values, expected[:, row % side, column % side])
    count, received = server.cost
    assert count <= requests, server.ranges
    assert received <= 300_000
    assert sum(size > 0 for _, size in server.ranges) <= 4


def test_a_further_pixel_is_two_short_reads(server, large):
    with rasterio.open(_renamed(server, large)) as dataset:
        corners = [dataset.xy(*pixel) for pixel in PIXELS]
        next(dataset.sample(corners[:1]))
        server.reset()
        next(dataset.sample(corners[1:]))
    assert len(server.ranges) <= 2, server.ranges
    assert server.cost[1] <= 100_000


def _renamed(server, path):
    """The URL of a file under a name that GDAL has no cache of."""
    name = f"{len(list(server.folder.iterdir()))}.tif"
    os.link(path, server.folder / name)
    return f"/vsicurl/{server.url(name)}"


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

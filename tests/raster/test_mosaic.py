"""Integer tiles of one encoder put together by GDAL, rasterio, rioxarray: codes of the one-piece raster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
import rioxarray
from factories import gdal_tools
from rasterio.merge import merge
from rioxarray.merge import merge_arrays

from satclip_engine.encoder import Encoder, load
from satclip_engine.geo.grid import make_grid
from satclip_engine.quantize import SAMPLE_TYPES, Quantiser
from satclip_engine.raster.write import write_raster

INTEGERS = ["int8", "uint8", "int16"]
WHOLE = (0, 40, 20, 60)
QUARTERS = [(0, 40, 10, 50), (10, 40, 20, 50), (0, 50, 10, 60), (10, 50, 20, 60)]


def write(encoder: Encoder, path: Path, dtype: str, bounds: tuple[float, ...], **grid: object) -> Path:
    write_raster(encoder, path, make_grid(**{"resolution": 0.25, **grid}, bounds=bounds), dtype=dtype)
    return path


def codes(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mosaic")


@pytest.fixture(scope="module", params=INTEGERS)
def tiles(request, tiny, folder) -> tuple[list[Path], Path]:
    """Four neighbours, and the raster of all of them in one piece."""
    dtype = request.param
    paths = [
        write(tiny, folder / f"{dtype}{number}.tif", dtype, bounds) for number, bounds in enumerate(QUARTERS)
    ]
    return paths, write(tiny, folder / f"{dtype}.tif", dtype, WHOLE)


def test_gdalbuildvrt_takes_all_tiles_with_their_scales(tiles, tmp_path):
    paths, whole = tiles
    gdal_tools.build_vrt(tmp_path / "mosaic.vrt", paths)
    np.testing.assert_array_equal(codes(tmp_path / "mosaic.vrt"), codes(whole))
    with rasterio.open(tmp_path / "mosaic.vrt") as mosaic, rasterio.open(whole) as one:
        np.testing.assert_allclose(mosaic.scales, one.scales, rtol=1e-15)
        np.testing.assert_allclose(mosaic.offsets, one.offsets, rtol=1e-15)
        assert mosaic.nodata == one.nodata


def test_gdalwarp_puts_tiles_together(tiles, tmp_path):
    paths, whole = tiles
    gdal_tools.warp(tmp_path / "mosaic.tif", paths)
    np.testing.assert_array_equal(codes(tmp_path / "mosaic.tif"), codes(whole))


def test_what_tools_fill_in_where_they_know_nothing_is_no_data(tiles, tmp_path):
    paths, _ = tiles
    gdal_tools.warp(tmp_path / "wide.tif", paths[:1], "-te", "-10", "40", "20", "60")
    merge(paths[:1], bounds=(-10, 40, 20, 60), dst_path=tmp_path / "merged.tif")
    for name in ("wide.tif", "merged.tif"):
        with rasterio.open(tmp_path / name) as dataset:
            valid = dataset.read_masks(1) > 0
        assert valid[40:, 40:80].all()
        assert valid.sum() == 40 * 40


def test_a_tile_index_reads_as_one_raster(tiles, tmp_path):
    paths, whole = tiles
    gdal_tools.tile_index(tmp_path / "tiles.gti.gpkg", paths)
    np.testing.assert_array_equal(codes(tmp_path / "tiles.gti.gpkg"), codes(whole))


def test_rasterio_merges_tiles(tiles):
    paths, whole = tiles
    np.testing.assert_array_equal(merge(paths)[0], codes(whole))


def test_rioxarray_merges_codes_and_values(tiles):
    paths, whole = tiles
    stored = [rioxarray.open_rasterio(path) for path in paths]
    np.testing.assert_array_equal(merge_arrays(stored).values, codes(whole))
    values = [rioxarray.open_rasterio(path, mask_and_scale=True) for path in paths]
    with rioxarray.open_rasterio(whole, mask_and_scale=True) as one:
        np.testing.assert_array_equal(merge_arrays(values).values, one.values)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_gdalwarp_puts_tiles_of_two_crss_together(tiny, tmp_path, dtype):
    """Two tiles have the target's grid, two the neighbouring UTM zone's."""
    here, there = {"crs": "EPSG:32633", "resolution": 1000}, {"crs": "EPSG:32632", "resolution": 1000}
    whole = write(tiny, tmp_path / "whole.tif", dtype, (300_000, 5_000_000, 420_000, 5_040_000), **here)
    own = [
        write(tiny, tmp_path / "a.tif", dtype, (340_000, 5_000_000, 380_000, 5_040_000), **here),
        write(tiny, tmp_path / "b.tif", dtype, (380_000, 5_000_000, 420_000, 5_040_000), **here),
    ]
    other = [
        write(tiny, tmp_path / "c.tif", dtype, (750_000, 4_980_000, 790_000, 5_060_000), **there),
        write(tiny, tmp_path / "d.tif", dtype, (790_000, 4_980_000, 840_000, 5_060_000), **there),
    ]
    extent = ["-te", "300000", "5000000", "420000", "5040000", "-tr", "1000", "1000", "-et", "0"]
    gdal_tools.warp(tmp_path / "mosaic.tif", [*other, *own], "-t_srs", "EPSG:32633", *extent)
    mosaic, expected = codes(tmp_path / "mosaic.tif"), codes(whole)
    np.testing.assert_array_equal(mosaic[:, :, 40:], expected[:, :, 40:])
    # West of them: the code of the other zone's pixel that holds the centre.
    x, y = np.meshgrid(300_500 + 1000 * np.arange(40), 5_039_500 - 1000 * np.arange(40))
    x, y = pyproj.Transformer.from_crs(32633, 32632, always_xy=True).transform(x, y)
    column, row = np.floor((x - 750_000) / 1000).astype(int), np.floor((5_060_000 - y) / 1000).astype(int)
    neighbours = np.concatenate([codes(path) for path in other], axis=2)
    np.testing.assert_array_equal(mosaic[:, :, :40], neighbours[:, row, column])
    # Both have the same scale: codes of locations half a pixel apart hardly differ.
    with rasterio.open(whole) as one:
        step = np.abs(mosaic[:, :, :40].astype(int) - expected[:, :, :40]).max((1, 2)) * one.scales
    spread = tiny.extremes.high - tiny.extremes.low
    assert (step < 0.02 * spread).all()


def test_integer_types_of_one_encoder_are_one_grid_of_values(tiny, tmp_path):
    content = {
        dtype: codes(write(tiny, tmp_path / f"{dtype}.tif", dtype, WHOLE)).astype(int) for dtype in INTEGERS
    }
    np.testing.assert_array_equal(content["uint8"], content["int8"] + 128)
    off = content["int16"] / 256 - content["int8"]
    assert np.abs(off).max() <= 0.5
    stored = {}
    for dtype in INTEGERS:
        with rasterio.open(tmp_path / f"{dtype}.tif") as dataset:
            stored[dtype] = Quantiser(
                SAMPLE_TYPES[dtype], np.array(dataset.scales), np.array(dataset.offsets)
            )
    first = np.moveaxis(content["int8"], 0, -1)
    np.testing.assert_array_equal(stored["int8"].decode(first), stored["uint8"].decode(first + 128))
    np.testing.assert_array_equal(stored["int8"].decode(first), stored["int16"].decode(first * 256))


def test_interpolated_tiles_differ_by_one_code_in_a_few_values(tmp_path):
    """As docs/lattice.md has it: rasters of 10⁵ pixels have lattices of their own."""
    encoder = load("default-l10", threads=2).select("1-8")
    whole = codes(write(encoder, tmp_path / "a.tif", "int8", (5, 44, 9, 47), resolution=0.01)).astype(int)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert "no band errs by more than" in dataset.tags()["reconstruction"]
    tile = codes(write(encoder, tmp_path / "b.tif", "int8", (6, 45, 8, 46), resolution=0.01))
    off = np.abs(whole[:, 100:200, 100:300] - tile)
    assert off.max() <= 1
    assert off.mean() < 0.01

"""The file itself: layout, tags, what GDAL and rio-cogeo say, and that the writer's own check can fail."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest
import rasterio
from rio_cogeo import cog_validate

from satclip_engine.errors import OutputError, UsageError
from satclip_engine.geo.grid import make_grid
from satclip_engine.options import INTERLEAVES
from satclip_engine.quantize import SAMPLE_TYPES, Quantiser
from satclip_engine.raster import cog
from satclip_engine.raster.codec import CODECS
from satclip_engine.raster.cog import TileIndex, check, ifd_tags, lay_out
from satclip_engine.raster.tiff import (
    ASCII,
    GDAL_METADATA,
    TILE_BYTE_COUNTS,
    TILE_OFFSETS,
    TiffVariant,
    read_ifds,
)
from satclip_engine.raster.tiling import make_tiling, pyramid
from satclip_engine.raster.write import write_raster


@pytest.fixture(scope="module")
def world(tiny, tmp_path_factory):
    """A global raster of 8 bands with three levels, and its request's tiling."""
    path = tmp_path_factory.mktemp("cog") / "world.tif"
    write_raster(tiny, path, make_grid(resolution=0.5), tags={"title": "a <small> world & more"})
    tiling = make_tiling((360, 720), 8, 1, 64, threads=2, memory=1 << 30, mirrored=True)
    return path, tiling


def ifds_of(path):
    content = path.read_bytes()
    return content, read_ifds(lambda offset, size: content[offset : offset + size])


def test_rio_cogeo_finds_nothing_to_complain_about(world):
    assert cog_validate(world[0], strict=True, quiet=True) == (True, [], [])


def test_gdal_knows_the_layout_and_opens_all_levels(tiny, world):
    path, tiling = world
    with rasterio.open(path) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.overviews(1) == [2, 4]
        assert dataset.overviews(8) == [2, 4]
        assert dataset.block_shapes == [(64, 64)] * 8
        assert dataset.nodatavals == (-128,) * 8
        assert dataset.descriptions == tuple(tiny.band_names)
        assert dataset.tags()["title"] == "a <small> world & more"
        assert dataset.tags()["AREA_OR_POINT"] == "Area"
        assert dataset.crs == "EPSG:4326"
        assert dataset.transform.almost_equals(make_grid(resolution=0.5).transform)
    for number, level in enumerate(tiling.levels[1:]):
        with rasterio.open(path, overview_level=number) as overview:
            assert overview.shape == (level.height, level.width)


@pytest.mark.parametrize("interleave", INTERLEAVES)
def test_tiles_follow_each_other_in_the_order_asked_for_with_leaders_and_trailers(tiny, tmp_path, interleave):
    path = tmp_path / "out.tif"
    write_raster(tiny, path, make_grid(resolution=0.5), interleave=interleave, blocksize=64)
    content, ifds = ifds_of(path)
    planes, levels = 1 if interleave == "pixel" else 8, pyramid((360, 720), 64)
    end = None
    for ifd, level in zip(reversed(ifds), reversed(levels), strict=True):
        offsets, counts = (
            ifd.tags[code].values.reshape(planes, level.tiles) for code in (TILE_OFFSETS, TILE_BYTE_COUNTS)
        )
        order = itertools.product(range(level.tiles), range(planes))
        if interleave == "band":
            order = ((tile, plane) for plane, tile in itertools.product(range(planes), range(level.tiles)))
        for tile, plane in order:
            offset, count = int(offsets[plane, tile]), int(counts[plane, tile])
            assert end is None or offset == end + 4
            assert struct.unpack_from("<I", content, offset - 4) == (count,)
            end = offset + count + 4
            assert content[end - 8 : end - 4] == content[end - 4 : end]
    assert end == len(content)


@pytest.mark.parametrize("interleave", INTERLEAVES)
def test_gdal_knows_the_order_of_the_bands(tiny, tmp_path, interleave):
    path = tmp_path / "out.tif"
    write_raster(tiny, path, make_grid(resolution=2.0), interleave=interleave)
    content, ifds = ifds_of(path)
    assert ifds[0].value(284) == (1 if interleave == "pixel" else 2)
    note = content[: ifds[0].offset]
    assert (f"INTERLEAVE={interleave.upper()}\n".encode() in note) == (interleave != "pixel")
    with rasterio.open(path) as dataset:
        structure = dataset.tags(ns="IMAGE_STRUCTURE")
        newer = tuple(map(int, rasterio.__gdal_version__.split(".")[:2])) >= (3, 11)
    expected = "BAND" if interleave == "tile" and not newer else interleave.upper()
    assert (structure["LAYOUT"], structure["INTERLEAVE"]) == ("COG", expected)


def test_tiles_are_ordered_by_band_in_groups_of_any_size(tiny, tmp_path, monkeypatch):
    contents = set()
    for size in (1, 5000, 1 << 26):
        monkeypatch.setattr(cog, "TRANSPOSED_BYTES", size)
        path = tmp_path / f"{size}.tif"
        write_raster(tiny, path, make_grid(resolution=1.0), interleave="band")
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_ifds_come_first_and_their_values_follow_them(world):
    content, found = ifds_of(world[0])
    indexes = [directory.offsets[code] for directory in found for code in (TILE_OFFSETS, TILE_BYTE_COUNTS)]
    assert [directory.value(254) for directory in found] == [0, 1, 1]
    positions = [directory.offset for directory in found]
    assert positions == sorted(positions)
    for directory, following in zip(found, [*positions[1:], found[0].offsets[GDAL_METADATA]], strict=True):
        codes = list(directory.tags)
        assert codes == sorted(codes)
        for code, offset in directory.offsets.items():
            if code not in (GDAL_METADATA, TILE_OFFSETS, TILE_BYTE_COUNTS):
                assert directory.offset < offset < following
    assert positions[-1] < found[0].offsets[GDAL_METADATA] < min(indexes)
    assert max(indexes) < int(found[-1].tags[TILE_OFFSETS].values[0])
    assert b"LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\n" in content[:300]
    assert int(content[8 + 30 : 8 + 36]) == len(content[8 + 43 : content.index(b"EDITION=NO\n ") + 12])


@pytest.mark.parametrize("damage", ["leader", "trailer", "truncated", "longer", "offset", "magic"])
def test_the_writers_own_check_notices_damage(world, tmp_path, damage):
    path, tiling = world
    check(path, tiling)
    content, found = ifds_of(path)
    tile = int(found[0].tags[TILE_OFFSETS].values[5])
    count = int(found[0].tags[TILE_BYTE_COUNTS].values[5])
    changed = bytearray(content)
    if damage in ("leader", "trailer"):
        changed[tile - 4 if damage == "leader" else tile + count + 3] ^= 1
    elif damage == "offset":
        changed[found[0].offsets[TILE_OFFSETS] + 8] ^= 1
    elif damage == "magic":
        changed[2] ^= 1
    spoiled = tmp_path / "spoiled.tif"
    spoiled.write_bytes(changed[:-1] if damage == "truncated" else changed + b"x" * (damage == "longer"))
    with pytest.raises(OutputError):
        check(spoiled, tiling)


def test_a_file_beyond_four_gigabytes_is_a_bigtiff():
    tiling = make_tiling((3600, 7200), 256, 1, 64, threads=1, memory=1 << 30, mirrored=False)
    quantiser = Quantiser(SAMPLE_TYPES["int8"], np.ones(256), np.zeros(256))
    tags = ifd_tags(tiling, quantiser, CODECS["zstd"], names=["b"] * 256, geo=[], metadata={}, software="s")
    small = [
        TileIndex(np.zeros(v.tiles, np.int64), np.full((v.tiles, 256), 100, np.uint32)) for v in tiling.levels
    ]
    large = [
        TileIndex(np.zeros(v.tiles, np.int64), np.full((v.tiles, 256), 3000, np.uint32))
        for v in tiling.levels
    ]
    assert lay_out(tags, small, tiling).head[:4] == b"II*\0"
    layout = lay_out(tags, large, tiling)
    assert layout.size > 2**32
    assert layout.head[:4] == b"II+\0"
    found = read_ifds(lambda offset, size: layout.head[offset : offset + size])
    offsets = found[0].tags[TILE_OFFSETS].values
    assert offsets.dtype == np.uint64
    assert int(offsets.max()) + 3000 + 4 == layout.size


def test_a_bigtiff_is_read_by_gdal(tiny, tmp_path, monkeypatch, read):
    grid = make_grid(resolution=1.0)
    write_raster(tiny, tmp_path / "classic.tif", grid)
    monkeypatch.setattr(cog, "CLASSIC_TIFF_BYTES", 1000)
    write_raster(tiny, tmp_path / "big.tif", grid)
    assert (tmp_path / "big.tif").read_bytes()[:4] == b"II+\0"
    assert cog_validate(tmp_path / "big.tif", strict=True, quiet=True)[0]
    for level in (0, 1):
        np.testing.assert_array_equal(
            read(tmp_path / "big.tif", level), read(tmp_path / "classic.tif", level)
        )


@pytest.mark.parametrize(
    ("crs", "bounds", "resolution"),
    [
        ("EPSG:4326", (179, -20, 181, -18), 0.05),
        ("EPSG:3857", (0, 0, 64000, 32000), 1000),
        ("EPSG:32633", (300000, 5000000, 340000, 5020000), 1000),
        ("OGC:CRS84", (0, 0, 4, 2), 0.1),
        ("+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84", (-32000, -32000, 32000, 32000), 1000),
        ("ESRI:54030", (0, 0, 64000, 64000), 1000),
    ],
)
def test_any_crs_comes_back_as_it_was(tiny, tmp_path, crs, bounds, resolution):
    import pyproj

    grid = make_grid(crs=crs, bounds=bounds, resolution=resolution)
    write_raster(tiny, tmp_path / "out.tif", grid)
    with rasterio.open(tmp_path / "out.tif") as dataset:
        assert dataset.transform.almost_equals(grid.transform)
        stored = pyproj.CRS.from_wkt(dataset.crs.to_wkt())
        assert (
            stored.equals(pyproj.CRS.from_user_input(crs), ignore_axis_order=True) or stored.to_epsg() == 4326
        )
    assert not (tmp_path / "out.tif.aux.xml").exists()


def test_rotated_and_south_up_transforms_are_kept(tiny, tmp_path):
    from affine import Affine
    from odc.geo.geobox import GeoBox

    for name, transform in {
        "rotated": Affine(0.08, 0.05, 5, 0.05, -0.08, 50),
        "south-up": Affine(0.1, 0, 5, 0, 0.1, 50),
    }.items():
        write_raster(tiny, tmp_path / f"{name}.tif", GeoBox((20, 30), transform, "EPSG:4326"))
        with rasterio.open(tmp_path / f"{name}.tif") as dataset:
            assert dataset.transform.almost_equals(transform)


@pytest.mark.parametrize(
    ("crs", "west", "south", "step", "why"),
    [
        # What GDAL reads back is another CRS: its prime meridian, its axes or all of it are gone.
        ("+proj=tmerc +lon_0=3 +ellps=GRS80 +pm=paris", 0, 0, 1000, r"would lie 2[56]. km away"),
        ("+proj=krovak", -760_000, -1_060_000, 1000, "nowhere on Earth"),
        (
            "+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180 +to_meter=0.01745329",
            0,
            0,
            0.1,
            "",
        ),
    ],
)
def test_a_crs_that_geotiff_cannot_hold_is_refused_before_anything_is_computed(
    tiny, tmp_path, crs, west, south, step, why
):
    grid = make_grid(resolution=step, bounds=(west, south, west + 20 * step, south + 10 * step), crs=crs)
    with pytest.raises(UsageError, match=f"cannot hold the CRS .*{why}.*EPSG code"):
        write_raster(tiny, tmp_path / "out.tif", grid)
    assert not list(tmp_path.iterdir())


def test_text_that_is_not_ascii_and_short_values_fit_an_ifd():
    from satclip_engine.raster.tiff import SHORT, Tag

    tags = [Tag.of(305, ASCII, "ü"), Tag.of(258, SHORT, [8, 8]), Tag.of(42112, ASCII, "x" * 50)]
    for variant in (TiffVariant(False), TiffVariant(True)):
        packed = variant.ifd(tags, {42112: 200}, 0)
        assert len(packed) == variant.ifd_bytes(tags)
        content = variant.header(16).ljust(16, b"\0") + packed
        content = content.ljust(200, b"\0") + tags[2].data
        (directory,) = read_ifds(lambda offset, size, c=content: c[offset : offset + size])
        assert {code: tag.data for code, tag in directory.tags.items()} == {t.code: t.data for t in tags}

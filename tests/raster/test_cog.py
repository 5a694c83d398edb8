"""The file itself: layout, tags, what GDAL and rio-cogeo say, and that the writer's own check can fail."""

from __future__ import annotations

import os
import struct
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import rasterio
from rio_cogeo import cog_validate

from satclip_engine.errors import OutputError, UsageError
from satclip_engine.geo.grid import make_grid
from satclip_engine.quantize import SAMPLE_TYPES, Quantiser
from satclip_engine.raster import cog
from satclip_engine.raster.codec import CODECS
from satclip_engine.raster.cog import TileIndex, check, ifd_tags, lay_out
from satclip_engine.raster.tiff import ASCII, TILE_BYTE_COUNTS, TILE_OFFSETS, TiffVariant, read_ifds
from satclip_engine.raster.tiling import make_tiling
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


def test_tiles_of_a_place_are_contiguous_with_leaders_and_trailers(world):
    path, tiling = world
    content, found = ifds_of(path)
    at = None
    for directory, level in zip(reversed(found), reversed(tiling.levels), strict=True):
        offsets = directory.tags[TILE_OFFSETS].values.reshape(tiling.bands, level.tiles)
        counts = directory.tags[TILE_BYTE_COUNTS].values.reshape(tiling.bands, level.tiles)
        for place in range(level.tiles):
            for band in range(tiling.bands):
                offset, count = int(offsets[band, place]), int(counts[band, place])
                assert at is None or offset == at + 4
                assert struct.unpack_from("<I", content, offset - 4) == (count,)
                at = offset + count + 4
                assert content[at - 8 : at - 4] == content[at - 4 : at]
    assert at == len(content)


def test_ifds_come_first_and_their_values_follow_them(world):
    content, found = ifds_of(world[0])
    first_tile = int(found[-1].tags[TILE_OFFSETS].values[0]) - 4
    assert [directory.value(254) for directory in found] == [0, 1, 1]
    positions = [directory.offset for directory in found]
    assert positions == sorted(positions)
    for directory, following in zip(found, [*positions[1:], first_tile], strict=True):
        codes = list(directory.tags)
        assert codes == sorted(codes)
        for code, offset in directory.offsets.items():
            if code not in (TILE_OFFSETS, TILE_BYTE_COUNTS):
                assert directory.offset < offset < following
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
    assert lay_out(tags, small, 256).head[:4] == b"II*\0"
    layout = lay_out(tags, large, 256)
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


class _RangeHandler(SimpleHTTPRequestHandler):
    """Serves byte ranges, and remembers them."""

    asked: ClassVar[list[tuple[int, int]]] = []

    def do_GET(self):
        content = Path(self.translate_path(self.path)).read_bytes()
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        part = content[int(first) : int(last) + 1]
        self.asked.append((int(first), int(last)))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *arguments):
        pass


def test_a_pixel_of_all_bands_is_one_range_over_http(world):
    path, _ = world
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *a, **k: _RangeHandler(*a, directory=os.fspath(path.parent), **k)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _RangeHandler.asked.clear()
    try:
        options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".tif"}
        url = f"/vsicurl/http://127.0.0.1:{server.server_port}/world.tif"
        with rasterio.Env(**options), rasterio.open(url) as dataset:
            opened = len(_RangeHandler.asked)
            values = dataset.read(window=((200, 201), (400, 401)))
        with rasterio.open(path) as dataset:
            np.testing.assert_array_equal(values, dataset.read(window=((200, 201), (400, 401))))
    finally:
        server.shutdown()
        server.server_close()
    assert len(_RangeHandler.asked) - opened <= 2  # GDAL reads whole 16 kB pieces; the place may lie in two


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

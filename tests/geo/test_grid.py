"""Pixel geometry: edges, sizes, places of pixels, and what is said about impossible ones."""

from __future__ import annotations

import math
import os
import pickle

import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.warp
import rioxarray
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo import resyx_
from odc.geo.geobox import GeoBox
from rasterio.control import GroundControlPoint

from satclip_engine.errors import UsageError
from satclip_engine.geo.crs import area_of_use, is_lonlat, unit_name
from satclip_engine.geo.grid import Grid, make_grid, outside_area_of_use

UTM = {"crs": "EPSG:32633", "bounds": (500_000, 5_000_000, 502_560, 5_001_280), "resolution": 10}


def write_raster(path, *, crs="EPSG:4326", transform=None, gcps=None, width=6, height=4):
    """A small raster of zeros, georeferenced as told."""
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=1, dtype="uint8",
        crs=None if gcps else crs, transform=transform,
    ) as dataset:  # fmt: skip
        if gcps:
            dataset.gcps = (gcps, rasterio.crs.CRS.from_user_input(crs))
        dataset.write(np.zeros((1, height, width), np.uint8))
    return path


def test_the_default_is_the_globe_at_a_quarter_degree_north_up():
    grid = make_grid()
    assert grid.shape == (720, 1440)
    assert tuple(grid.transform[:6]) == (0.25, 0, -180, 0, -0.25, 90)
    assert grid.crs.epsg == 4326
    assert grid.separable
    assert (grid.lat()[0], grid.lat()[-1]) == (89.875, -89.875)
    assert (grid.lon()[0], grid.lon()[-1]) == (-179.875, 179.875)


@pytest.mark.parametrize("resolution", [1, 0.25, 0.1, 1 / 3, 0.05, 0.01, 360 / 4096])
def test_mirror_rows_and_columns_of_the_globe_are_exact_negatives(resolution):
    grid = make_grid(resolution=resolution)
    lat, lon = grid.lat(), grid.lon()
    assert np.array_equal(lat, -lat[::-1])
    assert np.array_equal(lon, -lon[::-1])
    assert (lon * 2.0**40 == np.rint(lon * 2.0**40)).all()
    exact = -180 + (np.arange(lon.size) + 0.5) * (360 / lon.size)
    assert np.abs(lon - exact).max() < 1e-12


def test_a_region_symmetric_about_the_equator_has_exact_mirror_rows():
    lat = make_grid(resolution=0.1, bounds=(5, -12.3, 7, 12.3)).lat()
    assert np.array_equal(lat, -lat[::-1])


@given(data=st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4258", "EPSG:8857", "EPSG:3031"])
def test_a_pixel_has_the_same_coordinates_in_every_window(crs, data):
    geographic = crs in ("EPSG:4326", "EPSG:4258")
    grid = make_grid(crs=crs, resolution=7.5 if geographic else 700_000)
    whole = grid.lonlat()
    height, width = grid.shape
    rows = slice(*sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height)))))
    cols = data.draw(st.lists(st.integers(0, width - 1), min_size=1, max_size=9))
    window = grid.lonlat(rows, np.array(cols))
    assert np.array_equal(window, whole[rows][:, cols], equal_nan=True)
    row = data.draw(st.integers(0, height - 1))
    single = grid.pixel_lonlat(np.full(len(cols), row), np.array(cols))
    assert np.array_equal(single, whole[row, cols], equal_nan=True)
    if grid.separable:
        assert np.array_equal(grid.lat(rows), whole[rows, 0, 1])
        assert np.array_equal(grid.lon(cols), whole[0, cols, 0])


@given(
    west=st.integers(-180, 179), south=st.integers(-90, 89), columns=st.integers(1, 500),
    rows=st.integers(1, 500), per_degree=st.integers(1, 97),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_edges_are_kept_exactly_and_the_size_is_the_extent_over_the_resolution(
    west, south, columns, rows, per_degree
):
    step = 1 / per_degree
    east, north = west + min(columns * step, 360), min(south + rows * step, 90)
    wide, high = round((east - west) * per_degree), round((north - south) * per_degree)
    grid = make_grid(resolution=step, bounds=(west, south, east, north))
    assert grid.shape == (high, wide)
    assert (grid.transform.c, grid.transform.f) == (west, north)
    assert grid.transform.c + grid.transform.a * wide == pytest.approx(east, abs=1e-9)
    assert np.abs(grid.lat()).max() < 90


def test_the_antimeridian_is_crossed_by_an_east_beyond_180():
    grid = make_grid(resolution=0.5, bounds=(179, -20, 181, -18))
    assert grid.lon().tolist() == [179.25, 179.75, 180.25, 180.75]


def test_longitude_first_whatever_order_the_authority_has():
    for crs in ("EPSG:4326", "OGC:CRS84", "EPSG:4258"):
        grid = make_grid(crs=crs, resolution=1, bounds=(10, 50, 14, 52))
        lon, lat = np.moveaxis(grid.lonlat(), -1, 0)
        assert (lon[0], lat[:, 0]) == (pytest.approx([10.5, 11.5, 12.5, 13.5]), pytest.approx([51.5, 50.5]))


WGS84_SPELLINGS = {
    "EPSG:4326": True,
    "OGC:CRS84": True,
    "+proj=longlat +datum=WGS84 +no_defs": True,
    "EPSG:4979": True,
    pyproj.CRS(4326).to_wkt("WKT1_GDAL"): True,
    pyproj.CRS(4326).to_wkt("WKT1_ESRI"): True,
    pyproj.CRS("OGC:CRS84").to_wkt("WKT2_2019"): True,
    "EPSG:4258": False,
    "EPSG:4807": False,  # grads from Paris
    "+proj=longlat +datum=WGS84 +pm=paris": False,
    "+proj=longlat +ellps=bessel": False,
    "EPSG:3857": False,
}


@pytest.mark.parametrize("crs", WGS84_SPELLINGS, ids=lambda crs: crs[:24])
def test_only_wgs84_degrees_from_greenwich_take_the_product_path(crs):
    assert is_lonlat(pyproj.CRS(crs)) is WGS84_SPELLINGS[crs]


def test_another_prime_meridian_and_grads_are_converted():
    grid = make_grid(crs="EPSG:4807", resolution=1, bounds=(0, 50, 2, 52))
    lon, lat = grid.lonlat()[1, 0]
    # EPSG:4807 counts in grads from Paris, 2.33722917° east of Greenwich, on a datum some 100 m from WGS 84.
    assert lon == pytest.approx(2.33722917 + 0.5 * 0.9, abs=0.005)
    assert lat == pytest.approx(50.5 * 0.9, abs=0.005)
    whole = make_grid(crs="EPSG:4807", resolution=50)
    assert whole.shape == (4, 8)
    assert np.isfinite(whole.lonlat()).all()


def test_a_utm_tile_lies_where_pyproj_says():
    grid = make_grid(**UTM)
    assert grid.shape == (128, 256)
    assert not grid.separable
    to_lonlat = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    expected = to_lonlat.transform(500_000 + 10.5 * 10, 5_001_280 - 3.5 * 10)
    assert tuple(grid.lonlat(slice(3, 4), slice(10, 11))[0, 0]) == pytest.approx(expected, abs=1e-12)
    assert np.isfinite(grid.lonlat()).all()


@pytest.mark.parametrize(
    ("crs", "share"),
    [("ESRI:54009", math.pi / 4), ("EPSG:6933", 1), ("EPSG:3857", 1), ("EPSG:3035", 1), ("EPSG:3031", 1)],
)
def test_a_projection_without_bounds_covers_its_area_of_use(crs, share):
    grid = make_grid(crs=crs, resolution=50_000)
    valid = np.isfinite(grid.lonlat()).all(axis=-1).mean()
    assert valid == pytest.approx(share, abs=0.015)
    west, south, east, north = pyproj.CRS(crs).area_of_use.bounds
    middle = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(
        (west + east) / 2, (south + north) / 2
    )
    col, row = ~grid.transform * middle
    assert 0 <= col <= grid.shape[1]
    assert 0 <= row <= grid.shape[0]
    for edge in (grid.transform.c, grid.transform.f):
        assert edge / 50_000 == round(edge / 50_000)


def test_pixels_outside_an_equal_earth_outline_are_no_places():
    grid = make_grid(crs="EPSG:8857", resolution=200_000)
    lonlat = grid.lonlat()
    valid = np.isfinite(lonlat[..., 0])
    assert not valid[0, 0]
    assert not valid[-1, -1]
    assert valid[grid.shape[0] // 2, grid.shape[1] // 2]
    assert np.array_equal(valid, np.isfinite(lonlat[..., 1]))
    forward = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:8857", always_xy=True)
    x, y = forward.transform(*np.moveaxis(lonlat[valid], -1, 0))
    rows, cols = np.nonzero(valid)
    expected_x, expected_y = grid.xy(rows, cols)
    assert max(np.abs(x - expected_x).max(), np.abs(y - expected_y).max()) <= 0.01 * 200_000


def test_places_that_do_not_come_back_are_left_out():
    """An orthographic view of the globe: nothing lies beside the disc."""
    grid = make_grid(
        crs="+proj=ortho +lat_0=40 +lon_0=10 +ellps=WGS84", resolution=1e6, bounds=(-7e6, -7e6, 7e6, 7e6)
    )
    valid = np.isfinite(grid.lonlat()).all(axis=-1)
    assert valid.mean() == pytest.approx(math.pi * 6378**2 / 14000**2, abs=0.08)
    assert not valid[0].all()


FINE = {
    "two changes of datum meet": ("EPSG:23030", 30),  # ED50 in Spain: 107 m from one to the other
    "a continent of datums": ("ESRI:102033", 30),
    "aerial pictures of 10 cm": ("EPSG:2056", 0.1),  # the change of datum loses the height: 1 mm
    "a drone's pictures of 1 cm": ("EPSG:3035", 0.01),  # PROJ's series: 1.5 mm
}


@pytest.mark.parametrize("case", FINE)
def test_a_projection_has_no_holes_where_datums_change_or_pixels_are_small(case):
    crs, resolution = FINE[case]
    west, south, east, north = area_of_use(pyproj.CRS(crs))
    shape = int((north - south) / resolution), int((east - west) / resolution)
    grid = Grid.from_geobox(GeoBox(shape, Affine(resolution, 0, west, 0, -resolution, north), crs))
    rows, cols = (np.linspace(0, size - 1, 60).astype(int) for size in shape)
    lonlat = grid.lonlat(rows, cols)
    assert np.isfinite(lonlat).all()
    expected = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(
        *np.broadcast_arrays(*grid.xy(rows[:, None], cols))
    )
    assert np.abs(lonlat - np.moveaxis(expected, 0, -1)).max() <= 1e-11


def test_rows_beyond_the_pole_of_another_datum_are_no_places():
    """A change of datum turns 95° north into a place on the other side of the pole."""
    lonlat = Grid.from_geobox(GeoBox((38, 36), Affine(10, 0, -180, 0, -5, 95), "EPSG:4230")).lonlat()
    assert np.isnan(lonlat[[0, -1]]).all()
    assert np.isfinite(lonlat[1:-1]).all()


@pytest.mark.parametrize("crs", ["EPSG:4326+5773", "EPSG:9707", "EPSG:32633+5773", "EPSG:4979"])
def test_heights_in_a_crs_do_not_matter(crs, tmp_path):
    projected = "32633" in crs
    where = {"resolution": 100_000 if projected else 10}
    plain = make_grid(crs="EPSG:32633" if projected else None, **where)
    grid = make_grid(crs=crs, **where)
    assert np.array_equal(grid.lonlat(), plain.lonlat(), equal_nan=True)
    path = write_raster(tmp_path / "a.tif", crs=crs, transform=grid.transform)
    assert np.isfinite(make_grid(like=path).lonlat()).all()


def test_degrees_are_degrees_whatever_they_are_called():
    crs = pyproj.CRS(4326).to_wkt("WKT1_ESRI")
    assert '"Degree"' in crs
    assert make_grid(crs=crs).shape == (720, 1440)
    assert unit_name(pyproj.CRS(pyproj.CRS(32633).to_wkt("WKT1_ESRI"))) == "metre"
    assert unit_name(pyproj.CRS(4807)) == "grad"
    assert unit_name(pyproj.CRS(2263)) == "US survey foot"


def test_an_area_of_use_across_the_antimeridian_stays_in_one_piece():
    grid = make_grid(crs="EPSG:3460", resolution=10_000)  # Fiji: 176.81 to −178.15
    lon = np.remainder(grid.lonlat()[..., 0], 360)
    assert grid.shape[1] < 100
    assert lon.min() > 176
    assert lon.max() < 183


def test_a_polar_projection_contains_its_pole():
    grid = make_grid(crs="EPSG:3031", resolution=100_000, bounds=(-150_000, -150_000, 150_000, 150_000))
    assert grid.lonlat()[1, 1, 1] == pytest.approx(-90, abs=1e-9)


ERRORS = {
    "another size": (
        {"resolution": 0.7, "bounds": (0, 0, 10, 7)}, "nearest resolution that fits is 0.5;"),
    "a third, rounded": ({"resolution": 0.333333}, "nearest resolution that fits is 0.3333333333"),
    "one axis fits": (
        {"resolution": 0.05, "bounds": (2.2, 47, 3.33, 49)},
        "nearest resolution that fits is 0.049130435,0.05; or keep 0.05 with bounds 2.2 47 3.35 49"),
    "a pole in the way": (
        {"resolution": 0.7, "bounds": (0, 34, 7, 89.9)}, "or keep 0.7 with bounds 0 33.9 7 89.9"),
    "wider in metres": (
        {"resolution": 10, "bounds": (300000, 5000000, 400000, 5100000)}, "if they are metres, give crs"),
    "bounds below a pixel": ({"resolution": 50, "bounds": (0, 0, 1, 1)}, "0.02 × 0.02 pixels"),
    "west beyond east": ({"bounds": (170, 0, -170, 5)}, "write 170 0 190 5"),
    "no width": ({"bounds": (10, 0, 10, 5)}, "for all longitudes write 10 0 370 5"),
    "180 to -180": ({"bounds": (180, 0, -180, 5)}, "for all longitudes write -180 0 180 5"),
    "from 190 to 180": ({"bounds": (190, 0, 180, 5)}, "write 190 0 540 5"),
    "west a turn beyond east": ({"bounds": (300, 0, -170, 5)}, "west must be less than east"),
    "in grads": ({"crs": "EPSG:4807", "resolution": 1, "bounds": (199, 0, -199, 5)}, "write 199 0 201 5"),
    "wider than the globe": ({"bounds": (0, 0, 361, 5)}, "wider than the globe"),
    "wider by a millimetre": ({"bounds": (-180.00000001, 0, 180, 5)}, "-180.00000001 0 180 5: wider"),
    "south beyond north": ({"bounds": (0, 5, 1, 4)}, "south must be less than north"),
    "beyond the north pole": ({"bounds": (0, 0, 1, 90.5)}, "beyond a pole"),
    "beyond the south pole": ({"bounds": (0, -91, 1, 0)}, "beyond a pole"),
    "three bounds": ({"bounds": (0, 0, 1)}, "four numbers"),
    "infinite bounds": ({"bounds": (0, 0, math.inf, 1)}, "finite"),
    "projected without resolution": ({"crs": "EPSG:3857"}, "a resolution is required"),
    "easting backwards": ({"crs": "EPSG:3857", "resolution": 1, "bounds": (5, 0, 1, 2)}, "west must be"),
    "no area of use": ({"crs": "+proj=ortho", "resolution": 1000}, "no area of use"),
    "unknown code": ({"crs": "EPSG:99999"}, "unknown CRS 'EPSG:99999'"),
    "nonsense": ({"crs": "middle earth"}, "unknown CRS 'middle earth'"),
    "a height": ({"crs": "EPSG:5773"}, "geographic or projected"),
    "the Moon": ({"crs": "IAU_2015:30100"}, "on Earth"),
    "absurdly fine": ({"resolution": 1e-9}, "3.6e+11 × 1.8e+11 pixels"),
    "zero": ({"resolution": 0}, "positive"),
    "negative": ({"resolution": -1}, "positive"),
    "not a number": ({"resolution": math.nan}, "positive"),
    "text": ({"resolution": "fine"}, "one number or two"),
    "three resolutions": ({"resolution": (1, 2, 3)}, "one number or two"),
    "like and more": ({"like": "x.tif", "resolution": 1, "align": True}, "leave out resolution and align"),
    "a missing file": ({"like": "missing.tif"}, "missing.tif: cannot be read"),
    "like a number": ({"like": 7}, "not int"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_an_impossible_grid_is_refused_in_one_line(case):
    arguments, message = ERRORS[case]
    with pytest.raises(UsageError) as error:
        make_grid(**arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@given(resolution=st.floats(0.05, 20), width=st.floats(1, 300), height=st.floats(1, 80))
@settings(max_examples=200, deadline=None)
def test_the_resolution_that_an_error_names_fits(resolution, width, height):
    bounds = (-100, -40, -100 + width, -40 + height)
    try:
        make_grid(resolution=resolution, bounds=bounds)
    except UsageError as error:
        named = str(error).partition(" fits is ")[2]
        finer, _, wider = named.partition("; or keep ")
        make_grid(resolution=[float(part) for part in finer.split(",")], bounds=bounds)
        if wider:
            kept, _, others = wider.partition(" with bounds ")
            west, south, east, north = (float(edge) for edge in others.partition(";")[0].split())
            assert west <= bounds[0] + 1e-4
            assert south <= bounds[1] + 1e-4
            assert east >= bounds[2] - 1e-4
            assert north >= bounds[3] - 1e-4
            make_grid(resolution=float(kept), bounds=(west, south, east, north))


def test_bounds_far_from_a_projections_area_of_use_are_noticed():
    far = make_grid(crs="EPSG:32633", resolution=1000, bounds=(-12_000, 34_000, 42_000, 72_000))
    assert "wholly outside the area of use of EPSG:32633" in outside_area_of_use(far)
    assert "the metre" in outside_area_of_use(far)
    small = make_grid(crs="EPSG:3857", resolution=1, bounds=(-12, 34, 42, 72))
    assert "look like degrees" in outside_area_of_use(small)
    metres = make_grid(crs="EPSG:32633", resolution=1000, bounds=(100_000, 5_000_000, 200_000, 5_100_000))
    for within in (
        metres,
        make_grid(resolution=10),
        make_grid(crs="+proj=ortho", resolution=1000, bounds=(0, 0, 9000, 9000)),
    ):
        assert outside_area_of_use(within) == ""


@pytest.mark.parametrize("angle", [0, 90, 180])
def test_bounds_surround_the_raster_however_it_is_turned(angle):
    transform = Affine.translation(10, 50) * Affine.rotation(angle) * Affine.scale(0.5, -0.5)
    west, south, east, north = Grid.from_geobox(GeoBox((4, 6), transform, "EPSG:4326")).bounds
    assert (west, north) == pytest.approx({0: (10, 50), 90: (10, 53), 180: (7, 52)}[angle])
    assert (east - west, north - south) == pytest.approx((2, 3) if angle == 90 else (3, 2))


def test_two_resolutions_are_x_and_y():
    grid = make_grid(resolution=(2, 1), bounds=(0, 0, 10, 7))
    assert grid.shape == (7, 5)
    assert (grid.transform.a, grid.transform.e) == (2, -1)


LIKE = {
    "north up": Affine(0.5, 0, 10, 0, -0.5, 50),
    "south up": Affine(0.5, 0, 10, 0, 0.5, 48),
    "east to west": Affine(-0.5, 0, 13, 0, -0.5, 50),
    "rotated": Affine.translation(10, 50) * Affine.rotation(30) * Affine.scale(0.5, -0.5),
    "quarter turn": Affine(0, 0.5, 10, -0.5, 0, 50),
}


@pytest.mark.parametrize("case", LIKE)
def test_like_a_file_takes_its_pixels_as_they_are(case, tmp_path):
    transform = LIKE[case]
    grid = make_grid(like=write_raster(tmp_path / "a.tif", transform=transform))
    assert grid.shape == (4, 6)
    assert grid.transform == transform
    assert grid.separable is (transform.b == 0 and transform.d == 0)
    for row, col in ((0, 0), (3, 5)):
        expected = transform * (col + 0.5, row + 0.5)
        assert tuple(grid.lonlat()[row, col]) == pytest.approx(expected, abs=1e-9)


def test_like_takes_open_datasets_geoboxes_and_grids(tmp_path):
    path = write_raster(tmp_path / "a.tif", crs="EPSG:32633", transform=Affine(10, 0, 5e5, 0, -10, 5e6))
    grid = make_grid(like=str(path))
    with rasterio.open(path) as dataset:
        assert make_grid(like=dataset) == grid
    assert make_grid(like=grid.geobox) == grid
    assert make_grid(like=grid) is grid


def test_like_a_file_without_georeference_is_refused_by_name(tmp_path):
    corners = [GroundControlPoint(r, c, 10 + c, 50 - r) for r, c in ((0, 0), (0, 4), (4, 0))]
    cases = {
        "gcps.tif": ({"gcps": corners}, "ground control points"),
        "bare.tif": ({"crs": None}, "no georeference"),
        "no_crs.tif": ({"crs": None, "transform": Affine(1, 0, 5, 0, -1, 5)}, "no CRS"),
        "local.tif": (
            {"crs": 'LOCAL_CS["plan",UNIT["metre",1]]', "transform": Affine(1, 0, 5, 0, -1, 5)}, "CRS"),
    }  # fmt: skip
    for name, (options, message) in cases.items():
        path = write_raster(tmp_path / name, **options)
        with pytest.raises(UsageError, match=message) as error:
            make_grid(like=path)
        assert name in str(error.value)
    (tmp_path / "text.tif").write_text("not a raster")
    with pytest.raises(UsageError, match=r"text\.tif"):
        make_grid(like=tmp_path / "text.tif")


def test_a_file_of_several_rasters_says_how_to_name_one(tmp_path):
    path = tmp_path / "two.gpkg"
    for name in ("first", "second"):
        with rasterio.open(
            path, "w", driver="GPKG", width=6, height=4, count=1, dtype="uint8", crs="EPSG:4326",
            transform=Affine(1, 0, 5, 0, -1, 50), RASTER_TABLE=name, APPEND_SUBDATASET=name == "second",
        ) as dataset:  # fmt: skip
            dataset.write(np.ones((1, 4, 6), np.uint8))
    with pytest.raises(UsageError, match=r"holds 2 rasters; name one of them, such as GPKG:.*:first"):
        make_grid(like=path)
    assert make_grid(like=f"GPKG:{path}:second").shape == (4, 6)


def test_a_grid_node_raster_has_its_poles_and_nothing_beyond():
    """Labels at 90, 89, …, −90 as weather models have them: half of the first row lies beyond the pole."""
    grid = Grid.from_geobox(GeoBox((181, 360), Affine(1, 0, -0.5, 0, -1, 90.5), "EPSG:4326"))
    assert (grid.lat()[0], grid.lat()[90], grid.lat()[-1]) == (90, 0, -90)
    beyond = Grid.from_geobox(GeoBox((183, 360), Affine(1, 0, -0.5, 0, -1, 91.5), "EPSG:4326"))
    assert np.isnan(beyond.lat()).tolist() == [True] + [False] * 181 + [True]
    assert np.isnan(beyond.lonlat()[0]).all()


@pytest.mark.parametrize("resolution", [0.1, 1 / 3, 0.25])
def test_labels_of_an_axis_are_those_that_rioxarray_gives(resolution, tmp_path):
    grid = make_grid(resolution=resolution, bounds=(-11, 40, 8, 57))
    height, width = grid.shape
    path = write_raster(tmp_path / "a.tif", transform=grid.transform, width=width, height=height)
    with rioxarray.open_rasterio(path) as labels:
        assert np.array_equal(grid.axis("x"), labels.x)
        assert np.array_equal(grid.axis("y"), labels.y)


def test_a_grid_travels_to_other_processes():
    grid = make_grid(**UTM)
    grid.lonlat(slice(0, 1), slice(0, 1))
    assert pickle.loads(pickle.dumps(grid)) == grid


def warped(own, edges, crs):
    """Bounds in another CRS by GDAL's reckoning, edges densified."""
    return rasterio.warp.transform_bounds(own, crs, *edges, densify_pts=2001)


BOXES = {
    "degrees in UTM": ("EPSG:4326", (10, 45, 12, 47), "EPSG:32633"),
    "degrees in LAEA": ("EPSG:4326", (-10, 35, 30, 70), "EPSG:3035"),
    "UTM in degrees": ("EPSG:32633", (300_000, 5_000_000, 700_000, 5_400_000), "EPSG:4326"),
    "Mercator in Equal Earth": ("EPSG:3857", (1e6, -2e6, 5e6, 6e6), "EPSG:8857"),
    "NAD27 in degrees": ("EPSG:4267", (-100, 30, -90, 40), "EPSG:4326"),
    "the North Pole in degrees": ("EPSG:3413", (-2e6, -2e6, 2e6, 2e6), "EPSG:4326"),
    "the South Pole in degrees": ("EPSG:3031", (-1e6, -2e6, 2e6, 1e6), "EPSG:4326"),
    "a polar cap": ("EPSG:4326", (-180, 60, 180, 90), "EPSG:3413"),
}


@pytest.mark.parametrize("case", BOXES)
def test_bounds_in_another_crs_are_surrounded_as_gdal_does(case):
    own, edges, crs = BOXES[case]
    step = 0.01 if crs == "EPSG:4326" else 1000
    grid = make_grid(resolution=step, bounds=edges, crs=crs, bounds_crs=own)
    for edge, expected, outward in zip(grid.bounds, warped(own, edges, crs), (-1, -1, 1, 1), strict=True):
        assert edge == pytest.approx(round(edge / step) * step)
        assert -0.2 * step <= (edge - expected) * outward <= step * 1.01
    lonlat = grid.lonlat(slice(None, None, 97), slice(None, None, 89))
    assert np.isfinite(lonlat).any()


@pytest.mark.parametrize(
    ("own", "edges", "crs", "west", "east"),
    [
        ("EPSG:4326", (170, -10, 190, 10), "EPSG:4267", 170, 190),
        ("EPSG:32760", (700_000, 8e6, 1_000_000, 8.1e6), "EPSG:4326", 178.8, 181.8),
        ("EPSG:32701", (100_000, 8e6, 400_000, 8.1e6), "EPSG:4326", 179.1, 182.1),
    ],
)
def test_bounds_across_the_antimeridian_stay_in_one_piece(own, edges, crs, west, east):
    left, _, right, _ = make_grid(resolution=0.1, bounds=edges, crs=crs, bounds_crs=own).bounds
    assert (left, right) == pytest.approx((west, east), abs=0.15)
    pacific = make_grid(resolution=1000, bounds=(170, -10, 190, 10), crs="EPSG:3832", bounds_crs="EPSG:4326")
    assert pacific.bounds == (2_226_000, -1_112_000, 4_453_000, 1_112_000)


def test_metres_of_which_it_is_said_that_they_are_degrees_are_noticed():
    with pytest.raises(UsageError, match="if they are metres, give their bounds_crs"):
        make_grid(resolution=1000, crs=32633, bounds=(3e5, 5e6, 4e5, 5.1e6), bounds_crs=4326)


def test_bounds_on_both_sides_of_a_map_are_refused():
    with pytest.raises(UsageError, match=r"across its edge.*without bounds_crs"):
        make_grid(resolution=1000, bounds=(170, -10, 190, 10), crs="EPSG:3857", bounds_crs="EPSG:4326")
    with pytest.raises(UsageError, match="outside CRS"):
        make_grid(resolution=1, bounds=(2e7, 1e7, 3e7, 2e7), bounds_crs="EPSG:8857")


def test_bounds_in_the_rasters_own_crs_are_not_widened():
    bounds = (10, 45, 12, 47)
    assert make_grid(resolution=1, bounds=bounds, bounds_crs="OGC:CRS84") == make_grid(
        resolution=1, bounds=bounds
    )
    with pytest.raises(UsageError, match="not whole ones"):
        make_grid(resolution=0.3, bounds=bounds, bounds_crs="EPSG:4326")


@given(
    west=st.floats(-1e6, 1e6), south=st.floats(-1e6, 1e6), width=st.floats(1, 1e5), height=st.floats(1, 1e5),
    step=st.sampled_from([1.0, 10.0, 30.0, 0.7, 1000.0, 1 / 3]),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_aligned_bounds_are_the_next_multiples_outside(west, south, width, height, step):
    edges = (west, south, west + width, south + height)
    grid = make_grid(crs="EPSG:3857", resolution=step, bounds=edges, align=True)
    for edge, given_edge, outward in zip(grid.bounds, edges, (-1, -1, 1, 1), strict=True):
        assert edge / step == pytest.approx(round(edge / step), abs=2e-6)
        assert (
            -1e-5 * step <= (edge - given_edge) * outward < step * (1 + 1e-5)
            or grid.shape[0] == 1
            or grid.shape[1] == 1
        )


def test_aligned_neighbours_share_their_edges():
    left = make_grid(resolution="1/12", bounds=(0.01, 40.02, 9.98, 49.97), align=True)
    right = make_grid(resolution="1/12", bounds=(10.01, 40.01, 19.99, 49.99), align=True)
    assert left.bounds == pytest.approx((0, 40, 10, 50))
    assert right.bounds == pytest.approx((10, 40, 20, 50))
    assert make_grid(resolution=0.7, bounds=(0, 34, 7, 89.9), align=True).bounds[3] == pytest.approx(90.3)


SIZES = {
    "1/12": 1 / 12, "30s": 30 / 3600, "5min": 5 / 60, "5'": 5 / 60, '7.5"': 7.5 / 3600, "0.5 deg": 0.5,
    "2.5 arcmin": 2.5 / 60, ".25": 0.25, "1e-1": 0.1, "1.5/3": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("text", SIZES)
def test_a_resolution_may_be_a_fraction_or_in_units_of_arc(text):
    grid = make_grid(resolution=text, bounds=(0, 0, 1, 1), align=True)
    assert grid.transform.a == pytest.approx(SIZES[text], rel=1e-14)


def test_a_resolution_in_other_units_than_the_crs_is_refused():
    utm = {"crs": "EPSG:32633", "bounds": (3e5, 5e6, 4e5, 51e5)}
    assert make_grid(resolution="1km", **utm).shape == (100, 100)
    assert make_grid(resolution=resyx_(-500, 1000), **utm).shape == (200, 100)
    assert make_grid(resolution=(1000, -500), **utm).shape == (200, 100)
    for resolution, message in (("30s", "counts in metres"), ("1 furlong", "counts in metres")):
        with pytest.raises(UsageError, match=message):
            make_grid(resolution=resolution, **utm)
    with pytest.raises(UsageError, match="for minutes of arc write 30min"):
        make_grid(resolution="30m")


ORDERS = {
    (45, 100, 50, 120): "100 45 120 50",
    (-90, -180, 90, 180): "-180 -90 180 90",
    (-180, 180, -90, 90): "-180 -90 180 90",
    (-12, 72, 42, 34): "-12 34 42 72",
}


@pytest.mark.parametrize("bounds", ORDERS, ids=str)
def test_bounds_in_another_order_are_put_right_in_the_message(bounds):
    with pytest.raises(UsageError, match=f"their order is west, south, east, north: {ORDERS[bounds]}"):
        make_grid(resolution=1, bounds=bounds)
    for overshoot in ((0, 0, 10, 90.5), (0, 0, 10, 91)):
        with pytest.raises(UsageError) as caught:
            make_grid(resolution=1, bounds=overshoot)
        assert "order" not in str(caught.value)


def test_degrees_as_bounds_of_a_projected_crs_are_recognised():
    for resolution in (1000, 0.25):
        with pytest.raises(UsageError, match=r"look like degrees.*metres: give bounds_crs='EPSG:4326' too"):
            make_grid(crs="EPSG:32633", resolution=resolution, bounds=(10, 45, 12, 47))
    with pytest.raises(
        UsageError, match=r"not whole ones.*; if they are degrees, give bounds_crs='EPSG:4326'"
    ):
        make_grid(crs="EPSG:3857", resolution=1000, bounds=(10, 45, 12, 47))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of rasterio's log
def test_a_virtual_raster_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "a.vrt"
    path.write_bytes(b'<VRTDataset rasterXSize="36" rasterYSize="18"><\xff')
    with pytest.raises(UsageError, match=r"a\.vrt: cannot be read as a raster"):
        make_grid(like=path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.tif")
    with pytest.raises(UsageError, match=r"a\.tif: cannot be read as a raster \(a pipe, no file\)"):
        make_grid(like=tmp_path / "a.tif")

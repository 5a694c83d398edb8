"""Patches cut from rasters: each shows the place that it is said to show."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_bounds, from_origin

from satclip_engine.errors import DataError, UsageError
from satclip_engine.geo.crs import transformers
from satclip_engine.training.raster_patches import RasterPatches

GLOBE = (-180.0, -90.0, 180.0, 90.0)


def write_places(path, crs, transform, shape, **profile):
    """A raster whose pixels hold their own centre: cos and sin of the longitude, and the latitude."""
    height, width = shape
    rows, columns = np.mgrid[:height, :width] + 0.5
    x = transform.a * columns + transform.b * rows + transform.c
    y = transform.d * columns + transform.e * rows + transform.f
    if crs and not crs.endswith("4326"):
        x, y = transformers(rasterio.CRS.from_user_input(crs).to_wkt())[0].transform(x, y)
    values = np.stack([np.cos(np.radians(x)), np.sin(np.radians(x)), y]).astype(np.float32)
    options = {"driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "float32"}
    with rasterio.open(path, "w", **options, crs=crs, transform=transform, **profile) as file:
        file.write(values)
    return path


def shown(source):
    """Longitude and latitude of each patch's centre, by the pixels around it."""
    half = source.patch // 2
    images = np.stack(source.read(range(len(source)))).astype(np.float64)
    centre = images[:, :, half - 1 : half + 1, half - 1 : half + 1].mean(axis=(2, 3))
    return np.degrees(np.arctan2(centre[:, 1], centre[:, 0])), centre[:, 2]


def check_locations(source, tolerance):
    lon, lat = shown(source)
    off = np.abs((lon - source.lonlat[:, 0] + 180) % 360 - 180) * np.cos(np.radians(lat))
    assert off.max() < tolerance
    assert np.abs(lat - source.lonlat[:, 1]).max() < tolerance


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["held", "read window by window"])
def test_a_global_raster_shows_the_places_and_wraps_at_the_antimeridian(tmp_path, memory):
    path = write_places(tmp_path / "a.tif", "EPSG:4326", from_bounds(*GLOBE, 360, 180), (180, 360))
    source = RasterPatches(path, patch=8, count=1500, memory=memory)
    check_locations(source, 1e-4)
    assert np.abs(source.lonlat[:, 0]).max() > 177  # patches across the antimeridian
    assert np.abs(source.lonlat).max(axis=0)[1] <= 86  # none across a pole
    assert len(np.unique(source.lonlat, axis=0)) == 1500


def test_held_and_read_patches_are_the_same(tmp_path):
    path = write_places(tmp_path / "a.tif", "EPSG:4326", from_bounds(*GLOBE, 360, 180), (180, 360))
    held, read = (RasterPatches(path, patch=9, count=300, memory=memory) for memory in (1 << 30, 0))
    assert held.fingerprint == read.fingerprint
    np.testing.assert_array_equal(held.read(range(300)), read.read(range(300)))


def test_places_are_uniform_on_the_sphere(tmp_path):
    path = write_places(tmp_path / "a.tif", "EPSG:4326", from_bounds(*GLOBE, 1440, 720), (720, 1440))
    sine = np.sin(np.radians(RasterPatches(path, patch=2, count=20000).lonlat[:, 1]))
    counts = np.histogram(sine, bins=10, range=(-1, 1))[0]
    assert np.abs(counts - 2000).max() < 4 * np.sqrt(2000)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32633", from_origin(300000, 5000000, 500, 500)),
        ("EPSG:32660", from_origin(500000, 7000000, 4000, 4000)),  # reaches beyond the antimeridian
        ("EPSG:3413", from_origin(-600000, 600000, 10000, 10000)),  # a pole inside
        ("EPSG:4326", from_origin(170, 40, 0.25, 0.25)),  # to 200° east
    ],
)
def test_regional_and_projected_rasters_show_the_places(tmp_path, crs, transform):
    path = write_places(tmp_path / "a.tif", crs, transform, (120, 120))
    source = RasterPatches(path, patch=6, count=400)
    assert len(source) == 400
    check_locations(source, 2e-2 if crs == "EPSG:3413" else 1e-3)


def test_a_south_up_raster_shows_the_places(tmp_path):
    path = write_places(tmp_path / "a.tif", "EPSG:4326", rasterio.Affine(0.5, 0, 10, 0, 0.5, -30), (100, 100))
    check_locations(RasterPatches(path, patch=4, count=200), 1e-4)


def test_a_plain_image_needs_bounds(tmp_path):
    path = write_places(tmp_path / "a.tif", None, rasterio.Affine(1, 0, 0, 0, 1, 0), (90, 180))
    rows, columns = np.mgrid[:90, :180] + 0.5
    lon, lat = np.radians(2 * columns - 180), 90 - 2 * rows
    with rasterio.open(path, "r+") as file:
        file.write(np.stack([np.cos(lon), np.sin(lon), lat]).astype(np.float32))
    with pytest.raises(UsageError, match=r"no georeference: give bounds .* -180 -90 180 90"):
        RasterPatches(path)
    check_locations(RasterPatches(path, patch=4, count=500, bounds=GLOBE), 1e-3)
    with pytest.raises(UsageError, match="west < east"):
        RasterPatches(path, bounds=(180, -90, -180, 90))


def test_bounds_for_a_georeferenced_raster_are_refused(tmp_path):
    path = write_places(tmp_path / "a.tif", "EPSG:4326", from_bounds(*GLOBE, 36, 18), (18, 36))
    with pytest.raises(UsageError, match="is georeferenced"):
        RasterPatches(path, bounds=GLOBE)


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["held", "read window by window"])
def test_patches_without_data_are_not_drawn(tmp_path, memory):
    values = np.ones((1, 100, 100), np.int16)
    values[:, :, 50:] = -1
    options = {
        "driver": "GTiff",
        "height": 100,
        "width": 100,
        "count": 1,
        "dtype": "int16",
        "nodata": -1,
        "crs": "EPSG:4326",
    }
    with rasterio.open(tmp_path / "a.tif", "w", **options, transform=from_origin(0, 10, 0.1, 0.1)) as file:
        file.write(values)
    source = RasterPatches(tmp_path / "a.tif", patch=10, count=500, divisor=1, memory=memory)
    images = np.stack(source.read(range(len(source))))
    assert (images == 0).mean(axis=(1, 2, 3)).max() <= 0.1
    assert source.lonlat[:, 0].max() <= 4.6


@pytest.mark.parametrize(("plain", "thinned"), [(0, True), (40, True), (250, False)])  # sea, sea, ice
def test_patches_of_plain_water_are_thinned(tmp_path, plain, thinned):
    values = np.full((1, 200, 200), plain, np.uint8)
    values[:, :, 100:] = np.random.default_rng(0).integers(0, 255, (200, 100))
    options = {
        "driver": "GTiff",
        "height": 200,
        "width": 200,
        "count": 1,
        "dtype": "uint8",
        "crs": "EPSG:4326",
    }
    with rasterio.open(tmp_path / "a.tif", "w", **options, transform=from_origin(0, 10, 0.1, 0.1)) as file:
        file.write(values)
    shares = [
        (RasterPatches(tmp_path / "a.tif", patch=4, count=2000, water_kept=kept).lonlat[:, 0] < 10).mean()
        for kept in (1.0, 0.1, 0.0)
    ]
    assert shares[0] == pytest.approx(0.5, abs=0.05)
    assert shares[1] == pytest.approx(0.09 if thinned else 0.5, abs=0.05)
    assert (shares[2] < 0.03) == thinned  # those that reach the other half


def test_the_same_seed_gives_the_same_patches_and_another_others(tmp_path):
    path = write_places(tmp_path / "a.tif", "EPSG:4326", from_bounds(*GLOBE, 360, 180), (180, 360))
    first, again, other = (RasterPatches(path, patch=8, count=50, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.lonlat, again.lonlat)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_a_raster_with_fewer_patches_gives_those_and_says_so(tmp_path):
    path = write_places(tmp_path / "a.tif", "EPSG:4326", from_origin(0, 1, 0.1, 0.1), (10, 10))
    source = RasterPatches(path, patch=8, count=1000)
    assert len(source) == 9
    assert "9 different patches, not 1000" in source.notes[0]


def test_data_in_a_hundredth_of_a_raster_are_found(tmp_path):
    values = np.zeros((1, 1000, 1000), np.uint8)
    values[:, 500:540, 500:540] = 7
    options = {"driver": "GTiff", "height": 1000, "width": 1000, "count": 1, "dtype": "uint8", "nodata": 0}
    with rasterio.open(
        tmp_path / "a.tif", "w", **options, crs="EPSG:4326", transform=from_origin(0, 10, 0.01, 0.01)
    ) as file:
        file.write(values)
    assert len(RasterPatches(tmp_path / "a.tif", patch=4, count=1000)) == 1000


def test_rasters_without_any_patch_are_errors(tmp_path):
    path = write_places(tmp_path / "a.tif", "EPSG:4326", from_origin(0, 1, 0.1, 0.1), (10, 10))
    with pytest.raises(DataError, match="10×10 pixels, less than a patch of 16"):
        RasterPatches(path)
    with rasterio.open(path, "r+") as file:
        file.write(np.full((3, 10, 10), np.nan, np.float32))
    with pytest.raises(DataError, match="no patch of 4 pixels"):
        RasterPatches(path, patch=4)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as a raster"):
        RasterPatches(path)
    with pytest.raises(DataError, match="no such file"):
        RasterPatches(tmp_path / "nothing.tif")


@pytest.mark.parametrize(
    "bounds", [(np.nan, 0, 1, 1), (0, -np.inf, 1, 1), (1e30, 0, 1e30 + 1, 1), (400, 0, 500, 1)]
)
def test_bounds_that_are_nowhere_are_refused(tmp_path, bounds):
    path = write_places(tmp_path / "a.png", None, rasterio.Affine(1, 0, 0, 0, 1, 0), (90, 180))
    with pytest.raises(UsageError, match="bounds: expected west, south, east, north in degrees"):
        RasterPatches(path, bounds=bounds)


def test_no_patch_is_centred_beyond_a_pole(tmp_path):
    path = write_places(tmp_path / "a.tif", "EPSG:4326", from_origin(0, 100, 1, 1), (40, 40))
    lat = RasterPatches(path, patch=2, count=400).lonlat[:, 1]
    assert 85 < lat.max() <= 90

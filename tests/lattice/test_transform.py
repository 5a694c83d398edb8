"""ApproximatedGrid: pixels within 1e-3 of a pixel of where PROJ puts them, the same bits in any window."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from satclip_engine.backends.protocols import Call
from satclip_engine.errors import UsageError
from satclip_engine.geo.grid import Grid, make_grid
from satclip_engine.lattice import transform as module
from satclip_engine.lattice.nodes import EncodedNodes
from satclip_engine.lattice.prepared import PreparedLattice
from satclip_engine.lattice.transform import BLOCK_SIDE, MAX_ERROR, ApproximatedGrid
from satclip_engine.lattice.zones import make_zones


def geobox(crs, height, width, *transforms: Affine) -> Grid:
    matrix = Affine.identity()
    for transform in transforms:
        matrix = matrix @ transform
    return Grid.from_geobox(GeoBox((height, width), matrix, crs))


def utm(zone: int, west: float, resolution: float = 10.0) -> Grid:
    bounds = (west, 5e6, west + 600 * resolution, 5e6 + 500 * resolution)
    return make_grid(crs=f"EPSG:326{zone:02}", bounds=bounds, resolution=resolution)


GRIDS = {
    "UTM": utm(33, 5e5),
    "UTM 1, over the antimeridian": utm(1, 2e5, 300.0),
    "UTM 60, over the antimeridian": utm(60, 6.8e5, 300.0),
    "Web Mercator": make_grid(crs="EPSG:3857", bounds=(-5e5, 5e6, 1e5, 5.6e6), resolution=1000),
    "Web Mercator, all of it": make_grid(crs="EPSG:3857", bounds=(-2e7, -2e7, 2e7, 2e7), resolution=50_000),
    "over the north pole": make_grid(crs="EPSG:3413", bounds=(-6e5, -6e5, 6e5, 6e5), resolution=2000),
    "over the south pole": make_grid(crs="EPSG:3031", bounds=(-3e4, -4e4, 5e4, 2e4), resolution=100),
    "Equal Earth": make_grid(crs="EPSG:8857", bounds=(-1.76e7, -8.4e6, 0, 0), resolution=20_000),
    "LAEA": make_grid(crs="EPSG:3035", bounds=(2e6, 1e6, 7e6, 5.5e6), resolution=10_000),
    "LAEA, all of it": make_grid(
        crs="+proj=laea +lat_0=20 +lon_0=-150", bounds=(-13e6, -13e6, 13e6, 13e6), resolution=40_000
    ),
    "rotated": geobox(
        "EPSG:32633", 500, 600, Affine.translation(5e5, 5e6), Affine.rotation(-33), Affine.scale(20, -20)
    ),
    "rotated degrees": geobox(
        "EPSG:4326", 300, 560, Affine.translation(178, 50), Affine.rotation(20), Affine.scale(0.01, -0.01)
    ),
    "rotated degrees, beyond a pole": geobox(
        "EPSG:4326", 300, 560, Affine.translation(10, 86), Affine.rotation(20), Affine.scale(0.02, 0.02)
    ),
    "south up": geobox("EPSG:32633", 500, 600, Affine.translation(5e5, 5e6), Affine.scale(20, 20)),
}
SMOOTH = [name for name in GRIDS if "all of it" not in name and name != "rotated degrees, beyond a pole"]
CROSSING = [name for name in GRIDS if "antimeridian" in name or name == "rotated degrees"]


@pytest.fixture(params=GRIDS)
def grid(request: pytest.FixtureRequest) -> Grid:
    return GRIDS[request.param]


def on_sphere(lonlat: np.ndarray) -> np.ndarray:
    lon, lat = np.radians(lonlat[..., 0]), np.radians(lonlat[..., 1])
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def in_pixels(exact: np.ndarray, found: np.ndarray) -> np.ndarray:
    """How far places are off, in the shortest side of each pixel."""
    centre = on_sphere(exact)
    down, right = (np.linalg.norm(np.diff(centre, axis=axis), axis=-1) for axis in (0, 1))
    side = np.full(exact.shape[:2], np.inf)
    for some, length in (
        (np.s_[:-1], down),
        (np.s_[1:], down),
        (np.s_[:, :-1], right),
        (np.s_[:, 1:], right),
    ):
        side[some] = np.fmin(side[some], length)
    return np.linalg.norm(centre - on_sphere(found), axis=-1) / side


def test_places_lie_within_a_thousandth_of_a_pixel(grid):
    exact, found = grid.lonlat(), ApproximatedGrid(grid).lonlat()
    assert np.array_equal(np.isnan(exact), np.isnan(found))
    assert np.nanmax(in_pixels(exact, found)) <= MAX_ERROR


@pytest.mark.parametrize("name", SMOOTH)
def test_most_places_are_interpolated(name):
    exact, found = GRIDS[name].lonlat(), ApproximatedGrid(GRIDS[name]).lonlat()
    same = np.isnan(exact[..., 0]) | (exact == found).all(axis=-1)
    assert same.mean() < 0.8, "PROJ placed them, pixel by pixel"


@pytest.mark.parametrize("name", CROSSING)
def test_the_antimeridian_lies_inside(name):
    east_of_it = np.mod(GRIDS[name].lonlat()[..., 0] + 180, 360)
    assert east_of_it.min() < 1
    assert east_of_it.max() > 359


def test_a_pixel_has_the_same_bits_in_any_window(grid):
    whole, random = ApproximatedGrid(grid).lonlat(), np.random.default_rng(0)
    height, width = grid.shape
    windows = [
        (slice(250, 260), slice(None)),
        (slice(None, None, -7), slice(3, None, 5)),
        (random.integers(0, height, 50), np.sort(random.integers(0, width, 40))),
        (np.array([height - 1]), np.array([width - 1])),
    ]
    for rows, cols in windows:
        assert np.array_equal(ApproximatedGrid(grid).lonlat(rows, cols), whole[rows][:, cols], equal_nan=True)
    rows, cols = random.integers(0, height, 500), random.integers(0, width, 500)
    for places in (ApproximatedGrid(grid), pickle.loads(pickle.dumps(ApproximatedGrid(grid)))):
        assert np.array_equal(places.pixel_lonlat(rows, cols), whole[rows, cols], equal_nan=True)


def test_blocks_that_were_dropped_come_back_with_the_same_bits(monkeypatch):
    monkeypatch.setattr(module, "_CACHE_BLOCKS", 1)
    places = ApproximatedGrid(GRIDS["UTM"])
    first = places.lonlat()
    assert np.array_equal(places.lonlat(), first)
    assert len(places._fits) == 1


def test_blocks_that_are_not_smooth_are_left_to_proj():
    grid = GRIDS["over the north pole"]  # its middle has the pole in it
    block = (slice(BLOCK_SIDE, 2 * BLOCK_SIDE), slice(BLOCK_SIDE, 2 * BLOCK_SIDE))
    assert grid.lonlat(*block)[..., 1].max() > 89.98
    assert np.array_equal(ApproximatedGrid(grid).lonlat(*block), grid.lonlat(*block))


def test_a_projected_grid_has_no_latitude_of_a_row():
    places = ApproximatedGrid(GRIDS["UTM"])
    assert not places.separable
    for ask in (places.lat, places.lon):
        with pytest.raises(TypeError, match="projected grid"):
            ask()


@pytest.fixture(scope="module")
def prepared(smooth) -> PreparedLattice:
    zones = make_zones(2.0, 6)
    return PreparedLattice(smooth.network, zones, EncodedNodes(smooth.network, zones))


def test_embeddings_are_those_of_the_places(grid, prepared):
    places, (rows, cols) = ApproximatedGrid(grid), (slice(100, 300), slice(40, 300))
    expected = prepared.encode(places.lonlat(rows, cols).reshape(-1, 2)).reshape(200, -1, 7)
    for threads in (1, 3):
        found = prepared.encode_pixels(places, rows, cols, call=Call(threads))
        assert np.array_equal(found, expected, equal_nan=True)
    out = np.full((200, 2 * expected.shape[1], 9), 7, np.float32)[:, ::2, 1:8]  # has gaps
    assert prepared.encode_pixels(places, rows, cols, out, Call(2)) is out
    assert np.array_equal(out, expected, equal_nan=True)
    assert np.array_equal(np.isnan(expected[..., 0]), np.isnan(grid.lonlat(rows, cols)[..., 0]))


@pytest.mark.parametrize("threads", [1, 2])
def test_empty_windows_have_no_embeddings(prepared, threads):
    places = ApproximatedGrid(GRIDS["UTM"])
    assert prepared.encode_pixels(places, slice(0, 0), call=Call(threads)).shape == (0, 600, 7)
    assert prepared.encode_pixels(places, None, slice(5, 5), call=Call(threads)).shape == (500, 0, 7)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_raised_check_ends_the_call(prepared, threads):
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared.encode_pixels(ApproximatedGrid(GRIDS["UTM"]), call=Call(threads, stop))


def test_memory_of_another_shape_is_refused(prepared):
    with pytest.raises(UsageError, match=r"shape \(500, 600, 7\)"):
        prepared.encode_pixels(ApproximatedGrid(GRIDS["UTM"]), out=np.empty((500, 600, 6)), call=Call(1))

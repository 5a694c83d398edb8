"""What lattices are not made for: rough fields, needles, constant bands, odd rasters and lists of places."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from affine import Affine
from factories.planned import planned
from odc.geo.geobox import GeoBox
from reconstruction_check import random_encoder

from satclip_engine.encoder import Encoder, load
from satclip_engine.errors import UsageError
from satclip_engine.geo.grid import Grid, make_grid
from satclip_engine.lattice.plan import MIN_POINTS as LEAST

DEGREES = make_grid(resolution=0.05, bounds=(172, -40, 188, -20))
UTM = make_grid(crs="EPSG:32633", bounds=(4e5, 5e6, 5.29e5, 5.099e6), resolution=300)


def within(found: np.ndarray, exact: np.ndarray, encoder: Encoder, times: float = 3.0) -> bool:
    """Whether (n, E) values differ by little more than the tolerance, if at all."""
    assert encoder.plan.path == "lattice"
    assert np.array_equal(np.isnan(found), np.isnan(exact))
    return bool(np.nanmax(np.abs(found - exact) / encoder.plan.tolerance.bands) <= times)


def changed(encoder: Encoder, **tensors) -> Encoder:
    """The encoder with some of its tensors changed: name=function, with __ for a dot."""
    values = {name: np.array(value) for name, value in encoder.weights.tensors.items()}
    for name, change in tensors.items():
        name = name.replace("__", ".")
        values[name] = change(values[name])
    return load(dataclasses.replace(encoder.weights, tensors=values), threads=2)


def random_points(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([random.uniform(-180, 180, count), random.uniform(-90, 90, count)], axis=-1)


# Fields


COARSE = {
    "degrees": make_grid(resolution=0.5),
    "projected": make_grid(crs="EPSG:3857", bounds=(-2e7, -2e7, 2e7, 2e7), resolution=80_000),
    "points": random_points(LEAST),
}


@pytest.mark.parametrize(
    ("degrees", "gain", "reason"),
    [(10, 5000.0, "too rough for a tolerance of 0.0001 σ"), (60, 60.0, "save too little")],
)
@pytest.mark.parametrize("where", COARSE)
def test_where_no_lattice_pays_values_are_the_exact_ones(degrees, gain, reason, where):
    rough = random_encoder(degrees, gain, hidden=1, width=16, bands=5)
    if where == "points":
        found, exact = (rough(COARSE[where], exact=flag) for flag in (False, True))
    else:
        arrays = [rough.grid(geobox=COARSE[where], exact=flag) for flag in (False, True)]
        assert "reconstruction" not in arrays[0].attrs
        found, exact = (array.values for array in arrays)
    assert np.array_equal(found, exact, equal_nan=True)
    plan = planned(rough, COARSE[where]).plan
    assert plan.path == ("product grid" if where == "degrees" else "points")
    assert reason in plan.reason


@pytest.mark.parametrize("grid", [DEGREES, UTM], ids=["degrees", "UTM"])
def test_a_constant_band_stays_constant(smooth, grid):
    def without_fifth(weight: np.ndarray) -> np.ndarray:
        weight[4] = 0.0
        return weight

    encoder = changed(smooth, last_layer__weight=without_fifth, last_layer__bias=lambda bias: bias + 3.0)
    plan = planned(encoder, grid).plan
    assert plan.path == "lattice"
    assert plan.certificate.sigma[4] < 1e-6
    assert 0 < plan.certificate.max_sigma <= 1e-4
    values, exact = encoder.grid(geobox=grid).values, encoder.grid(geobox=grid, exact=True).values
    assert np.abs(values[4] - exact[4]).max() <= 1e-5 * np.abs(exact[4]).max()


def test_a_field_without_any_variation_is_reconstructed(smooth):
    encoder = changed(smooth, last_layer__weight=np.zeros_like)
    plan = planned(encoder, DEGREES).plan
    values, exact = encoder.grid(geobox=DEGREES).values, encoder.grid(geobox=DEGREES, exact=True).values
    assert plan.path == "lattice"
    assert plan.certificate.max_sigma == 0
    np.testing.assert_allclose(values, exact, rtol=1e-5)


def test_a_mean_far_larger_than_sigma_raises_the_floor(smooth):
    encoder = changed(smooth, last_layer__bias=lambda bias: bias + 1000.0)
    floor = encoder.moments.floor
    assert floor > 1e-2
    with pytest.raises(UsageError, match=f"the floor is {floor:.2g} σ"):
        encoder.grid(geobox=DEGREES, tolerance=0.9 * floor)
    for tolerance in (None, 1.1 * floor):
        found = planned(encoder, DEGREES, tolerance=tolerance)
        values = found.evaluate().reshape(-1, 7)
        assert within(values, encoder.evaluate(DEGREES).reshape(-1, 7), found, times=1.5)


# Tolerances


def test_a_tolerance_below_what_float32_keeps_is_refused_and_the_floor_named(smooth):
    for ask in (
        lambda t: smooth.grid(geobox=UTM, tolerance=t),
        lambda t: smooth(random_points(9), tolerance=t),
    ):
        with pytest.raises(UsageError, match=r"1e-07 σ is below .*: the floor is \d.*e-05 σ .*exact=True"):
            ask(1e-7)


BAD = [np.nan, np.inf, -np.inf, 0, 0.0, -1e-3, "1e-3", True, np.True_, 1e-3j, np.complex64(1e-3), [1e-3]]


@pytest.mark.parametrize("tolerance", BAD, ids=repr)
def test_what_is_no_tolerance_is_refused(smooth, tolerance):
    for ask in (
        lambda: smooth.grid(geobox=UTM, tolerance=tolerance),
        lambda: smooth.grid(resolution=10, tolerance=tolerance),
        lambda: smooth.grid(geobox=UTM, tolerance=tolerance, dtype="int8"),
        lambda: smooth(random_points(9), tolerance=tolerance),
    ):
        with pytest.raises(UsageError, match="tolerance must be "):
            ask()


def test_numbers_of_any_kind_are_tolerances(smooth):
    for tolerance in (1, np.float32(1e-3), np.int64(2)):
        assert planned(smooth, UTM, tolerance=tolerance).plan.path == "lattice"


def test_exact_with_a_tolerance_is_refused(smooth):
    for ask in (smooth.grid, lambda **how: smooth(random_points(9), **how)):
        with pytest.raises(UsageError, match="exact and tolerance are mutually exclusive"):
            ask(exact=True, tolerance=1e-3)


# Lists of places


def test_few_places_are_evaluated(smooth):
    points = random_points(LEAST + 1)
    assert planned(smooth, points[:-2]).plan.reason == f"fewer than {LEAST:,} points"
    exact = smooth(points, exact=True)
    assert np.array_equal(smooth(points[:-2]), exact[:-2])
    assert planned(smooth, points).plan.path == "lattice"
    assert not np.array_equal(smooth(points), exact)


def test_no_places_have_no_embeddings(smooth):
    for shape in ((0, 2), (5, 0, 2), (0, 3, 2)):
        assert smooth(np.empty(shape)).shape == (*shape[:-1], 7)
        assert smooth(np.empty(shape), tolerance=1e-3).shape == (*shape[:-1], 7)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_what_is_no_place_is_nan_and_changes_nothing_else(smooth, share):
    points = random_points(300_000)
    lost = np.random.default_rng(1).random(len(points)) >= share
    points[lost, np.random.default_rng(2).integers(0, 2, lost.sum())] = np.nan
    found, exact = smooth(points), smooth(points, exact=True)
    assert np.isnan(found[lost]).all()
    assert not np.isnan(found[~lost]).any()
    if share > 0.4:
        encoder = planned(smooth, points)
        assert within(found, exact, encoder)
        assert encoder.plan.certificate.positions >= 2000
    else:
        assert np.array_equal(found, exact, equal_nan=True), "fewer than 10⁵ places are left"


LISTS = {
    "copies of one place": np.full((LEAST, 2), [7.25, 51.5]),
    "a line over the pole": np.stack(
        [
            np.where(np.arange(LEAST) < LEAST // 2, 20.0, -160.0),
            90 - np.abs(np.linspace(-25, 25, LEAST)),
        ],
        -1,
    ),
    "around the pole": np.stack([np.linspace(-360, 360, LEAST), np.full(LEAST, -89.999)], -1),
    "far around the Earth": random_points(LEAST) * [1, 0.5] + [1e6, 0],
    "the antimeridian": np.stack([np.linspace(179.9, 180.1, LEAST), np.linspace(-80, 80, LEAST)], -1),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_places_are_reconstructed(smooth, name):
    points = LISTS[name]
    encoder, found = planned(smooth, points), smooth(points)
    assert within(found, smooth(points, exact=True), encoder)
    if name == "copies of one place":
        assert (found == found[0]).all()


# Rasters


SLENDER = {
    "a row": make_grid(resolution=(0.001, 1), bounds=(0, 50, 200, 51)),
    "a column": make_grid(resolution=(1, 0.001), bounds=(0, -90, 1, 90)),
    "a projected row": make_grid(crs="EPSG:3857", bounds=(-1e6, 6e6, 1e6, 6.01e6), resolution=(10, 10_000)),
    "a projected column": make_grid(crs="EPSG:3857", bounds=(0, -1e6, 1e4, 1e6), resolution=(10_000, 10)),
}


@pytest.mark.parametrize("name", SLENDER)
def test_rasters_of_one_row_or_column_are_reconstructed(smooth, name):
    grid = SLENDER[name]
    assert 1 in grid.shape
    values = smooth.grid(geobox=grid).values.reshape(7, -1).T
    exact = smooth.grid(geobox=grid, exact=True).values.reshape(7, -1).T
    assert within(values, exact, planned(smooth, grid))


def laea(side: float, pixels: int) -> Grid:
    """The Earth is a disc of 12.7e6 m around (4321000, 3210000)."""
    step = 2 * side / pixels
    return Grid.from_geobox(
        GeoBox((pixels, pixels), Affine(step, 0, 4_321_000 - side, 0, -step, 3_210_000 + side), "EPSG:3035")
    )


def test_a_raster_of_nowhere_is_no_data(smooth):
    grid = make_grid(crs="EPSG:3035", bounds=(1e8, 1e8, 1.4e8, 1.4e8), resolution=100_000)
    assert planned(smooth, grid).plan.reason.startswith("no point on Earth")
    assert np.isnan(smooth.grid(geobox=grid).values).all()
    assert (smooth.grid(geobox=grid, dtype="int8", scale_offset=(0.1, 0.0)).values == -128).all()
    assert (smooth.grid(geobox=grid, dtype="uint8").values == 0).all()
    with pytest.raises(UsageError, match="none of the 400 × 400 pixels lies on Earth"):
        smooth.grid(geobox=grid, dtype="int8", range="window")


@pytest.mark.parametrize(
    ("side", "share", "positions"), [(3e7, 0.14, 1800), (2e8, 3e-3, 300), (1.5e9, 5e-5, 5)]
)
def test_a_raster_that_is_mostly_nowhere_is_reconstructed(smooth, side, share, positions):
    grid = laea(side, 800)
    encoder = planned(smooth, grid)
    assert encoder.plan.certificate.positions >= positions
    values, exact = (smooth.grid(geobox=grid, exact=flag).values.reshape(7, -1).T for flag in (False, True))
    assert np.isfinite(exact[:, 0]).mean() == pytest.approx(share, rel=0.4)
    assert within(values, exact, encoder)

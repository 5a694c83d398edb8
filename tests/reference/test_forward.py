"""The reference against oracles that are not ours: mpmath, scipy, the published polynomials, identities."""

from __future__ import annotations

import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satclip_engine import reference
from satclip_engine.reference import forward
from satclip_engine.weights import Layers
from satclip_engine.weights.conventions import column_factors, fold_published

DATA = Path(__file__).parents[1] / "data" / "golden"
EPSILON = np.finfo(np.float64).eps

longitudes = st.floats(-1e6, 1e6)
latitudes = st.floats(-90, 90) | st.sampled_from([-90.0, 90.0, 90 - 1e-9, -89.95, 0.0, 45.0])


def harmonic_tolerance(degree: int) -> float:
    """x = cos θ is rounded once; a harmonic is at most √((2l+1)/2π), and l² times as sensitive to x."""
    return 4 * EPSILON * (degree + 1) ** 2 * math.sqrt((2 * degree + 1) / (2 * math.pi))


def exact_harmonic(degree: int, m: int, lon: float, lat: float) -> float:
    """The orthonormal real harmonic in 50 digits, from mpmath's complex one."""
    with mpmath.workdps(50):
        phi, theta = mpmath.radians(mpmath.mpf(lon) + 180), mpmath.radians(mpmath.mpf(lat) + 90)
        value = mpmath.spherharm(degree, abs(m), theta, phi) * (-1) ** abs(m)  # without Condon–Shortley
        part = value.real if m >= 0 else value.imag
        return float(part * (mpmath.sqrt(2) if m else 1))


def network(degrees: int, sizes: tuple[int, ...] = (16, 16, 5), seed: int = 0) -> Layers:
    """Random layers whose sines see arguments of order one."""
    rng = np.random.default_rng(seed)
    widths = (degrees**2, *sizes)
    weights = [rng.normal(size=(out, into)) / degrees for into, out in zip(widths, sizes, strict=False)]
    return Layers(degrees, tuple(weights), tuple(rng.normal(size=out) for out in sizes))


@pytest.mark.parametrize(
    "place", [(12.3, 45.6), (-179.99, -88.8), (540.25, 0.0), (77.7, 89.9999), (33.0, 60.0)]
)
@pytest.mark.parametrize("degree", [0, 1, 2, 5, 39, 127, 199])
def test_harmonics_equal_mpmath_up_to_degree_199(degree: int, place: tuple[float, float]) -> None:
    found = reference.harmonics(np.array([place]), degree + 1)[0]
    for m in sorted({-degree, -degree // 2, -1, 0, 1, degree // 3, degree}):
        if abs(m) <= degree:
            difference = found[degree * (degree + 1) + m] - exact_harmonic(degree, m, *place)
            assert abs(difference) <= harmonic_tolerance(degree), m


def test_harmonics_equal_scipy_in_every_feature() -> None:
    special = pytest.importorskip("scipy.special")
    if not hasattr(special, "sph_harm_y"):
        pytest.skip("scipy < 1.15 has no sph_harm_y")
    rng = np.random.default_rng(0)
    lonlat = np.stack([rng.uniform(-180, 180, 50), rng.uniform(-90, 90, 50)], axis=-1)
    phi, theta = np.radians(lonlat + np.array([180, 90])).T
    found = reference.harmonics(lonlat, 30)
    for degree in range(30):
        for m in range(-degree, degree + 1):
            value = special.sph_harm_y(degree, abs(m), theta, phi) * (-1) ** abs(m)
            expected = (value.real if m >= 0 else value.imag) * (math.sqrt(2) if m else 1)
            np.testing.assert_allclose(found[:, degree * (degree + 1) + m], expected, rtol=0, atol=1e-12)


def test_harmonics_are_orthonormal_on_the_sphere() -> None:
    degrees = 12
    x, weight = np.polynomial.legendre.leggauss(degrees)
    lon = np.arange(2 * degrees) * 360 / (2 * degrees)
    grid = np.stack(np.meshgrid(lon, np.degrees(np.arcsin(x))), axis=-1).reshape(-1, 2)
    values = reference.harmonics(grid, degrees)
    area = np.repeat(weight, len(lon)) * 2 * np.pi / len(lon)
    np.testing.assert_allclose((values * area[:, None]).T @ values, np.eye(degrees**2), atol=1e-13)


@settings(deadline=None, max_examples=10)
@given(longitudes, latitudes)
def test_squares_of_one_degree_add_up_everywhere(lon: float, lat: float) -> None:
    """Unsöld's theorem: Σ_m Y_lm² = (2l + 1) / 4π, for every degree and place."""
    squares = reference.harmonics(np.array([[lon, lat]]), 200)[0] ** 2
    for degree in (0, 1, 9, 39, 100, 199):
        total = squares[degree**2 : (degree + 1) ** 2].sum()
        expected = (2 * degree + 1) / (4 * math.pi)
        assert total == pytest.approx(expected, rel=8 * EPSILON * (degree + 1) ** 2, abs=0)


@settings(deadline=None, max_examples=30)
@given(st.integers(-180 * 1024, 180 * 1024), st.integers(-10000, 10000), latitudes, st.integers(1, 60))
def test_whole_turns_change_nothing(steps: int, turns: int, lat: float, degrees: int) -> None:
    lon = steps / 1024  # a longitude that stays exact when turns are added
    here, there = reference.harmonics(np.array([[lon, lat], [lon + 360 * turns, lat]]), degrees)
    # +180 and −180 are one meridian on two sides of zero: their sines differ by the rounding of π.
    np.testing.assert_allclose(there, here, rtol=0, atol=0 if abs(lon) < 180 else 1e-13)


@pytest.mark.parametrize("pole", [-90.0, 90.0])
@pytest.mark.parametrize("degrees", [1, 2, 40, 200])
def test_at_the_poles_features_are_equal_to_the_bit_at_every_longitude(pole: float, degrees: int) -> None:
    lon = np.array([0.0, 12.3, -180.0, 179.999, 540.0, 1e9])
    values = reference.harmonics(np.stack([lon, np.full(6, pole)], axis=-1), degrees)
    assert (values == values[0]).all()
    order = np.concatenate([np.arange(-degree, degree + 1) for degree in range(degrees)])
    assert (values[:, order != 0] == 0).all()
    degree = np.arange(degrees)
    expected = np.sqrt((2 * degree + 1) / (4 * np.pi)) * np.where(pole > 0, (-1.0) ** degree, 1.0)
    np.testing.assert_allclose(values[0, order == 0], expected, rtol=1e-14 * degrees)


def test_published_polynomials_are_the_folded_exact_harmonics() -> None:
    """The polynomials of the published code, in 60 digits, against the table that is folded into weights."""
    file = np.load(DATA / "published_polynomials_L40.npz")
    picked = [(0, 0), (1, 0), (5, 3), (21, 0), (30, 7), (35, 1), (39, 0), (39, 12), (39, 39)]
    unit = np.zeros((len(picked), 1600))
    for row, (degree, m) in enumerate(picked):
        unit[row, degree * (degree + 1) + m] = 1
    folded = fold_published(unit * column_factors(40, "analytic"))
    places = [(0.0, -75.5), (10.0, 0.0), (100.0, 66.0), (-45.0, 89.0), (200.0, 33.3)]
    found = reference.harmonics(np.array(places), 40) @ folded.T
    exact = reference.harmonics(np.array(places), 40) @ (unit * column_factors(40, "analytic")).T
    expected = np.empty_like(found)
    with mpmath.workdps(60):
        for at, (lon, lat) in enumerate(places):
            x = -mpmath.sin(mpmath.radians(mpmath.mpf(lat)))
            for row, (degree, m) in enumerate(picked):
                series = sum(mpmath.mpf(float(c)) * x**k for k, c in enumerate(file["coef"][degree, m]))
                legendre = mpmath.mpf(float(file["lead"][degree, m])) * (1 - x * x) ** (mpmath.mpf(m) / 2)
                angle = m * mpmath.radians(mpmath.mpf(lon) + 180)
                expected[at, row] = float(legendre * series * mpmath.cos(angle))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert np.abs(exact - expected).max() > 0.1  # without the table they are different functions


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 9),
    st.integers(1, 12),
    st.lists(st.integers(1, 9), min_size=2, max_size=5),
    st.integers(0, 99),
)
def test_encode_is_the_network_on_the_harmonics_for_any_shape(
    count: int, degrees: int, sizes: list[int], seed: int
) -> None:
    layers = network(degrees, tuple(sizes), seed)
    rng = np.random.default_rng(seed)
    lonlat = np.stack([rng.uniform(-500, 500, count), rng.uniform(-90, 90, count)], axis=-1)
    hidden = reference.harmonics(lonlat, degrees)
    for weight, bias in zip(layers.weights[:-1], layers.biases[:-1], strict=True):
        hidden = np.sin(hidden @ weight.T + bias)
    found = reference.encode(lonlat, layers)
    assert found.shape == (count, sizes[-1])
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, hidden @ layers.weights[-1].T + layers.biases[-1], atol=1e-12)


def test_the_product_grid_is_every_pair_of_latitude_and_longitude() -> None:
    layers, lat, lon = network(10), np.linspace(90, -90, 7), np.linspace(-180, 175, 11)
    found = reference.encode_grid(lat, lon, layers)
    assert found.shape == (7, 11, 5)
    for row in range(7):
        pairs = np.stack([lon, np.full(11, lat[row])], axis=-1)
        np.testing.assert_allclose(found[row], reference.encode(pairs, layers), atol=1e-13)


def test_memory_is_bounded_by_blocks_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, lat, lon = network(10), np.linspace(90, -90, 13), np.linspace(-180, 175, 29)
    whole = reference.encode_grid(lat, lon, layers)
    monkeypatch.setattr(forward, "_BLOCK_BYTES", 7 * 100 * 8)
    rows = []
    evaluate = forward._features
    monkeypatch.setattr(forward, "_features", lambda at, L: rows.append(len(at)) or evaluate(at, L))
    np.testing.assert_allclose(reference.encode_grid(lat, lon, layers), whole, atol=1e-13)
    assert max(rows) == 7
    assert sum(rows) == 13 * 29


def test_an_impossible_latitude_is_named_with_its_row() -> None:
    layers = network(3)
    places = np.array([[0, 0], [0, math.nan], [0, math.inf], [10, 91], [0, -100]])
    with pytest.raises(ValueError, match=r"^row 3: latitude 91\.0 is outside \[-90, 90\]$"):
        reference.encode(places, layers)
    with pytest.raises(ValueError, match=r"row 1: latitude -90\.5"):
        reference.encode_grid(np.array([0.0, -90.5]), np.array([0.0]), layers)
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        reference.encode(np.zeros((4, 3)), layers)


@pytest.mark.parametrize("row", [(math.nan, 0), (0, math.nan), (math.inf, 0), (0, -math.inf), (math.nan, 90)])
def test_a_place_that_is_not_finite_gives_a_row_of_nan_and_spoils_no_other(row: tuple[float, float]) -> None:
    layers = network(4)
    places = np.array([[10.0, 20.0], row, [30.0, -40.0]])
    found = reference.encode(places, layers)
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[[0, 2]], reference.encode(places[[0, 2]], layers), atol=1e-13)
    assert np.isnan(reference.harmonics(places, 4)[1]).all()


def test_poles_and_wrap_hold_for_embeddings_too() -> None:
    layers = network(40)
    places = np.array([[0, 90], [77, 90], [10.5, 20], [370.5, 20], [-349.5, 20]])
    found = reference.encode(places, layers)
    np.testing.assert_allclose(found[1], found[0], atol=1e-13)
    np.testing.assert_allclose(found[3:], found[[2, 2]], atol=1e-13)

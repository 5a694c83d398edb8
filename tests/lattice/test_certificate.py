"""Certificates: what n positions allow to say about all of them, where they are drawn, and how it is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
from factories.planned import planned

from satclip_engine.geo.grid import make_grid
from satclip_engine.lattice.certificate import Certificate, certify, fraction_beyond, positions_for, up
from satclip_engine.lattice.plan import Plan
from satclip_engine.lattice.sampling import Globe, PointList, RasterRegion, nearby_positions, polar_positions
from satclip_engine.lattice.tolerance import Tolerance

UTM = make_grid(crs="EPSG:32633", bounds=(5e5, 5e6, 5.4e5, 5.04e6), resolution=100)


class Numbered:
    """Pixels whose longitude is their column and latitude their row; `valid` says which are places."""

    separable = True

    def __init__(self, height: int, width: int, valid=lambda rows, cols: rows >= 0) -> None:
        self.shape, self.valid = (height, width), valid

    def pixel_lonlat(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        places = np.stack([cols, rows], axis=-1).astype(float)
        return np.where(self.valid(rows, cols)[:, None], places, np.nan)

    def lonlat(self) -> np.ndarray:
        rows, cols = np.indices(self.shape)
        return self.pixel_lonlat(rows.ravel(), cols.ravel()).reshape(*self.shape, 2)


# What n positions say


@pytest.mark.parametrize(("positions", "confidence"), [(20, 0.9), (200, 0.9), (200, 0.99), (2048, 0.5)])
def test_the_share_beyond_the_largest_of_n_is_as_often_larger_as_stated(positions, confidence):
    """Errors uniform on [0, 1]: the share beyond a largest one of M is 1 − M."""
    runs = 20_000
    largest = np.random.default_rng(0).random((runs, positions)).max(axis=1)
    wrong = np.mean(1 - largest > fraction_beyond(positions, confidence))
    doubt = 1 - confidence
    assert abs(wrong - doubt) < 5 * (doubt * confidence / runs) ** 0.5


def test_strata_find_more_than_free_draws():
    """Errors in one corner of a raster: how often 400 draws, one of each stratum, miss all of them."""
    bad, runs = 7, 2000
    draws = [RasterRegion(Numbered(200, 200)).draw(400, seed) for seed in range(runs)]
    missed = np.mean([not (places < bad).all(axis=1).any() for places in draws])
    free = (1 - bad**2 / 200**2) ** 400
    assert missed < free
    # By strata of 10 × 10 pixels, one of which has 49 of the 49 bad ones.
    assert missed == pytest.approx(0.51, abs=5 * (0.25 / runs) ** 0.5)


def test_more_positions_are_drawn_from_more_places():
    assert [positions_for(count) for count in (0, 100, 10**5, 10**7, 10**12)] == [0, 100, 2048, 2441, 16384]
    assert fraction_beyond(0, 0.9999) == 1.0


# What is measured


@pytest.fixture
def measured():
    """(certificate, errors in tolerances, exact, found): 30 + 10 places, 4 bands, one of them constant."""
    random = np.random.default_rng(1)
    exact = random.normal(size=(40, 4)).astype(np.float32)
    exact[:, 3] = 5.0
    found = exact + random.normal(size=(40, 4)).astype(np.float32) * [1e-3, 1e-2, 1e-4, 1e-5]
    places = random.uniform(-80, 80, (40, 2))
    row = {tuple(place): k for k, place in enumerate(places)}
    sigma, tolerance = np.array([1.0, 2.0, 0.5, 0.0]), np.array([1e-3, 1e-2, 1e-3, 1e-4])
    certificate, each = certify(
        lambda at: exact[[row[tuple(place)] for place in at]],
        lambda at: found[[row[tuple(place)] for place in at]],
        places[:30],
        places[30:],
        sigma,
        tolerance,
        confidence=0.99,
    )
    return certificate, each, exact.astype(np.float64), found


def test_a_certificate_says_what_the_differences_are(measured):
    certificate, each, exact, found = measured
    off = np.abs(found - exact)
    varying = off[:, :3] / [1.0, 2.0, 0.5]  # the constant band has no σ
    np.testing.assert_allclose(certificate.max_error, off.max(axis=0), rtol=1e-6)
    np.testing.assert_allclose(certificate.rms_error, np.sqrt(np.mean(off**2, axis=0)), rtol=1e-6)
    assert certificate.max_sigma == pytest.approx(varying.max())
    assert certificate.rms_sigma == pytest.approx(np.sqrt(np.mean(varying**2)))
    np.testing.assert_allclose(each, (off / [1e-3, 1e-2, 1e-3, 1e-4]).max(axis=1), rtol=1e-6)
    assert certificate.max_tolerance == each.max()
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(found, axis=1)
    assert 1 - certificate.min_cosine == pytest.approx((1 - (exact * found).sum(1) / lengths).max(), rel=1e-3)
    assert (certificate.positions, certificate.further) == (30, 10)
    assert certificate.fraction == pytest.approx(1 - 0.01 ** (1 / 30))


def test_the_statement_has_all_its_numbers(measured):
    certificate = measured[0]
    assert certificate.statement.startswith("at 40 positions no band errs by more than ")
    assert f"{up(certificate.max_sigma, 2)} σ" in certificate.statement
    assert certificate.statement.endswith("with 99 % confidence at most 15 % of all positions err by more")
    assert certificate.tags()["reconstruction"] == certificate.statement
    assert all(isinstance(text, str) for text in certificate.tags().values())


# Where positions are drawn


@pytest.mark.parametrize(("height", "width", "down", "across"), [(120, 240, 10, 20), (64, 64, 16, 16)])
def test_every_stratum_has_one_position(height, width, down, across):
    region = RasterRegion(Numbered(height, width))
    places = region.draw(down * across, 3)
    stratum = places[:, 1] // (height / down) * across + places[:, 0] // (width / across)
    assert np.array_equal(np.sort(stratum), np.arange(down * across))
    assert not np.array_equal(places, region.draw(down * across, 4)), "other seeds, other places"
    assert np.array_equal(places, region.draw(down * across, 3))


def test_every_pixel_of_a_stratum_is_drawn_alike():
    region = RasterRegion(Numbered(9, 12))
    drawn = np.concatenate([region.draw(12, seed) for seed in range(3000)])
    count = np.bincount((drawn[:, 1] * 12 + drawn[:, 0]).astype(int), minlength=108)
    expected = len(drawn) / 108
    assert np.abs(count - expected).max() < 5 * expected**0.5


@pytest.mark.parametrize(
    "shape", [(1, 10**6), (10**6, 1), (2, 10**6), (10**6, 3), (1000, 1000), (50, 20_000)]
)
def test_about_as_many_positions_as_asked_for_spread_over_the_raster(shape):
    places = RasterRegion(Numbered(*shape)).draw(2048, 0)
    assert 0.5 * 2048 <= len(places) <= 1.1 * 2048
    for axis, size in ((1, shape[0]), (0, shape[1])):
        assert places[:, axis].min() <= 0.1 * size
        assert places[:, axis].max() >= 0.9 * size - 1


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.02])
def test_only_places_on_earth_are_drawn_and_enough_of_them(share):
    region = RasterRegion(Numbered(2000, 2000, lambda rows, cols: rows * 1.0 < 2000 * share))
    for count in (24, 2048):
        places = region.draw(count, 0)
        assert np.isfinite(places).all()
        assert places[:, 1].max() < 2000 * share
        assert 0.5 * count <= len(places) <= 1.5 * count


def test_few_pixels_are_all_drawn_and_none_where_there_is_none():
    few = RasterRegion(Numbered(5, 7, lambda rows, cols: cols != 3)).draw(100, 0)
    assert len(np.unique(few, axis=0)) == len(few) == 30
    nowhere = RasterRegion(Numbered(3000, 3000, lambda rows, cols: rows < 0))
    assert nowhere.draw(24, 0).shape == (0, 2)


def test_listed_places_are_drawn_from_equal_parts_without_what_is_none():
    lonlat = np.stack([np.arange(10_000.0), np.zeros(10_000)], axis=-1)
    drawn = PointList(lonlat).draw(100, 0)[:, 0]
    assert np.array_equal(drawn // 100, np.arange(100))
    lonlat[100:9900] = np.nan
    region = PointList(lonlat)
    assert region.count == 200
    assert np.array_equal(region.draw(1000, 0), lonlat[np.isfinite(lonlat[:, 0])])


def test_the_globe_is_drawn_from_by_area():
    lat = Globe().draw(1000, 0)[:, 1]
    band = np.floor((np.sin(np.radians(lat)) + 1) * 500)
    assert np.array_equal(np.sort(band), np.arange(1000))


def test_further_positions_are_near_poles_and_near_bad_places():
    polar = polar_positions(Globe(), 50, 0)  # a 260th of the Earth lies beyond 85°
    assert 5 < len(polar) <= 50
    assert np.abs(polar[:, 1]).min() > 85
    assert len(polar_positions(RasterRegion(Numbered(91, 10)), 20, 0)) == 20
    found = nearby_positions(np.array([[10.0, 40.0], [0.0, 89.9]]), 0.5, 20, 0)
    assert found.shape == (40, 2)
    assert np.abs(found[:20, 1] - 40).max() <= 0.5
    assert 0.2 < np.abs(found[:20, 0] - 10).max() <= 0.5 / np.cos(np.radians(40))
    assert np.abs(found[:, 1]).max() <= 90


# How it is kept


@pytest.fixture(scope="module")
def encoder(smooth):
    found = planned(smooth, UTM)
    assert found.plan.path == "lattice"
    return found


def test_what_is_said_survives_json(encoder):
    plan = encoder.plan
    for value, kind in ((plan, Plan), (plan.certificate, Certificate), (plan.tolerance, Tolerance)):
        content = json.loads(json.dumps(value.as_dict()))
        again = kind.from_dict(content)
        assert again.as_dict() == value.as_dict()
        assert json.loads(json.dumps(again.as_dict())) == content
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))).zones == plan.zones


def test_a_plan_from_json_computes_the_same_bits(encoder, smooth):
    plan = Plan.from_dict(json.loads(json.dumps(encoder.plan.as_dict())))
    assert plan.token == encoder.plan.token
    places = UTM.lonlat(slice(0, 9), slice(0, 9)).reshape(-1, 2)
    assert np.array_equal(plan.prepare(smooth.network).encode(places), encoder.network.encode(places))


def test_an_exact_plan_survives_json_too(smooth):
    plan = planned(smooth, UTM, exact=True).plan
    again = Plan.from_dict(json.loads(json.dumps(plan.as_dict())))
    assert (again.path, again.reason, again.token) == ("points", "as asked for", "exact")
    assert again.as_dict() == plan.as_dict()
    assert again.attributes() == {}


def test_some_bands_keep_their_own_numbers(encoder):
    index = np.array([5, 0])
    plan, part = encoder.plan, encoder.plan.of_bands(index)
    for name in ("sigma", "max_error", "rms_error"):
        assert np.array_equal(getattr(part.certificate, name), getattr(plan.certificate, name)[index])
    assert np.array_equal(part.tolerance.bands, plan.tolerance.bands[index])
    assert part.certificate.max_sigma == plan.certificate.max_sigma
    assert part.token == plan.token
    places = UTM.lonlat(slice(0, 9), slice(0, 9)).reshape(-1, 2)
    selected = encoder.encoder.select(index).prepare(part)
    assert np.array_equal(selected.encode(places), encoder.network.encode(places)[:, index])

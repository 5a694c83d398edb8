"""Principal components are those of the globe, orthonormal, with a fixed sign, and fold into the last
layer."""

from __future__ import annotations

import numpy as np
import pytest

import satclip_engine.xarray  # noqa: F401
from satclip_engine.arrays.pca import global_pca, pca_head
from satclip_engine.encoder import Encoder, load
from satclip_engine.errors import UsageError
from satclip_engine.geo.grid import make_grid
from satclip_engine.weights import LocationWeights

BANDS = 6


def small_encoder(seed: int = 0) -> Encoder:
    """A random encoder that takes milliseconds: L = 5, two layers of 24, six bands of unequal strength."""
    rng = np.random.default_rng(seed)
    shapes = {"layers.0": (24, 25), "layers.1": (24, 24), "last_layer": (BANDS, 24)}
    scales = {"layers.0": 0.03, "layers.1": 0.4, "last_layer": 0.5}
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = rng.normal(size=shape) * scales[name]
        tensors[f"{name}.bias"] = rng.normal(size=shape[0]) * 0.1
    return load(LocationWeights(tensors, "orthonormal"))


def spiral(count: int) -> np.ndarray:
    """Places of equal area: a Fibonacci spiral, (count, 2) longitude and latitude."""
    i = np.arange(count) + 0.5
    lat = np.degrees(np.arcsin(1 - 2 * i / count))
    lon = (i * 137.50776405003785) % 360 - 180
    return np.stack([lon, lat], axis=-1)


def test_components_are_orthonormal_and_their_largest_loading_is_positive():
    fit = global_pca(small_encoder(), BANDS)
    np.testing.assert_allclose(fit.components @ fit.components.T, np.eye(BANDS), atol=1e-8)
    largest = np.abs(fit.components).argmax(axis=1)
    assert (fit.components[np.arange(BANDS), largest] > 0).all()


def test_scores_are_centred_uncorrelated_and_sorted_over_equal_areas():
    encoder = small_encoder()
    fit = global_pca(encoder, BANDS)
    scores = (encoder(spiral(40_000)).astype(np.float64) - fit.mean) @ fit.components.T
    spread = scores.std(axis=0)
    assert (np.diff(fit.stddev) <= 0).all()
    np.testing.assert_allclose(spread, fit.stddev, rtol=5e-3)
    assert np.abs(scores.mean(axis=0) / spread).max() < 5e-3
    correlation = np.corrcoef(scores, rowvar=False)
    assert np.abs(correlation - np.eye(BANDS)).max() < 5e-3


def test_the_fit_weighs_places_by_area_and_not_by_pixel():
    """An unweighted grid counts the poles too often; that mean is measurably another one."""
    encoder = small_encoder()
    fit = global_pca(encoder, 1)
    by_area = encoder(spiral(40_000)).mean(axis=0)
    by_pixel = encoder.evaluate(make_grid(resolution=3)).reshape(-1, BANDS).mean(axis=0)
    assert np.abs(fit.mean - by_area).max() < 1e-3
    assert np.abs(by_pixel - by_area).max() > 1e-2


def test_shares_of_variance_add_up_and_percentiles_bound_nineteen_twentieths_of_the_area():
    encoder = small_encoder()
    fit = global_pca(encoder, BANDS)
    assert fit.explained.sum() == pytest.approx(1.0)
    scores = (encoder(spiral(40_000)) - fit.mean) @ fit.components.T
    inside = ((scores >= fit.low) & (scores <= fit.high)).mean(axis=0)
    np.testing.assert_allclose(inside, 0.96, atol=0.005)


def test_two_fits_are_equal_to_the_last_bit():
    first, second = (global_pca(small_encoder(), 3) for _ in range(2))
    np.testing.assert_array_equal(first.components, second.components)
    np.testing.assert_array_equal(first.mean, second.mean)


def test_the_head_gives_the_scores():
    encoder = small_encoder()
    head, fit = pca_head(encoder, 3)
    assert head.band_names == ["pca1", "pca2", "pca3"]
    places = spiral(100)
    expected = (encoder(places).astype(np.float64) - fit.mean) @ fit.components.T
    np.testing.assert_allclose(head(places), expected, atol=1e-4 * fit.stddev[0])


def test_components_are_a_choice_of_bands_wherever_bands_are_chosen():
    encoder = small_encoder()
    head, _ = pca_head(encoder, 3)
    assert encoder.select("pca:3").band_names == ["pca1", "pca2", "pca3"]
    assert encoder.select(" PCA: 3") is encoder.select("pca:3")
    grid = encoder.grid(resolution=15, bands="pca:3")
    np.testing.assert_array_equal(grid.values, head.grid(resolution=15).values)
    np.testing.assert_array_equal(grid.satclip.embed(encoder, bands="pca:3").values, grid.values)
    plain = encoder.grid(resolution=15, bands="2-5").satclip.embed(encoder.select("2-5"), bands="pca:2")
    np.testing.assert_array_equal(
        plain.values, pca_head(encoder.select("2-5"), 2)[0].grid(resolution=15).values
    )


@pytest.mark.parametrize("bands", ["pca:0", "pca:7"])
def test_components_that_do_not_exist_are_refused(bands):
    with pytest.raises(UsageError, match="component"):
        small_encoder().select(bands)


def test_a_direction_that_dominates_is_the_first_component():
    encoder = small_encoder()
    strong = np.diag([1.0, 1.0, 1.0, 1.0, 100.0, 1.0])
    fit = global_pca(encoder.with_head(strong), 1)
    assert fit.components[0].argmax() == 4
    assert fit.explained[0] > 0.9


@pytest.mark.parametrize("k", [0, -1, BANDS + 1])
def test_an_impossible_number_of_components_is_a_usage_error(k):
    with pytest.raises(UsageError, match=f"1 to {BANDS}"):
        global_pca(small_encoder(), k)


def test_a_constant_embedding_has_components_but_no_variance():
    constant = small_encoder().with_head(np.zeros((3, BANDS)), np.ones(3))
    fit = global_pca(constant, 3)
    np.testing.assert_allclose(fit.components @ fit.components.T, np.eye(3), atol=1e-8)
    assert not fit.stddev.any()
    assert not fit.explained.any()

"""Needles and rough patches in a smooth field: what verification catches, and what it says it may miss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from factories.planned import OtherNetwork

from satclip_engine.backends.protocols import CALL
from satclip_engine.geo.grid import make_grid
from satclip_engine.lattice.certificate import fraction_beyond
from satclip_engine.lattice.plan import Plan, make_plan
from satclip_engine.lattice.prepared import PreparedLattice
from satclip_engine.lattice.sampling import Globe, RasterRegion, SamplingRegion
from satclip_engine.lattice.tolerance import moments, tolerance_of

GRID = make_grid(resolution=0.02, bounds=(0, 10, 20, 30))  # a million pixels
REGION = RasterRegion(GRID)
AREA = 20 * np.degrees(np.sin(np.radians(30)) - np.sin(np.radians(10)))  # square degrees
TOLERANCE = 0.01
HEIGHT = 1.0  # of needles, in σ


class Roughened(OtherNetwork):
    """A network with something added to every band, a function of (n, 2) places in its band's σ."""

    def __init__(self, network: Any, added: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(network)
        self._added, self._sigma = added, moments(network).sigma

    def encode(self, lonlat, out=None, call=CALL):
        out = self.inner.encode(lonlat, out, call)
        out += self._added(lonlat)[:, None] * self._sigma
        return out

    def encode_grid(self, lat, lon, out=None, call=CALL):
        out = self.inner.encode_grid(lat, lon, out, call)
        places = np.stack(np.broadcast_arrays(lon, lat[:, None]), axis=-1).reshape(-1, 2)
        out += self._added(places).reshape(lat.size, lon.size)[..., None] * self._sigma
        return out


def distance(places: np.ndarray, lon: float, lat: float) -> np.ndarray:
    """Degrees of a great circle, of places near by."""
    east = (np.remainder(places[:, 0] - lon + 180, 360) - 180) * np.cos(np.radians(lat))
    return np.hypot(east, places[:, 1] - lat)


def needle(lon: float, lat: float, radius: float) -> Callable[[np.ndarray], np.ndarray]:
    """A Gaussian bump of that height that rises above the tolerance within `radius` degrees."""
    width = radius / np.sqrt(2 * np.log(HEIGHT / TOLERANCE))
    return lambda places: HEIGHT * np.exp(-0.5 * (distance(places, lon, lat) / width) ** 2)


def plan_with(smooth, added, region: SamplingRegion = REGION) -> tuple[Plan, Any, Roughened]:
    """(plan, what computes by it, the true field)."""
    tolerance = tolerance_of(moments(smooth.network), TOLERANCE)
    field = Roughened(smooth.network, added)
    return *make_plan(field, region, tolerance, threads=1), field


def errors(plan: Plan, network: Any, field: Roughened, places: np.ndarray) -> np.ndarray:
    """Largest of any band's, in σ; of an exact plan 0."""
    if not isinstance(network, PreparedLattice):
        return np.zeros(len(places))
    off = np.abs(network.encode(places) - field.encode(places))
    return (off / plan.certificate.sigma).max(axis=1)


@pytest.fixture(scope="module")
def stated(smooth) -> float:
    """The share of positions that the certificate leaves open, where there is no needle."""
    plan, network, field = plan_with(smooth, lambda places: np.zeros(len(places)))
    assert plan.path == "lattice"
    assert errors(plan, network, field, REGION.draw(20_000, 9)).max() < 1.5 * TOLERANCE
    assert plan.spacing > 1.0
    confidence = 1 - (1 - 0.9999) / 4
    assert plan.certificate.fraction == fraction_beyond(plan.certificate.positions, confidence)
    return plan.certificate.fraction


def random_needles(count: int, share: float, seed: int) -> list[tuple[float, float, float]]:
    """Longitude, latitude and radius of needles that cover that share of the raster."""
    random = np.random.default_rng(seed)
    found = []
    for lon, lat in zip(random.uniform(3, 17, count), random.uniform(13, 27, count), strict=True):
        found.append((lon, lat, float(np.sqrt(share * 400 * np.cos(np.radians(lat)) / np.pi))))
    return found


def unnoticed(smooth, lon: float, lat: float, radius: float) -> bool:
    """Whether a lattice was certified that knows nothing of the needle. The certificate holds even so."""
    plan, network, field = plan_with(smooth, needle(lon, lat, radius))
    everywhere = errors(plan, network, field, REGION.draw(20_000, 9))
    if plan.path == "lattice":
        assert np.mean(everywhere > plan.certificate.max_sigma) <= plan.certificate.fraction
    return bool(errors(plan, network, field, np.array([[lon, lat]]))[0] > 10 * TOLERANCE)


def test_needles_that_cover_more_than_the_stated_share_are_caught(smooth, stated):
    """Each is missed with a probability of 2.5e-5 at most; a needle of half as much in one of 150."""
    needles = random_needles(40, 1.1 * stated, 1)
    assert not any(unnoticed(smooth, *each) for each in needles)


def test_needles_that_cover_far_less_pass_unnoticed(smooth, stated):
    """2070 positions meet one of a 40th of the stated share about once in four; lines of the probe some."""
    missed = np.mean([unnoticed(smooth, *each) for each in random_needles(40, stated / 40, 2)])
    assert 0.3 < missed < 0.95


def test_needles_between_all_check_positions_pass_unnoticed(smooth, stated):
    """Who knows the seeds knows where nobody looks. The certificate says that there may be such places."""
    drawn, candidates = REGION.draw(2048, 100), REGION.draw(2000, 11)
    candidates = candidates[(np.abs(candidates - [10, 20]) < 8).all(axis=1)]
    nearest = np.array([distance(drawn, *place).min() for place in candidates])
    holes = np.argsort(-nearest)[:8]
    assert np.mean([unnoticed(smooth, *candidates[k], 0.9 * nearest[k]) for k in holes]) >= 0.25
    share = np.pi * nearest[holes[0]] ** 2 / AREA
    assert share < stated, "or the statement would be wrong"


@pytest.mark.parametrize("pole", [90.0, -90.0])
@pytest.mark.parametrize(
    "region", [RasterRegion(make_grid(resolution=0.1)), Globe()], ids=["raster", "globe"]
)
def test_a_rough_pole_is_noticed(smooth, pole, region):
    """Ripples within six degrees of a pole: 0.3 % of the Earth, 3 % of a raster."""

    def ripples(places: np.ndarray) -> np.ndarray:
        lon, lat = np.radians(places).T
        away = np.abs(places[:, 1] - pole)
        x, y = np.degrees(np.cos(lat) * np.cos(lon)), np.degrees(np.cos(lat) * np.sin(lon))
        return np.where(away < 6, np.cos(np.radians(15 * away)) ** 4 * np.sin(2 * x) * np.sin(2 * y), 0.0)

    plan, network, field = plan_with(smooth, ripples, region)
    random = np.random.default_rng(0)
    lat = pole - np.copysign(random.uniform(0, 8, 5000), pole)
    found = errors(plan, network, field, np.stack([random.uniform(-180, 180, 5000), lat], axis=-1))
    assert found.max() < 2 * TOLERANCE
    if plan.path == "lattice":
        assert plan.certificate.max_sigma <= TOLERANCE


def test_zones_are_refined_where_the_field_is_rough(smooth):
    """Waves of eight degrees about the equator, too low for the probe's margin to cover."""

    def waves(places: np.ndarray) -> np.ndarray:
        return 0.15 * np.exp(-((places[:, 1] / 12) ** 2)) * np.sin(np.radians(45 * places[:, 1]))

    plan, network, field = plan_with(smooth, waves, Globe())
    assert plan.path == "lattice"
    assert errors(plan, network, field, Globe().draw(20_000, 9)).max() < 2 * TOLERANCE

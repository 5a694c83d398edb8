"""Plans: how many nodes a raster or list needs, told from a sketch of it, and what is chosen and said."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from factories.planned import planned
from reconstruction_check import random_encoder

from satclip_engine.encoder import load
from satclip_engine.geo.grid import make_grid
from satclip_engine.lattice import choose, convergence
from satclip_engine.lattice.plan import count_nodes
from satclip_engine.lattice.sampling import region_of
from satclip_engine.lattice.zones import make_zones, zone_of

TILE = 64  # nodes along the squares that are counted


def cities() -> np.ndarray:
    """A million places in 800 cities, a quarter of a degree wide."""
    random = np.random.default_rng(0)
    centre = np.stack([random.uniform(-180, 180, 800), random.uniform(-60, 70, 800)], axis=-1)
    return centre[random.integers(0, 800, 10**6)] + random.normal(0, 0.06, (10**6, 2))


REGIONS = {
    "globe": make_grid(resolution=0.2),
    "antimeridian": make_grid(resolution=0.01, bounds=(175, -22, 185, -12)),
    "UTM": make_grid(crs="EPSG:32633", bounds=(4e5, 5e6, 4.8e5, 5.08e6), resolution=100),
    "over the pole": make_grid(crs="EPSG:3413", bounds=(-1e6, -1e6, 1e6, 1e6), resolution=2000),
    "a row": make_grid(resolution=(0.0005, 1), bounds=(0, 50, 300, 51)),
    "cities": cities(),
}


def all_nodes(zones, places: np.ndarray) -> int:
    """Nodes of the squares that any of the places touches, or of the box around them if that is smaller."""
    total, number = 0, zone_of(zones, places[:, 1])
    for k in np.unique(number):
        zone, here = zones[k], places[number == k]
        row, column = zone.row_positions(here[:, 1]), zone.column_positions(here[:, 0])
        squares = len(np.unique(row // TILE * (1 << 32) + column // TILE)) * (TILE + zone.order) ** 2
        turned = (column - column[0] + zone.columns / 2) % zone.columns
        width = min(np.ptp(turned) + zone.order, zone.columns)
        total += int(min(squares, (np.ptp(row) + zone.order) * width))
    return total


@pytest.mark.parametrize("name", REGIONS)
def test_a_sketch_tells_about_how_many_nodes_are_needed(name):
    places = REGIONS[name]
    region = region_of(places)
    everything = places if isinstance(places, np.ndarray) else places.lonlat().reshape(-1, 2)
    for spacing in (8.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001):
        zones = make_zones(spacing, 8)
        guess, truth = count_nodes(zones, region.draw(4096, 1), region.count), all_nodes(zones, everything)
        # Of squares, and of places that have one each, all that matters is that they are too many.
        many = 4 * region.count
        assert 0.5 * min(truth, many) <= guess, spacing
        assert min(guess, many) <= 2.0 * truth, spacing


@pytest.mark.parametrize("resolution", [0.1, 0.02, 0.001])
def test_a_lattice_finer_than_its_raster_has_more_nodes_than_that_has_pixels(resolution):
    """Each of a sketch's 4096 pixels touches its own square: that says nothing about how many there are."""
    region = region_of(make_grid(resolution=resolution))
    nodes = count_nodes(make_zones(resolution / 2, 8), region.draw(4096, 1), region.count)
    assert 2 * region.count < nodes < 4 * region.count


def test_no_lattice_is_finer_than_its_raster():
    rough = random_encoder(20, 60.0, hidden=1, width=32, bands=8)
    for resolution, tolerance in ((0.1, None), (0.05, 2e-5), (0.04, None)):
        plan = planned(rough, make_grid(resolution=resolution), tolerance=tolerance).plan
        assert not plan.interpolates or plan.spacing > resolution
    assert not planned(rough, make_grid(resolution=0.1)).plan.interpolates


def test_as_much_as_was_predicted_is_evaluated(smooth):
    grid = make_grid(resolution=0.1, bounds=(-60, -40, 40, 50))
    job = planned(smooth, grid, cache_bytes=1 << 30)
    job.evaluate()
    evaluated = job.network.nodes._cache.bytes / (4 * smooth.embed_dim)
    assert job.plan.path == "lattice"
    # Blocks of 16 × 32 nodes stick out over the raster's edges.
    assert 0.8 <= evaluated / job.plan.nodes <= 4


def test_a_plan_says_why(smooth):
    grid = make_grid(resolution=0.05, bounds=(0, 40, 20, 60))
    plan = planned(smooth, grid).plan
    assert plan.path == "lattice"
    assert plan.reason.startswith("the field is smooth: nodes every ")
    assert f"({plan.nodes:,} for 160,000 points)" in plan.reason
    assert plan.reason.endswith(f"and {plan.order} of them along each axis meet a tolerance of 0.0001 σ")
    assert set(plan.seconds) == {"lattice", "product grid"}
    assert plan.seconds["lattice"] <= 0.8 * plan.seconds["product grid"]
    codes = planned(smooth, grid, step=np.full(7, 0.01), dtype="int8").plan
    assert codes.reason.endswith("an eighth of an int8 step")
    np.testing.assert_allclose(codes.tolerance.bands, 0.01 / 8)
    assert codes.nodes < plan.nodes
    exact = planned(smooth, grid, exact=True).plan
    assert (exact.path, exact.reason, exact.certificate) == ("product grid", "as asked for", None)


def test_a_looser_tolerance_takes_a_coarser_lattice(smooth):
    grid = make_grid(resolution=0.02, bounds=(0, 40, 20, 60))
    nodes = [planned(smooth, grid, tolerance=tolerance).plan.nodes for tolerance in (2e-5, 1e-3, 1e-1)]
    assert nodes[0] > nodes[1] > nodes[2]


def test_some_backends_never_interpolate(smooth):
    grid = make_grid(resolution=0.1, bounds=(0, 0, 40, 40))
    plan = planned(load(smooth.weights, backend="reference"), grid).plan
    assert plan.reason == "backend 'reference' is the definition and never interpolates"
    assert plan.path == "product grid"


def test_a_plan_once_made_is_kept(smooth, monkeypatch):
    encoder = load(smooth.weights, threads=2)
    grid = make_grid(resolution=0.05, bounds=(0, 40, 20, 60))
    made = planned(encoder, grid)
    monkeypatch.setattr(choose, "make_plan", lambda *args, **options: pytest.fail("made twice"))
    again = planned(encoder, make_grid(resolution=0.05, bounds=(0, 40, 20, 60)))
    assert again.plan is made.plan
    assert again.network is made.network
    own = planned(encoder, grid, cache_bytes=1 << 20)
    assert own.plan is made.plan
    assert own.network.nodes is not made.network.nodes
    with pytest.raises(BaseException, match="made twice"):
        planned(encoder, grid, tolerance=1e-3)


def test_what_the_probe_measured_serves_other_plans_of_the_raster(smooth, monkeypatch):
    encoder, grid = load(smooth.weights, threads=2), make_grid(resolution=0.05, bounds=(0, 40, 20, 60))
    expected = planned(smooth, grid, positions=2048).plan
    planned(encoder, grid)
    monkeypatch.setattr(convergence, "measure", lambda *args: pytest.fail("measured twice"))
    assert planned(encoder, grid, positions=2048).plan.as_dict() == expected.as_dict()


def test_threads_that_ask_at_once_wait_for_one_plan(smooth, monkeypatch):
    made, make = [], choose.make_plan
    monkeypatch.setattr(choose, "make_plan", lambda *a, **k: made.append(1) or make(*a, **k))
    encoder, grid = load(smooth.weights, threads=1), make_grid(resolution=0.05, bounds=(0, 40, 20, 60))
    with ThreadPoolExecutor(6) as pool:
        jobs = list(pool.map(lambda _: planned(encoder, grid), range(6)))
    assert len(made) == 1
    assert all(job.network is jobs[0].network for job in jobs)

"""Many points: interpolated within the tolerance, in parts, the same for any threads, into given memory."""

from __future__ import annotations

import numpy as np
import pytest
from factories.planned import planned

from satclip_engine.encoder import load
from satclip_engine.errors import UsageError
from satclip_engine.lattice import choose
from satclip_engine.lattice.prepared import PreparedLattice


def scattered(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    lat = np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    return np.stack([rng.uniform(-180, 540, count), lat], axis=-1)


@pytest.fixture
def interpolated(smooth):
    """A job whose plan interpolates many points, and the points."""
    places = scattered(150_000)
    job = planned(smooth, places)
    assert job.plan.path == "lattice", job.plan.reason
    return job, places


def test_many_points_are_within_the_tolerance_and_few_are_exact(smooth):
    places = scattered(150_000)
    found, exact = smooth(places), smooth(places, exact=True)
    off = np.abs(found - exact) / smooth.moments.sigma
    assert 0 < off.max() <= 1e-4
    assert np.array_equal(smooth(places[:500]), smooth(places[:500], exact=True))


def test_threads_change_no_bit(interpolated, monkeypatch):
    job, places = interpolated
    monkeypatch.setattr(choose, "_CHUNK_POINTS", 1 << 14)
    found = []
    for threads in (1, 3):
        network = load(job.encoder.weights, threads=threads).prepare(job.plan)
        found.append(np.empty((len(places), network.embed_dim), np.float32))
        choose.encode_points(network, places, found[-1])
    assert np.array_equal(*found)


def test_few_points_in_a_square_are_evaluated(interpolated):
    job, _ = interpolated
    assert isinstance(job.network, PreparedLattice)
    alone = np.array([[10.0, 20.0], [100.0, -40.0], [-70.0, 60.0]])
    found = np.empty((3, job.network.embed_dim), np.float32)
    choose.encode_points(job.network, alone, found)
    assert np.array_equal(found, job.encoder.network.encode(alone))


@pytest.mark.parametrize("count", [3, 150_000])
def test_the_callers_memory_is_filled_and_returned(smooth, count):
    places = scattered(count)
    out = np.full((count, smooth.embed_dim), np.nan, np.float32)
    assert smooth(places, out=out) is out
    assert np.array_equal(out, smooth(places))


def test_memory_that_cannot_be_filled_is_refused(smooth):
    places, bands = scattered(4), smooth.embed_dim
    wrong = [
        np.empty((4, bands), np.float64),
        np.empty((5, bands), np.float32),
        np.empty((4, 2 * bands), np.float32)[:, ::2],
        [[0.0] * bands] * 4,
    ]
    for out in wrong:
        with pytest.raises(UsageError, match="out must be"):
            smooth(places, out=out)
    locked = np.empty((4, bands), np.float32)
    locked.flags.writeable = False
    with pytest.raises(UsageError, match="writeable"):
        smooth(places, out=locked)


def test_an_error_in_one_part_ends_the_call(interpolated, monkeypatch):
    job, places = interpolated
    monkeypatch.setattr(choose, "_CHUNK_POINTS", 1 << 14)
    wrong = places.copy()
    wrong[-1, 1] = 91.0
    with pytest.raises(ValueError, match="91"):
        choose.encode_points(job.network, wrong, np.empty((len(places), job.network.embed_dim), np.float32))

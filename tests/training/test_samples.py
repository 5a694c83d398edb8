"""Which samples are held out, which make a batch, and how they are disturbed."""

from __future__ import annotations

import numpy as np
import pytest
from factories.runs import random_features
from factories.training import MadeSource

from satclip_engine.errors import DataError, UsageError
from satclip_engine.training.images.augment import Augmentation
from satclip_engine.training.images.image_views import ImageViews
from satclip_engine.training.loop.batches import BatchSchedule, feature_noise, jitter_locations
from satclip_engine.training.loop.split import split_samples
from satclip_engine.training.samples import MemoryFeatures, feature_statistics, samples_fingerprint


def test_a_split_holds_out_the_share_and_loses_nothing():
    lonlat = random_features(107).lonlat
    split = split_samples(lonlat, 0.1, seed=3)
    assert len(split.held_out) == 10
    assert sorted([*split.train, *split.held_out]) == list(range(107))
    again, other = split_samples(lonlat, 0.1, seed=3), split_samples(lonlat, 0.1, seed=4)
    assert np.array_equal(split.held_out, again.held_out)
    assert not np.array_equal(split.held_out, other.held_out)


def test_a_split_by_blocks_leaves_no_block_on_both_sides():
    lonlat = random_features(2000).lonlat
    split = split_samples(lonlat, 0.2, seed=0, block_degrees=30)
    blocks = {tuple(cell) for cell in np.floor((lonlat[split.train] + [180, 90]) / 30)}
    assert blocks.isdisjoint({tuple(cell) for cell in np.floor((lonlat[split.held_out] + [180, 90]) / 30)})
    assert 0.2 <= len(split.held_out) / 2000 < 0.35


def test_without_a_share_all_samples_are_trained_on():
    split = split_samples(random_features(5).lonlat, 0.0, seed=0)
    assert (len(split.train), len(split.held_out)) == (5, 0)


@pytest.mark.parametrize(("fraction", "blocks", "side"), [(0.1, None, "validation"), (0.5, 90.0, "training")])
def test_an_empty_side_of_the_split_is_an_error_that_says_what_to_do(fraction, blocks, side):
    lonlat = np.array([[1.0, 2.0]] * 5)
    with pytest.raises(UsageError, match=f"leaves none for {side}; give another fraction, or 0"):
        split_samples(lonlat, fraction, seed=0, block_degrees=blocks)


def test_an_epoch_takes_every_sample_once_in_an_order_of_its_own():
    batches = BatchSchedule(np.arange(100, 140), 10, views=3, seed=1)
    assert batches.steps_per_epoch == 4
    first = np.concatenate([batches.batch(step).samples for step in range(4)])
    second = np.concatenate([batches.batch(step).samples for step in range(4, 8)])
    assert sorted(first) == sorted(second) == list(range(100, 140))
    assert not np.array_equal(first, second)
    assert {view for step in range(8) for view in batches.batch(step).views} == {0, 1, 2}


def test_a_last_batch_that_is_not_full_is_dropped_unless_it_is_the_only_one():
    assert BatchSchedule(np.arange(29), 10, 1, 0).steps_per_epoch == 2
    only = BatchSchedule(np.arange(7), 10, 1, 0)
    assert (only.steps_per_epoch, only.size, sorted(only.batch(5).samples)) == (1, 7, list(range(7)))


def test_processes_share_a_batch_without_gap_or_overlap():
    batches = BatchSchedule(np.arange(50), 17, views=2, seed=0)
    whole, lonlat = batches.batch(1), random_features(50).lonlat
    parts = [batches.batch(1, rank=rank, world_size=3) for rank in range(3)]
    assert np.array_equal(np.concatenate([part.samples for part in parts]), whole.samples)
    assert np.array_equal(np.concatenate([part.views for part in parts]), whole.views)
    moved = [jitter_locations(lonlat[part.samples], part, 0.01, 0) for part in parts]
    assert np.array_equal(np.concatenate(moved), jitter_locations(lonlat[whole.samples], whole, 0.01, 0))
    drawn = np.concatenate([feature_noise(4, part, 0) for part in parts])
    assert np.array_equal(drawn, feature_noise(4, whole, 0))


def test_places_move_by_less_than_the_jitter_and_not_beyond_the_pole():
    lonlat = np.array([[10.0, 90.0]] * 40 + [[20.0, -90.0]] * 40)
    moved = jitter_locations(lonlat, BatchSchedule(np.arange(80), 80, 1, 0).batch(0), 0.01, seed=0) - lonlat
    assert moved[:, 0].min() >= 0
    assert 0.008 < moved[:, 0].max() < 0.01
    assert np.all(moved[:40, 1] == 0)
    assert moved[40:, 1].max() > 0.008


def test_statistics_are_the_mean_and_the_size_of_what_departs_from_it():
    data = random_features(30)
    values = data._values[:, 0].numpy()
    mean, size = feature_statistics(data, np.arange(30))
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(size, np.sqrt(((values - values.mean(0)) ** 2).mean()), rtol=1e-5)


def test_features_that_are_no_numbers_name_their_sample():
    data = random_features(30)
    data._values[7, 0, 3] = float("inf")
    with pytest.raises(UsageError, match="the features of sample 7 are not finite"):
        feature_statistics(data, np.arange(30))


def test_a_fingerprint_tells_other_places_apart():
    assert samples_fingerprint(random_features(9)) == samples_fingerprint(random_features(9))
    assert samples_fingerprint(random_features(9)) != samples_fingerprint(random_features(9, seed=1))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (
            (3.0, 95.0),
            r"lonlat: latitude outside \[-90, 90\] in sample 3 \(lat 95\) \(are lon and lat swapped\?\)",
        ),
        ((163.0, 90.0000001), r"latitude outside \[-90, 90\] in sample 3 \(lat 90.0000001\)$"),
        ((3.0, -163.0), r"in sample 3 \(lat -163\)"),
        ((float("nan"), 5.0), "lonlat: longitude or latitude is missing or not finite in sample 3"),
        ((5.0, float("inf")), "is missing or not finite in sample 3"),
    ],
)
def test_features_in_memory_lie_on_earth(place, words):
    lonlat = np.zeros((8, 2))
    lonlat[3] = place
    with pytest.raises(UsageError, match=words):
        MemoryFeatures(lonlat, np.ones((8, 4)))
    source = MadeSource(8)
    source.lonlat = lonlat
    with pytest.raises(DataError, match=words.removeprefix("lonlat: ").replace("sample", "image")):
        ImageViews(source, np.arange(8), Augmentation(), seed=0)

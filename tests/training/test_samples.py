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
from satclip_engine.training.loop.split import number_locations, split_samples
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


def near(lonlat, metres, seed=1):
    """Points at up to so many metres from others."""
    rng = np.random.default_rng(seed)
    bearing, degrees = rng.uniform(0, 2 * np.pi, len(lonlat)), metres / 111_195
    north = degrees * np.cos(bearing)
    east = degrees * np.sin(bearing) / np.cos(np.radians(lonlat[:, 1]))
    return lonlat + np.stack([east, north], 1)


@pytest.mark.parametrize("block_degrees", [None, 10.0])
@pytest.mark.parametrize(
    "again",
    [
        lambda lonlat: lonlat,
        lambda lonlat: lonlat + np.array([360.0, 0.0]),
        lambda lonlat: lonlat.astype(np.float32).astype(np.float64),
        lambda lonlat: near(lonlat, 1),
        lambda lonlat: near(lonlat, 10),
    ],
    ids=["exactly", "a turn on", "in float32", "a metre", "ten metres"],
)
def test_images_of_one_location_are_on_one_side(again, block_degrees):
    first = np.random.default_rng(0).uniform(-80, 80, (300, 2))
    lonlat = np.concatenate([first, again(first), again(first), again(first)])
    split = split_samples(lonlat, 0.1, seed=0, block_degrees=block_degrees)
    location = np.tile(np.arange(300), 4)
    assert set(location[split.train]).isdisjoint(location[split.held_out])
    assert split.held_out_locations == len(set(location[split.held_out]))
    if block_degrees is None:
        assert len(split.held_out) == 120
    assert not np.array_equal(
        split.held_out, split_samples(lonlat, 0.1, seed=1, block_degrees=block_degrees).held_out
    )


@pytest.mark.parametrize(
    "locations", [[[180.0, 5.0], [-180.0, 5.0]], [[7.0, 90.0], [140.0, 90.0]], [[7.0, -90.0], [140.0, -90.0]]]
)
def test_the_antimeridian_and_the_poles_part_no_location(locations):
    lonlat = np.concatenate([random_features(50).lonlat, locations])
    for degrees in (None, 10.0):
        for seed in range(20):
            split = split_samples(lonlat, 0.5, seed, block_degrees=degrees)
            assert len({50, 51} & set(split.held_out)) in (0, 2)


def test_locations_that_are_further_apart_stay_apart():
    first = np.random.default_rng(0).uniform(-80, 80, (300, 2))
    assert len(set(number_locations(np.concatenate([first, near(first, 100)])))) == 600
    numbers = number_locations(first[[4, 2, 2, 0, 4]])
    assert numbers.tolist() == [0, 1, 1, 2, 0], "numbered as they come"


def test_a_trail_of_images_is_no_single_location():
    trail = np.stack([np.arange(0, 1, 5e-5), np.zeros(20_000)], 1)  # 5.6 metres from one to the next
    numbers = number_locations(trail)
    assert 950 <= len(set(numbers)) <= 1050
    split = split_samples(trail, 0.1, seed=0)
    assert abs(len(split.held_out) - 2000) <= 20


def test_many_images_of_a_small_area_are_split():
    lonlat = np.random.default_rng(0).uniform(0, 0.01, (5000, 2))  # of a square kilometre
    split = split_samples(lonlat, 0.1, seed=0)
    assert abs(len(split.held_out) - 500) <= 50
    assert split.held_out_locations >= 5


def test_locations_of_unequal_size_meet_the_share_as_nearly_as_they_can():
    sizes = np.random.default_rng(2).integers(1, 40, 200)
    lonlat = np.repeat(random_features(200).lonlat, sizes, axis=0)
    for seed in range(5):
        split = split_samples(lonlat, 0.1, seed)
        assert abs(len(split.held_out) - int(0.1 * len(lonlat))) <= 1


def test_without_repeated_locations_the_split_is_a_permutation_of_the_samples():
    lonlat = random_features(500).lonlat
    expected = np.sort(np.random.default_rng([7, 0]).permutation(500)[:50])
    assert np.array_equal(split_samples(lonlat, 0.1, seed=7).held_out, expected)


@pytest.mark.parametrize(
    ("lonlat", "fraction", "message"),
    [
        (random_features(12).lonlat, 0.1, "leaves one for validation, .*give 0.17 or more, or 0"),
        (np.repeat(random_features(9).lonlat, 4, 0), 0.1, "leaves 4 of one location for .*give 0.23 or more"),
        (np.repeat(random_features(3).lonlat, 4, 0), 0.4, "leaves 4 of one location .*more locations, or 0"),
        (np.repeat(random_features(9).lonlat, 4, 0), 0.9, "leaves 4 of one location for training.*lower"),
    ],
)
def test_a_side_of_one_location_is_an_error_that_says_what_to_do(lonlat, fraction, message):
    with pytest.raises(UsageError, match=message) as error:
        split_samples(lonlat, fraction, seed=0)
    assert error.value.argument == "val_random_split_fraction"


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
def test_samples_of_one_location_are_refused_whatever_is_held_out(fraction):
    with pytest.raises(UsageError, match=r"all 40 samples are of one location, .*of more locations"):
        split_samples(np.repeat(random_features(1).lonlat, 40, axis=0), fraction, seed=0)


def test_without_a_share_all_samples_are_trained_on():
    split = split_samples(random_features(5).lonlat, 0.0, seed=0)
    assert (len(split.train), len(split.held_out)) == (5, 0)


@pytest.mark.parametrize(("fraction", "blocks", "side"), [(0.1, None, "validation"), (0.5, 90.0, "training")])
def test_an_empty_side_of_the_split_is_an_error_that_says_what_to_do(fraction, blocks, side):
    lonlat = np.array([[1.0, 2.0 + row] for row in range(5)])
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
        (
            (163.0, 90.0000001),
            r"latitude outside \[-90, 90\] in sample 3 \(lat 90.0000001\) by rounding: clip it to ±90$",
        ),
        ((163.0, 91.0), r"in sample 3 \(lat 91\)$"),
        ((500000.0, 5e6), r"in sample 3 \(lat 5000000\): they look projected: transform them to degrees"),
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

"""Settings in runs that are too short or too small for them: averages still work, the others are named."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from factories.runs import random_features, small_config, torch

from satclip_engine.errors import UsageError
from satclip_engine.training.loop.advice import RunSize, setting_notes
from satclip_engine.training.loop.trainer import Trainer
from satclip_engine.training.samples import MemoryFeatures
from satclip_engine.training.session import train

SIZE = RunSize(training=900, held_out=100, locations=100, batch=100, steps_per_epoch=9, total=900)


@pytest.mark.filterwarnings("ignore:ema ")
@pytest.mark.parametrize(("ema", "steps"), [(0.99, 40), (0.999, 40), (0.9999, 40), (0.9999, 90)])
def test_an_averaged_model_scores_like_the_trained_one_after_few_steps(tmp_path, ema, steps):
    settings = {"val_random_split_fraction": 0.0, "batch_size": 200, "check_val_every_n_epoch": steps}
    losses = {}
    for decay in (None, ema):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "validation every")
            done = train(
                small_config(max_epochs=steps, legendre_polys=10, capacity=64, ema=decay, **settings),
                random_features(200),
                tmp_path / str(decay),
            )
        losses[decay] = done.outcome.best.scores.loss
    chance = math.log(200)
    assert losses[None] < 0.05 * chance, "the run is to learn its samples"
    assert losses[ema] == pytest.approx(losses[None], rel=0.25)


@pytest.mark.parametrize(
    ("settings", "size", "note"),
    [
        (
            {"ema": 0.9999},
            {},
            "ema 0.9999 is an average over some 10000 steps, and the run has 900: its decay rises to 0.99, "
            "an average over the last 101 or so",
        ),
        (
            {"warmup_steps": 1000},
            {},
            "a warm-up of 1000 steps is as long as the run of 900 or longer: the learning rate reaches 90 % "
            "of 0.003",
        ),
        ({"patience": 99}, {}, "a patience of 99 validations cannot shorten a run that has 100"),
        (
            {"patience": 9, "check_val_every_n_epoch": 10},
            {},
            "a patience of 9 validations cannot shorten a run that has 10",
        ),
        (
            {"check_val_every_n_epoch": 100},
            {},
            "validation every 100 epochs comes once in this run: best.ckpt is the last state",
        ),
        (
            {},
            {"held_out": 19, "locations": 19, "training": 171},
            "19 held-out samples: the best epoch, chosen by their loss, is largely chance",
        ),
        (
            {},
            {"locations": 6},
            "100 held-out samples of 6 locations: the best epoch, chosen by their loss, is largely chance",
        ),
        (
            {"batch_size": 600},
            {"batch": 600, "steps_per_epoch": 1},
            "900 training samples in batches of 600: an epoch is one step and leaves out 300 samples, other "
            "ones each time",
        ),
        (
            {"batch_size": 8192},
            {"batch": 900, "steps_per_epoch": 1},
            "a batch of 8192 is more than the 900 training samples: every step takes all of them",
        ),
        (
            {"val_block_degrees": 60.0},
            {"held_out": 400, "locations": 400, "training": 600},
            "whole blocks of 60° hold out 40 % of the samples, not 10 %",
        ),
        (
            {"patience": 3, "val_random_split_fraction": 0.0},
            {"held_out": 0, "locations": 0, "training": 1000},
            "no samples are held out: patience and best.ckpt go by the loss on training samples",
        ),
    ],
)
def test_a_setting_that_does_not_fit_the_run_is_named_with_the_numbers_at_hand(settings, size, note):
    config = small_config(**settings)
    assert setting_notes(config, RunSize(**{**vars(SIZE), **size})) == [note]


@pytest.mark.parametrize(
    "settings", [{}, {"ema": 0.99}, {"warmup_steps": 899}, {"patience": 98}, {"check_val_every_n_epoch": 50}]
)
def test_settings_that_fit_have_no_note(settings):
    assert setting_notes(small_config(**settings), SIZE) == []


def test_the_notes_are_warnings_of_the_run(tmp_path):
    config = small_config(warmup_steps=50, patience=9, max_epochs=4, batch_size=90)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Trainer(config, random_features(100), tmp_path)
    texts = [str(warning.message) for warning in said]
    assert [text.split(":")[0] for text in texts] == [
        "10 held-out samples",
        "a patience of 9 validations cannot shorten a run that has 4",
        "a warm-up of 50 steps is as long as the run of 4 or longer",
    ]


def test_a_batch_of_one_sample_names_the_batch_size(tmp_path):
    with pytest.raises(UsageError, match="batch_size: a batch of one of the 180 training samples") as error:
        Trainer(small_config(batch_size=1), random_features(200), tmp_path)
    assert error.value.argument == "batch_size"


@pytest.mark.parametrize(
    ("row", "message"), [(3, r"latitude outside .* sample 3 \(lat 163\)"), (5, "not finite in sample 5")]
)
@pytest.mark.parametrize("jitter", [0.0, 0.01])
def test_a_location_that_is_none_is_refused_before_jitter_moves_it(tmp_path, row, message, jitter):
    data = random_features(200)
    data.lonlat[row, 1] = {3: 163.0, 5: float("nan")}[row]
    with pytest.raises(UsageError, match=message):
        train(small_config(coordinate_jitter=jitter), data, tmp_path)
    data.lonlat[row] = [float("inf"), 5.0]
    with pytest.raises(UsageError, match=f"not finite in sample {row}"):
        train(small_config(coordinate_jitter=jitter), data, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("set_default", "other", "usual"),
    [
        (torch.set_default_dtype, torch.float64, torch.float32),
        (torch.set_default_dtype, torch.bfloat16, torch.float32),
        (torch.set_default_device, "meta", None),
    ],
)
def test_training_does_not_depend_on_torchs_defaults(tmp_path, set_default, other, usual):
    settings = {"feature_noise": 0.1, "dropout": 0.3, "ema": 0.9, "max_epochs": 2}
    values = random_features(40)._values.numpy()

    def run(folder):
        data = MemoryFeatures(random_features(40).lonlat, values)
        return train(small_config(**settings), data, tmp_path / folder).outcome.last.model

    expected = run("usual")
    set_default(other)
    try:
        weights = run("other")
    finally:
        set_default(usual)
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


def test_training_is_not_narrowed_by_an_autocast_around_it(tmp_path):
    data, config = random_features(40), small_config(max_epochs=2)
    losses = []
    for context in (torch.autocast("cpu", torch.bfloat16), torch.no_grad(), warnings.catch_warnings()):
        with context:
            warnings.simplefilter("ignore")
            done = train(config, data, tmp_path / str(len(losses)))
        losses.append([row["train_loss"] for row in done.outcome.history])
    np.testing.assert_array_equal(losses[:2], [losses[2], losses[2]])

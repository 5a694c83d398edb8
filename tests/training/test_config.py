"""Settings: from files, from flags, and what is said of wrong ones."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from satclip_engine.errors import UsageError
from satclip_engine.training.config import (
    TrainConfig,
    changed_settings,
    flag_of,
    make_config,
    read_toml,
    settings,
)

# The published configs/default.yaml, its model and what decides a run of its data and trainer.
PUBLISHED = {
    "embed_dim": 256,
    "image_resolution": 256,
    "vision_width": 128,
    "vision_patch_size": 32,
    "in_channels": 13,
    "le_type": "sphericalharmonics",
    "frequency_num": 16,
    "max_radius": 0.01,
    "min_radius": 0.00001,
    "legendre_polys": 32,
    "sh_embedding_dims": 32,
    "learning_rate": 0.0001,
    "num_hidden_layers": 2,
    "capacity": 256,
    "batch_size": 512,
    "num_workers": 8,
    "val_random_split_fraction": 0.1,
    "max_epochs": 500,
}


def write(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_every_published_setting_is_taken_under_its_own_name():
    config = make_config(PUBLISHED, file="published.toml")
    for name, value in PUBLISHED.items():
        assert getattr(config, name) == value


def test_settings_may_stand_in_the_published_tables(tmp_path):
    path = write(
        tmp_path, "seed = 3\n[model]\ncapacity = 64\n[data]\nbatch_size = 32\n[trainer]\nmax_epochs = 7\n"
    )
    config = make_config(read_toml(path), file=str(path))
    assert (config.seed, config.capacity, config.batch_size, config.max_epochs) == (3, 64, 32, 7)


def test_a_flag_overrides_the_file_and_the_file_the_default():
    config = make_config({"capacity": 64, "seed": 1}, file="a.toml", flags={"seed": 2, "capacity": None})
    assert (config.capacity, config.seed, config.embed_dim) == (64, 2, 256)


def test_a_published_vision_layers_chooses_the_image_encoder():
    assert make_config({"vision_layers": "moco_resnet50"}).image_encoder == "resnet50"
    with pytest.raises(UsageError, match=r"a\.toml: vision_layers: moco_vit16 is not image_encoder resnet18"):
        make_config({"vision_layers": "moco_vit16", "image_encoder": "resnet18"}, file="a.toml")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batchsize": 3}, r"a\.toml: batchsize: no such setting; did you mean batch_size\?"),
        ({"capacity": "many"}, r"a\.toml: capacity: expected a whole number, got 'many'"),
        ({"capacity": 2.0}, r"a\.toml: capacity: expected a whole number, got 2\.0"),
        ({"capacity": True}, r"a\.toml: capacity: expected a whole number, got True"),
        ({"learn_logit_scale": 1}, r"a\.toml: learn_logit_scale: expected true or false, got 1"),
        ({"dropout": 1}, r"a\.toml: dropout: expected a number at least 0 and below 1, got 1\.0"),
        ({"learning_rate": float("nan")}, r"a\.toml: learning_rate: expected a finite number, got nan"),
        ({"legendre_polys": 201}, r"a\.toml: legendre_polys: expected a number at least 1 and at most 200"),
        ({"le_type": "grid"}, r"a\.toml: le_type: expected one of sphericalharmonics, got 'grid'"),
        ({"bounds": [1, 2]}, r"a\.toml: bounds: expected a list of 4, got \[1, 2\]"),
        ({"logit_scale": 200}, r"a\.toml: logit_scale: 200 is above max_logit_scale, 100"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(given, message):
    with pytest.raises(UsageError, match=message):
        make_config(given, file="a.toml")


def test_a_wrong_flag_is_named_as_it_was_typed():
    with pytest.raises(UsageError, match="--epochs: expected a number at least 1, got 0"):
        make_config(flags={"max_epochs": 0})


def test_a_file_that_is_no_toml_or_gives_a_setting_twice_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"run\.toml: not TOML"):
        read_toml(write(tmp_path, "seed = = 3"))
    with pytest.raises(UsageError, match=r"run\.toml: seed: given twice"):
        read_toml(write(tmp_path, "seed = 3\n[model]\nseed = 4\n"))
    with pytest.raises(UsageError, match=r"absent\.toml: cannot be read"):
        read_toml(tmp_path / "absent.toml")


def test_what_is_written_as_toml_is_read_back_to_the_same_settings():
    config = TrainConfig(bounds=(-180, -90, 180, 90), bands=(1, 2), image_weights='a "b"\\c', max_gain=3)
    assert make_config(tomllib.loads(config.as_toml())) == config


def test_a_resumed_run_may_be_longer_but_not_another():
    config = TrainConfig()
    assert changed_settings(config, TrainConfig(max_epochs=3, threads=1, patience=2)) == []
    assert changed_settings(config, TrainConfig(seed=1, max_epochs=3, capacity=8)) == ["capacity", "seed"]


def test_no_two_settings_have_the_same_option():
    flags = [flag for name in settings() if (flag := flag_of(name))]
    assert len(set(flags)) == len(flags)


def test_the_documentation_lists_every_setting():
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    for name in settings():
        flag = flag_of(name)
        assert f"`{name}`" in text
        assert flag is None or f"`{flag}`" in text


@pytest.mark.parametrize("text", ["seed = " + "9" * 5000, "a = " + "[" * 100_000, "a = \xff"])
def test_numbers_of_thousands_of_digits_and_deep_nesting_are_no_toml(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"run\.toml: not TOML"):
        read_toml(path)


@pytest.mark.parametrize("name", ["a\nb", "a\tb\r", "\x00\x1b]0;x\x07\x7f", 'é\u2028\U0001f30d"\\'])
def test_any_path_is_written_as_toml_that_is_read_back(name):
    text = TrainConfig(image_weights=name).as_toml()
    assert tomllib.loads(text)["image_weights"] == name
    assert all(character.isprintable() for character in text.replace("\n", ""))


def test_what_no_file_can_hold_is_refused():
    with pytest.raises(UsageError, match="image_weights: expected text that is UTF-8"):
        TrainConfig(image_weights="a\udcff")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bounds_are_finite(value):
    with pytest.raises(UsageError, match=r"a\.toml: bounds: expected a finite number"):
        make_config({"bounds": [0, 0, value, 1]}, file="a.toml")


@pytest.mark.parametrize(
    ("name", "meant"), [("epochs", "max_epochs"), ("convention", "harmonics_calculation")]
)
def test_the_name_of_an_option_in_a_file_leads_to_the_setting(name, meant):
    with pytest.raises(UsageError, match=rf"{name}: no such setting; did you mean {meant}\?"):
        make_config({name: 3}, file="a.toml")


def test_advice_in_messages_is_spelt_as_it_is_typed():
    with pytest.raises(UsageError, match=r"lower it or raise max_logit_scale$"):
        TrainConfig(logit_scale=200)

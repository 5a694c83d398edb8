"""From real patches on disk to checkpoints, through the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from factories.runs import torch
from factories.training import S2

from satclip_engine.cli.train import main
from satclip_engine.encoder import load
from satclip_engine.training.features import FeatureCache
from satclip_engine.training.images.rcf import RandomFeatures
from satclip_engine.training.patches import open_source

SMALL = {"legendre-polys": 5, "capacity": 32, "embed-dim": 16, "dropout": 0, "learning-rate": 0.01}
FOUR = {"epochs": 30, "rcf-filters": 16, "views": 2, "val-random-split-fraction": 0, "threads": 1}


def options(given):
    return [part for name, value in given.items() for part in (f"--{name}", value)]


RUN = options(SMALL | FOUR)


def run(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


def report(*args):
    result = run(*args, "--json", "-q")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def colours(path):
    """A raster of noise in three bands, all over the globe."""
    pixels = np.random.default_rng(0).integers(0, 255, (3, 90, 180), np.uint8)
    profile = {
        "driver": "GTiff",
        "count": 3,
        "height": 90,
        "width": 180,
        "dtype": "uint8",
        "crs": "EPSG:4326",
    }
    transform = rasterio.transform.Affine(2, 0, -180, 0, -2, 90)
    with rasterio.open(path, "w", transform=transform, **profile) as file:
        file.write(pixels)
    return path


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A run on the four patches: its folder and its report. Its features are there for others."""
    out = tmp_path_factory.mktemp("learnt") / "run"
    return out, report(S2, "--out", out, *RUN)


def test_real_patches_are_learnt_by_heart_and_their_checkpoints_read_back(learnt):
    out, told = learnt
    scores = told["best"]["scores"]
    assert (scores["place_r1"], scores["image_r1"], scores["samples"]) == (1.0, 1.0, 4)
    places = open_source(S2).lonlat
    written = load(out / "best.ckpt", backend="reference")(places)
    same = load(out / "best.safetensors", backend="reference")(places)
    np.testing.assert_allclose(same, written, rtol=1e-4)

    # The checkpoint alone, images included, finds every place's image.
    content = torch.load(out / "best.ckpt", weights_only=True)
    assert content["satclip_engine"]["extras"]["data"] == S2.name
    tensors = content["image_encoder"]["state_dict"]
    trunk = {name: value for name, value in tensors.items() if not name.startswith("projection.")}
    encoder = RandomFeatures(trunk, embed_dim=16, seed=0)
    encoder.load_state_dict(tensors)
    images = torch.from_numpy(np.stack(open_source(S2).read(range(4))))
    with torch.no_grad():
        found = torch.nn.functional.normalize(encoder.projection(encoder.trunk(images)), dim=-1)
    similar = torch.nn.functional.normalize(torch.from_numpy(written), dim=-1) @ found.T
    assert similar.argmax(1).tolist() == [0, 1, 2, 3]


def test_a_folder_of_features_is_data_that_needs_no_images(learnt, tmp_path):
    features = learnt[0] / "features"
    report(features, "--out", tmp_path / "b", *RUN)
    first, second = (
        torch.load(path / "last.ckpt", weights_only=True) for path in (learnt[0], tmp_path / "b")
    )
    for name, value in first["state_dict"].items():
        assert torch.equal(second["state_dict"][name], value), name
    assert first["image_encoder"]["state_dict"].keys() == second["image_encoder"]["state_dict"].keys()
    other = run(features, "--out", tmp_path / "c", *RUN, "--image-encoder", "resnet18", "-q")
    assert other.exit_code == 2
    assert "--image-encoder: resnet18 is asked for" in other.stderr


def test_a_trunk_that_is_trained_lies_in_the_checkpoint_and_a_run_goes_on_with_it(timm, tmp_path):
    def visual():
        state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
        prefix = "model.visual."
        found = timm.create_model("resnet18", in_chans=3, num_classes=16)
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        found.load_state_dict(own, strict=True)
        return found

    raster = ["--from-raster", colours(tmp_path / "world.tif"), "--out", tmp_path / "run"]
    patches = ["--patch", 8, "--count", 24, "--image-encoder", "resnet18", *options(SMALL)]
    args = [*raster, *patches, "--unfreeze", "--trunk-batch", 10, "--image-lr", 0.001]
    told = report(*args, "--epochs", 2)
    assert (told["batch"], told["steps"], told["held_out"]) == (22, 2, 2)
    assert not (tmp_path / "run" / "features").exists()
    before = visual()
    assert report(*raster, "--resume", "--epochs", 3)["steps"] == 3
    after = visual()
    assert not torch.equal(before.conv1.weight, after.conv1.weight)
    assert torch.equal(before.bn1.running_mean, after.bn1.running_mean)
    refused = run(*args, "--features", tmp_path / "f", "--overwrite", "-q")
    assert refused.exit_code == 2
    assert "--unfreeze makes no features: leave out --features" in refused.stderr


def test_features_of_something_else_are_refused(learnt, tmp_path):
    features = learnt[0] / "features"
    result = run(S2, "--out", tmp_path / "b", "--features", features, *RUN, "--views", "3", "-q")
    assert result.exit_code == 1
    assert "holds the features of something else" in result.stderr
    assert "views (2, now 3)" in result.stderr


def test_patches_cut_from_one_raster_are_data_too(tmp_path):
    path = colours(tmp_path / "world.tif")
    args = ["--from-raster", path, "--patch", 8, "--count", 60, "--out", tmp_path / "run", *options(SMALL)]
    result = report(*args, "--rcf-filters", 8, "--views", 1, "--epochs", 2)
    assert (result["batch"], result["held_out"]) == (54, 6)


@pytest.mark.parametrize(
    ("args", "status", "fragment"),
    [
        (["absent"], 1, "absent: no such file or folder"),
        (["s2", "--in-channels", "3"], 2, "--in-channels: expected images of 3 channels, they have 13"),
        (["s2", "--image-weights", "w.pth"], 2, "--image-weights: rcf has no weights"),
        (["s2", "--features", "s2"], 1, "s2 holds other files"),
        (["s2", "--features", "s2/index.csv"], 1, "it is a file; choose another --features"),
        (["s2", "--bands", "1,13"], 2, "--bands: a file of s2 has bands 1 to 12, not 13"),
        (["s2/images/patch_74721.tif", "--max-skipped", 1], 2, "--max-skipped: s2/images/patch_74721.tif is"),
        (["s2", "--val-random-split-fraction", "0.1"], 2, "of 4 samples leaves none for validation"),
    ],
)
def test_unusable_data_is_one_line(s2, tmp_path, monkeypatch, args, status, fragment):
    monkeypatch.chdir(tmp_path)
    result = run("--out", "run", *RUN, *args, "-q")
    assert result.exit_code == status, result.output
    assert fragment in result.stderr.splitlines()[-1]


def test_features_of_something_else_or_damaged_are_replaced_when_that_is_asked_for(tmp_path):
    def failure(*args):
        result = run(*args, "-q")
        assert result.exit_code == 1, result.output
        return result.stderr

    features = tmp_path / "features"
    raster = ["--from-raster", colours(tmp_path / "world.tif"), "--patch", 8, "--count", 60]
    small = [*options(SMALL), "--rcf-filters", 8, "--views", 2, "--epochs", 1, "--threads", 1]
    args = [*raster, *small, "--out", tmp_path / "run", "--features", features, "--overwrite"]
    report(*args)
    other = [*args, "--views", 1]
    advice = f"choose another --features, or replace the cache in {features} with --rebuild-features\n"
    refused = failure(*other)
    assert "views (2, now 1)" in refused
    assert refused.endswith(advice)
    assert "=" not in refused, "nothing of Python"
    report(*other, "--rebuild-features")
    assert FeatureCache.open(features).views == 1

    (features / "manifest.json").write_text("{")
    assert failure(*other).endswith(advice)
    assert report(*other, "--rebuild-features")["steps"] == 1


def test_features_cannot_be_rebuilt_without_images(learnt, tmp_path):
    features = learnt[0] / "features"
    result = run(features, "--out", tmp_path / "b", *RUN, "--rebuild-features", "-q")
    assert result.exit_code == 2
    assert (
        "holds features, not images: leave out --rebuild-features, or give the images as DATA"
        in result.stderr
    )
    args = ["--image-encoder", "resnet18", "--unfreeze", "--rebuild-features"]
    result = run(S2, "--out", tmp_path / "b", *RUN, *args, "-q")
    assert result.exit_code == 2
    assert "--unfreeze makes no features: leave out --rebuild-features" in result.stderr


def test_a_setting_is_named_as_it_was_given(s2, tmp_path):
    (tmp_path / "a.toml").write_text("in_channels = 3\n")
    args = [s2, "--out", tmp_path / "run", *RUN, "-q"]
    typed = run(*args, "--in-channels", 3).stderr
    assert typed.startswith("satclip-train: --in-channels: expected images of 3 channels, they have 13")
    read = run(*args, "--config", tmp_path / "a.toml").stderr
    assert read.startswith(
        f"satclip-train: {tmp_path / 'a.toml'}: in_channels: expected images of 3 channels"
    )
    overridden = run(*args, "--config", tmp_path / "a.toml", "--in-channels", 4).stderr
    assert overridden.startswith("satclip-train: --in-channels: expected images of 4 channels, they have 13")
    unsplit = run(s2, "--out", tmp_path / "run", "-q").stderr
    assert "--val-random-split-fraction: 0.1 of 4 samples leaves none for validation" in unsplit
    for image in list((s2 / "images").iterdir())[:2]:
        image.unlink()
    skipped = run(*args, "--max-skipped", 1).stderr
    assert "or allow more with --max-skipped 2\n" in skipped

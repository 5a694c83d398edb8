"""Image encoders: random features and what they ignore, published weights in the forms people have them."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import numpy as np
import pytest
from factories.training import MadeSource

from satclip_engine.errors import DataError, MissingExtra, UsageError, WeightsError
from satclip_engine.training.images import ENCODERS, augmentation_for, load_encoder

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def source():
    return MadeSource(60)


@pytest.fixture(scope="module")
def rcf(source):
    return load_encoder("rcf", source, filters=20)


@pytest.fixture(scope="module")
def resnet(timm):
    return load_encoder("resnet18", channels=4, embed_dim=8)


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random(shape, np.float32))


def test_the_default_needs_no_weights(source):
    assert load_encoder(source=source, filters=4).name == "rcf" == ENCODERS[0]


def test_random_features_are_the_same_for_the_same_data_and_seed(source):
    first, again, other = (load_encoder("rcf", source, filters=20, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    batch = noise(5, 3, 12, 12)
    assert torch.equal(first.trunk(batch), again.trunk(batch))
    assert not torch.equal(first.trunk(batch), other.trunk(batch))
    assert torch.equal(first.projection.weight, again.projection.weight)
    assert load_encoder("rcf", MadeSource(60, seed=1), filters=20).fingerprint != first.fingerprint


def test_random_features_are_standardised_over_the_sample(source, rcf):
    features = rcf.trunk(torch.from_numpy(np.stack(source.read(range(60)))))
    assert features.shape == (60, 2 * 20 + 2 * 3)
    np.testing.assert_allclose(features.mean(dim=0), 0, atol=1e-5)
    np.testing.assert_allclose(features.std(dim=0, correction=0), 1, atol=1e-4)


def test_random_features_are_their_formula(rcf):
    image = noise(1, 3, 12, 12)
    tensors = {name: value.double() for name, value in rcf._tensors.items()}
    standard = (image.double() - tensors["channel_mean"]) / tensors["channel_deviation"]
    patches = torch.nn.functional.unfold(standard, 3)[0]  # (27, 100)
    response = tensors["filters"].flatten(1) @ patches
    raw = [(response - 0.5).relu().mean(dim=1), (-response - 0.5).relu().mean(dim=1)]
    raw += [standard.mean(dim=(2, 3))[0], standard.std(dim=(2, 3), correction=0)[0]]
    expected = (torch.cat(raw) - tensors["mean"]) / tensors["deviation"]
    np.testing.assert_allclose(rcf.trunk(image)[0], expected, rtol=0, atol=2e-4)


def test_random_features_see_texture_wherever_it_is_and_no_offset_does_more_than_move_the_means(rcf):
    tile = noise(1, 3, 6, 6).repeat(1, 1, 4, 4)
    shifted = torch.roll(tile, (2, 3), dims=(2, 3))
    interior = tile[..., :20, :20], shifted[..., :20, :20]  # 18×18 responses: whole periods of 6
    assert torch.allclose(rcf.trunk(interior[0])[:, :40], rcf.trunk(interior[1])[:, :40], atol=1e-3)
    brighter = rcf.trunk(tile + 0.25 * rcf._tensors["channel_deviation"])
    assert torch.allclose(brighter[:, :40], rcf.trunk(tile)[:, :40], atol=1e-3)  # filters sum to zero
    assert not torch.allclose(brighter[:, 40:43], rcf.trunk(tile)[:, 40:43], atol=0.1)


def test_an_image_has_the_same_features_alone_and_in_any_batch(rcf, monkeypatch):
    batch = noise(9, 3, 12, 12)
    together = rcf.trunk(batch)
    np.testing.assert_allclose(torch.cat([rcf.trunk(one[None]) for one in batch]), together, atol=2e-5)
    monkeypatch.setattr("satclip_engine.training.images.rcf._CHUNK_RESPONSES", 1000)
    monkeypatch.setattr("satclip_engine.training.images.rcf._MIN_FILTERS", 3)
    np.testing.assert_allclose(rcf.trunk(batch), together, atol=2e-5)


def test_half_whitened_components_are_unrelated_and_fall_off():
    source = MadeSource(200)
    encoder = load_encoder("rcf", source, filters=10, components=8)
    features = encoder.trunk(torch.from_numpy(np.stack(source.read(range(200))))).double()
    assert encoder.dim == features.shape[1] == 8
    covariance = torch.cov(features.T, correction=0)
    variance = covariance.diagonal()
    assert (covariance - variance.diag()).abs().max() < 1e-3 * variance.max()
    assert (variance.diff() <= 1e-4).all()
    assert variance.mean().item() == pytest.approx(1, abs=1e-3)


def test_a_channel_without_content_does_no_harm():
    class Empty(MadeSource):
        def read(self, indices):
            return [image * np.array([1, 0, 1], np.float32)[:, None, None] for image in super().read(indices)]

    encoder = load_encoder("rcf", Empty(30), filters=8)
    assert encoder.trunk(noise(2, 3, 12, 12)).isfinite().all()


def test_images_that_cannot_be_read_are_left_out_of_the_fit():
    encoder = load_encoder("rcf", MadeSource(30, broken=(0, 5)), filters=8)
    assert encoder.trunk(noise(2, 3, 12, 12)).isfinite().all()
    with pytest.raises(DataError, match="none of the 3 images"):
        load_encoder("rcf", MadeSource(3, broken=(0, 1, 2)), filters=8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"filters": 0}, "at least 1"),
        ({"filter_size": 13}, "between 1 and the images' 12 pixels, got 13"),
        ({"bias": -1}, "bias: expected at least 0, got -1"),
        ({"filters": 2, "components": 20}, "2 filters give 10 features"),
        ({"weights": "a.pth"}, "rcf has no weights"),
    ],
)
def test_options_of_random_features_out_of_range_are_refused(source, options, words):
    with pytest.raises(UsageError, match=words):
        load_encoder("rcf", source, **options)


def test_more_components_than_images_are_refused():
    with pytest.raises(DataError, match="8 components need more than the 5 images"):
        load_encoder("rcf", MadeSource(5), filters=4, components=8)


def test_a_state_comes_back_and_another_ones_is_refused(source, rcf):
    other = load_encoder("rcf", source, filters=20, seed=5)
    other.load_state_dict(rcf.state_dict())
    batch = noise(3, 3, 12, 12)
    assert torch.equal(other.projection(other.trunk(batch)), rcf.projection(rcf.trunk(batch)))
    assert other.fingerprint == rcf.fingerprint
    with pytest.raises(WeightsError, match="other shapes"):
        load_encoder("rcf", source, filters=10).load_state_dict(rcf.state_dict())


def test_unknown_encoders_and_options_of_others_are_refused(source):
    with pytest.raises(
        UsageError, match="unknown image encoder 'vgg': expected rcf, resnet18, resnet50, vit16"
    ):
        load_encoder("vgg", source)
    with pytest.raises(UsageError, match="filters: options of rcf, not of resnet18"):
        load_encoder("resnet18", source, filters=5)
    with pytest.raises(UsageError, match="number of channels"):
        load_encoder("resnet18")


FOREIGN_TORCHVISION = """
import torch
for name in {operators!r}:  # as torchvision does it in Python for its compiled operators
    torch.library.register_fake(f"torchvision::{{name}}")(lambda boxes, scores, threshold: scores)
"""


@pytest.mark.parametrize("operators", [("nms", "qnms"), ("nms", "another")])
def test_a_torchvision_made_for_another_torch_is_put_up_with_or_the_message_says_which_fits(
    tmp_path, operators
):
    for package, code in (
        ("torchvision", FOREIGN_TORCHVISION.format(operators=operators)),
        ("timm", "import torchvision"),
    ):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(code)
    module = "satclip_engine.training.images.timm_encoder"
    code = f"from {module} import import_timm; print(import_timm('it').__file__)"
    here = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True)
    if operators[1] == "qnms":
        assert done.stdout.strip() == str(tmp_path / "timm" / "__init__.py"), done.stderr
        return
    message = done.stderr.splitlines()[-1]
    assert f"it needs a torchvision made for torch {torch.__version__}" in message
    assert "torchvision::another does not exist" in message
    assert "pip install --force-reinstall --no-deps torchvision" in message
    assert ("--index-url https://download.pytorch.org/whl/" in message) == ("+" in torch.__version__)


def test_a_missing_timm_is_a_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r'needs timm: pip install "satclip-engine\[train\]"'):
        load_encoder("resnet18", channels=3)


@pytest.mark.parametrize(("name", "dim"), [("resnet18", 512), ("resnet50", 2048), ("vit16", 384)])
def test_timm_encoders_are_the_published_ones_with_13_channels(timm, name, dim):
    encoder = load_encoder(name, channels=13, embed_dim=16)
    batch = noise(1, 13, 224, 224)
    with torch.inference_mode():
        features = encoder.trunk(batch)
        assert torch.allclose(encoder.projection(features), encoder.visual(batch), atol=1e-5)
    assert features.shape == (1, dim) == (1, encoder.dim)
    architecture = {"vit16": "vit_small_patch16_224"}.get(name, name)
    reference = timm.create_model(architecture, in_chans=13, num_classes=16)
    expected = {f"model.visual.{key}": value.shape for key, value in reference.state_dict().items()}
    assert {key: value.shape for key, value in encoder.state_dict().items()} == expected
    assert encoder.vision_layers == f"moco_{name}"
    trained = [key for key, value in encoder.visual.named_parameters() if value.requires_grad]
    assert trained == [f"{'head' if name == 'vit16' else 'fc'}.{part}" for part in ("weight", "bias")]
    assert not encoder.visual.training


def test_a_trunk_without_weights_is_random_by_seed_and_says_so(timm):
    first, again, other = (load_encoder("resnet18", channels=3, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert "random (seed 0)" in first.notes[0]


def moco(visual, prefix, head):
    """A full MoCo checkpoint as SSL4EO-S12 publishes it: both encoders, MoCo's own head, optimizer state."""
    trunk = {key: value for key, value in visual.state_dict().items() if not key.startswith(head)}
    state = {prefix + key: value for key, value in trunk.items()}
    state |= {f"{prefix}{head}.{layer}.weight": torch.zeros(4, 4) for layer in (0, 2)}
    state |= {f"module.other_encoder.{key}": torch.zeros_like(value) for key, value in trunk.items()}
    state["module.queue"] = torch.zeros(4, 4)
    return {
        "epoch": 100,
        "arch": "resnet18",
        "state_dict": state,
        "optimizer": {"state": {}, "param_groups": []},
    }


@pytest.mark.parametrize("prefix", ["module.encoder_q.", "module.base_encoder."])
def test_moco_checkpoints_are_read_and_only_their_head_is_left_out(resnet, tmp_path, prefix):
    torch.save(moco(resnet.visual, prefix, "fc"), tmp_path / "moco.pth")
    loaded = load_encoder("resnet18", channels=4, embed_dim=8, weights=tmp_path / "moco.pth", seed=9)
    batch = noise(1, 4, 64, 64)
    assert torch.equal(loaded.trunk(batch), resnet.trunk(batch))
    assert loaded.fingerprint == resnet.fingerprint
    assert not torch.equal(loaded.projection.weight, resnet.projection.weight)
    assert f"120 tensors, named {prefix}*; its head left out (fc.0.weight, fc.2.weight)" in loaded.notes[0]


def test_plain_and_published_state_dictionaries_are_read(resnet, tmp_path):
    from safetensors.torch import save_file

    plain = {
        key: value.contiguous()
        for key, value in resnet.visual.state_dict().items()
        if not key.startswith("fc.")
    }
    torch.save({k: v for k, v in plain.items() if "num_batches" not in k}, tmp_path / "old.pth")
    save_file(plain, tmp_path / "plain.safetensors")
    torch.save(
        {"state_dict": {**resnet.state_dict(), "model.nnet.x": torch.ones(1)}}, tmp_path / "satclip.ckpt"
    )
    for wrapper in ("_orig_mod", "module"):
        state = {f"{wrapper}.{key}": value for key, value in resnet.state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / f"satclip.{wrapper}.ckpt")
    for name in ("old.pth", "plain.safetensors", *sorted(path.name for path in tmp_path.glob("satclip.*"))):
        loaded = load_encoder("resnet18", channels=4, embed_dim=8, weights=tmp_path / name, seed=9)
        assert loaded.fingerprint == resnet.fingerprint
        same_head = torch.equal(loaded.projection.weight, resnet.projection.weight)
        assert same_head == name.startswith("satclip.")


def test_weights_that_do_not_fit_say_how(resnet, tmp_path):
    path = tmp_path / "w.pth"
    state = {key: value for key, value in resnet.visual.state_dict().items() if not key.startswith("fc.")}

    def error(content, **options):
        torch.save(content, path)
        with pytest.raises(WeightsError) as caught:
            load_encoder("resnet18", channels=options.pop("channels", 4), weights=path)
        return str(caught.value)

    assert "made for images of 4 channels, the data have 13" in error(state, channels=13)
    assert "1 missing: bn1.weight" in error({k: v for k, v in state.items() if k != "bn1.weight"})
    assert "1 unknown: layer9.weight" in error({**state, "layer9.weight": torch.ones(1)})
    assert "bn1.weight is (3,), expected (64,)" in error({**state, "bn1.weight": torch.ones(3)})
    not_finite = "not finite, or beyond float32: bn1.bias"
    assert not_finite in error({**state, "bn1.bias": torch.full((64,), torch.nan)})
    assert not_finite in error({**state, "bn1.bias": torch.full((64,), 1e39, dtype=torch.float64)})
    assert "1 missing: bn1.bias" in error({**state, "bn1.bias": torch.zeros(64).to_sparse()})
    assert "another network" in error({"blocks.0.weight": torch.ones(1)})
    assert "holds no tensors" in error({"epoch": 3})
    assert "nothing was executed" in error({"state_dict": state, "args": types.SimpleNamespace(a=1)})
    path.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(WeightsError, match="damaged"):
        load_encoder("resnet18", channels=4, weights=path)
    with pytest.raises(WeightsError, match="no such file"):
        load_encoder("resnet18", channels=4, weights=tmp_path / "nothing.pth")


def test_images_of_another_shape_are_refused(timm, resnet, rcf):
    with pytest.raises(UsageError, match="made for 4 channels, not 3"):
        resnet.trunk(noise(1, 3, 64, 64))
    with pytest.raises(UsageError, match="224×224 pixels, not 64×64"):
        load_encoder("vit16", channels=3).trunk(noise(1, 3, 64, 64))
    with pytest.raises(UsageError, match="fitted to 3 channels"):
        rcf.trunk(noise(1, 4, 12, 12))


def test_views_have_the_side_that_the_encoder_was_made_for(timm, resnet, rcf):
    small, large = MadeSource(2), MadeSource(2)
    large.size = (256, 256)
    vit = load_encoder("vit16", channels=3)
    assert str(augmentation_for(resnet, large)) == "crops of 224, flips, blur"
    assert str(augmentation_for(resnet, small)) == "whole images, flips, blur"
    assert augmentation_for(vit, small).output_size((12, 12)) == (224, 224)
    assert augmentation_for(rcf, large).output_size((256, 256)) == (256, 256)

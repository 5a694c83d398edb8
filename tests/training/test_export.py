"""Checkpoints of what was trained, read by us and by a loader built as the published one is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from factories.runs import random_features, small_config, torch

from satclip_engine.encoder import load
from satclip_engine.reference import harmonics
from satclip_engine.training.images import load_encoder
from satclip_engine.training.loop.model import Model
from satclip_engine.training.loop.trainer import ModelSnapshot, RunOutcome
from satclip_engine.training.results.export import ImageEncoderState, published_checkpoint, write_checkpoints
from satclip_engine.training.samples import feature_statistics
from satclip_engine.weights import read_weights
from satclip_engine.weights.conventions import column_factors

nn = torch.nn
PLACES = np.array([[0.0, 0.0], [-180.0, -90.0], [12.3, 48.9], [179.9, -45.0], [-70.0, 89.0]])


def made(**changes):
    """A model with weights of its own, and a snapshot of it."""
    config = small_config(**changes)
    data = random_features(dim=512)
    model = Model(config, *feature_statistics(data, np.arange(20)))
    return config, model, ModelSnapshot(model.state_dict(), 30, 3, None), data


def outcome(snapshot):
    return RunOutcome(snapshot, snapshot, (), 16, 1.0, False, 2, 1)


def write(tmp_path, visual=None, **changes):
    config, model, snapshot, data = made(**changes)
    write_checkpoints(outcome(snapshot), config, visual, tmp_path, {"data": "made"})
    return config, model, data


@pytest.mark.parametrize("degrees", [5, 25])
@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt", "best.safetensors"])
def test_what_is_written_is_read_back_to_the_embeddings_of_the_model(tmp_path, degrees, name):
    _, model, _ = write(tmp_path, legendre_polys=degrees)
    model.eval()
    with torch.no_grad():
        expected = model.location(torch.from_numpy(PLACES)).numpy()
    found = load(tmp_path / name, backend="reference")(PLACES)
    tolerance = 1e-6 * np.sqrt((expected**2).mean())
    np.testing.assert_allclose(found, expected, atol=3 * tolerance, rtol=1e-5)


def test_the_convention_is_the_one_that_the_published_code_evaluates_exactly(tmp_path):
    for degrees, asked, expected in (
        (20, None, "analytic"),
        (21, None, "closed-form"),
        (21, "analytic", "analytic"),
    ):
        write(tmp_path, legendre_polys=degrees, harmonics_calculation=asked)
        weights = read_weights(tmp_path / "last.ckpt")
        assert (weights.convention, weights.harmonics) == (expected, "exact")
        assert read_weights(tmp_path / "best.safetensors").convention == "orthonormal"


def test_a_checkpoint_says_how_it_was_made(tmp_path):
    write(tmp_path, learning_rate=0.02)
    for name in ("best.ckpt", "best.safetensors"):
        origin = read_weights(tmp_path / name).provenance
        assert origin.hyper_parameters["learning_rate"] == 0.02
        assert origin.hyper_parameters["feature_noise"] == 0.0
        assert origin.extras["global_step"] == 30
        assert origin.extras["data"] == "made"


def test_every_published_key_is_there_with_the_network_twice_in_float64(tmp_path):
    write(tmp_path)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (content["epoch"], content["global_step"]) == (3, 30)
    state = content["state_dict"]
    for name in ("layers.0.weight", "layers.1.bias", "last_layer.weight"):
        assert state[f"model.nnet.{name}"].dtype == torch.float64
        assert torch.equal(state[f"model.nnet.{name}"], state[f"model.location.nnet.{name}"])
    assert float(state["model.logit_scale"]) == pytest.approx(np.log(1 / 0.07))
    assert {
        *(
            "embed_dim",
            "image_resolution",
            "vision_layers",
            "vision_width",
            "vision_patch_size",
            "in_channels",
        ),
        *("le_type", "pe_type", "frequency_num", "max_radius", "min_radius", "legendre_polys"),
        *("harmonics_calculation", "sh_embedding_dims", "learning_rate", "weight_decay", "num_hidden_layers"),
        *("capacity", "eval_downstream", "air_temp_data_path", "election_data_path"),
    } == set(content["hyper_parameters"])


class Published(nn.Module):
    """The parameters of the published model by its names, with a timm network for images."""

    def __init__(self, parameters, visual):
        super().__init__()

        class Inner(nn.Module):
            pass

        net = Inner()
        width, outputs = parameters["capacity"], parameters["embed_dim"]
        sizes = [parameters["legendre_polys"] ** 2, *[width] * parameters["num_hidden_layers"]]
        net.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        net.last_layer = nn.Linear(width, outputs)
        net.double()
        location, model = Inner(), Inner()
        location.nnet = net
        model.visual, model.nnet, model.location = visual, net, location
        model.logit_scale = nn.Parameter(torch.zeros([]))
        self.model = model

    def embed(self, lonlat, degrees, convention):
        h = torch.from_numpy(harmonics(lonlat, degrees) * column_factors(degrees, convention))
        for index, layer in enumerate(self.model.nnet.layers):
            h = torch.sin((30.0 if index == 0 else 1.0) * layer(h))
        return self.model.nnet.last_layer(h).detach().numpy()


@pytest.mark.parametrize(
    ("name", "architecture", "head", "unfreeze"),
    [
        ("resnet18", "resnet18", "fc", False),
        ("vit16", "vit_small_patch16_224", "head", False),
        ("resnet18", "resnet18", "fc", True),
        ("vit16", "vit_small_patch16_224", "head", True),
    ],
)
def test_the_published_module_takes_the_checkpoint_and_computes_the_same(
    timm, name, architecture, head, unfreeze
):
    config = small_config(image_encoder=name, learning_rate=0.001, unfreeze=unfreeze)
    trunk = timm.create_model(architecture, in_chans=13, num_classes=16).eval()
    data = random_features(dim=trunk.num_features)
    state = {key: value for key, value in trunk.state_dict().items() if not key.startswith(f"{head}.")}
    model = Model(config, *feature_statistics(data, np.arange(20)))
    if unfreeze:  # the trunk that the checkpoint is to hold is then the model's, not the one at the start
        encoder = load_encoder(name, channels=13, embed_dim=16)
        encoder.visual.load_state_dict(trunk.state_dict())
        model = Model(config, model.feature_mean, model.feature_size, encoder.network())
        state = {}
    model.eval()
    snapshot = ModelSnapshot(model.state_dict(), 30, 3, None)
    content = published_checkpoint(snapshot, config, ImageEncoderState(name, 13, head, state), {})
    parameters = content["hyper_parameters"]
    assert parameters["vision_layers"] == f"moco_{name}"
    assert parameters["in_channels"] == 13
    published = Published(parameters, timm.create_model(architecture, in_chans=13, num_classes=16)).eval()
    published.load_state_dict(content["state_dict"], strict=True)
    images = torch.randn(2, 13, 224, 224)
    with torch.no_grad():
        features = trunk.forward_head(trunk.forward_features(images), pre_logits=True)
        found = nn.functional.normalize(published.model.visual(images), dim=-1)
        torch.testing.assert_close(found, model.embed_images(features), rtol=1e-3, atol=1e-4)
        expected = model.location(torch.from_numpy(PLACES)).numpy()
    np.testing.assert_allclose(published.embed(PLACES, 5, "analytic"), expected, rtol=1e-4, atol=1e-6)


def test_random_features_lie_beside_an_image_encoder_of_no_layers():
    config, model, snapshot, data = made()
    filters = {"filters": torch.ones(3, 2, 3, 3)}
    content = published_checkpoint(snapshot, config, ImageEncoderState("rcf", 2, "projection", filters), {})
    assert content["hyper_parameters"]["vision_layers"] == 0
    stored = content["image_encoder"]
    assert stored["name"] == "rcf"
    features = data.batch(np.arange(5), np.zeros(5, int))
    projected = (
        features @ stored["state_dict"]["projection.weight"].T + stored["state_dict"]["projection.bias"]
    )
    expected = model.embed_images(features)
    torch.testing.assert_close(nn.functional.normalize(projected, dim=-1), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(stored["state_dict"]["filters"], filters["filters"])

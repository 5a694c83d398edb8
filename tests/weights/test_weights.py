"""Reading, folding, converting and writing weights."""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories.weights import (
    CONVENTIONS,
    GOLDEN,
    PLACES,
    SUFFIXES,
    as_state,
    assert_same,
    embeddings,
    make,
    refusal,
    save_ckpt,
    tensors,
    torch,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import numpy as safetensors

from satclip_engine import reference
from satclip_engine.errors import MissingExtra, OutputError, UsageError
from satclip_engine.weights import Layers, LocationWeights, read_weights
from satclip_engine.weights.conventions import column_factors

# -- the default and the sources


def test_the_default_weights_are_in_the_package_and_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from satclip_engine.weights import read_weights\n"
        "w = read_weights(); print(w, w.folded().weights[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(
        "LocationWeights(L=40, 512×512 → 256, orthonormal, harmonics='exact', source='default')"
    )
    assert "(512, 1600)" in done.stdout


def test_weights_say_what_they_are() -> None:
    weights = read_weights("default")
    assert (weights.L, weights.degrees, weights.capacity, weights.hidden_layers, weights.embed_dim) == (
        40,
        40,
        512,
        2,
        256,
    )
    assert weights.provenance.source == "default"
    assert weights.provenance.format == "safetensors"
    assert len(weights.provenance.sha256) == 64
    assert weights.provenance.extras["data"] == "bmng.jpg"  # Blue Marble, and no folder of a machine
    assert weights.provenance.hyper_parameters["legendre_polys"] == 40
    assert json.loads(json.dumps(weights.provenance.as_dict()))["source"] == "default"


def test_the_small_default_is_smooth_and_fits_the_same_heads() -> None:
    small, large = read_weights("default-l10"), read_weights("default")
    assert (small.L, small.embed_dim) == (10, large.embed_dim)
    assert small.provenance.hyper_parameters["dropout"] == large.provenance.hyper_parameters["dropout"]


def test_a_released_checkpoint_keeps_its_hyper_parameters_and_notes() -> None:
    weights = read_weights(GOLDEN / "L40_analytic_c256_w5.ckpt")
    assert repr(weights).startswith("LocationWeights(L=40, 256×256 → 256, analytic, harmonics='published'")
    assert weights.provenance.hyper_parameters["vision_layers"] == "moco_vit16"
    assert weights.provenance.hyper_parameters["air_temp_data_path"] == ""
    assert weights.provenance.extras == {
        "epoch": 499,
        "global_step": 100,
        "pytorch-lightning_version": "2.0.0",
        "hparams_name": "kwargs",
    }


@pytest.mark.parametrize("name", ["defualt", "satclip-vit16-l40", ""])
def test_an_unknown_name_is_a_usage_error_that_lists_the_names(name: str) -> None:
    with pytest.raises(
        UsageError, match=r"expected default, default-l10, a file ending in \.ckpt or \.safetensors, or hf://"
    ):
        read_weights(name)


def test_an_unknown_harmonics_mode_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="harmonics: expected one of exact, published, got 'exakt'"):
        read_weights("default", harmonics="exakt")  # type: ignore[arg-type]


def test_a_ckpt_without_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r'pip install "satclip-engine\[torch\]"'):
        read_weights(GOLDEN / "L10_analytic_c512_w1.ckpt")


# -- writing and reading back


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_written_in_its_own_convention_reads_back_to_the_bit(
    tmp_path: Path, suffix: str, convention: Any, dtype: Any
) -> None:
    weights = make(convention, dtype=dtype)
    path = tmp_path / f"w{suffix}"
    weights.save(path, convention=convention)
    assert_same(read_weights(path), weights)


@settings(deadline=None, max_examples=25)
@given(
    suffix=st.sampled_from(SUFFIXES),
    convention=st.sampled_from(CONVENTIONS),
    degrees=st.integers(1, 6) | st.sampled_from([21, 40]),
    hidden=st.integers(1, 4),
    capacity=st.integers(1, 7),
    outputs=st.integers(1, 6),
    mode=st.sampled_from(["exact", "published"]),
)
def test_any_shape_survives_both_formats(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    convention: Any,
    degrees: int,
    hidden: int,
    capacity: int,
    outputs: int,
    mode: str,
) -> None:
    weights = make(convention, mode, degrees=degrees, hidden=hidden, capacity=capacity, outputs=outputs)
    path = tmp_path_factory.mktemp("any") / f"w{suffix}"
    weights.save(path, convention=convention)
    found = read_weights(path)
    assert_same(found, weights)
    assert (found.degrees, found.hidden_layers, found.capacity, found.embed_dim) == (
        degrees,
        hidden,
        capacity,
        outputs,
    )


@pytest.mark.parametrize("first", SUFFIXES)
@pytest.mark.parametrize("second", SUFFIXES)
@pytest.mark.parametrize("name", ["L10_analytic_c512_w1", "L40_closed-form_c256_w5", "L40_analytic_c256_w5"])
def test_a_released_checkpoint_survives_any_chain_of_formats_with_all_it_says(
    tmp_path: Path, name: str, first: str, second: str
) -> None:
    original = read_weights(GOLDEN / f"{name}.ckpt")
    original.save(tmp_path / f"a{first}")
    read_weights(tmp_path / f"a{first}").save(tmp_path / f"b{second}")
    found = read_weights(tmp_path / f"b{second}")
    assert_same(found, original)
    assert found.provenance.hyper_parameters == original.provenance.hyper_parameters
    assert found.provenance.extras["epoch"] == 499
    assert found.provenance.extras["origin"]["sha256"] == original.provenance.sha256


def test_a_written_checkpoint_has_the_network_under_both_published_prefixes(tmp_path: Path) -> None:
    weights = make("analytic")
    weights.save(tmp_path / "w.ckpt")
    content = torch.load(tmp_path / "w.ckpt", weights_only=True)
    for prefix in ("model.nnet.", "model.location.nnet."):
        for name, value in weights.tensors.items():
            np.testing.assert_array_equal(content["state_dict"][prefix + name].numpy(), value)
        state = {name: value for name, value in content["state_dict"].items() if name.startswith(prefix)}
        alone = save_ckpt(tmp_path / "alone.ckpt", state, **content["hyper_parameters"])
        assert_same(read_weights(alone), weights)


class Sine(torch.nn.Linear):
    """A layer of the published network in eval mode."""

    def __init__(self, into: int, out: int, w0: float) -> None:
        super().__init__(into, out)
        self.w0 = w0

    def forward(self, x: Any) -> Any:
        return torch.sin(self.w0 * super().forward(x))


class PublishedModel(torch.nn.Module):
    """The parameters that the published loader builds from hyper-parameters, by its names."""

    def __init__(self, hyper_parameters: dict[str, Any]) -> None:
        super().__init__()
        of = hyper_parameters
        nnet, location, visual, norm = (torch.nn.Module() for _ in range(4))
        widths = [of["legendre_polys"] ** 2, *[of["capacity"]] * of["num_hidden_layers"]]
        nnet.layers = torch.nn.ModuleList(
            Sine(into, out, 1 if index else 30) for index, (into, out) in enumerate(pairwise(widths))
        )
        nnet.last_layer = torch.nn.Linear(of["capacity"], of["embed_dim"])
        location.nnet = nnet
        assert of["vision_layers"] == 0  # else an image network of that depth would be needed
        width, patch = of["vision_width"], of["vision_patch_size"]
        visual.conv1 = torch.nn.Conv2d(of["in_channels"], width, patch, bias=False)
        visual.class_embedding = torch.nn.Parameter(torch.empty(width))
        visual.positional_embedding = torch.nn.Parameter(
            torch.empty((of["image_resolution"] // patch) ** 2 + 1, width)
        )
        visual.ln_pre, visual.ln_post = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        visual.proj = torch.nn.Parameter(torch.empty(width, of["embed_dim"]))
        self.model = norm
        self.model.visual, self.model.nnet, self.model.location = visual, nnet.double(), location.double()
        self.model.logit_scale = torch.nn.Parameter(torch.empty([]))

    def embed(self, features: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(features)
        for layer in self.model.location.nnet.layers:
            x = layer(x)
        found: np.ndarray = self.model.location.nnet.last_layer(x).detach().numpy()
        return found


@pytest.mark.parametrize("degrees", [3, 25])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_published_loader_takes_a_written_checkpoint_strictly_and_computes_the_same(
    tmp_path: Path, convention: Any, degrees: int
) -> None:
    """It drops three hyper-parameters, passes all others as arguments, and loads every key or fails."""
    weights = make(convention, degrees=degrees)
    weights.save(tmp_path / "w.ckpt")
    content = torch.load(tmp_path / "w.ckpt", weights_only=True)
    parameters = content["hyper_parameters"]
    for name in ("eval_downstream", "air_temp_data_path", "election_data_path"):
        parameters.pop(name)
    released = torch.load(GOLDEN / "L10_analytic_c512_w1.ckpt", weights_only=True)["hyper_parameters"]
    assert parameters.keys() == released.keys() - {
        "eval_downstream",
        "air_temp_data_path",
        "election_data_path",
    }
    model = PublishedModel(parameters)
    model.load_state_dict(content["state_dict"], strict=True)
    written = parameters["harmonics_calculation"]
    assert written == {"orthonormal": "analytic" if degrees <= 20 else "closed-form"}.get(
        convention, convention
    )
    features = reference.harmonics(PLACES, degrees) * column_factors(degrees, written)
    np.testing.assert_allclose(model.embed(features), embeddings(weights), rtol=0, atol=1e-12)


def test_saving_needs_a_known_suffix_and_an_existing_folder(tmp_path: Path) -> None:
    weights = make()
    with pytest.raises(UsageError, match=r"w\.bin: expected a name ending in \.ckpt or \.safetensors"):
        weights.save(tmp_path / "w.bin")
    with pytest.raises(UsageError, match="convention: expected one of"):
        weights.save(tmp_path / "w.ckpt", convention="analytical")  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="there is no folder"):
        weights.save(tmp_path / "absent" / "w.safetensors")
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        weights.save(tmp_path / "folder.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.ckpt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    make(seed=1).save(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*w\.safetensors: No space left on device"):
        make(seed=2).save(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_link_is_replaced_by_the_file_and_never_followed(tmp_path: Path, suffix: str) -> None:
    weights, path, precious = read_weights("default-l10"), tmp_path / f"a{suffix}", tmp_path / "precious"
    precious.write_text("precious")
    path.symlink_to("precious")
    with pytest.warns(UserWarning, match="was a link to precious: the link is replaced"):
        weights.save(path)
    assert precious.read_text() == "precious"
    assert not path.is_symlink()
    assert read_weights(path).embed_dim == weights.embed_dim
    assert sorted(os.listdir(tmp_path)) == [path.name, "precious"]
    with pytest.raises(UsageError, match=r"expected a name ending in \.ckpt or \.safetensors"):
        weights.save(tmp_path / "a.tif")


def test_a_written_file_is_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        make().save(tmp_path / "w.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == 0o640


# -- conventions and harmonics


@pytest.mark.parametrize("source", CONVENTIONS)
@pytest.mark.parametrize("target", CONVENTIONS)
@pytest.mark.parametrize(("degrees", "harmonics"), [(3, "exact"), (25, "exact"), (25, "published")])
def test_a_conversion_keeps_the_function(source: Any, target: Any, degrees: int, harmonics: str) -> None:
    weights = make(source, harmonics, degrees=degrees)
    converted = weights.converted(target)
    assert converted.convention == target
    assert converted.harmonics == ("exact" if source != target else harmonics)
    np.testing.assert_allclose(embeddings(converted), embeddings(weights), rtol=0, atol=1e-12)


def test_conventions_scale_the_columns_as_the_published_code_does() -> None:
    weights = make(degrees=3)
    first = weights.tensors["layers.0.weight"]
    order = np.array([0, -1, 0, 1, -2, -1, 0, 1, 2])
    analytic = weights.converted("analytic").tensors["layers.0.weight"]
    np.testing.assert_allclose(analytic, np.where(order == 0, first / np.pi, first))
    phase = weights.converted("closed-form").tensors["layers.0.weight"]
    np.testing.assert_array_equal(phase, np.where(order % 2, -first, first))


def test_weights_on_published_polynomials_are_exported_as_their_own_function(tmp_path: Path) -> None:
    weights = read_weights(GOLDEN / "L40_analytic_c256_w5.ckpt")
    weights.save(tmp_path / "w.safetensors", convention="orthonormal")
    found = read_weights(tmp_path / "w.safetensors")
    assert (found.convention, found.harmonics) == ("orthonormal", "exact")
    assert found.provenance.extras["converted_from"] == "analytic, harmonics published"
    np.testing.assert_allclose(embeddings(found), embeddings(weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("convention", "degrees", "mode"),
    [
        ("analytic", 20, "exact"),
        ("analytic", 21, "published"),
        ("analytic", 40, "published"),
        ("closed-form", 40, "exact"),
        ("orthonormal", 40, "exact"),
        ("closed-form", 41, "exact"),
    ],
)
def test_a_released_checkpoint_is_read_on_the_harmonics_it_was_trained_on(
    tmp_path: Path, convention: str, degrees: int, mode: str
) -> None:
    path = save_ckpt(tmp_path / "w.ckpt", as_state(tensors(degrees)), harmonics_calculation=convention)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_weights(path).harmonics == mode
        assert read_weights(path, harmonics="exact").harmonics == "exact"
        assert read_weights(path, harmonics="published").harmonics == "published"


def test_beyond_the_table_analytic_weights_are_exact_with_a_warning(tmp_path: Path) -> None:
    path = save_ckpt(tmp_path / "w.ckpt", as_state(tensors(41)), harmonics_calculation="analytic")
    with pytest.warns(UserWarning, match="L = 41 are read with exact harmonics"):
        assert read_weights(path).harmonics == "exact"
    with pytest.raises(
        UsageError, match=r"covers L up to 40, these weights have L = 41; use harmonics='exact'"
    ):
        read_weights(path, harmonics="published")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_weights(path, harmonics="exact").save(tmp_path / "stated.ckpt")
        assert read_weights(tmp_path / "stated.ckpt").harmonics == "exact"  # a choice that was made is kept


def test_the_hash_tells_functions_apart() -> None:
    seen = [make("analytic", mode, degrees=25).sha256 for mode in ("exact", "published")]
    seen += [make(convention, degrees=25).sha256 for convention in ("closed-form", "orthonormal")]
    seen += [make(degrees=25, seed=1).sha256, make(degrees=25, dtype=np.float32).sha256]
    seen.append(LocationWeights(tensors(25), "orthonormal", "exact", (30.0, 2.0)).sha256)
    assert len(set(seen)) == len(seen)
    for convention, degrees in (("analytic", 20), ("closed-form", 25), ("orthonormal", 25)):
        one, other = (make(convention, mode, degrees=degrees) for mode in ("exact", "published"))
        assert one.sha256 == other.sha256  # the two modes are one function here
        assert one.folded().sha256 == other.folded().sha256


@pytest.mark.parametrize("prefix", ["model.location.nnet.", "model.nnet.", "location.nnet.", "nnet.", ""])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_network_is_found_under_every_prefix(tmp_path: Path, prefix: str, suffix: str) -> None:
    path, values = tmp_path / f"w{suffix}", tensors()
    if suffix == ".ckpt":
        save_ckpt(path, as_state(values, prefix), harmonics_calculation="closed-form")
    else:
        metadata = {"hyper_parameters": json.dumps({"harmonics_calculation": "closed-form"})}
        safetensors.save_file({prefix + name: value for name, value in values.items()}, path, metadata)
    assert_same(read_weights(path), LocationWeights(values, "closed-form"))


# -- folding


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("hidden", [1, 2, 4])
@pytest.mark.parametrize("w0", [(30.0, 1.0), (20.0, 1.5)])
def test_folded_layers_are_the_published_formula(
    convention: Any, hidden: int, w0: tuple[float, float]
) -> None:
    values = tensors(5, hidden)
    weights = LocationWeights(values, convention, "exact", w0)
    h = reference.harmonics(PLACES, 5) * column_factors(5, convention)
    for index in range(hidden):
        frequency = w0[0] if index == 0 else w0[1]
        h = np.sin(frequency * (h @ values[f"layers.{index}.weight"].T + values[f"layers.{index}.bias"]))
    expected = h @ values["last_layer.weight"].T + values["last_layer.bias"]
    np.testing.assert_allclose(embeddings(weights), expected, rtol=0, atol=1e-12)


def test_folding_is_done_once_in_float64_and_changes_no_tensor() -> None:
    weights = make("analytic", dtype=np.float32)
    before = {name: value.copy() for name, value in weights.tensors.items()}
    layers = weights.folded()
    assert weights.folded() is layers
    assert all(array.dtype == np.float64 for array in (*layers.weights, *layers.biases))
    expected = weights.tensors["layers.0.weight"].astype(np.float64) * column_factors(3, "analytic") * 30
    np.testing.assert_array_equal(layers.weights[0], expected)
    for name, value in before.items():
        np.testing.assert_array_equal(weights.tensors[name], value)


def test_other_sine_frequencies_are_stated_in_safetensors_and_multiplied_in_for_the_published_code(
    tmp_path: Path,
) -> None:
    weights = LocationWeights(tensors(), "closed-form", "exact", (20.0, 1.5))
    weights.save(tmp_path / "w.safetensors")
    assert_same(read_weights(tmp_path / "w.safetensors"), weights)
    weights.save(tmp_path / "w.ckpt")
    found = read_weights(tmp_path / "w.ckpt")
    assert found.w0 == (30.0, 1.0)
    np.testing.assert_allclose(embeddings(found), embeddings(weights), rtol=0, atol=1e-12)


def test_sine_frequencies_in_the_hyper_parameters_count(tmp_path: Path) -> None:
    path = save_ckpt(
        tmp_path / "w.ckpt", as_state(tensors()), harmonics_calculation="analytic", w0_initial=10.0, w0=3
    )
    assert read_weights(path).w0 == (10.0, 3.0)
    bad = save_ckpt(tmp_path / "bad.ckpt", as_state(tensors()), harmonics_calculation="analytic", w0_first=0)
    assert "w0 of the first layer: expected a positive number, found 0" in refusal(bad)


def test_two_hundred_degrees_are_enough_and_allowed(tmp_path: Path) -> None:
    weights = make("closed-form", degrees=200, capacity=2)
    weights.save(tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors").folded().weights[0].shape == (2, 40000)


def test_half_precision_is_kept_and_bfloat16_widened(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    values = {name: torch.from_numpy(value).bfloat16() for name, value in tensors().items()}
    save_file(values, tmp_path / "w.safetensors", {"convention": "orthonormal"})
    torch.save(
        {"state_dict": values, "hyper_parameters": {"harmonics_calculation": "closed-form"}},
        tmp_path / "w.ckpt",
    )
    for path in (tmp_path / "w.safetensors", tmp_path / "w.ckpt"):
        found = read_weights(path).tensors
        for name, value in values.items():
            assert found[name].dtype == np.float32
            np.testing.assert_array_equal(found[name], value.float().numpy())


def test_weights_cannot_be_changed_and_survive_pickling() -> None:
    weights = make("analytic", degrees=25)
    with pytest.raises(ValueError, match="read-only"):
        weights.tensors["layers.0.weight"][0, 0] = 1
    with pytest.raises(TypeError):
        weights.tensors["extra"] = np.zeros(1)  # type: ignore[index]
    weights.folded()
    again = pickle.loads(pickle.dumps(weights))
    assert_same(again, weights)
    assert not again.tensors["layers.0.weight"].flags.writeable


def test_weights_do_not_share_memory_with_what_they_were_made_from() -> None:
    values = tensors()
    weights = LocationWeights(values, "orthonormal")
    before = weights.sha256
    values["layers.0.weight"][:] = 0
    assert LocationWeights(weights.tensors, "orthonormal").sha256 == before


# -- layers


def test_a_head_is_folded_into_the_last_layer() -> None:
    layers = make(outputs=5).folded()
    head, bias = np.arange(10.0).reshape(2, 5), np.array([1.0, -1.0])
    expected = reference.encode(PLACES, layers) @ head.T
    np.testing.assert_allclose(reference.encode(PLACES, layers.with_head(head)), expected, atol=1e-12)
    np.testing.assert_allclose(
        reference.encode(PLACES, layers.with_head(head, bias)), expected + bias, atol=1e-12
    )
    assert layers.with_head(head).embed_dim == 2
    assert layers.with_head(head).sha256 != layers.sha256


@pytest.mark.parametrize(
    ("head", "bias", "message"),
    [
        (np.zeros((2, 4)), None, r"expected weight of shape \(K, 5\), got \(2, 4\)"),
        (np.zeros(5), None, r"expected weight of shape \(K, 5\), got \(5,\)"),
        (np.zeros((0, 5)), None, r"expected weight of shape \(K, 5\)"),
        (np.zeros((2, 5)), np.zeros(3), r"expected bias of shape \(2,\), got \(3,\)"),
        (np.full((2, 5), np.nan), None, "expected finite"),
    ],
)
def test_a_head_that_does_not_fit_is_a_usage_error(head: np.ndarray, bias: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(outputs=5).folded().with_head(head, bias)


def test_layers_round_once_and_are_contiguous() -> None:
    layers = make().folded()
    arrays = layers.astype(np.float32)
    assert [array.shape for array in arrays] == [(4, 9), (4,), (4, 4), (4,), (3, 4), (3,)]
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in arrays)
    np.testing.assert_array_equal(arrays[2], layers.weights[1].astype(np.float32))
    with pytest.raises(ValueError, match=r"layer 1: expected weight \(rows, 4\)"):
        Layers(3, (np.zeros((4, 9)), np.zeros((3, 5))), (np.zeros(4), np.zeros(3)))

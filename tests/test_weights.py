"""Reading, folding, converting and writing weights; files that are damaged, hostile or something else."""

from __future__ import annotations

import json
import math
import os
import pickle
import stat
import subprocess
import sys
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import numpy as safetensors

from satclip_engine import reference
from satclip_engine.basis import column_factors
from satclip_engine.errors import MissingExtra, OutputError, UsageError, WeightsError
from satclip_engine.weights import Layers, LocationWeights, Provenance, read_weights

torch = pytest.importorskip("torch")

GOLDEN = Path(__file__).parent / "data" / "golden"
SUFFIXES = (".ckpt", ".safetensors")
CONVENTIONS = ("analytic", "closed-form", "orthonormal")
PLACES = np.array([(0.0, 0.0), (12.3, 45.6), (-170.0, -80.0), (99.0, 89.5), (0.0, -90.0), (361.0, 20.0)])


def tensors(
    degrees: int = 3,
    hidden: int = 2,
    capacity: int = 4,
    outputs: int = 3,
    dtype: Any = np.float64,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """A random network of that shape whose sines see arguments of order one."""
    rng = np.random.default_rng(seed)
    widths = [degrees**2, *[capacity] * hidden, outputs]
    found = {}
    for index, (into, out) in enumerate(pairwise(widths)):
        name = f"layers.{index}" if index < hidden else "last_layer"
        found[f"{name}.weight"] = (rng.normal(size=(out, into)) / into).astype(dtype)
        found[f"{name}.bias"] = rng.normal(size=out).astype(dtype)
    return found


def make(convention: str = "orthonormal", harmonics: str = "exact", **shape: Any) -> LocationWeights:
    return LocationWeights(tensors(**shape), convention, harmonics)  # type: ignore[arg-type]


def assert_same(found: LocationWeights, expected: LocationWeights) -> None:
    """Equal to the bit: tensors with their dtype, convention, harmonics, sine frequencies."""
    assert list(found.tensors) == list(expected.tensors)
    for name, value in expected.tensors.items():
        assert found.tensors[name].dtype == value.dtype, name
        assert found.tensors[name].tobytes() == value.tobytes(), name
    assert (found.convention, found.harmonics, found.w0) == (
        expected.convention,
        expected.harmonics,
        expected.w0,
    )
    assert found.sha256 == expected.sha256


def embeddings(weights: LocationWeights) -> np.ndarray:
    return reference.encode(PLACES, weights.folded())


def save_ckpt(path: Path, state: Mapping[str, Any], **hyper_parameters: Any) -> Path:
    torch.save({"state_dict": dict(state), "hyper_parameters": hyper_parameters}, path)
    return path


def as_state(values: Mapping[str, np.ndarray], prefix: str = "model.location.nnet.") -> dict[str, Any]:
    return {prefix + name: torch.from_numpy(np.array(value)) for name, value in values.items()}


def refusal(path: Path) -> str:
    """The one line with which a file is refused; it begins with the file."""
    with pytest.raises(WeightsError) as error:
        read_weights(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def attempt(path: Path) -> LocationWeights | str:
    """The weights, or the line with which they are refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read_weights(path)
        except (WeightsError, UsageError) as error:
            return str(error)


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
    assert "Blue Marble" in weights.provenance.extras["source"]
    assert json.loads(json.dumps(weights.provenance.as_dict()))["source"] == "default"


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
        UsageError, match=r"expected default, a file ending in \.ckpt or \.safetensors, or hf://"
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
    with pytest.raises(OutputError, match="does not exist"):
        weights.save(tmp_path / "absent" / "w.safetensors")
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(OutputError, match="is a directory"):
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
    with pytest.raises(OutputError, match=r"w\.safetensors: cannot be written \(No space left on device\)"):
        make(seed=2).save(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["w.safetensors"]


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


def test_a_checkpoint_without_convention_is_taken_as_analytic_with_a_warning(tmp_path: Path) -> None:
    torch.save(as_state(tensors(), "nnet."), tmp_path / "bare.ckpt")
    with pytest.warns(UserWarning, match="does not name its harmonics: taken as 'analytic'"):
        assert read_weights(tmp_path / "bare.ckpt").convention == "analytic"


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


# -- files that are hostile


class Bomb:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict", "whole"])
def test_a_hostile_pickle_is_refused_and_never_executed(tmp_path: Path, place: str, zipped: bool) -> None:
    proof, path = tmp_path / "proof", tmp_path / "w.ckpt"
    content: Any = {
        "state_dict": as_state(tensors()),
        "hyper_parameters": {"harmonics_calculation": "analytic"},
    }
    content = Bomb(proof) if place == "whole" else content | {place: Bomb(proof)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert "refused: its pickle asks for posix.mkdir" in refusal(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # the file was indeed hostile


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_is_refused_and_never_executed(tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "w.ckpt"
    path.write_bytes(pickle.dumps(Bomb(proof)))
    assert "refused" in refusal(path) or "damaged" in refusal(path)
    assert not proof.exists()


def test_a_harmless_class_in_the_hyper_parameters_is_named(tmp_path: Path) -> None:
    path = save_ckpt(
        tmp_path / "w.ckpt", as_state(tensors()), harmonics_calculation="analytic", args=Namespace(a=1)
    )
    assert "its pickle asks for argparse.Namespace, which is no tensor or plain value" in refusal(path)


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", bytes(10_000_000))
    assert "refused: its parts unpack to 10000000 bytes" in refusal(path)


def test_a_tensor_that_claims_more_than_the_file_is_refused(tmp_path: Path) -> None:
    state = as_state(tensors())
    state["model.location.nnet.layers.0.weight"] = torch.zeros(1).expand(10**6, 10**6)
    message = refusal(save_ckpt(tmp_path / "w.ckpt", state, harmonics_calculation="analytic"))
    assert "model.location.nnet.layers.0.weight: expected at most the file's" in message
    assert "found shape (1000000, 1000000) of torch.float32" in message


# -- files that are damaged or something else


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_a_folder_and_an_empty_file_are_named(tmp_path: Path, suffix: str) -> None:
    assert refusal(tmp_path / f"absent{suffix}").endswith("no such file")
    (tmp_path / f"folder{suffix}").mkdir()
    assert refusal(tmp_path / f"folder{suffix}").endswith("expected a file, found a directory")
    (tmp_path / f"empty{suffix}").touch()
    assert refusal(tmp_path / f"empty{suffix}").endswith("the file is empty")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>...", "a web page"),
        (b"not a checkpoint at all, just text" * 10, "damaged"),
        (bytes(1000), "damaged"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(
    tmp_path: Path, suffix: str, content: bytes, message: str
) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert message in refusal(path)


def test_a_wrong_suffix_is_told(tmp_path: Path) -> None:
    make().save(tmp_path / "a.ckpt")
    make().save(tmp_path / "b.safetensors")
    (tmp_path / "a.ckpt").rename(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").rename(tmp_path / "b.ckpt")
    (tmp_path / "c.bin").write_bytes(b"abc")
    assert "rename it to .ckpt" in refusal(tmp_path / "a.safetensors")
    assert "rename it to .safetensors" in refusal(tmp_path / "b.ckpt")
    assert "expected a name ending in .ckpt or .safetensors, found '.bin'" in refusal(tmp_path / "c.bin")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, suffix: str) -> None:
    make("analytic").save(tmp_path / f"w{suffix}")
    content = (tmp_path / f"w{suffix}").read_bytes()
    for length in {
        1,
        7,
        8,
        9,
        100,
        len(content) // 3,
        len(content) // 2,
        len(content) - 100,
        len(content) - 1,
    }:
        path = tmp_path / f"short{suffix}"
        path.write_bytes(content[:length])
        assert refusal(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_flipped_bit_is_an_error_or_changes_no_weight(tmp_path: Path, suffix: str) -> None:
    """Both formats carry checksums; a flip in unused bytes or in notes may pass."""
    weights = make("analytic")
    weights.save(tmp_path / f"w{suffix}")
    content = (tmp_path / f"w{suffix}").read_bytes()
    path, refused = tmp_path / f"flipped{suffix}", 0
    for at in np.random.default_rng(0).integers(0, len(content), 150):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        found = attempt(path)
        if isinstance(found, str):
            assert "\n" not in found
            refused += 1
        else:
            assert all((found.tensors[name] == value).all() for name, value in weights.tensors.items())
    assert refused > 20


Change = Callable[[dict[str, np.ndarray]], object]

FLAWS: dict[str, tuple[Change, str]] = {
    "a missing weight": (lambda t: t.pop("layers.1.weight"), "layers.1.weight is missing"),
    "a missing bias": (lambda t: t.pop("last_layer.bias"), "last_layer.bias is missing"),
    "no hidden layer": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("layers")],
        "layers.0.weight is missing: expected at least one hidden layer",
    ),
    "a gap": (
        lambda t: t.update({"layers.7.weight": t.pop("layers.1.weight")}),
        "layers.1.weight is missing",
    ),
    "no square": (
        lambda t: t.update({"layers.0.weight": np.zeros((4, 8))}),
        "layers.0.weight: expected L² columns with L from 1 to 200, found shape (4, 8)",
    ),
    "too many degrees": (
        lambda t: t.update({"layers.0.weight": np.zeros((4, 201**2))}),
        "layers.0.weight: expected L² columns with L from 1 to 200, found shape (4, 40401)",
    ),
    "no feature": (lambda t: t.update({"layers.0.weight": np.zeros((4, 0))}), "expected L² columns"),
    "three dimensions": (
        lambda t: t.update({"layers.0.weight": np.zeros((4, 9, 1))}),
        "layers.0.weight: expected two dimensions, found shape (4, 9, 1)",
    ),
    "a bias of another length": (
        lambda t: t.update({"layers.0.bias": np.zeros(5)}),
        "layers.0.bias: expected shape (4,), found (5,)",
    ),
    "unequal widths": (
        lambda t: t.update({"layers.1.weight": np.zeros((6, 4)), "layers.1.bias": np.zeros(6)}),
        "layers.1.weight: expected shape (4, 4), found (6, 4)",
    ),
    "a last layer for another width": (
        lambda t: t.update({"last_layer.weight": np.zeros((3, 5))}),
        "last_layer.weight: expected shape (3, 4), found (3, 5)",
    ),
    "no output": (
        lambda t: t.update({"last_layer.weight": np.zeros((0, 4)), "last_layer.bias": np.zeros(0)}),
        "last_layer.weight: expected at least one value",
    ),
    "a NaN": (
        lambda t: t["layers.1.weight"].__setitem__((2, 3), np.nan),
        "layers.1.weight: expected finite values, found nan at [2, 3]",
    ),
    "an infinity": (
        lambda t: t["last_layer.bias"].__setitem__(1, np.inf),
        "last_layer.bias: expected finite values, found inf at [1]",
    ),
    "integers": (
        lambda t: t.update({"layers.0.bias": np.zeros(4, np.int64)}),
        "layers.0.bias: expected",
    ),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("flaw", FLAWS)
def test_a_network_that_does_not_fit_together_is_refused_by_key_and_shape(
    tmp_path: Path, suffix: str, flaw: str
) -> None:
    change, message = FLAWS[flaw]
    values = tensors()
    change(values)
    path = tmp_path / f"w{suffix}"
    if suffix == ".ckpt":
        save_ckpt(path, as_state(values), harmonics_calculation="analytic")
    else:
        safetensors.save_file(values, path, {"convention": "analytic"})
    found = refusal(path)
    assert message in found
    assert ("model.location.nnet." in found) == (suffix == ".ckpt")


def test_weights_made_in_memory_are_checked_too() -> None:
    with pytest.raises(WeightsError, match=r"memory: extra: expected only layers\.0\.weight"):
        LocationWeights(tensors() | {"extra": np.zeros(1)}, "orthonormal")
    with pytest.raises(UsageError, match="expected one of analytic, closed-form, orthonormal, got 'exact'"):
        LocationWeights(tensors(), "exact")  # type: ignore[arg-type]
    values = tensors()
    del values["layers.1.bias"]
    with pytest.raises(WeightsError, match=r"here: layers\.1\.bias is missing"):
        LocationWeights(values, "orthonormal", provenance=Provenance("here"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("le_type", "grid", "le_type: expected 'sphericalharmonics', found 'grid'"),
        ("pe_type", "fcnet", "pe_type: expected 'siren', found 'fcnet'"),
        (
            "harmonics_calculation",
            "discretized",
            "expected one of analytic, closed-form, orthonormal, found 'discretized'",
        ),
        ("num_hidden_layers", 0, "num_hidden_layers: expected at least 1, found 0"),
        ("num_hidden_layers", 3, "num_hidden_layers: expected 2 as the tensors' shapes say, found 3"),
        ("legendre_polys", 10, "legendre_polys: expected 3 as the tensors' shapes say, found 10"),
        ("capacity", 512, "capacity: expected 4"),
        ("embed_dim", 256, "embed_dim: expected 3"),
    ],
)
def test_another_encoder_or_hyper_parameters_that_contradict_the_tensors_are_refused(
    tmp_path: Path, name: str, value: Any, message: str
) -> None:
    parameters = {"harmonics_calculation": "analytic", name: value}
    assert message in refusal(save_ckpt(tmp_path / "w.ckpt", as_state(tensors()), **parameters))
    safetensors.save_file(tensors(), tmp_path / "w.safetensors", {"hyper_parameters": json.dumps(parameters)})
    assert message in refusal(tmp_path / "w.safetensors")


def test_two_copies_that_differ_are_refused(tmp_path: Path) -> None:
    state = as_state(tensors()) | as_state(tensors(seed=1), "model.nnet.")
    message = refusal(save_ckpt(tmp_path / "w.ckpt", state, harmonics_calculation="analytic"))
    assert "model.location.nnet.last_layer.bias and model.nnet.last_layer.bias differ" in message
    state = as_state(tensors()) | as_state(tensors(hidden=1), "model.nnet.")
    assert "differ: expected two equal copies" in refusal(
        save_ckpt(tmp_path / "w.ckpt", state, harmonics_calculation="analytic")
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"state_dict": {"visual.proj": 1}},
            "no location network: expected keys such as model.location.nnet.",
        ),
        ({"state_dict": {}}, "found none"),
        ({"state_dict": [1, 2]}, "state_dict: expected a dictionary, found list"),
        ({"state_dict": {}, "hyper_parameters": 3}, "hyper_parameters: expected a dictionary, found int"),
        ([1, 2, 3], "expected a dictionary, found list"),
        (
            {"layers.0.weight": 3, "layers.0.bias": 1, "last_layer.weight": 1, "last_layer.bias": 1},
            "expected a tensor",
        ),
        ({"state_dict": {}, "satclip_engine": {"format_version": 2}}, "format version 2: expected 1"),
    ],
)
def test_a_checkpoint_of_another_layout_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "w.ckpt")
    assert message in refusal(tmp_path / "w.ckpt")


def header_of(values: Mapping[str, np.ndarray], **changes: Any) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file, with entries of layers.0.weight replaced."""
    content = safetensors.save(dict(values), {"convention": "orthonormal"})
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["layers.0.weight"].update(changes)
    return header, content[8 + length :]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_offsets": [0, 10**15]}, "truncated or damaged"),
        ({"data_offsets": [-288, 0]}, "expected dtype, shape and data_offsets"),
        ({"data_offsets": [288, 0]}, "truncated or damaged"),
        ({"data_offsets": [0]}, "expected dtype, shape and data_offsets"),
        ({"shape": [10**9, 10**9]}, "needs 8000000000000000000 bytes"),
        ({"shape": [-4, -9]}, "expected dtype, shape and data_offsets"),
        ({"shape": "49"}, "expected dtype, shape and data_offsets"),
        ({"dtype": "I64"}, "expected one of F16, F32, F64, BF16, found I64 of shape (4, 9)"),
    ],
)
def test_a_header_that_lies_is_refused_before_memory_is_asked_for(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    header, data = header_of(tensors(), **changes)
    text = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    found = refusal(tmp_path / "w.safetensors")
    assert message in found
    assert "layers.0.weight" in found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            (2**62).to_bytes(8, "little") + bytes(100),
            "its header claims 4611686018427387904 bytes, the file has 108",
        ),
        ((50).to_bytes(8, "little") + b"{" * 50, "its header is not JSON"),
        ((4).to_bytes(8, "little") + b"[[]]", "expected a dictionary as header, found list"),
        (
            (20).to_bytes(8, "little") + b'{"__metadata__": 1} ',
            "__metadata__: expected a dictionary, found int",
        ),
        ((90000).to_bytes(8, "little") + b"[" * 90000, "its header is not JSON"),
        (b"abc", "found 3 bytes"),
    ],
)
def test_a_safetensors_file_with_an_impossible_header_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    assert message in refusal(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"tensors_sha256": "0" * 64}, "damaged: its tensors have sha256"),
        ({"L": "40"}, "expected L = 40 as the metadata says, found shape (4, 9), which is L = 3"),
        ({"convention": "schmidt"}, "metadata convention: expected one of"),
        ({"basis": "legendre polynomials"}, "metadata basis: expected one of"),
        ({"harmonics": "rounded"}, "metadata harmonics: expected one of exact, published"),
        ({"w0_first": "thirty"}, "w0 of the first layer: expected a positive number, found 'thirty'"),
        ({"hyper_parameters": "{"}, "metadata hyper_parameters: expected JSON"),
        ({"provenance": "[]"}, "metadata provenance: expected a dictionary, found list"),
        ({"satclip_format": "9"}, "format version 9: expected 1"),
    ],
)
def test_metadata_that_cannot_be_right_is_refused(
    tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    safetensors.save_file(tensors(), tmp_path / "w.safetensors", metadata)
    assert message in refusal(tmp_path / "w.safetensors")


def test_our_files_are_files_of_the_safetensors_library(tmp_path: Path) -> None:
    weights = make(dtype=np.float32)
    weights.save(tmp_path / "w.safetensors")
    found = safetensors.load_file(tmp_path / "w.safetensors")
    assert found.keys() == weights.tensors.keys()
    for name, value in weights.tensors.items():
        np.testing.assert_array_equal(found[name], value)
    assert math.isqrt(found["layers.0.weight"].shape[1]) == weights.L

"""LocationEncoder and get_satclip against the published formulas and embeddings, and as torch modules."""

from __future__ import annotations

import copy
import io
import itertools
import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from factories.golden import Case, cases, check_golden  # noqa: E402
from factories.networks import scattered  # noqa: E402
from factories.weights import CONVENTIONS, GOLDEN, assert_same, make, tensors  # noqa: E402

import satclip_engine as se  # noqa: E402
from satclip_engine import reference  # noqa: E402
from satclip_engine.errors import UsageError, WeightsError  # noqa: E402
from satclip_engine.nn import LocationEncoder, SatClip, get_satclip  # noqa: E402
from satclip_engine.reference import gradients  # noqa: E402
from satclip_engine.weights import LocationWeights, Provenance, read_weights  # noqa: E402
from satclip_engine.weights.conventions import column_factors  # noqa: E402

RELEASED = GOLDEN / "L10_analytic_c512_w1.ckpt"


@cache
def published_polynomials(count: int) -> Any:  # (count, 1600) at scattered(count)
    """What the published `analytic` code evaluates at L = 40: its expanded polynomials, here in 60 digits."""
    file = np.load(GOLDEN / "published_polynomials_L40.npz")
    result = np.empty((count, 1600))
    with mpmath.workdps(60):
        for row, (lon, lat) in enumerate(scattered(count).tolist()):
            x, phi = -mpmath.sin(mpmath.radians(lat)), mpmath.radians(mpmath.mpf(lon) + 180)
            for m, degree in itertools.combinations_with_replacement(range(40), 2):
                series = mpmath.polyval([mpmath.mpf(float(c)) for c in file["coef"][degree, m][::-1]], x)
                legendre = mpmath.mpf(float(file["lead"][degree, m])) * mpmath.sqrt(1 - x * x) ** m * series
                result[row, degree * (degree + 1) - m] = float(legendre * mpmath.sin(m * phi))
                result[row, degree * (degree + 1) + m] = float(legendre * mpmath.cos(m * phi))
    return torch.from_numpy(result)


def features(model: LocationEncoder, lonlat: Any) -> Any:  # (n, 2) -> (n, L²)
    """What the published code feeds its network in this convention."""
    if model.harmonics == "published":
        return published_polynomials(len(lonlat))
    exact = reference.harmonics(lonlat.numpy(), model.degrees)
    return torch.from_numpy(exact * column_factors(model.degrees, model.convention))


def naive_siren(model: LocationEncoder, lonlat: Any, state: dict[str, Any], masks: Any = None) -> Any:
    """The published network as it is written: linear, dropout, sin(w0 ·); the last layer linear."""
    hidden = features(model, lonlat)
    for index in range(len(state) // 2 - 1):
        name = f"nnet.layers.{index}"
        hidden = hidden @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        hidden = torch.sin(model.w0[index > 0] * (hidden if masks is None else hidden * masks[index]))
    return hidden @ state["nnet.last_layer.weight"].T + state["nnet.last_layer.bias"]


def parameters_of(model: LocationEncoder) -> dict[str, Any]:
    return {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}


NETWORKS = [
    pytest.param(10, "analytic", "exact", id="analytic"),
    pytest.param(10, "closed-form", "exact", id="closed-form"),
    pytest.param(10, "orthonormal", "exact", id="orthonormal"),
    pytest.param(40, "analytic", "published", id="published"),
    pytest.param(40, "analytic", "exact", id="analytic with exact harmonics"),
]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("degrees", "convention", "harmonics"), NETWORKS)
def test_gradients_of_the_parameters_are_those_of_the_published_formula(
    degrees: int, convention: Any, harmonics: Any, dropout: float
) -> None:
    model = LocationEncoder(
        degrees,
        12,
        3,
        5,
        dropout=dropout,
        convention=convention,
        harmonics=harmonics,
        seed=1,
        dtype=torch.float64,
    )
    lonlat, cotangent = scattered(5), torch.randn(5, 5, dtype=torch.float64)
    torch.manual_seed(6)
    result = model(lonlat)
    result.backward(cotangent)
    torch.manual_seed(6)
    seed = torch.randint(2**63 - 1, ()).item()
    masks = [gradients.dropout_factors(torch.arange(5), 12, layer, dropout, seed) for layer in range(3)]
    state = parameters_of(model)
    expected = naive_siren(model, lonlat, state, masks if dropout else None)
    expected.backward(cotangent)
    close = 1e-10  # arguments of the first sine are 30 sums of L² products of order one
    torch.testing.assert_close(result, expected, rtol=0, atol=close)
    for name, parameter in model.named_parameters():
        scale = state[name].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, state[name].grad, rtol=0, atol=close * scale, msg=name)


def test_steps_of_adamw_with_weight_decay_are_those_of_the_published_formula() -> None:
    model = LocationEncoder(6, 8, 2, 4, dropout=0.0, convention="analytic", seed=2, dtype=torch.float64)
    state = parameters_of(model)
    lonlat, target = scattered(20), torch.randn(20, 4, dtype=torch.float64)
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}
    ours = torch.optim.AdamW(model.parameters(), **options)
    theirs = torch.optim.AdamW(state.values(), **options)
    for _ in range(5):
        for optimizer, embed in ((ours, model), (theirs, lambda points: naive_siren(model, points, state))):
            optimizer.zero_grad()
            (embed(lonlat) - target).square().mean().backward()
            optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, state[name], rtol=0, atol=1e-9, msg=name)


def test_parameters_have_the_published_names_and_only_a_statement_is_in_the_state_beside_them() -> None:
    model = LocationEncoder(40, 8, 2, 4, convention="analytic", harmonics="published")
    expected = [
        f"nnet.{layer}.{kind}"
        for layer in ("layers.0", "layers.1", "last_layer")
        for kind in ("weight", "bias")
    ]
    assert list(model.state_dict()) == ["_extra_state", *expected]
    assert [name for name, _ in model.named_parameters()] == expected


def test_initial_weights_are_drawn_as_the_published_code_draws_them() -> None:
    torch.manual_seed(4)
    model = LocationEncoder(5, 7, 2, 3, w0=(30.0, 2.0))
    torch.manual_seed(4)
    bounds = [1 / 25, math.sqrt(6 / 7) / 2.0, math.sqrt(6 / 7) / 2.0]
    for layer, bound in zip(model.nnet.all_layers(), bounds, strict=True):
        for parameter in (layer.weight, layer.bias):
            assert torch.equal(parameter, torch.zeros(parameter.shape).uniform_(-bound, bound))
    again = LocationEncoder(5, 7, 2, 3, seed=9, dtype=torch.float64)
    for narrow, wide in zip(
        LocationEncoder(5, 7, 2, 3, seed=9).parameters(), again.parameters(), strict=True
    ):
        assert torch.equal(narrow.double(), wide)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_weights_come_back_bit_by_bit(convention: str, dtype: Any) -> None:
    weights = make(convention, dtype=dtype, degrees=4, hidden=3)
    assert_same(LocationEncoder.from_weights(weights).to_weights(), weights)
    other = LocationWeights(weights.tensors, convention, w0=(20.0, 3.0))  # type: ignore[arg-type]
    assert_same(LocationEncoder.from_weights(other).to_weights(), other)


def test_weights_carry_the_provenance_they_are_given() -> None:
    model = LocationEncoder(3, 4, 1, 2)
    assert model.to_weights().provenance.source == "memory"
    assert model.to_weights(Provenance("here")).provenance.source == "here"


def test_from_weights_draws_nothing_from_the_generator_of_torch() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    LocationEncoder.from_weights(make())
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", ["mine.ckpt", "mine.safetensors"])
def test_a_trained_module_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = LocationEncoder(6, 8, 2, 4, convention="analytic", seed=0)
    model.to_weights().save(tmp_path / name)
    again = LocationEncoder.from_weights(read_weights(tmp_path / name))
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    lonlat = scattered(5)
    with torch.no_grad():
        expected = model.eval()(lonlat)
    np.testing.assert_allclose(se.load(tmp_path / name)(lonlat.numpy()), expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(model.encoder()(lonlat.numpy()), expected.numpy(), atol=1e-6)


def test_dropout_acts_in_training_alone_anew_in_each_call_and_by_the_generator_of_torch() -> None:
    model = LocationEncoder(4, 32, 2, 8, seed=0)
    lonlat = scattered(10)
    assert torch.equal(model.eval()(lonlat), model(lonlat))
    torch.manual_seed(5)
    first, second = model.train()(lonlat), model(lonlat)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(model(lonlat), first)
    assert torch.equal(model(lonlat), second)
    torch.manual_seed(5 + 1)  # as another process does
    assert not torch.equal(model(lonlat), first)
    model.dropout = 0.0
    assert torch.equal(model(lonlat), model.eval()(lonlat))


def test_any_leading_shape_is_kept() -> None:
    model = LocationEncoder(4, 8, 2, 5, seed=0).eval()
    lonlat = scattered(24)
    flat = model(lonlat)
    assert torch.equal(model(lonlat.reshape(2, 3, 4, 2)), flat.reshape(2, 3, 4, 5))
    assert torch.equal(model(lonlat[7]), model(lonlat[7:8])[0])
    assert model(lonlat[:0]).shape == (0, 5)


def test_the_result_has_the_dtype_of_the_parameters_and_float32_at_least() -> None:
    model, lonlat = LocationEncoder(4, 8, 2, 5, seed=0).eval(), scattered(3)
    assert model(lonlat).dtype == torch.float32
    assert model(lonlat.float()).dtype == torch.float32
    assert model.bfloat16()(lonlat).dtype == torch.float32
    assert model.double()(lonlat).dtype == torch.float64


@pytest.mark.parametrize("harmonics", ["exact", "published"])
def test_a_float32_module_made_float64_folds_in_float64(harmonics: Any) -> None:
    options: dict[str, Any] = {"convention": "analytic", "harmonics": harmonics, "seed": 0}
    widened = LocationEncoder(25, 6, 2, 4, **options).double()
    weights, _ = widened.folded()
    expected = widened.to_weights().folded().weights
    for result, right in zip(weights, expected, strict=True):
        np.testing.assert_allclose(result.detach().numpy(), right, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("harmonics", ["exact", "published"])
def test_autocast_changes_no_bit(harmonics: Any) -> None:
    model = LocationEncoder(25, 8, 2, 4, convention="analytic", harmonics=harmonics, seed=0).eval()
    expected = model(scattered(6))
    with torch.autocast("cpu", torch.bfloat16):
        result = model(scattered(6))
    assert torch.equal(result, expected)


def test_copies_and_pickles_are_apart_and_equal() -> None:
    model = LocationEncoder(25, 8, 2, 4, convention="analytic", harmonics="published", seed=0).eval()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(scattered(5)), model(scattered(5)))
        with torch.no_grad():
            twin.nnet.last_layer.bias += 1
        assert not torch.equal(twin(scattered(5)), model(scattered(5)))


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("auto", torch.float64), pytest.param("triton", torch.float32, marks=pytest.mark.triton)],
)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_compiled_whole_it_computes_the_same(mode: str, backend: str, dtype: Any) -> None:
    model = getattr(LocationEncoder(4, 8, 2, 5, seed=0, backend=backend, dtype=dtype), mode)()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for count in (9, 4, 7):
        results = []
        for run in (model, compiled):
            torch.manual_seed(count)
            out = run(scattered(count))
            results.append([out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))])
        for result, expected in zip(*results, strict=True):
            torch.testing.assert_close(result, expected)


DISTRIBUTED = """
import sys, torch
from satclip_engine.nn import LocationEncoder

backend, dtype = sys.argv[2], getattr(torch, sys.argv[3])
model = LocationEncoder(4, 8, 2, 5, dropout=0.0, seed=0, backend=backend, dtype=dtype)
lonlat = torch.linspace(-80, 80, 12, dtype=torch.float64).reshape(6, 2)
expected = torch.autograd.grad(model(lonlat).square().sum(), list(model.parameters()))
store = torch.distributed.FileStore(sys.argv[1], 1)
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
torch.nn.parallel.DistributedDataParallel(model)(lonlat).square().sum().backward()
for parameter, gradient in zip(model.parameters(), expected):
    torch.testing.assert_close(parameter.grad, gradient)
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("auto", "float64"), pytest.param("triton", "float32", marks=pytest.mark.triton)],
)
def test_under_distributed_data_parallel_gradients_are_the_same(
    backend: str, dtype: str, tmp_path: Path
) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    # gloo looks its own address up by the name of the machine, unless it is told an interface.
    loopback = {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    command = [sys.executable, "-c", DISTRIBUTED, str(tmp_path / "store"), backend, dtype]
    subprocess.run(command, env={**os.environ, **loopback}, check=True, timeout=120)


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=pytest.mark.triton)])
def test_training_on_a_backend_goes_as_on_the_reference(backend: str) -> None:
    losses = {}
    for name in ("reference", backend):
        model = LocationEncoder(6, 24, 2, 4, backend=name, seed=3)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        torch.manual_seed(0)
        losses[name] = []
        for step in range(10):
            optimizer.zero_grad()
            loss = (model(scattered(30, seed=step)) - 0.3).square().mean()
            loss.backward()
            optimizer.step()
            losses[name].append(loss.item())
    np.testing.assert_allclose(losses[backend], losses["reference"], rtol=1e-4)


@pytest.mark.parametrize(
    "module", ["reference.gradients", "op", "nn", "ops.encode", "ops.loss", "contrast", "ops.autograd"]
)
def test_without_torch_the_command_that_installs_it_is_told(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None\nimport satclip_engine.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert 'pip install "satclip-engine[torch]"' in done.stderr.splitlines()[-1]


def test_arguments_that_cannot_be_used_are_told() -> None:
    with pytest.raises(UsageError, match=r"lonlat must have shape \(\.\.\., 2\).*not \(4, 3\)"):
        LocationEncoder(3, 4, 1, 2)(torch.zeros(4, 3))
    with pytest.raises(UsageError, match=r"row 1: latitude 91\.0"):
        LocationEncoder(3, 4, 1, 2)(torch.tensor([[0.0, 0.0], [0.0, 91.0]]))
    for name, value in {"degrees": 0, "capacity": -1, "hidden_layers": 0, "embed_dim": 2.5}.items():
        with pytest.raises(UsageError, match=f"{name} must be a positive whole number, not {value}") as error:
            LocationEncoder(**{name: value})  # type: ignore[arg-type]
        assert error.value.argument == name
    with pytest.raises(UsageError, match="degrees must be at most 200, not 201"):
        LocationEncoder(201)
    with pytest.raises(
        UsageError, match="convention: expected one of analytic, closed-form, orthonormal, got"
    ):
        LocationEncoder(3, convention="other")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="covers L up to 40, not 41"):
        LocationEncoder(41, 4, convention="analytic", harmonics="published")
    with pytest.raises(UsageError, match="dropout"):
        LocationEncoder(3, dropout=1.0)


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=pytest.mark.triton)])
def test_a_narrower_backend_takes_wide_parameters_and_gives_wide_results(backend: str) -> None:
    model = LocationEncoder(4, 8, 2, 5, seed=0, backend=backend, dtype=torch.float64).eval()
    exact = LocationEncoder(4, 8, 2, 5, seed=0, dtype=torch.float64).eval()
    result = model(scattered(6))
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, exact(scattered(6)), rtol=1e-4, atol=1e-5)


@pytest.mark.triton
def test_a_precision_is_kept_and_another_word_refused() -> None:
    model = LocationEncoder(4, 8, 2, 5, seed=0, backend="triton", precision="fast").eval()
    exact = LocationEncoder(4, 8, 2, 5, seed=0).eval()
    points = scattered(40)
    with torch.no_grad():
        result, right = model(points), exact(points)
    difference = (result - right).abs().max() / right.square().mean().sqrt()
    assert 1e-6 < difference < 5e-3
    assert model.encoder().precision == "fast"
    with pytest.raises(UsageError, match="precision must be exact or fast, not 'half'"):
        LocationEncoder(4, precision="half")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", cases(), ids=str)
def test_get_satclip_gives_the_published_embeddings(case: Case, backend: str) -> None:
    model = get_satclip(case.folder / f"{case.name}.ckpt", harmonics=case.harmonics, backend=backend)  # type: ignore[arg-type]
    with torch.no_grad():
        check_golden(lambda points: model(torch.from_numpy(points)).numpy(), case, float32=backend == "cpu")


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.ckpt")), ids=lambda path: path.stem)
def test_get_satclip_gives_what_load_gives_to_the_bit(path: Path) -> None:
    model, lonlat = get_satclip(path, "cpu"), scattered(300)
    with torch.no_grad():
        result = model(lonlat)
    assert result.dtype == torch.float64  # as the published one
    assert np.array_equal(result.numpy(), se.load(path)(lonlat.numpy()).astype(np.float64))


def test_get_satclip_returns_a_float64_module_in_evaluation_mode() -> None:
    model = get_satclip(str(RELEASED), torch.device("cpu"))
    assert isinstance(model, LocationEncoder)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    state = torch.load(RELEASED, weights_only=True)["state_dict"]
    for name, value in model.named_parameters():
        assert torch.equal(value, state[f"model.location.{name}"].double())


def test_get_satclip_takes_every_source_of_weights(tmp_path: Path) -> None:
    make("analytic", dtype=np.float32).save(tmp_path / "w.safetensors")
    for source in ("default", tmp_path / "w.safetensors"):
        with torch.no_grad():
            result = get_satclip(source)(scattered(3))
        assert np.array_equal(result.numpy(), se.load(source)(scattered(3).numpy()).astype(np.float64))


def whole_checkpoint(path: Path, **extras: Any) -> Path:
    """A checkpoint with an image encoder and what later versions or forks may add."""
    state = {
        prefix + name: torch.from_numpy(value)
        for prefix, (name, value) in itertools.product(
            ("model.nnet.", "model.location.nnet."), tensors(dtype=np.float64).items()
        )
    }
    state |= {"model.visual.fc.weight": torch.ones(3, 2), "model.visual.fc.bias": torch.zeros(3)}
    state |= {"model.logit_scale": torch.tensor(2.5), "loss_fun.something": torch.zeros(1)}
    hyper_parameters = {
        "harmonics_calculation": "analytic",
        "legendre_polys": 3,
        "ssl": {"a": [1, None]},
        "eval_downstream": True,
    }
    torch.save(
        {"state_dict": state, "hyper_parameters": hyper_parameters, "callbacks": {"x": 1}, **extras}, path
    )
    return path


def test_return_all_gives_logit_scale_and_the_image_encoders_tensors_beside_the_location(
    tmp_path: Path,
) -> None:
    path = whole_checkpoint(tmp_path / "whole.ckpt", another={"deep": [1, 2, {"b": None}]})
    model = get_satclip(path, "cpu", True)
    assert isinstance(model, SatClip)
    assert not model.training
    assert not model.location.training
    assert model.logit_scale.item() == 2.5
    assert list(model.visual_state) == ["fc.weight", "fc.bias"]
    assert torch.equal(model.visual_state["fc.weight"], torch.ones(3, 2))
    with torch.no_grad():
        result = model.encode_location(scattered(4))
        assert torch.equal(result, get_satclip(path)(scattered(4)))
    with pytest.raises(UsageError, match="visual_state"):
        model.encode_image(torch.zeros(1))


def test_return_all_of_what_has_no_image_side_is_told(tmp_path: Path) -> None:
    make().save(tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="return_all needs a whole SatCLIP checkpoint"):
        get_satclip(tmp_path / "w.safetensors", return_all=True)
    state = {f"nnet.{name}": torch.from_numpy(value) for name, value in tensors().items()}
    torch.save(
        {"state_dict": state, "hyper_parameters": {"harmonics_calculation": "analytic"}},
        tmp_path / "bare.ckpt",
    )
    with pytest.raises(WeightsError, match=r"bare\.ckpt: model\.logit_scale is missing"):
        get_satclip(tmp_path / "bare.ckpt", return_all=True)

"""State dictionaries that say what they are: into modules, into files, behind the names of wrappers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories.networks import scattered
from factories.weights import CONVENTIONS, GOLDEN, as_state, make, save_ckpt, tensors, torch
from safetensors.torch import load_file, load_model, save_file, save_model

import satclip_engine as se
from satclip_engine import nn, reference
from satclip_engine.errors import UsageError, WeightsError
from satclip_engine.weights import LocationWeights, read_weights
from satclip_engine.weights.conventions import column_factors

LONLAT = scattered(20)
GOLDEN_L10 = GOLDEN / "L10_analytic_c512_w1"
STATEMENT = "_extra_state"


def encoder(convention: Any = "closed-form", degrees: int = 6, **options: Any) -> nn.LocationEncoder:
    return nn.LocationEncoder(degrees, 8, 2, 4, convention=convention, seed=0, **options).eval()


def embedded(module: Any) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(module(LONLAT))


def written_formula(state: Mapping[str, Any], factors: np.ndarray) -> np.ndarray:
    """The published network on harmonics of these factors, in float64."""
    degrees = int(state["nnet.layers.0.weight"].shape[1] ** 0.5)
    hidden = torch.from_numpy(reference.harmonics(LONLAT.numpy(), degrees) * factors)
    for index in range(2):
        weight, bias = (state[f"nnet.layers.{index}.{kind}"].double() for kind in ("weight", "bias"))
        hidden = torch.sin((30.0, 1.0)[index] * (hidden @ weight.T + bias))
    return np.asarray(hidden @ state["nnet.last_layer.weight"].double().T + state["nnet.last_layer.bias"])


# -- into modules


def test_a_published_state_needs_the_convention_of_the_module_and_then_embeds_as_published() -> None:
    table = np.load(GOLDEN_L10.with_suffix(".npz"))
    whole = torch.load(GOLDEN_L10.with_suffix(".ckpt"), weights_only=True)["state_dict"]
    prefix = "model.location."
    state = {key.removeprefix(prefix): value for key, value in whole.items() if key.startswith(prefix)}
    with pytest.raises(
        WeightsError, match=r'does not say in which convention.*LocationEncoder\(…, convention="analytic"\)$'
    ) as error:
        nn.LocationEncoder(10).load_state_dict(state)
    assert "\n" not in str(error.value)
    model = nn.LocationEncoder(10, convention="analytic", dtype=torch.float64).eval()
    assert model.load_state_dict(state) == ([], [])
    with torch.no_grad():
        result = model(torch.from_numpy(table["lonlat"])).numpy()[:, table["columns"]]
    inside = abs(table["lonlat"][:, 1]) < 89
    np.testing.assert_allclose(result[inside], table["published"][inside], atol=1e-10)


def test_a_network_alone_takes_no_state_that_could_be_of_another_convention() -> None:
    state = encoder("analytic").nnet.state_dict()
    for refusing in (
        nn.LocationEncoder(6, 8, 2, 4),
        torch.nn.Sequential(nn.LocationEncoder(6, 8, 2, 4).nnet),
    ):
        network, prefix = (refusing.nnet, "") if hasattr(refusing, "nnet") else (refusing, "0.")
        with pytest.raises(WeightsError, match="nnet: the state of a network alone does not say"):
            network.load_state_dict({prefix + key: value for key, value in state.items()})
    told = nn.LocationEncoder(6, 8, 2, 4, convention="analytic").eval()
    told.nnet.load_state_dict(state)
    np.testing.assert_array_equal(embedded(told), embedded(encoder("analytic")))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_call_with_the_state_of_another_convention_is_refused(convention: Any) -> None:
    model, state = encoder("analytic"), encoder(convention).state_dict()

    def call(values: Any) -> Any:
        return torch.func.functional_call(model, values, (LONLAT,))

    stacked = {key: torch.stack([value, value]) for key, value in state.items()}
    if convention == "analytic":
        assert torch.equal(call(state), model(LONLAT))
        torch.testing.assert_close(torch.vmap(call)(stacked)[1], model(LONLAT), rtol=1e-4, atol=1e-5)
    else:
        for function, values in ((call, state), (torch.vmap(call), stacked)):
            with pytest.raises(WeightsError, match=f"_extra_state: {convention}.* is not what this module"):
                function(values)
    np.testing.assert_array_equal(embedded(model), embedded(encoder("analytic")))
    compiled = torch.compile(call, backend="eager")
    with pytest.raises(UsageError, match="_extra_state is not read while"):
        compiled(dict(state))
    assert torch.equal(compiled(dict(model.named_parameters())), model(LONLAT))


def test_analytic_weights_beyond_degree_20_need_their_polynomials_named_too() -> None:
    state = {key: value for key, value in encoder("analytic", 25).state_dict().items() if key != STATEMENT}
    with pytest.raises(WeightsError, match='convention="analytic", harmonics="published"'):
        encoder("analytic", 25).load_state_dict(state)
    with pytest.raises(WeightsError, match='convention="analytic", harmonics="published"'):
        nn.LocationEncoder(25, 8, 2, 4, harmonics="exact").load_state_dict(state)
    for mode in ("exact", "published"):
        encoder("analytic", 25, harmonics=mode).load_state_dict(state)
    encoder("orthonormal", 25).load_state_dict(state)  # all harmonics are exact there


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("stated", "wanted"), list(itertools.permutations(CONVENTIONS, 2)))
def test_a_state_of_another_convention_becomes_that_of_the_module(
    stated: str, wanted: str, dtype: Any, assign: bool
) -> None:
    source = encoder(stated, dtype=dtype)
    state = source.state_dict()
    before = {key: value.clone() for key, value in state.items()}
    target = nn.LocationEncoder(6, 8, 2, 4, convention=wanted, seed=1, dtype=dtype).eval()  # type: ignore[arg-type]
    assert target.load_state_dict(state, assign=assign) == ([], [])
    assert target.convention == wanted
    close = 1e-12 if dtype == torch.float64 else 2e-5
    np.testing.assert_allclose(embedded(target), embedded(source), atol=close)
    expected = written_formula(target.state_dict(), column_factors(6, wanted))  # type: ignore[arg-type]
    np.testing.assert_allclose(embedded(target), expected, atol=close)
    assert all(torch.equal(state[key], value) for key, value in before.items())  # the caller's own


def test_a_state_inside_a_larger_model_is_converted_there_and_its_neighbours_are_left_alone() -> None:
    def model(convention: str) -> Any:
        return torch.nn.ModuleDict({"place": encoder(convention), "head": torch.nn.Linear(4, 2)})

    source, target = model("analytic"), model("orthonormal")
    target.load_state_dict(source.state_dict())
    np.testing.assert_allclose(embedded(target["place"]), embedded(source["place"]), atol=2e-5)
    assert torch.equal(target["head"].weight, source["head"].weight)
    only_head = {key: value for key, value in source.state_dict().items() if key.startswith("head.")}
    target.load_state_dict(only_head, strict=False)  # no weights of a network: nothing to state


def test_published_polynomials_are_folded_into_exact_harmonics_and_never_the_other_way() -> None:
    published = encoder("analytic", 25, harmonics="published", dtype=torch.float64)
    exact = encoder("orthonormal", 25, dtype=torch.float64)
    exact.load_state_dict(published.state_dict())
    np.testing.assert_allclose(embedded(exact), embedded(published), atol=1e-11)
    with pytest.raises(WeightsError, match='published polynomials: load it with harmonics="exact"'):
        published.load_state_dict(exact.state_dict())


def test_other_sine_frequencies_are_multiplied_into_the_weights() -> None:
    source = encoder("orthonormal", w0=(20.0, 3.0), dtype=torch.float64)
    target = encoder("analytic", dtype=torch.float64)
    target.load_state_dict(source.state_dict())
    assert target.w0 == (30.0, 1.0)
    np.testing.assert_allclose(embedded(target), embedded(source), atol=1e-12)


def test_a_damaged_statement_and_layers_that_cannot_be_converted_are_refused() -> None:
    state = encoder("analytic").state_dict()
    with pytest.raises(WeightsError, match="_extra_state: damaged: expected the JSON"):
        encoder().load_state_dict({**state, STATEMENT: state[STATEMENT] + 1})
    another = bytes(state[STATEMENT].tolist()).replace(b"analytic", b"analytik")
    with pytest.raises(WeightsError, match="_extra_state: expected one of analytic, closed-form, orthonorm"):
        encoder().load_state_dict({**state, STATEMENT: torch.tensor(list(another), dtype=torch.uint8)})
    with pytest.raises(WeightsError, match=r"nnet\.layers\.0\.lora: .* another convention, analytic"):
        encoder().load_state_dict({**state, "nnet.layers.0.lora": torch.zeros(1)})
    with pytest.raises(WeightsError, match="_extra_state: damaged"):
        encoder().load_state_dict({**state, STATEMENT: "analytic"})
    with pytest.raises(WeightsError, match=r"analytic, harmonics exact, .* is not what this module computes"):
        encoder().set_extra_state(state[STATEMENT])
    later = bytes(state[STATEMENT].tolist()).replace(b'"format": 1', b'"format": 9')
    with pytest.raises(WeightsError, match="a newer satclip-engine wrote it"):
        encoder().load_state_dict({**state, STATEMENT: torch.tensor(list(later), dtype=torch.uint8)})
    cast = {key: value.to(torch.bfloat16) for key, value in state.items()}  # a statement survives casts
    encoder("analytic").load_state_dict(cast)


def test_averages_copies_and_casts_of_a_module_keep_the_statement_and_the_constants_of_its_fold() -> None:
    model = encoder("analytic", 25, harmonics="published")
    expected = embedded(model)
    averaging = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=averaging, use_buffers=True)
    for _ in range(3):
        average.update_parameters(model)
    for twin in (average, copy.deepcopy(model), model.to("cpu"), model.half().float()):
        state = twin.state_dict()
        statement = next(value for key, value in state.items() if key.endswith(STATEMENT))
        assert torch.equal(statement, model.state_dict()[STATEMENT])
    np.testing.assert_allclose(embedded(average), expected, atol=1e-6)
    assert list(model.buffers()) == []


def test_a_module_without_memory_is_given_its_state_and_stays_as_precise_as_that() -> None:
    for mode in ("exact", "published"):
        source = encoder("analytic", 25, harmonics=mode, dtype=torch.float64)
        target = nn.LocationEncoder(25, 8, 2, 4, convention="analytic", harmonics=mode, device="meta")  # type: ignore[arg-type]
        target.eval().load_state_dict(source.state_dict(), assign=True)
        assert np.array_equal(embedded(target), embedded(source))
    narrow = encoder("analytic")
    narrow.load_state_dict(
        {k: v.double() if v.is_floating_point() else v for k, v in narrow.state_dict().items()}, assign=True
    )
    assert np.array_equal(embedded(narrow), embedded(encoder("analytic").double()))


def test_checkpoints_of_many_files_keep_the_statement(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    source, target = encoder("analytic"), encoder("orthonormal")
    dcp.save(get_model_state_dict(source), checkpoint_id=tmp_path / "dcp", no_dist=True)
    state = get_model_state_dict(target)
    dcp.load(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    set_model_state_dict(target, state)
    np.testing.assert_allclose(embedded(target), embedded(source), atol=2e-5)


# -- into files and back


def saved(path: Path, state: Mapping[str, Any]) -> Path:
    if path.suffix == ".ckpt":
        torch.save(dict(state), path)
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
@pytest.mark.parametrize("prefix", ["", "model.location.", "net.place_encoder.", "model._orig_mod.location."])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_saved_state_is_read_in_the_convention_it_states(
    convention: str, prefix: str, name: str, tmp_path: Path
) -> None:
    model = encoder(convention, w0=(20.0, 3.0))
    state = {prefix + key: value for key, value in model.state_dict().items()} | {
        "head.weight": torch.ones(2)
    }
    path = saved(tmp_path / name, state)
    weights = read_weights(path)
    assert (weights.convention, weights.harmonics, weights.w0) == (convention, "exact", (20.0, 3.0))
    np.testing.assert_allclose(se.load(path)(LONLAT.numpy()), embedded(model), atol=1e-5)
    assert read_weights(path, convention=convention).sha256 == weights.sha256  # type: ignore[arg-type]
    other = "orthonormal" if convention == "analytic" else "analytic"
    with pytest.raises(
        UsageError, match=f"states another convention, {convention}: leave convention='{other}'"
    ):
        se.load(path, convention=other)  # type: ignore[arg-type]


def test_the_polynomials_that_a_state_was_trained_on_are_stated_too(tmp_path: Path) -> None:
    for mode in ("exact", "published"):
        model = encoder("analytic", 25, harmonics=mode)
        path = saved(tmp_path / f"{mode}.ckpt", model.state_dict())
        assert read_weights(path).harmonics == mode
        np.testing.assert_allclose(se.load(path)(LONLAT.numpy()), embedded(model), atol=1e-5)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_file_that_states_nothing_is_refused_until_it_is_told_the_convention(
    suffix: str, tmp_path: Path
) -> None:
    values = tensors(dtype=np.float32)
    path = saved(tmp_path / f"bare{suffix}", as_state(values, "nnet."))
    for read in (read_weights, se.load, nn.get_satclip):
        with pytest.raises(
            WeightsError, match=r"does not say in which convention.*give convention='analytic'"
        ):
            read(path)
        for convention in CONVENTIONS:
            read(path, convention=convention)
    expected = LocationWeights(values, "closed-form")
    assert read_weights(path, convention="closed-form").sha256 == expected.sha256
    with pytest.raises(UsageError, match="convention: expected one of analytic"):
        read_weights(path, convention="legendre")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="states another convention, orthonormal"):
        se.load(make(), convention="analytic")
    with pytest.raises(UsageError, match="an atlas holds no network: convention='analytic'"):
        se.load("earth.zarr", convention="analytic")


def test_released_checkpoints_keep_their_rule_and_contradictions_are_refused(tmp_path: Path) -> None:
    state, released = as_state(tensors()), {"le_type": "sphericalharmonics", "legendre_polys": 3}
    with pytest.warns(UserWarning, match="does not name its harmonics: taken as 'analytic'"):
        assert read_weights(save_ckpt(tmp_path / "a.ckpt", state, **released)).convention == "analytic"
    own = encoder("orthonormal").state_dict()
    inside = {f"model.location.{key}": value for key, value in own.items()}
    hyper_parameters = {**released, "legendre_polys": 6}
    path = save_ckpt(tmp_path / "b.ckpt", inside, **hyper_parameters)
    assert read_weights(path).convention == "orthonormal"
    path = save_ckpt(tmp_path / "c.ckpt", inside, **hyper_parameters, harmonics_calculation="analytic")
    with pytest.raises(WeightsError, match=r"contradicts itself: convention is orthonormal .* and analytic"):
        read_weights(path)
    path = save_ckpt(tmp_path / "d.ckpt", inside, **hyper_parameters, w0_first=10.0)
    with pytest.raises(WeightsError, match="contradicts itself: w0"):
        read_weights(path)
    other = encoder("analytic").state_dict()
    twice = inside | {f"location.{key}": other[key] if key == STATEMENT else own[key] for key in own}
    with pytest.raises(WeightsError, match="state different conventions of one network"):
        read_weights(saved(tmp_path / "e.ckpt", twice))


def test_safetensors_own_functions_for_models_work(tmp_path: Path) -> None:
    source, target = encoder("analytic"), encoder("orthonormal")
    save_model(source, str(tmp_path / "m.safetensors"))
    load_model(target, str(tmp_path / "m.safetensors"))
    np.testing.assert_allclose(embedded(target), embedded(source), atol=2e-5)
    np.testing.assert_allclose(
        se.load(tmp_path / "m.safetensors")(LONLAT.numpy()), embedded(source), atol=1e-5
    )
    assert load_file(tmp_path / "m.safetensors")[STATEMENT].dtype == torch.uint8


WRAPPERS: dict[str, Callable[[str], str]] = {
    "compiled": lambda key: f"_orig_mod.{key}",
    "data parallel": lambda key: f"module.{key}",
    "compiled inside": lambda key: key.replace("location.", "location._orig_mod."),
    "network compiled": lambda key: key.replace("nnet.", "nnet._orig_mod."),
    "layers compiled": lambda key: key.replace("layers.0.", "layers.0._orig_mod."),
    "fully sharded": lambda key: (
        "_fsdp_wrapped_module." + key.replace(".nnet.", "._fsdp_wrapped_module.nnet.")
    ),
    "both": lambda key: f"module._orig_mod.{key}",
    "checkpointed": lambda key: key.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
    "table of averages": lambda key: f"ema.online_model._orig_mod.{key}",
    "average alone": lambda key: f"ema_model.module.{key}",
}


@pytest.mark.parametrize("rename", WRAPPERS.values(), ids=WRAPPERS)
def test_the_names_that_wrappers_add_are_understood(rename: Callable[[str], str], tmp_path: Path) -> None:
    path = GOLDEN_L10.with_suffix(".ckpt")
    content = torch.load(path, weights_only=True)
    content["state_dict"] = {rename(key): value for key, value in content["state_dict"].items()}
    torch.save(content, tmp_path / "renamed.ckpt")
    assert read_weights(tmp_path / "renamed.ckpt").sha256 == read_weights(path).sha256
    own = {rename(f"location.{key}"): value for key, value in encoder("closed-form").state_dict().items()}
    weights = read_weights(saved(tmp_path / "own.safetensors", own))
    assert weights.convention == "closed-form"
    assert weights.sha256 == encoder("closed-form").to_weights().sha256


def test_real_wrappers_are_understood(tmp_path: Path) -> None:
    expected = encoder().to_weights().sha256
    compiled_parts, average = encoder(), torch.optim.swa_utils.AveragedModel(encoder())
    compiled_parts.nnet = torch.compile(compiled_parts.nnet)
    checkpointed = torch.distributed.algorithms._checkpoint.checkpoint_wrapper.checkpoint_wrapper(encoder())
    for number, module in enumerate((torch.compile(encoder()), compiled_parts, average, checkpointed)):
        path = saved(tmp_path / f"{number}.ckpt", module.state_dict())
        assert read_weights(path).sha256 == expected


@pytest.mark.parametrize("table", ["model", "model_state_dict", "ema", "module"])
def test_a_state_in_a_table_of_the_file_is_read(table: str, tmp_path: Path) -> None:
    model = encoder()
    content = {table: model.state_dict(), "optimizer": {"state": {0: {"step": torch.ones(1)}}}, "epoch": 3}
    torch.save(content, tmp_path / "x.ckpt")
    assert read_weights(tmp_path / "x.ckpt").sha256 == model.to_weights().sha256


@pytest.mark.parametrize(
    ("average", "counter"),
    [
        ("ema_model.", None),
        ("ema.module.", None),
        ("averaged.module.", "averaged.n_averaged"),
        ("teacher.module.", "teacher.n_averaged"),
    ],
)
def test_a_network_beside_its_average_is_refused_unless_they_are_equal(
    average: str, counter: str | None, tmp_path: Path
) -> None:
    model, other = encoder(), nn.LocationEncoder(6, 8, 2, 4, convention="closed-form", seed=5)
    extra = {} if counter is None else {counter: torch.tensor(7)}
    for with_statement in (True, False):
        keys = [key for key in model.state_dict() if with_statement or key != STATEMENT]
        for second in (model, other):
            state = {f"location.{key}": model.state_dict()[key] for key in keys} | extra
            state |= {average + key: second.state_dict()[key] for key in keys}
            torch.save(state, tmp_path / "x.ckpt")
            given: Any = {} if with_statement else {"convention": "closed-form"}
            if second is model:
                assert read_weights(tmp_path / "x.ckpt", **given).sha256 == model.to_weights().sha256
            else:
                with pytest.raises(WeightsError, match=rf"holds a network and its average \({average}"):
                    read_weights(tmp_path / "x.ckpt", **given)


def test_an_average_in_a_table_of_its_own_is_noticed(tmp_path: Path) -> None:
    model, other = encoder(), nn.LocationEncoder(6, 8, 2, 4, convention="closed-form", seed=5)
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": other.state_dict()}, tmp_path / "x.ckpt")
    with pytest.raises(WeightsError, match=r"holds a network and its average \(state_dict_ema:nnet\."):
        read_weights(tmp_path / "x.ckpt")


def test_of_a_file_of_lightning_that_averages_weights_the_average_is_read(tmp_path: Path) -> None:
    model, trained = encoder(), nn.LocationEncoder(6, 8, 2, 4, convention="closed-form", seed=5)
    content = {
        "state_dict": {f"location.{key}": value for key, value in model.state_dict().items()},
        "current_model_state": {f"location.{key}": value for key, value in trained.state_dict().items()},
        "averaging_state": {"n_averaged": torch.tensor(3)},
    }
    torch.save(content, tmp_path / "x.ckpt")
    assert read_weights(tmp_path / "x.ckpt").sha256 == model.to_weights().sha256
    del content["averaging_state"]
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(WeightsError, match="differ: expected two equal copies, or the one to use alone"):
        read_weights(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    "extra", ["layers.0.lora_A", "layers.1.parametrizations.weight.0.scale", "last_layer.scales"]
)
def test_layers_with_more_than_weight_and_bias_are_refused(extra: str, tmp_path: Path) -> None:
    state = encoder().state_dict() | {f"nnet.{extra}": torch.ones(1)}
    with pytest.raises(WeightsError, match=r"expected only weight and bias of each layer: fold adapters"):
        read_weights(saved(tmp_path / "x.ckpt", state))

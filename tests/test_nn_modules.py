"""LocationEncoder where its layers are more than weights: hooks, adapters, wrappers, torch.func, shards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from factories.networks import scattered  # noqa: E402
from factories.ranks import Group, run_ranks  # noqa: E402
from factories.weights import as_state  # noqa: E402
from torch.nn.utils import parametrize, prune  # noqa: E402

import satclip_engine as se  # noqa: E402
from satclip_engine import op, reference  # noqa: E402
from satclip_engine.errors import UsageError, WeightsError  # noqa: E402
from satclip_engine.nn import LocationEncoder, Siren  # noqa: E402
from satclip_engine.weights.conventions import column_factors  # noqa: E402

LONLAT = scattered(9)


def encoder(degrees: int = 6, **options: Any) -> LocationEncoder:
    return LocationEncoder(degrees, 12, 2, 5, seed=0, **{"dtype": torch.float64, **options}).eval()


def formula(model: LocationEncoder, lonlat: Any, layers: Any) -> Any:
    """The published network with these callables in place of its layers, on exact harmonics."""
    exact = torch.from_numpy(reference.harmonics(lonlat.numpy(), model.degrees))
    hidden = exact * torch.from_numpy(column_factors(model.degrees, model.convention))
    *first, last = layers
    for index, layer in enumerate(first):
        hidden = torch.sin(model.w0[index > 0] * layer(hidden))
    return last(hidden)


class LowRank(torch.nn.Module):
    """An adapter as peft's: the layer itself, and a product of two thin matrices beside it."""

    def __init__(self, base_layer: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer, dtype = base_layer, base_layer.weight.dtype
        self.down = torch.nn.Parameter(torch.randn(2, base_layer.in_features, dtype=dtype) / 5)
        self.up = torch.nn.Parameter(torch.randn(base_layer.out_features, 2, dtype=dtype) / 5)

    def forward(self, values: Any) -> Any:
        return self.base_layer(values) + values @ self.down.T @ self.up.T


def do_nothing(*_: Any) -> None: ...


LISTENERS: dict[str, Callable[[Any], Any]] = {
    "forward hook": lambda model: model.nnet.layers[0].register_forward_hook(do_nothing),
    "pre-hook": lambda model: model.nnet.last_layer.register_forward_pre_hook(do_nothing),
    "backward hook": lambda model: model.nnet.layers[1].register_full_backward_hook(do_nothing),
    "backward pre-hook": lambda model: model.nnet.layers[1].register_full_backward_pre_hook(do_nothing),
    "hook of the network": lambda model: model.nnet.register_forward_hook(do_nothing),
    "hook of all modules": lambda _: torch.nn.modules.module.register_module_forward_hook(do_nothing),
    "pre-hook of all modules": lambda _: torch.nn.modules.module.register_module_forward_pre_hook(do_nothing),
}


@pytest.mark.parametrize(
    ("harmonics", "mode"), [("exact", "train"), ("published", "train"), ("exact", "eval")]
)
@pytest.mark.parametrize("listen", LISTENERS.values(), ids=LISTENERS)
def test_listening_changes_neither_embeddings_nor_masks_nor_gradients(
    listen: Callable[[Any], Any], harmonics: Any, mode: str
) -> None:
    model = getattr(encoder(21, convention="analytic", harmonics=harmonics), mode)()

    def run() -> list[Any]:
        torch.manual_seed(3)
        points = LONLAT.clone().requires_grad_()
        out = model(points)
        return [out, *torch.autograd.grad(out.square().sum(), [points, *model.parameters()])]

    expected = run()
    handle = listen(model)
    try:
        results = run()
    finally:
        handle.remove()
    for result, right in zip(results, expected, strict=True):
        torch.testing.assert_close(result, right, rtol=1e-9, atol=1e-9 * right.abs().max().item())


def test_hooks_see_and_may_change_what_layers_compute() -> None:
    model, seen = encoder(convention="analytic"), []
    weight, bias = model.nnet.layers[0].weight, model.nnet.layers[0].bias
    model.nnet.layers[0].register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    model.nnet.last_layer.register_forward_hook(lambda _, inputs, out: 2 * out)
    result = model(LONLAT)
    np.testing.assert_allclose(
        result.detach(), 2 * encoder(convention="analytic")(LONLAT).detach(), atol=1e-12
    )
    harmonics = reference.harmonics(LONLAT.numpy(), 6) * column_factors(6, "analytic")
    np.testing.assert_allclose(seen[0][0], harmonics, atol=1e-13)
    np.testing.assert_allclose(
        seen[0][1].detach(), harmonics @ weight.detach().numpy().T + bias.detach().numpy()
    )


def replace_forward(layer: Any) -> Any:
    layer.forward = lambda values: 3 * torch.nn.functional.linear(values, layer.weight, layer.bias)
    return layer


def without_bias(layer: Any) -> Any:
    return torch.nn.Linear(layer.in_features, layer.out_features, bias=False, dtype=layer.weight.dtype)


STRANGERS: dict[str, Callable[[Any], Any]] = {
    "adapter": LowRank,
    "other forward": replace_forward,
    "no bias": without_bias,
    "sequence": lambda layer: torch.nn.Sequential(layer, torch.nn.Tanh()),
}


@pytest.mark.parametrize("replace", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_stands_for_a_layer_is_called_and_trained(replace: Callable[[Any], Any], place: int) -> None:
    torch.manual_seed(0)
    model = encoder()
    layers = model.nnet.all_layers()
    layers[place] = replace(layers[place])
    if place == 2:
        model.nnet.last_layer = layers[2]
    else:
        model.nnet.layers[place] = layers[place]
    result, expected = model(LONLAT), formula(model, LONLAT, layers)
    assert (result - encoder()(LONLAT)).abs().max() > 1e-3
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(result.sum(), parameters), torch.autograd.grad(expected.sum(), parameters)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    if replace is LowRank and place == 1:  # compiling takes a second
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(LONLAT), expected, rtol=0, atol=1e-12)
    with pytest.raises(WeightsError, match=r"computes with more than a weight and a bias .*merge_and_unload"):
        model.to_weights()


def test_float32_modules_are_as_exact_as_the_fused_layers_and_autocast_does_not_narrow_them() -> None:
    model = encoder(40, dtype=torch.float32)
    expected = model(LONLAT)
    model.nnet.layers[0].register_forward_hook(do_nothing)
    with torch.autocast("cpu", torch.bfloat16):
        result = model(LONLAT)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match=r"torch\.bfloat16 is too coarse .* use model\.float\(\)"):
        model.bfloat16()(LONLAT)


def test_quantised_layers_are_called() -> None:
    model = encoder(dtype=torch.float32)
    expected, layer = model(LONLAT), model.nnet.layers[1]
    quantised = torch.ao.nn.quantized.dynamic.Linear(12, 12)
    weight = torch.quantize_per_tensor(layer.weight.detach(), 1e-2, 0, torch.qint8)
    quantised.set_weight_bias(weight, layer.bias.detach())
    model.nnet.layers[1] = quantised
    difference = (model(LONLAT) - expected).abs().max()
    assert 1e-6 < difference < 0.1
    with pytest.raises(WeightsError, match=r"nnet\.layers\.1 computes with more"):
        model.to_weights()


def test_a_replaced_last_layer_decides_the_outputs() -> None:
    model = encoder(dtype=torch.float32)
    model.nnet.last_layer = torch.nn.Linear(12, 3)
    assert model(LONLAT.reshape(3, 3, 2)).shape == (3, 3, 3)
    weights = model.to_weights()
    assert weights.embed_dim == 3
    np.testing.assert_allclose(se.load(weights)(LONLAT.numpy()), model(LONLAT).detach(), atol=1e-5)


def test_the_network_itself_takes_harmonics_of_its_convention_and_may_be_replaced() -> None:
    model = encoder(convention="closed-form")
    harmonics = reference.harmonics(LONLAT.numpy(), 6) * column_factors(6, "closed-form")
    result = model.nnet(torch.from_numpy(harmonics).reshape(3, 3, -1))
    torch.testing.assert_close(result.reshape(9, -1), model(LONLAT), rtol=0, atol=1e-12)
    model.nnet = torch.nn.Sequential(torch.nn.Linear(36, 2, dtype=torch.float64))
    torch.testing.assert_close(model(LONLAT), model.nnet(torch.from_numpy(harmonics)), rtol=0, atol=1e-12)
    again = encoder(convention="closed-form")
    again.nnet = torch.nn.Sequential(torch.nn.Linear(36, 2, dtype=torch.float64))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(LONLAT), model(LONLAT))
    with pytest.raises(UsageError, match="nnet is a Sequential, not the network that LocationEncoder makes"):
        model.to_weights()


class Doubled(Siren):
    def forward(self, features: Any) -> Any:
        return 2 * super().forward(features)


def doubled_method(network: Any) -> Any:
    call = network.forward
    network.forward = lambda features: 2 * call(features)
    return network


def doubled_class(network: Any) -> Any:
    network.__class__ = Doubled
    return network


@pytest.mark.parametrize("replace", [doubled_method, doubled_class])
def test_another_forward_of_the_network_is_called_and_not_exported(replace: Callable[[Any], Any]) -> None:
    model = encoder()
    expected = 2 * model(LONLAT)
    model.nnet = replace(model.nnet)
    torch.testing.assert_close(model(LONLAT), expected, rtol=0, atol=1e-12)
    with pytest.raises(WeightsError, match=r"nnet .* computes with more than the layers"):
        model.to_weights()


def test_what_follows_the_network_is_called_and_not_exported() -> None:
    model = encoder()
    expected = model(LONLAT).tanh()
    model.nnet = torch.nn.Sequential(model.nnet, torch.nn.Tanh())
    torch.testing.assert_close(model(LONLAT), expected, rtol=0, atol=1e-12)
    with pytest.raises(WeightsError, match=r"nnet \(Sequential\) computes with more than the layers"):
        model.to_weights()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_tools_that_go_by_the_class_of_layers_quantise_them() -> None:
    model = encoder(dtype=torch.float32)
    before = model(LONLAT)
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    layers = [layer.dequantized for layer in map(Dequantised, quantised.nnet.all_layers())]
    torch.testing.assert_close(
        quantised(LONLAT).double(), formula(model, LONLAT, layers), rtol=0, atol=float(before.std()) / 4
    )
    assert not torch.equal(quantised(LONLAT), before)
    with pytest.raises(WeightsError, match=r"nnet\.layers\.0 computes with more than a weight and a bias"):
        quantised.to_weights()


class Dequantised:
    """The dense layer of a quantised one's weights, in float64."""

    def __init__(self, layer: Any) -> None:
        self.weight, self.bias = layer.weight().dequantize().double(), layer.bias().double()

    def dequantized(self, values: Any) -> Any:
        return values @ self.weight.T + self.bias


COMPUTED: dict[str, Callable[[Any], Any]] = {
    "weight norm": torch.nn.utils.parametrizations.weight_norm,
    "older weight norm": torch.nn.utils.weight_norm,
    "spectral norm": torch.nn.utils.parametrizations.spectral_norm,
    "older spectral norm": torch.nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
def test_computed_weights_are_exported_as_they_are_computed(compute: Callable[[Any], Any]) -> None:
    model = encoder(dtype=torch.float32).train()
    model.dropout = 0.0
    compute(model.nnet.layers[0])
    compute(model.nnet.layers[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(3):  # the weight of the last step has not been computed by any call yet
        optimizer.zero_grad()
        model(LONLAT).square().mean().backward()
        optimizer.step()
    model.eval()
    weights = model.to_weights()
    np.testing.assert_allclose(se.load(weights)(LONLAT.numpy()), model(LONLAT).detach(), atol=1e-5)
    assert list(weights.tensors)[:2] == ["layers.0.weight", "layers.0.bias"]


def test_a_low_rank_parametrisation_is_trained_and_exported() -> None:
    class Added(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.share = torch.nn.Parameter(torch.ones(12, 1, dtype=torch.float64) / 9)

        def forward(self, weight: Any) -> Any:
            return weight + self.share

    model = encoder()
    before = model(LONLAT)
    parametrize.register_parametrization(model.nnet.layers[1], "weight", Added())
    assert (model(LONLAT) - before).abs().max() > 1e-3
    result = se.load(model.to_weights(), backend="reference")(LONLAT.numpy())
    np.testing.assert_allclose(result, model(LONLAT).detach(), atol=1e-12)


def test_arrays_are_told_to_become_tensors() -> None:
    for call in (encoder(), lambda points: op.encode(points, *encoder().folded())):
        with pytest.raises(TypeError, match=r"must be a tensor, not ndarray: torch\.as_tensor\(lonlat\)"):
            call(LONLAT.numpy())


# -- torch.func, other defaults


def test_transforms_of_torch_func_are_right() -> None:
    model = encoder(convention="analytic")
    parameters = dict(model.named_parameters())

    def loss(values: Any, points: Any) -> Any:
        return torch.func.functional_call(model, values, (points,)).square().sum()

    gradients = torch.func.grad(loss)(parameters, LONLAT)
    expected = torch.autograd.grad(loss(parameters, LONLAT), list(parameters.values()))
    for ours, theirs in zip(gradients.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, LONLAT[:, None])
    for ours, theirs in zip(each.values(), expected, strict=True):
        torch.testing.assert_close(ours.sum(0), theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.func.vmap(model, in_dims=1)(LONLAT.T), model(LONLAT))
    assert torch.equal(torch.func.functional_call(model, model.state_dict(), LONLAT), model(LONLAT))
    with pytest.raises(UsageError, match=r"row 1: latitude 91\.0"):
        torch.func.vmap(model)(torch.tensor([[0.0, 0.0], [0.0, 91.0]]))


def test_derivatives_by_the_points_are_those_of_finite_differences_to_second_order() -> None:
    model, step = encoder(4), 1e-4

    def total(point: Any) -> Any:
        return model(point)[1]

    points = torch.tensor([[12.0, 40.0], [200.0, 0.0], [30.0, -45.0], [5.0, 89.5]], dtype=torch.float64)
    for point in points:
        jacobian, hessian = torch.func.jacrev(total)(point), torch.func.hessian(total)(point)
        offsets = step * torch.eye(2, dtype=torch.float64)
        with torch.no_grad():
            slopes = [(total(point + d) - total(point - d)) / (2 * step) for d in offsets]
            bends = [
                (total(point + d + e) - total(point + d - e) - total(point - d + e) + total(point - d - e))
                / (4 * step**2)
                for d in offsets
                for e in offsets
            ]
        torch.testing.assert_close(jacobian.detach(), torch.stack(slopes), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(hessian.detach().flatten(), torch.stack(bends), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_an_ensemble_is_computed_at_once(mode: str) -> None:
    options: dict[str, Any] = {"degrees": 25, "convention": "analytic", "harmonics": "published"}
    models = [getattr(encoder(**options).requires_grad_(False), mode)() for _ in range(3)]
    for number, model in enumerate(models):
        model.reset_parameters(number)
    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")

    def one(values: Any, constants: Any) -> Any:
        return torch.func.functional_call(base, (values, constants), (LONLAT,))

    torch.manual_seed(1)
    results = torch.func.vmap(one, randomness="same")(parameters, buffers)
    for model, result in zip(models, results, strict=True):
        torch.manual_seed(1)
        torch.testing.assert_close(result, model(LONLAT), rtol=0, atol=1e-11)
    if mode == "train":
        different = torch.func.vmap(one, randomness="different")(parameters, buffers)
        assert not torch.allclose(different[0], results[0])


def test_transforms_compile() -> None:
    model = encoder()
    compiled = torch.compile(torch.func.vmap(model), backend="aot_eager")
    torch.testing.assert_close(compiled(LONLAT), model(LONLAT), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_changes_no_bit_of_an_encoder_of_its_own(dtype: Any) -> None:
    def results() -> list[Any]:
        model = encoder(25, convention="analytic", harmonics="published", dtype=torch.float32).train()
        torch.manual_seed(2)
        out = model(LONLAT)
        model.eval().nnet.layers[0].register_forward_hook(do_nothing)
        embedded = torch.from_numpy(se.load("default-l10")(LONLAT.numpy()))
        return [out, model(LONLAT), embedded, torch.func.vmap(model)(LONLAT)]

    expected = results()
    torch.set_default_dtype(dtype)
    try:
        again = results()
        assert encoder(dtype=None)(LONLAT).dtype == (
            torch.float64 if dtype == torch.float64 else torch.float32
        )
    finally:
        torch.set_default_dtype(torch.float32)
    for result, right in zip(again, expected, strict=True):
        assert result.dtype == torch.float32
        assert torch.equal(result, right)


def test_another_default_device_is_that_of_new_modules_only() -> None:
    model, expected = encoder().train(), encoder()(LONLAT)
    state = as_state(encoder().to_weights().tensors, "nnet.")
    torch.set_default_device("meta")
    try:
        assert LocationEncoder(4, 8).nnet.last_layer.weight.is_meta
        for backend in ("auto", "reference"):
            placed = LocationEncoder(6, 12, 2, 5, convention="orthonormal", backend=backend, device="cpu")
            assert placed.train()(LONLAT).device.type == "cpu"
        other = encoder(convention="orthonormal", device="cpu")
        other.load_state_dict(state)
        torch.testing.assert_close(other(LONLAT), expected)
        other.nnet.layers[0].register_forward_hook(do_nothing)
        torch.testing.assert_close(other(LONLAT), expected)
        torch.testing.assert_close(torch.func.vmap(other)(LONLAT), expected)
        assert model(LONLAT).device.type == "cpu"
        assert np.isfinite(se.load("default-l10", backend="reference")(LONLAT.numpy())).all()
    finally:
        torch.set_default_device("cpu")


# -- processes

SHARDED = """
import sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from satclip_engine.nn import LocationEncoder

store, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
lonlat = torch.linspace(-80, 80, 24, dtype=torch.float64).reshape(12, 2)
for backend in ("auto", "reference"):
    for shards in ("whole", "layers"):
        plain, model = (
            LocationEncoder(6, 12, 2, 5, dropout=0.0, convention="analytic", seed=0, backend=backend)
            for _ in range(2)
        )
        if shards == "layers":
            for layer in model.nnet.layers:
                fully_shard(layer)
        fully_shard(model)
        optimizers = [torch.optim.SGD(module.parameters(), lr=1e-4) for module in (plain, model)]
        for step in range(3):
            for module, optimizer in zip((plain, model), optimizers):
                optimizer.zero_grad()
                module(lonlat).square().mean().backward()
                optimizer.step()
        torch.testing.assert_close(model(lonlat), plain(lonlat), rtol=1e-4, atol=1e-5)
        if shards == "whole":
            assert model.to_weights().sha256 == plain.to_weights().sha256 or backend == "reference"
        for key, value in model.state_dict().items():
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            torch.testing.assert_close(whole, plain.state_dict()[key], rtol=1e-4, atol=1e-5)
        model.load_state_dict(model.state_dict())
dist.destroy_process_group()
"""


def test_parameters_in_shards_train_as_whole_ones(tmp_path: Path) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    run_ranks(SHARDED, Group(str(tmp_path / "store"), 2), imports=("torch.distributed.fsdp",))

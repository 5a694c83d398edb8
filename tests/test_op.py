"""The training ops: gradients by name against numerical ones and between backends; torch's own machinery."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mpmath
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from factories.networks import scattered  # noqa: E402
from torch._dynamo import testing  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from satclip_engine import _C, backends, op, reference  # noqa: E402
from satclip_engine.backends import cpu, triton  # noqa: E402
from satclip_engine.backends.protocols import Dropout, Network  # noqa: E402
from satclip_engine.errors import MissingExtra, UsageError  # noqa: E402
from satclip_engine.ops import encode as encode_op  # noqa: E402
from satclip_engine.reference import forward, gradients  # noqa: E402
from satclip_engine.weights import Layers  # noqa: E402

BACKENDS = ["reference", "cpu", pytest.param("triton", marks=pytest.mark.triton)]
DTYPES = {"reference": torch.float64, "cpu": torch.float32, "triton": torch.float32}
EPSILON = 2.0**-24  # of float32 rounding


def network(
    degrees: int, widths: Sequence[int], dtype: Any = torch.float64, seed: int = 0
) -> tuple[list[Any], list[Any]]:
    """Weights and biases, numbers of float32, whose sines see arguments of order one."""
    generator = torch.Generator().manual_seed(seed)
    inputs, weights, biases = degrees**2, [], []
    for index, width in enumerate(widths):
        scale = 2 / degrees if index == 0 else 1 / math.sqrt(inputs)
        weights.append((torch.randn(width, inputs, generator=generator) * scale).to(dtype))
        biases.append((torch.randn(width, generator=generator) * 0.5).to(dtype))
        inputs = width
    return weights, biases


def trained(*tensors: Any) -> list[Any]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def all_gradients(
    backend: str, lonlat: Any, weights: list[Any], biases: list[Any], cotangent: Any, **options: Any
) -> dict[str, Any]:
    """Every gradient under its own name, in float64; and the embeddings."""
    dtype = DTYPES[backend]
    (points,) = trained(lonlat)
    ours = trained(*(t.to(dtype) for t in (*weights, *biases)))
    layers = len(weights)
    out = op.encode(points, ours[:layers], ours[layers:], backend=backend, **options)
    out.backward(cotangent.to(dtype))
    result = {"embedding": out.detach(), "lonlat": points.grad}
    result.update({f"weight {index}": ours[index].grad for index in range(layers)})
    result.update({f"bias {index}": ours[layers + index].grad for index in range(layers)})
    return {name: value.double() for name, value in result.items()}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (0x00000000, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_gives_the_words_of_its_authors(word: int, expected: tuple[int, ...]) -> None:
    assert tuple(gradients.philox(torch.full((4,), word), (word, word)).tolist()) == expected


def test_a_mask_is_philox_at_its_row_unit_layer_and_seed() -> None:
    row, unit, layer, seed, p = (3 << 32) + 5, 6, 2, (9 << 32) + 4, 0.3
    words = gradients.philox(torch.tensor([5, 3, unit // 4, layer]), (4, 9))
    result = gradients.dropout_factors(torch.tensor([row]), 7, layer, p, seed)[0, unit]
    assert result == (0 if words[unit % 4] < math.floor(p * 2**32) else 1 / (1 - p))


def test_a_mask_does_not_depend_on_the_batch_or_the_width() -> None:
    whole = gradients.dropout_factors(torch.arange(50), 30, 1, 0.4, 11)
    few = gradients.dropout_factors(torch.arange(17, 23), 13, 1, 0.4, 11)
    assert torch.equal(few, whole[17:23, :13])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_dropped_share_is_p_in_every_row_and_unit_and_masks_are_independent(p: float) -> None:
    rows = torch.arange(1000)
    masks = [gradients.dropout_factors(rows, 400, *of) > 0 for of in ((0, p, 1), (1, p, 1), (0, p, 2))]
    deviation = math.sqrt(p * (1 - p))
    for mask in masks:
        dropped = 1 - mask.double()
        assert abs(dropped.mean() - p) < 5 * deviation / math.sqrt(dropped.numel())
        assert (dropped.mean(0) - p).abs().max() < 6 * deviation / math.sqrt(1000)
        assert (dropped.mean(1) - p).abs().max() < 6 * deviation / math.sqrt(400)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        both = (masks[i] & masks[j]).double().mean()
        assert abs(both - (1 - p) ** 2) < 5 * (1 - p) * math.sqrt(1 - (1 - p) ** 2) / math.sqrt(400_000)


@pytest.mark.parametrize("degree", [1, 2, 7, 39])
@pytest.mark.parametrize("point", [(12.3, 45.6), (-179.99, -88.8), (77.7, 89.999), (540.0, 0.0)])
def test_slopes_of_harmonics_equal_mpmath(degree: int, point: tuple[float, float]) -> None:
    along_lon, along_lat = reference.slopes(torch.tensor([point], dtype=torch.float64), degree + 1)

    def harmonic(m: int, lon: Any, lat: Any) -> Any:
        phi, theta = mpmath.radians(lon + 180), mpmath.radians(lat + 90)
        value = mpmath.spherharm(degree, abs(m), theta, phi) * (-1) ** abs(m)
        return (value.real if m >= 0 else value.imag) * (mpmath.sqrt(2) if m else 1)

    # A slope per degree is at most l·π/180 times as large as a harmonic; x = cos θ is rounded once.
    tolerance = 1e-15 * (degree + 1) ** 3.5
    with mpmath.workdps(40):
        lon, lat = map(mpmath.mpf, point)
        for m in sorted({-degree, -1, 0, 1, degree // 2, degree}):
            column = degree * (degree + 1) + m
            of_lon = mpmath.diff(lambda x, m=m: harmonic(m, x, lat), lon)
            of_lat = mpmath.diff(lambda x, m=m: harmonic(m, lon, x), lat)
            assert abs(along_lon[column, 0].item() - float(of_lon)) <= tolerance, m
            assert abs(along_lat[column, 0].item() - float(of_lat)) <= tolerance, m


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("widths", [(5, 3), (5, 4, 3), (5, 4, 6, 2)], ids=["1", "2", "3"])
def test_every_gradient_of_the_reference_is_the_numerical_one(widths: Sequence[int], dropout: float) -> None:
    weights, biases = network(4, widths)
    layers = len(weights)

    def encode(lonlat: Any, *parameters: Any) -> Any:
        return op.encode(
            lonlat, parameters[:layers], parameters[layers:], dropout=dropout, seed=3, backend="reference"
        )

    assert torch.autograd.gradcheck(encode, trained(scattered(5), *weights, *biases))


def test_embeddings_of_the_reference_are_the_definition() -> None:
    weights, biases = network(12, (9, 8, 7))
    layers = Layers(12, tuple(w.numpy() for w in weights), tuple(b.numpy() for b in biases))
    lonlat = scattered(30)
    out, _ = gradients.encode_forward(lonlat, weights, biases)
    np.testing.assert_allclose(out.numpy(), reference.encode(lonlat.numpy(), layers), atol=1e-13)


def test_dropout_multiplies_pre_activations_by_its_factors_in_hidden_layers_only() -> None:
    weights, biases = network(3, (6, 5, 4))
    lonlat, rows = scattered(8), torch.arange(8)
    first, second = (gradients.dropout_factors(rows, n, i, 0.5, 77) for i, n in enumerate((6, 5)))
    hidden = torch.sin(first * (reference.features(lonlat, 3).T @ weights[0].T + biases[0]))
    hidden = torch.sin(second * (hidden @ weights[1].T + biases[1]))
    result = op.encode(lonlat, weights, biases, dropout=0.5, seed=77)
    torch.testing.assert_close(result, hidden @ weights[2].T + biases[2], rtol=0, atol=1e-13)


def test_blocks_bound_memory_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, biases = network(10, (9, 8, 7))
    lonlat, cotangent = scattered(23), torch.randn(23, 7, dtype=torch.float64)
    whole = all_gradients("reference", lonlat, weights, biases, cotangent, dropout=0.5, seed=1)
    monkeypatch.setattr(forward, "_BLOCK_BYTES", 7 * 100 * 8)
    blocks: list[int] = []
    features = reference.features
    monkeypatch.setattr(
        reference, "features", lambda lonlat, L: blocks.append(len(lonlat)) or features(lonlat, L)
    )
    parts = all_gradients("reference", lonlat, weights, biases, cotangent, dropout=0.5, seed=1)
    assert max(blocks) == 7
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-12, msg=name)


def tolerance(value: Any, weights: list[Any], count: int) -> float:
    """Of a float32 result: a rounding per term of its longest sum, at random, in every product on the way.

    Forward and backward are two products a layer.
    """
    terms = max(*(weight.shape[1] for weight in weights), count)
    return 2 * len(weights) * math.sqrt(terms) * EPSILON * value.abs().max().item()


# Triton's interpreter takes 0.1 s a tile; its kernels have tests of their own, of single points too.
COUNTS = [
    *(("cpu", count) for count in (1, 47, 48, 49, 500)),
    *(pytest.param("triton", count, marks=pytest.mark.triton) for count in (20, 33)),
]


@pytest.mark.parametrize(("backend", "count"), COUNTS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("degrees", [1, 2, 10, 40])
def test_embeddings_and_gradients_of_a_backend_are_those_of_the_reference(
    degrees: int, count: int, dropout: float, backend: str
) -> None:
    widths = {1: (5, 3), 2: (13, 7, 9), 10: (64, 64, 32), 40: (37, 37, 37, 21)}[degrees]
    weights, biases = network(degrees, widths)
    generator = torch.Generator().manual_seed(count)
    cotangents = torch.randn(max(count, 500), widths[-1], dtype=torch.float64, generator=generator)
    lonlat, cotangent = scattered(count), cotangents[:count]
    options = {"dropout": dropout, "seed": (5 << 32) + 6}
    expected = all_gradients("reference", lonlat, weights, biases, cotangent, **options)
    # How large gradients of points are: at a single one, what its harmonics add may cancel.
    usual = all_gradients("reference", scattered(len(cotangents)), weights, biases, cotangents, **options)[
        "lonlat"
    ]
    result = all_gradients(backend, lonlat, weights, biases, cotangent, **options)
    for name, value in expected.items():
        assert result[name].shape == value.shape
        difference = (result[name] - value).abs().max().item()
        # A harmonic of degree l is as steep as l times its size.
        steepness, size = (degrees, usual) if name == "lonlat" else (1, value)
        assert difference <= steepness * tolerance(size, weights, count), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_strided_tensors_are_those_of_contiguous_ones(backend: str) -> None:
    weights, biases = network(5, (11, 11, 6))
    lonlat, cotangent = scattered(30), torch.ones(1, 6, dtype=torch.float64).expand(30, 6)
    expected = all_gradients(backend, lonlat, weights, biases, cotangent.contiguous())
    strided = [w.T.contiguous().T for w in weights]
    apart = torch.stack([lonlat, lonlat], dim=-1)[..., 0]
    result = all_gradients(backend, apart, strided, biases, cotangent)
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_seed_gives_the_same_bits_and_another_does_not(backend: str) -> None:
    weights, biases = network(6, (40, 40, 8))
    lonlat, cotangent = scattered(60), torch.ones(60, 8, dtype=torch.float64)
    first, again, other = (
        all_gradients(backend, lonlat, weights, biases, cotangent, dropout=0.5, seed=seed)
        for seed in (1, 1, 2)
    )
    for name, value in first.items():
        assert torch.equal(again[name], value), name
        assert not torch.equal(other[name], value) or name == "bias 2", name


@pytest.mark.parametrize("backend", BACKENDS)
def test_at_the_poles_the_gradient_is_finite_and_follows_the_meridian(backend: str) -> None:
    weights, biases = network(8, (9, 9, 4))
    lonlat = torch.tensor([[10.0, 90.0], [200.0, 90.0], [10.0, -90.0]], dtype=torch.float64)
    inward = lonlat.clone()
    inward[:, 1] *= 1 - 1e-6 / 90
    cotangent = torch.randn(3, 4, dtype=torch.float64)
    result = all_gradients(backend, lonlat, weights, biases, cotangent)["lonlat"]
    assert (result[:, 0] == 0).all()
    at_pole, inside = (gradients.encode_forward(points, weights, biases)[0] for points in (lonlat, inward))
    expected = ((inside - at_pole) * cotangent).sum(1) / (inward - lonlat)[:, 1]
    torch.testing.assert_close(result[:, 1], expected, rtol=1e-4, atol=1e-5)
    assert result[0, 1] != result[1, 1]


@pytest.mark.parametrize("row", [(math.nan, 0.0), (0.0, math.nan), (math.inf, 3.0), (2.0, -math.inf)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_point_that_is_not_finite_gives_nan_there_and_nowhere_else(
    backend: str, row: tuple[float, float]
) -> None:
    weights, biases = network(4, (6, 5))
    lonlat = scattered(5)
    cotangent = torch.ones(5, 5, dtype=torch.float64)
    expected = all_gradients(backend, lonlat, weights, biases, cotangent)
    lonlat[2] = torch.tensor(row)
    result = all_gradients(backend, lonlat, weights, biases, cotangent)
    for name in ("embedding", "lonlat"):
        assert result[name][2].isnan().all(), name
        others = [0, 1, 3, 4]
        torch.testing.assert_close(result[name][others], expected[name][others], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_points_give_no_embeddings_and_gradients_of_zero(backend: str) -> None:
    weights, biases = network(3, (6, 5, 4))
    empty = torch.empty(0, 4, dtype=torch.float64)
    result = all_gradients(backend, scattered(0), weights, biases, empty, dropout=0.5)
    assert result["embedding"].shape == (0, 4)
    assert result["lonlat"].shape == (0, 2)
    assert all((result[name] == 0).all() for name in result if name.startswith(("weight", "bias")))


def test_without_gradients_the_cpu_computes_what_an_encoder_computes_to_the_bit() -> None:
    weights, biases = network(10, (24, 24, 8), torch.float32)
    layers = Layers(10, tuple(w.numpy() for w in weights), tuple(b.numpy() for b in biases))
    lonlat = scattered(100)
    expected = backends.resolve("cpu").prepare(layers).encode(lonlat.numpy())
    assert np.array_equal(op.encode(lonlat, weights, biases, backend="cpu").numpy(), expected)
    assert np.array_equal(op.encode(lonlat, weights, biases).numpy(), expected)
    with torch.no_grad():
        assert np.array_equal(op.encode(lonlat, trained(*weights), biases).numpy(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_gradients_asked_for_are_given(backend: str) -> None:
    weights, biases = network(3, (6, 5), DTYPES[backend])
    (weight,) = trained(weights[1])
    lonlat = scattered(4)
    op.encode(lonlat, [weights[0], weight], biases, backend=backend).sum().backward()
    assert weight.grad is not None
    assert lonlat.grad is None
    assert weights[0].grad is None


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    weights, biases = network(3, (6, 5))
    (lonlat,) = trained(scattered(4))
    (first,) = torch.autograd.grad(
        op.encode(lonlat, trained(*weights), biases).sum(), lonlat, create_graph=True
    )
    with pytest.raises(NotImplementedError, match=r"first derivatives only here: torch\.func\.hessian"):
        first.sum().backward()


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("of", ["lonlat", "weight", "bias"])
def test_forward_mode_derivatives_are_those_of_the_network(of: str, requires_grad: bool) -> None:
    weights, biases = network(3, (6, 5))
    weights[0].requires_grad_(requires_grad)
    operands = {"lonlat": scattered(4), "weight": weights[1], "bias": biases[0]}

    def encode(value: Any) -> Any:
        tensors = {**operands, of: value}
        return op.encode(tensors["lonlat"], [weights[0], tensors["weight"]], [tensors["bias"], biases[1]])

    value = operands[of]
    step = 1e-6 * torch.ones_like(value)
    with torch.no_grad():  # the network is float64
        expected = (encode(value + step) - encode(value - step)) / 2e-6
    with torch.autograd.forward_ad.dual_level():
        dual = encode(torch.autograd.forward_ad.make_dual(value, torch.ones_like(value)))
        slopes = [torch.autograd.forward_ad.unpack_dual(dual).tangent]
    slopes.append(torch.func.jvp(encode, (value,), (torch.ones_like(value),))[1])
    slopes.append(torch.func.jacfwd(encode)(value).sum(dim=tuple(range(2, 2 + value.ndim))))
    for slope in slopes:
        torch.testing.assert_close(slope.detach(), expected, rtol=1e-6, atol=1e-6)
    with torch.autograd.forward_ad.dual_level():
        encode(value)  # nobody asks for a derivative of it


def test_float32_points_are_widened_and_get_float32_gradients() -> None:
    weights, biases = network(3, (6, 5))
    (narrow,) = trained(scattered(4).float())
    (wide,) = trained(narrow.double())
    for points in (narrow, wide):
        op.encode(points, weights, biases).sum().backward()
    assert narrow.grad.dtype == torch.float32
    assert torch.equal(narrow.grad, wide.grad.float())


def op_arguments(backend: str) -> tuple[Any, ...]:
    weights, biases = network(3, (6, 5, 4), DTYPES[backend])
    lonlat, *parameters = trained(scattered(5), *weights, *biases)
    return lonlat, parameters[:3], parameters[3:]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_finds_nothing_wrong_with_encode(backend: str, dropout: float) -> None:
    arguments = (*op_arguments(backend), dropout, 7, backend, "exact")
    torch.library.opcheck(torch.ops.satclip_engine.encode.default, arguments)


@pytest.mark.parametrize("with_lonlat", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_finds_nothing_wrong_with_the_backward_op(backend: str, with_lonlat: bool) -> None:
    arguments = [
        arg.detach() if hasattr(arg, "detach") else [t.detach() for t in arg] for arg in op_arguments(backend)
    ]
    out, saved = torch.ops.satclip_engine.encode(*arguments, 0.5, 7, backend, "exact")
    torch.library.opcheck(
        torch.ops.satclip_engine.encode_backward.default,
        (torch.ones_like(out), *arguments, saved, 0.5, 7, backend, "exact", with_lonlat),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_finds_nothing_wrong_with_embed(backend: str) -> None:
    weights, biases = network(3, (6, 5, 4), DTYPES[backend])
    torch.library.opcheck(
        torch.ops.satclip_engine.embed.default, (scattered(5), weights, biases, backend, "exact")
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_step_is_whole_and_serves_any_batch_and_seed(backend: str) -> None:
    weights, biases = network(4, (6, 5, 4), DTYPES[backend])
    parameters = trained(*weights, *biases)

    def step(lonlat: Any, seed: int) -> Any:
        out = op.encode(lonlat, parameters[:3], parameters[3:], dropout=0.5, seed=seed, backend=backend)
        return out.square().sum()

    torch._dynamo.reset()
    compilations = testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=compilations)
    for count, seed in ((9, 3), (7, 4), (8, 5), (23, 6)):
        result, expected = (
            torch.autograd.grad(run(scattered(count), seed), parameters) for run in (compiled, step)
        )
        for value, right in zip(result, expected, strict=True):
            torch.testing.assert_close(value, right)
    assert compilations.frame_count <= 2  # with the sizes as they are, then with symbols


class Encoding(torch.nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        weights, biases = network(4, (6, 5, 4), DTYPES[backend])
        self.weights, self.biases = torch.nn.ParameterList(weights), torch.nn.ParameterList(biases)
        self.backend = backend

    def forward(self, lonlat: Any) -> Any:
        return op.encode(lonlat, list(self.weights), list(self.biases), backend=self.backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exported_program_serves_any_batch(backend: str) -> None:
    model = Encoding(backend)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (scattered(5),), dynamic_shapes={"lonlat": {0: batch}})
    assert "satclip_engine.encode" in str(program.graph)
    for count in (2, 50):
        torch.testing.assert_close(program.module()(scattered(count)), model(scattered(count)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_narrows_neither_parameters_nor_points(backend: str) -> None:
    weights, biases = network(4, (6, 5, 4), DTYPES[backend])
    parameters = trained(*weights, *biases)
    lonlat = scattered(20)
    expected = op.encode(lonlat, parameters[:3], parameters[3:], backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        result = op.encode(lonlat, parameters[:3], parameters[3:], backend=backend)
    assert torch.equal(result, expected)
    assert result.dtype == expected.dtype


def test_autocast_widens_what_arrives_narrow() -> None:
    weights, biases = network(4, (6, 5, 4), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = torch.ops.satclip_engine.encode(scattered(3), weights, biases, 0.0, 0, "reference", "exact")
    assert out.dtype == torch.float32
    wide = op.encode(
        scattered(3), [w.float() for w in weights], [b.float() for b in biases], backend="reference"
    )
    torch.testing.assert_close(out, wide)


def test_auto_takes_the_kernels_for_float32_on_the_cpu_and_the_reference_for_the_rest() -> None:
    weights, biases = network(4, (6, 5, 4))
    lonlat = scattered(10)
    exact = gradients.encode_forward(lonlat, weights, biases)[0]
    assert torch.equal(op.encode(lonlat, weights, biases), exact)
    narrow = [w.float() for w in weights], [b.float() for b in biases]
    by_name = op.encode(lonlat, *narrow, backend="cpu")
    assert torch.equal(op.encode(lonlat, *narrow), by_name)
    halves = [w.bfloat16() for w in weights], [b.bfloat16() for b in biases]
    widened = [[t.float() for t in tensors] for tensors in halves]
    for backend in ("auto", "cpu"):
        result = op.encode(lonlat, *halves, backend=backend)
        assert torch.equal(result, op.encode(lonlat, *widened, backend="cpu"))
    assert backends.resolve_for("auto", narrow[0][0].to("meta")).name == "reference"


@pytest.mark.parametrize("trains", [False, True])
def test_cpu_by_name_refuses_what_it_does_not_compute(trains: bool) -> None:
    weights, biases = network(4, (6, 5, 4))
    weights[0].requires_grad_(trains)
    refusal = r"backend 'cpu' takes torch\.float32 on cpu, not torch\.float64 on cpu: .*'reference'"
    with pytest.raises(UsageError, match=refusal):
        op.encode(scattered(10), weights, biases, backend="cpu")
    with pytest.raises(UsageError, match=r"not torch\.float32 on meta"):
        backends.resolve_for("cpu", weights[0].float().to("meta"))


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_a_backend_that_is_not_there_raises_by_name_and_is_passed_over_otherwise(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(cpu, "_C", None)
    monkeypatch.setattr(cpu, "MISSING", "no kernels", raising=False)
    if name == "auto":
        assert backends.resolve_for(name, torch.zeros(1)).name == "reference"
        return
    with pytest.raises(MissingExtra, match="backend 'cpu' cannot run here: no kernels"):
        backends.resolve_for(name, torch.zeros(1))


def test_the_size_of_what_is_saved_is_the_kernels_own() -> None:
    for count in (0, 1, 47, 48, 49, 500):
        for widths in ([1], [8, 9], [512, 512, 37]):
            assert cpu.Cpu().saved_shape(count, widths) == (_C.train_saved(count, widths),)


class Asked(TorchDispatchMode):
    """Counts how often a tensor is asked for a value: on a GPU, a wait."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.triton
def test_a_device_is_asked_for_a_value_once_forwards_and_never_back() -> None:
    weights, biases = network(3, (6, 5), torch.float32)
    lonlat, layers, dropout = scattered(9), Network(weights, biases), Dropout(0.5, 3)
    backend = triton.Triton()
    with Asked() as asked:
        encode_op.check_values(lonlat, 0.5)
    assert asked.times == 1
    with Asked() as asked:
        out, saved = backend.forward(lonlat, layers, dropout, "exact")
        backend.backward(out, lonlat, layers, saved, dropout, "exact", True)
    assert asked.times == 0


def test_what_does_not_fit_is_told_by_layer_and_row() -> None:
    weights, biases = network(3, (6, 5, 4))
    points = scattered(4)
    with pytest.raises(UsageError, match=r"layer 1: expected weight \(rows, 6\).*got \(5, 7\) and \(5,\)"):
        op.encode(points, [weights[0], torch.zeros(5, 7).double(), weights[2]], biases)
    with pytest.raises(UsageError, match=r"layer 0: expected weight \(rows, L²\), got \(6, 8\)"):
        op.encode(points, [weights[0][:, :8], *weights[1:]], biases)
    with pytest.raises(UsageError, match=r"layer 2: .*got \(4, 5\) and \(3,\)"):
        op.encode(points, weights, [*biases[:2], biases[2][:3]])
    with pytest.raises(UsageError, match="as many weights as biases, got 3 and 2"):
        op.encode(points, weights, biases[:2])
    with pytest.raises(UsageError, match="at least one hidden layer"):
        op.encode(points, weights[:1], biases[:1])
    with pytest.raises(UsageError, match=r"lonlat must have shape \(N, 2\).*not \(4, 3\)"):
        op.encode(torch.zeros(4, 3), weights, biases)
    with pytest.raises(UsageError, match=r"^row 2: latitude 90\.5 is outside \[-90, 90\]"):
        op.encode(torch.tensor([[0.0, 0.0], [0.0, math.nan], [100.0, 90.5]]), weights, biases)
    for dropout in (-0.1, 1.0):
        with pytest.raises(UsageError, match="dropout must be at least 0 and below 1"):
            op.encode(points, trained(*weights), biases, dropout=dropout)
    with pytest.raises(TypeError, match="real numbers"):
        op.encode(points.to(torch.complex64), weights, biases)
    with pytest.raises(TypeError, match="lonlat must be float64"):
        torch.ops.satclip_engine.encode(points.float(), weights, biases, 0.0, 0, "auto", "exact")
    mixed = [weights[0], weights[1].float(), weights[2]]
    with pytest.raises(TypeError, match=r"layer 1: .*torch\.float32 beside torch\.float64"):
        torch.ops.satclip_engine.encode(points, mixed, biases, 0.0, 0, "auto", "exact")
    with pytest.raises(UsageError, match="unknown backend 'gpu': choose from auto, triton, cpu, reference"):
        op.encode(points, weights, biases, backend="gpu")
    with pytest.raises(UsageError, match=r"'cpu' takes torch\.float32 on cpu, not torch\.float64"):
        torch.ops.satclip_engine.encode(points, weights, biases, 0.0, 0, "cpu", "exact")


def test_a_wrong_dropout_is_refused_even_when_nothing_is_trained() -> None:
    weights, biases = network(3, (6, 4))
    with pytest.raises(UsageError, match="dropout"):
        op.encode(scattered(2), weights, biases, dropout=-1.0)


def test_no_dropout_makes_a_number_of_a_point_that_is_none() -> None:
    weights, biases = network(2, (1, 3), torch.float32)
    nowhere = torch.full((200, 2), torch.nan, dtype=torch.float64)
    for backend in ("cpu", "reference"):
        out = op.encode(nowhere, weights, biases, dropout=0.9, seed=3, backend=backend)
        assert torch.isnan(out).all(), backend


def test_backward_drops_what_forward_dropped_however_small_its_share() -> None:
    # 1/(1 − p) is 1 in float32 here, and of nine thousand points one unit of one is dropped.
    weights, biases = network(1, (338, 1), torch.float32)
    for tensor in (*weights, *biases):
        tensor.requires_grad_()
    out = op.encode(scattered(8593), weights, biases, dropout=5e-8, seed=0, backend="cpu")
    out[8592].sum().backward()
    assert biases[0].grad[337] == 0
    assert (biases[0].grad != 0).sum() == 337


def test_a_negative_seed_is_refused_by_every_backend() -> None:
    weights, biases = network(2, (4, 3), torch.float32)
    for backend in ("cpu", "reference"):
        with pytest.raises(UsageError, match="seed must be from 0"):
            op.encode(scattered(3), weights, biases, dropout=0.5, seed=-1, backend=backend)


def test_a_backward_pass_inside_autocast_is_not_narrowed() -> None:
    weights, biases = network(4, (16, 8), torch.float32)
    cotangent = torch.randn(20, 8)
    result = []
    for narrowing in (False, True):
        operands = [tensor.clone().requires_grad_() for tensor in weights]
        out = op.encode(scattered(20), operands, biases, backend="reference")
        with torch.autocast("cpu", torch.bfloat16, enabled=narrowing):
            out.backward(cotangent)
        result.append([tensor.grad for tensor in operands])
    for plain, inside in zip(*result, strict=True):
        assert torch.equal(plain, inside)

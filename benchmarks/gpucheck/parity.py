"""Parity of every backend with the float64 reference: values, gradients, codes, repeatability.

Errors are the largest difference divided by the rms of the expected values, gradients of "fast" the rms of
the difference. Bounds are the promises of docs/kernels.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpucheck.rows import Check, Note, Rows
from gpucheck.speed.plain import tensors
from satclip_engine import backends, reference
from satclip_engine.bench.inputs import LOGIT_SCALE, scattered, siren
from satclip_engine.device import CPU, Device, parse_device
from satclip_engine.reference import contrastive, gradients
from satclip_engine.weights import Layers

VALUES = {"exact": 2e-5, "fast": 5e-3}
GRADIENTS = {"exact": 2e-5, "fast": 2e-2}
HARMONICS = 1e-11
LOSS = 3e-5
MAX_CODE_STEPS = 1  # between a code and that of the exact value, where rounding falls between them


@dataclass(frozen=True)
class Sizes:
    """Numbers of compared values; (L, widths) of networks."""

    points: int
    batch: int
    pairs: tuple[tuple[int, int, int], ...]  # rows of a, rows of b, elements
    rows: int
    columns: int
    networks: tuple[tuple[int, tuple[int, ...]], ...]


FULL = Sizes(
    points=4099,
    batch=2053,
    pairs=((2048, 2048, 256), (777, 2049, 96), (300, 700, 640)),
    rows=9,
    columns=721,
    networks=((40, (512, 512, 256)), (10, (512, 512, 256)), (7, (50, 30, 20, 17)), (100, (128, 64))),
)
DRY = Sizes(
    points=23,
    batch=21,
    pairs=((20, 20, 12), (11, 19, 300)),
    rows=3,
    columns=13,
    networks=((4, (20, 16, 9)), (1, (9, 7))),
)


def run(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """Compare everything; each comparison goes on when another one raises."""
    _harmonics(rows, device, sizes)
    for degrees, widths in sizes.networks:
        layers = siren(degrees, widths)
        for backend in backends.TABLE:
            _backend(rows, device, sizes, backend, layers)
        for precision in VALUES:
            name = f"triton {precision} L={degrees} {'–'.join(map(str, widths))}"
            for op in (_training, _grid):
                rows.attempt(name, _all, rows, name, op(layers, device, sizes, precision), precision)
    for count, columns, width in sizes.pairs:
        for precision in VALUES:
            name = f"loss {precision} {count}×{columns}, E={width}"
            rows.attempt(name, _loss, rows, name, (count, columns, width), device, precision)


@dataclass(frozen=True)
class Compared:
    """An output by its name, and the expected one."""

    name: str
    value: Any
    expected: Any
    gradient: bool = False


def _all(rows: Rows, name: str, pairs: Iterator[Compared], precision: str) -> None:
    for pair in pairs:
        if pair.gradient:
            measure = relative if precision == "exact" else relative_rms
            bound = GRADIENTS[precision]
        else:
            measure, bound = relative, VALUES[precision]
        rows.add(Check(f"{name}: {pair.name}", measure(pair.value, pair.expected), bound))


def relative(value: Any, expected: Any) -> float:
    """max |Δ| / rms."""
    difference, size = _difference(value, expected)
    return float(difference.abs().max() / size)


def relative_rms(value: Any, expected: Any) -> float:
    """rms of Δ / rms."""
    difference, size = _difference(value, expected)
    return float(difference.square().mean().sqrt() / size)


def _difference(value: Any, expected: Any) -> tuple[Tensor, Tensor]:
    a, b = (torch.as_tensor(values).double().cpu() for values in (value, expected))
    assert a.shape == b.shape, f"shape {tuple(a.shape)}, expected {tuple(b.shape)}"
    return a - b, b.square().mean().sqrt()


def _harmonics(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    from satclip_engine.kernels.harmonics import harmonics

    for degrees, _ in sizes.networks:
        lonlat = _points(sizes.points)
        values = rows.attempt(
            f"harmonics L={degrees}",
            lambda p=lonlat, d=degrees: harmonics(torch.from_numpy(p).to(device), d).cpu(),
        )
        if values is not None:
            error = float(np.abs(values.numpy() - reference.harmonics(lonlat, degrees)).max())
            rows.add(Check(f"triton harmonics L={degrees}", error, HARMONICS))


def _points(count: int) -> np.ndarray:
    """Scattered points, the poles and the date line among them."""
    lonlat = scattered(count)
    lonlat[:4] = [(0, 90), (33, -90), (180, 12), (-180, 12)]
    return lonlat


def _axes(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes with mirror images, ragged."""
    return np.linspace(90, -80, sizes.rows), np.linspace(-180, 170, sizes.columns)


def _backend(rows: Rows, device: torch.device, sizes: Sizes, backend: Any, layers: Layers) -> None:
    """Compare points and grid of a row of the table, through arrays of the host."""
    name = f"backend {backend.name} L={layers.degrees} {'–'.join(str(len(w)) for w in layers.weights)}"
    if backend.name == "reference":
        return
    own_device = CPU if backend.name == "cpu" else parse_device(device)
    if (reason := backend.missing() or backend.unfit(own_device)) is not None:
        # Where there is a GPU, every backend must run.
        rows.add(Note(name, f"not compared: {reason}", ok=device.type == "cpu"))
        return
    for precision in ("exact", "fast") if backend.name != "cpu" else ("exact",):
        prepared = rows.attempt(name, _prepared, backend, layers, own_device, precision)
        if prepared is None:
            return
        lonlat, (lat, lon) = _points(sizes.points), _axes(sizes)
        if backend.grids_only is None:
            values = rows.attempt(f"{name} points", prepared.encode, lonlat)
            expected = reference.encode(lonlat, layers)
            if values is not None:
                rows.add(Check(f"{name} points {precision}", relative(values, expected), VALUES[precision]))
        values = rows.attempt(f"{name} grid", prepared.encode_grid, lat, lon)
        if values is not None:
            error = relative(values, reference.encode_grid(lat, lon, layers))
            rows.add(Check(f"{name} grid {precision}", error, VALUES[precision]))


def _prepared(backend: Any, layers: Layers, device: Device, precision: str) -> Any:
    return backend.prepare(layers, device=device, precision=precision)


def _training(layers: Layers, device: torch.device, sizes: Sizes, precision: str) -> Iterator[Compared]:
    """Outputs of the encoder with dropout, and its gradients."""
    from satclip_engine.kernels import encode

    lonlat, seed, dropout = torch.from_numpy(_points(sizes.batch)).to(device), (5 << 40) + 77, 0.3
    weights, biases = tensors(layers, device)
    wide = tensors(layers, torch.device("cpu"), torch.float64)
    options = {"dropout": dropout, "precision": precision}
    expected = gradients.encode_forward(lonlat.cpu(), *wide, dropout, seed)
    embedding, pre_activations = encode.forward(lonlat, weights, biases, seed=seed, **options)[:2]
    yield Compared("embedding", embedding, expected[0])
    yield Compared("pre-activations", pre_activations, expected[1])
    grad = torch.from_numpy(np.random.default_rng(2).standard_normal(expected[0].shape)).float()
    # The gradient of what the kernel's own forward pass kept: errors are those of the backward pass.
    own = pre_activations.cpu().double()
    d_expected = gradients.encode_backward(grad.double(), lonlat.cpu(), *wide, own, dropout, seed)
    for deterministic in (True, False):
        _, d_weights, d_biases = encode.backward(
            grad.to(device), lonlat, weights, biases, pre_activations, deterministic=deterministic, **options
        )
        suffix = "" if deterministic else ", atomic"
        for layer, (a, b) in enumerate(zip(d_weights, d_expected[1], strict=True)):
            yield Compared(f"∂weight {layer}{suffix}", a, b, gradient=True)
        for layer, (a, b) in enumerate(zip(d_biases, d_expected[2], strict=True)):
            yield Compared(f"∂bias {layer}{suffix}", a, b, gradient=True)


def _grid(layers: Layers, device: torch.device, sizes: Sizes, precision: str) -> Iterator[Compared]:
    """A grid in float32, and in codes, which differ from the exact ones by a step at most."""
    from satclip_engine.kernels import grid
    from satclip_engine.kernels.device_functions.quantise import DeviceQuantise

    lat, lon = _axes(sizes)
    exact = torch.from_numpy(reference.encode_grid(lat, lon, layers))
    network = grid.prepare(layers.degrees, *tensors(layers, device), precision)
    axes = torch.from_numpy(lat).to(device), torch.from_numpy(lon).to(device)
    yield Compared("grid", grid.encode_grid(network, *axes), exact)
    for dtype, largest in (("int8", 127), ("int16", 32767)):
        offset = exact.mean((0, 1))
        step = (exact - offset).abs().amax((0, 1)).clamp(min=1e-9) / largest  # of L = 1 a constant field
        quantise = DeviceQuantise(dtype, (1 / step).float().to(device), offset.float().to(device))
        codes = grid.encode_grid(network, *axes, quantise=quantise).cpu().double()
        # In steps of int16 the error of a value counts as well as rounding, hence values are compared.
        yield Compared(f"grid as {dtype}", codes * step + offset, _rounded(exact, step, offset, codes))


def _rounded(exact: Tensor, step: Tensor, offset: Tensor, codes: Tensor) -> Tensor:
    """The exact values, moved to their code where that is a neighbour of the value."""
    steps = (exact - offset) / step
    return torch.where((steps - codes).abs() <= 0.5 + MAX_CODE_STEPS / 2, codes, steps) * step + offset


def _loss(rows: Rows, name: str, size: tuple[int, int, int], device: torch.device, precision: str) -> None:
    from satclip_engine.kernels import loss

    rng, (count, columns, width) = np.random.default_rng(0), size
    a, b = (
        torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((n, width))).float())
        for n in (count, columns)
    )
    scale, factor, offset = torch.tensor(LOGIT_SCALE), torch.tensor(0.5 / columns), (columns - count) // 2
    wide = [tensor.double() for tensor in (a, b, scale)]
    expected = contrastive.log_sum_exps(*wide, offset)
    inputs = [tensor.to(device) for tensor in (a, b, scale)]
    names = ("row sums", "column sums", "partners")
    _compare(rows, name, names, loss.log_sum_exps(*inputs, offset), expected, LOSS)
    sums = [tensor.float().to(device) for tensor in expected[:2]]
    values = loss.gradients(*inputs, *sums, offset, factor.to(device), precision)
    expected = contrastive.gradients(*wide, expected[0], expected[1], offset, factor.double())
    bound = LOSS if precision == "exact" else VALUES[precision]
    _compare(rows, name, ("∂a", "∂b", "∂scale"), values, expected, bound)


def _compare(
    rows: Rows,
    name: str,
    outputs: Sequence[str],
    values: Sequence[Any],
    expected: Sequence[Any],
    bound: float,
) -> None:
    for output, a, b in zip(outputs, values, expected, strict=True):
        rows.add(Check(f"{name}: {output}", relative(a, b), bound))


def repeatable(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """Check that bits are the same again, and for a point in another batch."""
    from satclip_engine.kernels import encode

    layers = siren(*sizes.networks[0])
    weights, biases = tensors(layers, device)
    lonlat = torch.from_numpy(_points(sizes.batch)).to(device)
    with_nan = lonlat.clone()
    with_nan[1, 0] = torch.nan

    def embed(points: Tensor) -> Tensor:
        return encode.forward(points, weights, biases, keep=False)[0].cpu()

    def same(name: str, a: Callable[[], Tensor], b: Callable[[], Tensor]) -> None:
        differing = rows.attempt(name, lambda: float((a() != b()).double().mean()))
        if differing is not None:
            rows.add(Check(name, differing, 0.0))

    same("the same bits again", lambda: embed(lonlat), lambda: embed(lonlat))
    same("a point has the same bits in another batch", lambda: embed(lonlat[5:]), lambda: embed(lonlat)[5:])
    numbers = rows.attempt("NaN", lambda: torch.isnan(embed(with_nan)).all(1).nonzero().flatten().tolist())
    if numbers is not None:
        rows.add(Check("only a point that is not finite gives NaN", float(numbers != [1]), 0.0))

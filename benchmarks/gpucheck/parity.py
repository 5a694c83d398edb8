"""Every backend against the float64 reference: values, gradients, codes, repeatability.

Errors are the largest difference divided by the rms of what is right, gradients of "fast" the rms of the
difference. Bounds are the promises of docs/kernels.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpucheck.rows import Check, Note, Rows
from satclip_engine import backends, reference
from satclip_engine.bench.workload import scattered, siren
from satclip_engine.device import CPU, Device, parse_device
from satclip_engine.reference import contrastive, gradients
from satclip_engine.weights import Layers

VALUES = {"exact": 2e-5, "fast": 5e-3}
GRADIENTS = {"exact": 2e-5, "fast": 2e-2}
HARMONICS = 1e-11
LOSS = 3e-5
CODES = 1  # steps between a code and that of the exact value, where rounding falls between them


@dataclass(frozen=True)
class Sizes:
    """How much is compared; (L, widths) of networks."""

    places: int
    batch: int
    pairs: tuple[tuple[int, int, int], ...]  # rows of a, rows of b, elements
    rows: int
    columns: int
    networks: tuple[tuple[int, tuple[int, ...]], ...]


FULL = Sizes(
    places=4099,
    batch=2053,
    pairs=((2048, 2048, 256), (777, 2049, 96), (300, 700, 640)),
    rows=9,
    columns=721,
    networks=((40, (512, 512, 256)), (10, (512, 512, 256)), (7, (50, 30, 20, 17)), (100, (128, 64))),
)
DRY = Sizes(
    places=23,
    batch=21,
    pairs=((20, 20, 12), (11, 19, 300)),
    rows=3,
    columns=13,
    networks=((4, (20, 16, 9)), (1, (9, 7))),
)


def run(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """All comparisons; each goes on when another one raises."""
    _harmonics(rows, device, sizes)
    for degrees, widths in sizes.networks:
        layers = siren(degrees, widths)
        for backend in backends.TABLE:
            _backend(rows, device, sizes, backend, layers)
        for precision in VALUES:
            name = f"triton {precision} L={degrees} {'–'.join(map(str, widths))}"
            for part in (_training, _grid):
                rows.attempt(name, _all, rows, name, part(layers, device, sizes, precision), precision)
    for count, columns, width in sizes.pairs:
        for precision in VALUES:
            name = f"loss {precision} {count}×{columns}, E={width}"
            rows.attempt(name, _loss, rows, name, (count, columns, width), device, precision)


@dataclass(frozen=True)
class Compared:
    """Something by its name, as found and as right."""

    name: str
    found: Any
    expected: Any
    gradient: bool = False


def _all(rows: Rows, name: str, pairs: Iterator[Compared], precision: str) -> None:
    for each in pairs:
        if each.gradient:
            measure = relative if precision == "exact" else relative_rms
            bound = GRADIENTS[precision]
        else:
            measure, bound = relative, VALUES[precision]
        rows.add(Check(f"{name}: {each.name}", measure(each.found, each.expected), bound))


def relative(found: Any, expected: Any) -> float:
    """max |Δ| / rms."""
    difference, size = _difference(found, expected)
    return float(difference.abs().max() / size)


def relative_rms(found: Any, expected: Any) -> float:
    """rms of Δ / rms."""
    difference, size = _difference(found, expected)
    return float(difference.square().mean().sqrt() / size)


def _difference(found: Any, expected: Any) -> tuple[Tensor, Tensor]:
    a, b = (torch.as_tensor(value).double().cpu() for value in (found, expected))
    assert a.shape == b.shape, f"shape {tuple(a.shape)}, expected {tuple(b.shape)}"
    return a - b, b.square().mean().sqrt()


def _harmonics(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    from satclip_engine.kernels.harmonics import harmonics

    for degrees, _ in sizes.networks:
        places = _places(sizes.places)
        found = rows.attempt(
            f"harmonics L={degrees}",
            lambda p=places, d=degrees: harmonics(torch.from_numpy(p).to(device), d).cpu(),
        )
        if found is not None:
            error = float(np.abs(found.numpy() - reference.harmonics(places, degrees)).max())
            rows.add(Check(f"triton harmonics L={degrees}", error, HARMONICS))


def _places(count: int) -> np.ndarray:
    """Scattered ones, the poles and the date line among them."""
    places = scattered(count)
    places[:4] = [(0, 90), (33, -90), (180, 12), (-180, 12)]
    return places


def _axes(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes with mirror images, ragged."""
    return np.linspace(90, -80, sizes.rows), np.linspace(-180, 170, sizes.columns)


def _backend(rows: Rows, device: torch.device, sizes: Sizes, backend: Any, layers: Layers) -> None:
    """Points and grid of a row of the table, through arrays of the host."""
    name = f"backend {backend.name} L={layers.degrees} {'–'.join(str(len(w)) for w in layers.weights)}"
    if backend.name == "reference":
        return
    chosen = CPU if backend.name == "cpu" else parse_device(device)
    if (reason := backend.missing() or backend.unfit(chosen)) is not None:
        # Where there is a GPU, every backend must run.
        rows.add(Note(name, f"not compared: {reason}", ok=device.type == "cpu"))
        return
    for precision in ("exact", "fast") if backend.name != "cpu" else ("exact",):
        prepared = rows.attempt(name, _prepared, backend, layers, chosen, precision)
        if prepared is None:
            return
        places, (lat, lon) = _places(sizes.places), _axes(sizes)
        if backend.grids_only is None:
            found = rows.attempt(f"{name} points", prepared.encode, places)
            expected = reference.encode(places, layers)
            if found is not None:
                rows.add(Check(f"{name} points {precision}", relative(found, expected), VALUES[precision]))
        found = rows.attempt(f"{name} grid", prepared.encode_grid, lat, lon)
        if found is not None:
            error = relative(found, reference.encode_grid(lat, lon, layers))
            rows.add(Check(f"{name} grid {precision}", error, VALUES[precision]))


def _prepared(backend: Any, layers: Layers, device: Device, precision: str) -> Any:
    return backend.prepare(layers, device=device, precision=precision)


def _tensors(layers: Layers, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    weights = [torch.tensor(weight, dtype=dtype, device=device) for weight in layers.weights]
    return weights, [torch.tensor(bias, dtype=dtype, device=device) for bias in layers.biases]


def _training(layers: Layers, device: torch.device, sizes: Sizes, precision: str) -> Iterator[Compared]:
    """The encoder with dropout and its gradients."""
    from satclip_engine.kernels import encode

    lonlat, seed, dropout = torch.from_numpy(_places(sizes.batch)).to(device), (5 << 40) + 77, 0.3
    weights, biases = _tensors(layers, device, torch.float32)
    wide = _tensors(layers, torch.device("cpu"), torch.float64)
    given = {"dropout": dropout, "precision": precision}
    expected = gradients.encode_forward(lonlat.cpu(), *wide, dropout, seed)
    found = encode.forward(lonlat, weights, biases, seed=seed, **given)
    yield Compared("embedding", found[0], expected[0])
    yield Compared("pre-activations", found[1], expected[1])
    grad = torch.from_numpy(np.random.default_rng(2).standard_normal(expected[0].shape)).float()
    # The gradient of what the kernel's own forward pass kept: errors are those of the backward pass.
    kept = found[1].cpu().double()
    d_expected = gradients.encode_backward(grad.double(), lonlat.cpu(), *wide, kept, dropout, seed)
    for deterministic in (True, False):
        _, d_weights, d_biases = encode.backward(
            grad.to(device), lonlat, weights, biases, found[1], deterministic=deterministic, **given
        )
        how = "" if deterministic else ", atomic"
        for layer, (one, other) in enumerate(zip(d_weights, d_expected[1], strict=True)):
            yield Compared(f"∂weight {layer}{how}", one, other, gradient=True)
        for layer, (one, other) in enumerate(zip(d_biases, d_expected[2], strict=True)):
            yield Compared(f"∂bias {layer}{how}", one, other, gradient=True)


def _grid(layers: Layers, device: torch.device, sizes: Sizes, precision: str) -> Iterator[Compared]:
    """A grid in float32, and in codes: the exact codes and those found differ by a step at most."""
    from satclip_engine.kernels import grid
    from satclip_engine.kernels.store import Quantise

    lat, lon = _axes(sizes)
    exact = torch.from_numpy(reference.encode_grid(lat, lon, layers))
    network = grid.prepare(layers.degrees, *_tensors(layers, device, torch.float32), precision)
    axes = torch.from_numpy(lat).to(device), torch.from_numpy(lon).to(device)
    yield Compared("grid", grid.encode_grid(network, *axes), exact)
    for dtype, largest in (("int8", 127), ("int16", 32767)):
        offset = exact.mean((0, 1))
        step = (exact - offset).abs().amax((0, 1)).clamp(min=1e-9) / largest  # of L = 1 a constant field
        quantise = Quantise(dtype, (1 / step).float().to(device), offset.float().to(device))
        codes = grid.encode_grid(network, *axes, quantise=quantise).cpu().double()
        # In steps of int16 the error of a value counts as well as rounding, hence values are compared.
        yield Compared(f"grid as {dtype}", codes * step + offset, _rounded(exact, step, offset, codes))


def _rounded(exact: Tensor, step: Tensor, offset: Tensor, codes: Tensor) -> Tensor:
    """The exact values, moved to the code found where that is a neighbour of the value."""
    place = (exact - offset) / step
    return torch.where((place - codes).abs() <= 0.5 + CODES / 2, codes, place) * step + offset


def _loss(rows: Rows, name: str, size: tuple[int, int, int], device: torch.device, precision: str) -> None:
    from satclip_engine.kernels import loss

    rng, (count, columns, width) = np.random.default_rng(0), size
    a, b = (
        torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((n, width))).float())
        for n in (count, columns)
    )
    scale, factor, offset = torch.tensor(14.3), torch.tensor(0.5 / columns), (columns - count) // 2
    right = contrastive.log_sum_exps(a.double(), b.double(), scale.double(), offset)
    on = [tensor.to(device) for tensor in (a, b, scale)]
    found = loss.log_sum_exps(*on, offset)
    names = ("row sums", "column sums", "partners")
    _compare(rows, name, names, found, right, LOSS)
    right_gradients = contrastive.gradients(
        a.double(), b.double(), scale.double(), right[0], right[1], offset, factor.double()
    )
    found = loss.gradients(
        *on, *(r.float().to(device) for r in right[:2]), offset, factor.to(device), precision
    )
    bound = LOSS if precision == "exact" else VALUES[precision]
    _compare(rows, name, ("∂a", "∂b", "∂scale"), found, right_gradients, bound)


def _compare(
    rows: Rows, name: str, names: Sequence[str], found: Sequence[Any], right: Sequence[Any], bound: float
) -> None:
    for what, one, other in zip(names, found, right, strict=True):
        rows.add(Check(f"{name}: {what}", relative(one, other), bound))


def repeatable(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """The same bits again, and for a place in another batch."""
    from satclip_engine.kernels import encode

    layers = siren(*sizes.networks[0])
    weights, biases = _tensors(layers, device, torch.float32)
    lonlat = torch.from_numpy(_places(sizes.batch)).to(device)
    nowhere = lonlat.clone()
    nowhere[1, 0] = torch.nan

    def embed(places: Tensor) -> Tensor:
        return encode.forward(places, weights, biases, keep=False)[0].cpu()

    def same(name: str, one: Callable[[], Tensor], other: Callable[[], Tensor]) -> None:
        differing = rows.attempt(name, lambda: float((one() != other()).double().mean()))
        if differing is not None:
            rows.add(Check(name, differing, 0.0))

    same("the same bits again", lambda: embed(lonlat), lambda: embed(lonlat))
    same("a place has the same bits in another batch", lambda: embed(lonlat[5:]), lambda: embed(lonlat)[5:])
    found = rows.attempt("NaN", lambda: torch.isnan(embed(nowhere)).all(1).nonzero().flatten().tolist())
    if found is not None:
        rows.add(Check("only a place that is not finite gives NaN", float(found != [1]), 0.0))

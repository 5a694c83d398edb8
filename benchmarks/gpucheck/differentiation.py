"""Gradients through the operators, as autograd sees them: against float64, and by finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpucheck.parity import GRADIENTS, LOSS, Sizes, relative, relative_rms
from gpucheck.rows import Check, Note, Rows
from satclip_engine import backends
from satclip_engine.bench.workload import scattered, siren
from satclip_engine.contrast import contrastive_loss
from satclip_engine.op import encode


def run(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """The encoder and the loss."""
    for precision in GRADIENTS:
        rows.attempt(f"encode {precision}", _encoder, rows, device, sizes, precision)
    rows.attempt("contrastive loss", _contrast, rows, device, sizes)
    rows.attempt("finite differences", _finite_differences, rows)


def _encoder(rows: Rows, device: torch.device, sizes: Sizes, precision: str) -> None:
    layers = siren(*sizes.networks[0])
    lonlat = torch.from_numpy(scattered(sizes.batch))

    def gradients(backend: str, place: torch.device, dtype: torch.dtype) -> list[Any]:
        given = [torch.tensor(v, dtype=dtype, device=place) for v in (*layers.weights, *layers.biases)]
        given = [tensor.requires_grad_() for tensor in given]
        count = len(layers.weights)
        places = lonlat.to(place, copy=True).requires_grad_()
        out = encode(
            places, given[:count], given[count:], dropout=0.25, seed=3, backend=backend, precision=precision
        )
        weight = torch.linspace(-1, 1, out.numel(), dtype=dtype, device=place).view_as(out)
        return list(torch.autograd.grad((out * weight).sum() / len(places), [places, *given]))

    right = gradients("reference", torch.device("cpu"), torch.float64)
    names = ["places"] + [f"{kind} {i}" for kind in ("weight", "bias") for i in range(len(layers.weights))]
    measure = relative if precision == "exact" else relative_rms
    for backend, place in _places(rows, device):
        if backend == "cpu" and precision == "fast":
            continue
        found = gradients(backend, place, torch.float32)
        for name, one, other in zip(names, found, right, strict=True):
            rows.add(
                Check(f"autograd {backend} {precision}: ∂{name}", measure(one, other), GRADIENTS[precision])
            )


def _contrast(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    generator = torch.Generator().manual_seed(1)
    pairs = [torch.randn(sizes.batch, 64, generator=generator) for _ in range(2)]
    pairs = [torch.nn.functional.normalize(rows) for rows in pairs]

    def gradients(backend: str, place: torch.device, dtype: torch.dtype) -> list[Any]:
        given = [
            tensor.to(place, dtype, copy=True).requires_grad_() for tensor in (*pairs, torch.tensor(14.3))
        ]
        value = contrastive_loss(*given, backend=backend)
        return [value.detach(), *torch.autograd.grad(value, given)]

    right = gradients("reference", torch.device("cpu"), torch.float64)
    for backend, place in _places(rows, device):
        found = gradients(backend, place, torch.float32)
        for name, one, other in zip(("loss", "∂a", "∂b", "∂scale"), found, right, strict=True):
            rows.add(Check(f"contrastive loss {backend}: {name}", relative(one, other), LOSS))


def _places(rows: Rows, device: torch.device) -> list[tuple[str, torch.device]]:
    """Backends with gradients that run here, each with its device."""
    found = []
    for row in backends.TRAINING:
        if row.name == "reference":
            continue
        if (missing := row.operators_missing()) is not None:
            rows.add(Note(f"autograd {row.name}", f"not compared: {missing}", ok=False))
            continue
        found.append((row.name, torch.device("cpu") if row.name == "cpu" else device))
    return found


def _finite_differences(rows: Rows) -> None:
    """The definitions themselves, by torch's gradcheck; it raises when they are wrong."""
    layers = siren(3, (5, 4, 3))
    count = len(layers.weights)
    given = [torch.tensor(value, requires_grad=True) for value in (*layers.weights, *layers.biases)]
    places = torch.tensor(
        [(10.0, 50.0), (-170.0, -33.0), (0.5, 89.0)], dtype=torch.float64, requires_grad=True
    )

    def embed(places: Any, *values: Any) -> Any:
        return encode(places, values[:count], values[count:], dropout=0.25, seed=3, backend="reference")

    _gradcheck(rows, "encode", embed, (places, *given))
    pairs = [torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    _gradcheck(
        rows, "contrastive loss", lambda *v: contrastive_loss(*v, backend="reference"), (*pairs, scale)
    )


def _gradcheck(rows: Rows, name: str, function: Callable[..., Any], given: tuple[Any, ...]) -> None:
    torch.autograd.gradcheck(function, given)
    rows.add(Note(f"gradcheck {name}", "the reference's gradients are those of finite differences"))

"""Gradients through the operators, as autograd sees them: against float64, and by finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpucheck.parity import GRADIENTS, LOSS, Sizes, relative, relative_rms
from gpucheck.rows import Check, Note, Rows
from satclip_engine import backends
from satclip_engine.bench.inputs import LOGIT_SCALE, scattered, siren
from satclip_engine.contrast import contrastive_loss
from satclip_engine.op import encode


def run(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """Check the encoder and the loss."""
    for precision in GRADIENTS:
        rows.attempt(f"encode {precision}", _encoder, rows, device, sizes, precision)
    rows.attempt("contrastive loss", _contrast, rows, device, sizes)
    rows.attempt("finite differences", _finite_differences, rows)


def _encoder(rows: Rows, device: torch.device, sizes: Sizes, precision: str) -> None:
    layers = siren(*sizes.networks[0])
    lonlat = torch.from_numpy(scattered(sizes.batch))

    def gradients(backend: str, on: torch.device, dtype: torch.dtype) -> list[Any]:
        values = (*layers.weights, *layers.biases)
        parameters = [torch.tensor(v, dtype=dtype, device=on, requires_grad=True) for v in values]
        count = len(layers.weights)
        points = lonlat.to(on, copy=True).requires_grad_()
        options: dict[str, Any] = {"dropout": 0.25, "seed": 3, "backend": backend, "precision": precision}
        out = encode(points, parameters[:count], parameters[count:], **options)
        weight = torch.linspace(-1, 1, out.numel(), dtype=dtype, device=on).view_as(out)
        return list(torch.autograd.grad((out * weight).sum() / len(points), [points, *parameters]))

    expected = gradients("reference", torch.device("cpu"), torch.float64)
    names = ["points"] + [f"{kind} {i}" for kind in ("weight", "bias") for i in range(len(layers.weights))]
    measure = relative if precision == "exact" else relative_rms
    for backend, on in _devices(rows, device):
        if backend == "cpu" and precision == "fast":
            continue
        for name, a, b in zip(names, gradients(backend, on, torch.float32), expected, strict=True):
            label = f"autograd {backend} {precision}: ∂{name}"
            rows.add(Check(label, measure(a, b), GRADIENTS[precision]))


def _contrast(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    generator = torch.Generator().manual_seed(1)
    pairs = [torch.randn(sizes.batch, 64, generator=generator) for _ in range(2)]
    pairs = [torch.nn.functional.normalize(rows) for rows in pairs]

    def gradients(backend: str, on: torch.device, dtype: torch.dtype) -> list[Any]:
        values = (*pairs, torch.tensor(LOGIT_SCALE))
        inputs = [tensor.to(on, dtype, copy=True).requires_grad_() for tensor in values]
        value = contrastive_loss(*inputs, backend=backend)
        return [value.detach(), *torch.autograd.grad(value, inputs)]

    expected = gradients("reference", torch.device("cpu"), torch.float64)
    names = ("loss", "∂a", "∂b", "∂scale")
    for backend, on in _devices(rows, device):
        for name, a, b in zip(names, gradients(backend, on, torch.float32), expected, strict=True):
            rows.add(Check(f"contrastive loss {backend}: {name}", relative(a, b), LOSS))


def _devices(rows: Rows, device: torch.device) -> list[tuple[str, torch.device]]:
    """Backends with gradients that run here, each with its device."""
    devices = []
    for row in backends.TRAINING:
        if row.name == "reference":
            continue
        if (missing := row.operators_missing()) is not None:
            rows.add(Note(f"autograd {row.name}", f"not compared: {missing}", ok=False))
            continue
        devices.append((row.name, torch.device("cpu") if row.name == "cpu" else device))
    return devices


def _finite_differences(rows: Rows) -> None:
    """Check the definitions themselves by torch's gradcheck, which raises when they are wrong."""
    layers = siren(3, (5, 4, 3))
    count = len(layers.weights)
    parameters = [torch.tensor(value, requires_grad=True) for value in (*layers.weights, *layers.biases)]
    lonlat = torch.tensor(
        [(10.0, 50.0), (-170.0, -33.0), (0.5, 89.0)], dtype=torch.float64, requires_grad=True
    )

    def embed(lonlat: Any, *values: Any) -> Any:
        return encode(lonlat, values[:count], values[count:], dropout=0.25, seed=3, backend="reference")

    _gradcheck(rows, "encode", embed, (lonlat, *parameters))
    pairs = [torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    _gradcheck(
        rows, "contrastive loss", lambda *v: contrastive_loss(*v, backend="reference"), (*pairs, scale)
    )


def _gradcheck(rows: Rows, name: str, function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
    torch.autograd.gradcheck(function, inputs)
    rows.add(Note(f"gradcheck {name}", "the reference's gradients are those of finite differences"))

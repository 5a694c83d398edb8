"""The location encoder as PyTorch operators: schemas, shapes, gradients and autocast.

    satclip_engine::embed             embeddings without gradients
    satclip_engine::encode            embeddings, and what its gradient needs
    satclip_engine::encode_backward   the gradient

Backends are those of backends.TRAINING. Only the files of this folder register anything with torch.library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from satclip_engine import backends
from satclip_engine._optional import need
from satclip_engine.backends.protocols import Dropout, Network
from satclip_engine.errors import UsageError
from satclip_engine.geo.lonlat import check_points
from satclip_engine.ops.autograd import no_autocast

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = need("torch", extra="torch", why="encoding with tensors")


@torch.library.custom_op(
    "satclip_engine::embed",
    mutates_args=(),
    schema="(Tensor lonlat, Tensor[] weights, Tensor[] biases, str backend, str precision) -> Tensor",
)
def embed(
    lonlat: Tensor, weights: list[Tensor], biases: list[Tensor], backend: str, precision: str
) -> Tensor:
    check_operands(lonlat, weights, biases)
    check_values(lonlat, 0.0)
    with no_autocast(lonlat):
        implementation = backends.resolve_for(backend, weights[0])
        return implementation.embed(lonlat, Network(weights, biases), precision)


@embed.register_fake
def _(lonlat: Tensor, weights: list[Tensor], biases: list[Tensor], backend: str, precision: str) -> Tensor:
    check_operands(lonlat, weights, biases)
    return weights[0].new_empty(lonlat.shape[0], len(weights[-1]))


# `seed` is an int that may be a symbol, so that another one is no reason to compile again.
@torch.library.custom_op(
    "satclip_engine::encode",
    mutates_args=(),
    schema="(Tensor lonlat, Tensor[] weights, Tensor[] biases, float dropout, SymInt seed, str backend,"
    " str precision) -> (Tensor, Tensor)",
)
def encode(
    lonlat: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    dropout: float,
    seed: int,
    backend: str,
    precision: str,
) -> tuple[Tensor, Tensor]:
    check_operands(lonlat, weights, biases)
    check_values(lonlat, dropout)
    if seed < 0:
        raise UsageError(f"seed must be from 0 to 2⁶³ − 1, not {seed}", argument="seed")
    with no_autocast(lonlat):
        implementation = backends.resolve_for(backend, weights[0])
        return implementation.forward(lonlat, Network(weights, biases), Dropout(dropout, seed), precision)


@encode.register_fake
def _(
    lonlat: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    dropout: float,
    seed: int,
    backend: str,
    precision: str,
) -> tuple[Tensor, Tensor]:
    check_operands(lonlat, weights, biases)
    count, network = lonlat.shape[0], Network(weights, biases)
    saved = backends.resolve_for(backend, weights[0]).saved_shape(count, network.hidden_widths)
    return network.empty(count, len(weights[-1])), network.empty(*saved)


@torch.library.custom_op(
    "satclip_engine::encode_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor lonlat, Tensor[] weights, Tensor[] biases, Tensor saved, float dropout,"
    " SymInt seed, str backend, str precision, bool with_lonlat) -> Tensor[]",
)
def encode_backward(
    grad: Tensor,
    lonlat: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    saved: Tensor,
    dropout: float,
    seed: int,
    backend: str,
    precision: str,
    with_lonlat: bool,
) -> list[Tensor]:
    network = Network(weights, biases)
    with no_autocast(lonlat):
        d_lonlat, d_network = backends.resolve_for(backend, weights[0]).backward(
            grad, lonlat, network, saved, Dropout(dropout, seed), precision, with_lonlat
        )
    return [lonlat.new_empty(0) if d_lonlat is None else d_lonlat, *d_network.weights, *d_network.biases]


@encode_backward.register_fake
def _(
    grad: Tensor,
    lonlat: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    saved: Tensor,
    dropout: float,
    seed: int,
    backend: str,
    precision: str,
    with_lonlat: bool,
) -> list[Tensor]:
    like = [tensor.new_empty(tensor.shape) for tensor in (*weights, *biases)]
    return [lonlat.new_empty(lonlat.shape if with_lonlat else 0), *like]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    lonlat, weights, biases, *ctx.options = inputs
    saved = output[1]
    ctx.mark_non_differentiable(saved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(lonlat, saved, *weights, *biases)


def _differentiate(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    lonlat, saved, *parameters = ctx.saved_tensors
    layers, no_options = len(parameters) // 2, [None] * len(ctx.options)
    if grad is None:
        return None, [None] * layers, [None] * layers, *no_options
    weights, biases = parameters[:layers], parameters[layers:]
    with_lonlat = ctx.needs_input_grad[0]
    d_lonlat, *d_parameters = encode_backward(grad, lonlat, weights, biases, saved, *ctx.options, with_lonlat)
    return d_lonlat if with_lonlat else None, d_parameters[:layers], d_parameters[layers:], *no_options


def _refuse(ctx: Any, *_: Any) -> None:
    raise NotImplementedError(
        "encode has first derivatives only here: torch.func.hessian, jacrev and grad have further ones"
    )


encode.register_autograd(_differentiate, setup_context=_keep)
encode_backward.register_autograd(_refuse)

# Autocast widens what is narrower than float32 and leaves float64 as it is: nothing is computed in less.
for _device in ("cpu", "cuda"):
    embed.register_autocast(_device, torch.float32)
    encode.register_autocast(_device, torch.float32)


def check_operands(lonlat: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    """Raise for shapes, dtypes and devices that do not form one network at these points."""
    if lonlat.ndim != 2 or lonlat.shape[1] != 2:
        raise UsageError(
            f"lonlat must have shape (N, 2), longitude first, not {tuple(lonlat.shape)}", argument="lonlat"
        )
    if lonlat.dtype != torch.float64:
        raise TypeError(f"lonlat must be float64, not {lonlat.dtype}")
    if len(weights) < 2 or len(weights) != len(biases):
        raise UsageError(
            "expected weights and biases of at least one hidden layer and the last one, "
            f"got {len(weights)} and {len(biases)}",
            argument="weights",
        )
    columns = weights[0].shape[-1] if weights[0].ndim else 0
    if math.isqrt(columns) ** 2 != columns or columns == 0:
        raise UsageError(
            f"layer 0: expected weight (rows, L²), got {tuple(weights[0].shape)}", argument="weights"
        )
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if weight.ndim != 2 or weight.shape[1] != columns or bias.shape != weight.shape[:1]:
            raise UsageError(
                f"layer {index}: expected weight (rows, {columns}) and bias (rows,), "
                f"got {tuple(weight.shape)} and {tuple(bias.shape)}",
                argument="weights",
            )
        for tensor in (weight, bias):
            if tensor.dtype != weights[0].dtype or tensor.dtype not in (torch.float32, torch.float64):
                raise TypeError(
                    f"layer {index}: expected weights and biases all float32 or all float64, "
                    f"got {tensor.dtype} beside {weights[0].dtype}"
                )
            if tensor.device != lonlat.device:
                raise UsageError(
                    f"layer {index}: expected all tensors on one device, "
                    f"got {tensor.device} and lonlat on {lonlat.device}",
                    argument="weights",
                )
        columns = weight.shape[0]


def check_values(lonlat: Tensor, dropout: float) -> None:
    check_points(lonlat.detach())  # names the row of an impossible latitude
    check_dropout(dropout)


def check_dropout(dropout: float) -> float:
    """The share itself. Raises UsageError."""
    if not 0 <= dropout < 1:
        raise UsageError(f"dropout must be at least 0 and below 1, not {dropout}", argument="dropout")
    return float(dropout)

"""The fused ops for PyTorch: embeddings with gradients, under torch.compile, torch.export and autocast.

    encode(lonlat, weights, biases, dropout=0.5, seed=7)     # (N, 2) -> (N, E), differentiable in all tensors

Weights are folded, as in Layers: on exact orthonormal harmonics, sine frequencies multiplied in. Longitude
and latitude are float64 degrees, longitude first. gradients.py defines what is computed; ROWS compute it.
Only this file and op_loss.py register anything with torch.library.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from satclip_engine._optional import need
from satclip_engine.backends.protocols import check_precision
from satclip_engine.errors import UsageError
from satclip_engine.geo.lonlat import check_points
from satclip_engine.ops import dispatch
from satclip_engine.ops.dispatch import refuse_tangents
from satclip_engine.reference import gradients

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = need("torch", extra="torch", why="satclip_engine.op")


def encode(
    lonlat: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    dropout: float = 0.0,
    seed: int = 0,
    backend: str = "auto",
    precision: str = "exact",
) -> Tensor:
    """Embeddings of places, differentiable in places, weights and biases. (N, 2) -> (N, E).

    lonlat: degrees, longitude first; widened to float64. weights: (H, L²), (H, H)..., (E, H), folded; biases:
        (H,)..., (E,). The result has the widest dtype of the weights, float32 at least.
    dropout: share of the hidden pre-activations that are dropped, those of `seed` (0 to 2⁶³ − 1); the same by
        every backend.
    backend: "triton" takes float32 weights on a GPU (on the CPU under TRITON_INTERPRET=1, by name only);
        "cpu", compiled, float32 weights on the CPU; "reference" computes in the widest dtype of the weights,
        on their device; "auto" takes the first of them that takes such weights. float16 and bfloat16 are
        widened to float32 before.
    precision: "exact", or "fast": where "triton" computes, layers after the first then multiply 16-bit
        numbers, and the result errs by up to 5e-3 of its rms. It is the least accuracy: the others, which
        know exact arithmetic only, compute by that.

    Places that are not finite give NaN. Raises UsageError (a ValueError) naming the layer for shapes that do
    not fit and the row where |latitude| > 90, TypeError for dtypes, MissingExtra for a backend that cannot
    run here, NotImplementedError in forward-mode differentiation.
    """
    if not weights or len(weights) != len(biases):
        raise UsageError(f"expected as many weights as biases, got {len(weights)} and {len(biases)}")
    if lonlat.is_complex() or lonlat.dtype == torch.bool:
        raise TypeError(f"lonlat must be real numbers, not {lonlat.dtype}")
    refuse_tangents("encode", lonlat, *weights, *biases)
    wide = functools.reduce(torch.promote_types, [t.dtype for t in (*weights, *biases)], torch.float32)
    weights, biases = [w.to(wide) for w in weights], [b.to(wide) for b in biases]
    lonlat = lonlat.to(torch.float64)
    check_precision(precision)
    trained = torch.is_grad_enabled() and any(t.requires_grad for t in (lonlat, *weights, *biases))
    if trained or dropout != 0:
        out, _ = _encode(lonlat, weights, biases, float(dropout), seed, backend, precision)
    else:
        out = _embed(lonlat, weights, biases, backend, precision)
    return out


class Row(Protocol):
    """An implementation of the ops. Arguments are checked; lists are by layer; `saved` is the row's own."""

    name: str  # a row of dispatch.TABLE, which says what it takes

    def embed(self, lonlat: Tensor, weights: list[Tensor], biases: list[Tensor], precision: str) -> Tensor:
        """(N, E) without anything kept for gradients."""

    def saved_shape(self, count: int, widths: list[int]) -> tuple[int, ...]:
        """Shape of what `forward` keeps. widths: of the hidden layers; `count` may be a symbol."""

    def forward(
        self,
        lonlat: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        dropout: float,
        seed: int,
        precision: str,
    ) -> tuple[Tensor, Tensor]:
        """(N, E) and what is saved."""

    def backward(
        self,
        grad: Tensor,
        lonlat: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        saved: Tensor,
        dropout: float,
        seed: int,
        precision: str,
        places: bool,
    ) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
        """Gradients of the places (when asked for), of the weights and of the biases."""


class Triton:
    """The kernels of a GPU, in float32."""

    name = "triton"

    def embed(self, lonlat: Tensor, weights: list[Tensor], biases: list[Tensor], precision: str) -> Tensor:
        from satclip_engine.kernels import encode as kernels

        given = _contiguous(lonlat, weights, biases)
        return kernels.forward(*given, precision=precision, keep=False)[0]

    def saved_shape(self, count: int, widths: list[int]) -> tuple[int, ...]:
        return count, sum(widths)

    def forward(
        self,
        lonlat: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        dropout: float,
        seed: int,
        precision: str,
    ) -> tuple[Tensor, Tensor]:
        from satclip_engine.kernels import encode as kernels

        given = _contiguous(lonlat, weights, biases)
        return kernels.forward(*given, dropout=dropout, seed=seed, precision=precision)

    def backward(
        self,
        grad: Tensor,
        lonlat: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        saved: Tensor,
        dropout: float,
        seed: int,
        precision: str,
        places: bool,
    ) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
        from satclip_engine.kernels import encode as kernels

        given = _contiguous(lonlat, weights, biases)
        d_first, d_weights, d_biases = kernels.backward(
            grad.contiguous(), *given, saved, dropout=dropout, precision=precision
        )
        d_lonlat = gradients.places_backward(d_first, lonlat, weights[0]) if places else None
        return d_lonlat, d_weights, d_biases


class Cpu:
    """The compiled kernels, in float32, with as many threads as torch has."""

    name = "cpu"

    def embed(self, lonlat: Tensor, weights: list[Tensor], biases: list[Tensor], precision: str) -> Tensor:
        degrees = math.isqrt(weights[0].shape[1])
        network = _kernels().Network(degrees, _arrays(weights), _arrays(biases), None)
        out = weights[0].new_empty(len(lonlat), len(weights[-1]))
        network.encode(_array(lonlat), out.numpy(), torch.get_num_threads())
        return out

    def saved_shape(self, count: int, widths: list[int]) -> tuple[int, ...]:
        tile, group = _kernels().train_tile, _kernels().train_units
        padded = sum((width + group - 1) // group * group for width in widths)
        return ((count + tile - 1) // tile * (tile * padded),)

    def forward(
        self,
        lonlat: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        dropout: float,
        seed: int,
        precision: str,
    ) -> tuple[Tensor, Tensor]:
        out = weights[0].new_empty(len(lonlat), len(weights[-1]))
        saved = weights[0].new_empty(self.saved_shape(len(lonlat), _widths(weights)))
        _kernels().train_forward(
            _array(lonlat),
            _arrays(weights),
            _arrays(biases),
            out.numpy(),
            saved.numpy(),
            dropout,
            seed,
            torch.get_num_threads(),
        )
        return out, saved

    def backward(
        self,
        grad: Tensor,
        lonlat: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        saved: Tensor,
        dropout: float,
        seed: int,
        precision: str,
        places: bool,
    ) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
        d_weights = [torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights]
        d_biases = [torch.empty_like(b, memory_format=torch.contiguous_format) for b in biases]
        d_first = weights[0].new_empty(len(lonlat), len(weights[0])) if places else None
        _kernels().train_backward(
            _array(grad),
            _array(lonlat),
            _arrays(weights),
            _arrays(biases),
            _array(saved),
            dropout,
            _arrays(d_weights),
            _arrays(d_biases),
            None if d_first is None else d_first.numpy(),
            torch.get_num_threads(),
        )
        if d_first is None:
            return None, d_weights, d_biases
        return gradients.places_backward(d_first, lonlat, weights[0]), d_weights, d_biases


class Reference:
    """gradients.py, in the dtype and on the device of the weights."""

    name = "reference"

    def embed(self, lonlat: Tensor, weights: list[Tensor], biases: list[Tensor], precision: str) -> Tensor:
        return gradients.encode_forward(lonlat, weights, biases)[0]

    def saved_shape(self, count: int, widths: list[int]) -> tuple[int, ...]:
        return count, sum(widths)

    def forward(
        self,
        lonlat: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        dropout: float,
        seed: int,
        precision: str,
    ) -> tuple[Tensor, Tensor]:
        return gradients.encode_forward(lonlat, weights, biases, dropout, seed)

    def backward(
        self,
        grad: Tensor,
        lonlat: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        saved: Tensor,
        dropout: float,
        seed: int,
        precision: str,
        places: bool,
    ) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
        return gradients.encode_backward(grad, lonlat, weights, biases, saved, dropout, seed, places)


ROWS: dict[str, Row] = {row.name: row for row in (Triton(), Cpu(), Reference())}


def resolve(name: str, weight: Tensor) -> Row:
    """The row of that name, or the best for such weights for "auto"; raises as dispatch.resolve."""
    return ROWS[dispatch.resolve(name, weight)]


@torch.library.custom_op(
    "satclip_engine::embed",
    mutates_args=(),
    schema="(Tensor lonlat, Tensor[] weights, Tensor[] biases, str backend, str precision) -> Tensor",
)
def _embed(
    lonlat: Tensor, weights: list[Tensor], biases: list[Tensor], backend: str, precision: str
) -> Tensor:
    _check(lonlat, weights, biases)
    _check_values(lonlat, 0.0)
    with torch.autocast(lonlat.device.type, enabled=False):
        return resolve(backend, weights[0]).embed(lonlat, weights, biases, precision)


@_embed.register_fake
def _(lonlat: Tensor, weights: list[Tensor], biases: list[Tensor], backend: str, precision: str) -> Tensor:
    _check(lonlat, weights, biases)
    return weights[0].new_empty(lonlat.shape[0], len(weights[-1]))


# `seed` is an int that may be a symbol, so that another one is no reason to compile anew.
@torch.library.custom_op(
    "satclip_engine::encode",
    mutates_args=(),
    schema="(Tensor lonlat, Tensor[] weights, Tensor[] biases, float dropout, SymInt seed, str backend,"
    " str precision) -> (Tensor, Tensor)",
)
def _encode(
    lonlat: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    dropout: float,
    seed: int,
    backend: str,
    precision: str,
) -> tuple[Tensor, Tensor]:
    _check(lonlat, weights, biases)
    _check_values(lonlat, dropout)
    if seed < 0:
        raise UsageError(f"seed must be from 0 to 2⁶³ − 1, not {seed}")
    with torch.autocast(lonlat.device.type, enabled=False):
        return resolve(backend, weights[0]).forward(lonlat, weights, biases, dropout, seed, precision)


@_encode.register_fake
def _(
    lonlat: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    dropout: float,
    seed: int,
    backend: str,
    precision: str,
) -> tuple[Tensor, Tensor]:
    _check(lonlat, weights, biases)
    saved = resolve(backend, weights[0]).saved_shape(lonlat.shape[0], _widths(weights))
    return weights[0].new_empty(lonlat.shape[0], len(weights[-1])), weights[0].new_empty(saved)


@torch.library.custom_op(
    "satclip_engine::encode_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor lonlat, Tensor[] weights, Tensor[] biases, Tensor saved, float dropout,"
    " SymInt seed, str backend, str precision, bool places) -> Tensor[]",
)
def _encode_backward(
    grad: Tensor,
    lonlat: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    saved: Tensor,
    dropout: float,
    seed: int,
    backend: str,
    precision: str,
    places: bool,
) -> list[Tensor]:
    row = resolve(backend, weights[0])
    # A backward pass may run inside autocast although the forward pass was widened.
    with torch.autocast(lonlat.device.type, enabled=False):
        gradients_of = row.backward(grad, lonlat, weights, biases, saved, dropout, seed, precision, places)
    d_lonlat, d_weights, d_biases = gradients_of
    pairs = zip(d_weights, d_biases, strict=True)
    return [lonlat.new_empty(0) if d_lonlat is None else d_lonlat, *(t for pair in pairs for t in pair)]


@_encode_backward.register_fake
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
    places: bool,
) -> list[Tensor]:
    pairs = zip(weights, biases, strict=True)
    like = [t.new_empty(t.shape) for pair in pairs for t in pair]
    return [lonlat.new_empty(lonlat.shape if places else 0), *like]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    lonlat, weights, biases, *ctx.rest = inputs
    saved = output[1]
    ctx.mark_non_differentiable(saved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(lonlat, saved, *weights, *biases)


def _pull_back(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    lonlat, saved, *parameters = ctx.saved_tensors
    layers = len(parameters) // 2
    if grad is None:
        return None, [None] * layers, [None] * layers, *[None] * len(ctx.rest)
    weights, biases = parameters[:layers], parameters[layers:]
    places = ctx.needs_input_grad[0]
    d_lonlat, *rest = _encode_backward(grad, lonlat, weights, biases, saved, *ctx.rest, places)
    return d_lonlat if places else None, rest[0::2], rest[1::2], *[None] * len(ctx.rest)


_encode.register_autograd(_pull_back, setup_context=_keep)

# Autocast widens what is narrower than float32 and leaves float64 as it is: nothing is computed in less.
for _device in ("cpu", "cuda"):
    _embed.register_autocast(_device, torch.float32)
    _encode.register_autocast(_device, torch.float32)


def _check(lonlat: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    """Raise for shapes, dtypes and devices that do not form one network on these places."""
    if lonlat.ndim != 2 or lonlat.shape[1] != 2:
        raise UsageError(f"lonlat must have shape (N, 2), longitude first, not {tuple(lonlat.shape)}")
    if lonlat.dtype != torch.float64:
        raise TypeError(f"lonlat must be float64, not {lonlat.dtype}")
    if len(weights) < 2 or len(weights) != len(biases):
        raise UsageError(
            "expected weights and biases of at least one hidden layer and the last one, "
            f"got {len(weights)} and {len(biases)}"
        )
    columns = weights[0].shape[-1] if weights[0].ndim else 0
    if math.isqrt(columns) ** 2 != columns or columns == 0:
        raise UsageError(f"layer 0: expected weight (rows, L²), got {tuple(weights[0].shape)}")
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if weight.ndim != 2 or weight.shape[1] != columns or bias.shape != weight.shape[:1]:
            raise UsageError(
                f"layer {index}: expected weight (rows, {columns}) and bias (rows,), "
                f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
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
                    f"got {tensor.device} and lonlat on {lonlat.device}"
                )
        columns = weight.shape[0]


def _check_values(lonlat: Tensor, dropout: float) -> None:
    check_points(lonlat.detach())  # names the row of an impossible latitude
    if not 0 <= dropout < 1:
        raise UsageError(f"dropout must be at least 0 and below 1, not {dropout}")


def _kernels() -> Any:
    from satclip_engine import _C

    return _C


def _widths(weights: Sequence[Tensor]) -> list[int]:
    return [len(weight) for weight in weights[:-1]]


def _contiguous(
    lonlat: Tensor, weights: list[Tensor], biases: list[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """As kernels read them."""
    return lonlat.contiguous(), [w.contiguous() for w in weights], [b.contiguous() for b in biases]


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


def _arrays(tensors: Sequence[Tensor]) -> list[Any]:
    return [_array(tensor) for tensor in tensors]

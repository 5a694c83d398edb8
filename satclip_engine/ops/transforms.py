"""The location encoder in formulas that torch transforms: torch.func's vmap, grad, jacrev, hessian, jvp, ...

The fused operators know one backward pass. What asks for anything else is computed here, by plain PyTorch on
the reference's harmonics: right to any order, slower, and with the harmonics of the whole batch in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from satclip_engine import reference
from satclip_engine._optional import need
from satclip_engine.geo.lonlat import check_points
from satclip_engine.ops.autograd import no_autocast
from satclip_engine.reference.gradients import dropout_factors

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = need("torch", extra="torch", why="computing with tensors")
    Tensor = torch.Tensor  # looked up when a schema is made of a signature


@torch.library.custom_op(
    "satclip_engine::checked_points", mutates_args=(), schema="(Tensor lonlat) -> Tensor"
)
def checked_points(lonlat: Tensor) -> Tensor:
    check_points(lonlat.detach().reshape(-1, 2))
    return lonlat.clone()


@checked_points.register_fake
def _(lonlat: Tensor) -> Tensor:
    return torch.empty_like(lonlat)


checked_points.register_autograd(lambda ctx, grad: grad)


class CheckedPoints(torch.autograd.Function):
    """The same points; a latitude beyond a pole raises UsageError, in every transform."""

    @staticmethod
    def forward(lonlat: Tensor) -> Tensor:
        check_points(lonlat.detach().reshape(-1, 2))
        return lonlat.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep nothing: the function is the identity."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0].clone()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], lonlat: Tensor) -> tuple[Tensor, int]:
        return CheckedPoints.apply(lonlat.movedim(in_dims[0], 0)), 0


def features(lonlat: Tensor, degrees: int) -> Tensor:  # (n, 2) float64 -> [L², n] float64
    """Orthonormal harmonics, differentiable by the points. Raises UsageError where |latitude| > 90."""
    checked = checked_points if torch.compiler.is_compiling() else CheckedPoints.apply
    return reference.features(checked(lonlat), degrees)


def encode(
    lonlat: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    dropout: float,
    seed: int | Tensor,
) -> Tensor:  # (n, 2) float64 -> (n, E)
    """Embeddings as the operator `encode` gives them; weights are folded."""
    with no_autocast(lonlat):
        hidden = features(lonlat, math.isqrt(weights[0].shape[1])).T.to(weights[0].dtype)
        for layer, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
            hidden = torch.sin(dropped(hidden @ weight.T + bias, layer, dropout, seed))
        return hidden @ weights[-1].T + biases[-1]


def dropped(values: Tensor, layer: int, dropout: float, seed: int | Tensor) -> Tensor:  # (..., H) -> same
    """Pre-activations under the dropout of `seed`, the same as that of every backend."""
    if dropout == 0:
        return values
    count, units = math.prod(values.shape[:-1]), values.shape[-1]
    rows = torch.arange(count, device=values.device)
    if not isinstance(seed, int):
        seed = seed.to(values.device)
    factors = dropout_factors(rows, units, layer, dropout, seed)
    return values * factors.to(values.dtype).reshape(values.shape)

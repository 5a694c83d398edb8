"""The contrastive loss as PyTorch operators: schemas, shapes, gradient and autocast.

    satclip_engine::contrastive_loss(Tensor a, Tensor b, Tensor scale, str backend)
        -> (Tensor loss, Tensor row_lse, Tensor column_lse)
    satclip_engine::contrastive_loss_backward(Tensor grad, Tensor a, Tensor b, Tensor scale, Tensor row_lse,
        Tensor column_lse, str backend) -> (Tensor da, Tensor db, Tensor dscale)

a and b are (N, E), scale is (), all float32 or all float64. Backends are those of backends.TRAINING. Only the
loss has a gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from satclip_engine import backends
from satclip_engine._optional import need
from satclip_engine.backends.protocols import Pairs
from satclip_engine.ops.autograd import no_autocast

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = need("torch", extra="torch", why="the contrastive loss")
    Tensor = torch.Tensor  # looked up when a schema is made of a signature


def check_pairs(a: Tensor, b: Tensor, scale: Tensor) -> None:
    """Raise ValueError or TypeError for tensors that have no loss."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] == 0:
        raise ValueError(f"expected a (N, E) and b (N, E), got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.shape != b.shape:
        raise ValueError(f"expected as many rows in a as in b, got {len(a)} and {len(b)}")
    if scale.ndim != 0:
        raise ValueError(f"scale: expected a tensor without dimensions, got shape {tuple(scale.shape)}")
    if not a.dtype == b.dtype == scale.dtype:
        raise TypeError(f"a, b and scale: expected one dtype, got {a.dtype}, {b.dtype} and {scale.dtype}")
    if a.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"a, b and scale: expected float32 or float64, got {a.dtype}")
    if not a.device == b.device == scale.device:
        raise ValueError(
            f"expected one device, got a on {a.device}, b on {b.device}, scale on {scale.device}"
        )


def mean_loss(row_lse: Tensor, column_lse: Tensor, partner: Tensor, count: int) -> Tensor:
    """Σ (row_lse + column_lse − 2 partner) / (2 · count), summed in float64."""
    total = row_lse.double().sum() + column_lse.double().sum() - 2 * partner.double().sum()
    return (total / (2 * count)).to(row_lse.dtype)


@torch.library.custom_op("satclip_engine::contrastive_loss", mutates_args=())
def contrastive_loss(a: Tensor, b: Tensor, scale: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """a (N, E), b (N, E), scale () → loss (), row_lse (N,), column_lse (N,)."""
    check_pairs(a, b, scale)
    with no_autocast(a):
        sums = backends.resolve_for(backend, a).log_sum_exps(Pairs(a, b, scale))
    row_lse, column_lse, partner = sums
    return mean_loss(row_lse, column_lse, partner, len(a)), row_lse, column_lse


@torch.library.custom_op("satclip_engine::contrastive_loss_backward", mutates_args=())
def contrastive_loss_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor, row_lse: Tensor, column_lse: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by a (N, E), b (N, E) and scale (), given the one by the loss ()."""
    with no_autocast(a):
        pairs, factor = Pairs(a, b, scale), grad / (2 * len(b))
        return backends.resolve_for(backend, a).loss_gradients(pairs, row_lse, column_lse, factor)


@contrastive_loss.register_fake
def _(a: Tensor, b: Tensor, scale: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    check_pairs(a, b, scale)
    return a.new_empty(()), a.new_empty(a.shape[0]), a.new_empty(b.shape[0])


@contrastive_loss_backward.register_fake
def _(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor, row_lse: Tensor, column_lse: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), b.new_empty(b.shape), scale.new_empty(())


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    a, b, scale, ctx.backend = inputs
    _, row_lse, column_lse = output
    ctx.mark_non_differentiable(row_lse, column_lse)
    ctx.save_for_backward(a, b, scale, row_lse, column_lse)


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
    da, db, dscale = contrastive_loss_backward(grad, *ctx.saved_tensors, ctx.backend)
    return da, db, dscale, None


contrastive_loss.register_autograd(_differentiate, setup_context=_keep)
for _device in ("cpu", "cuda"):  # bfloat16 has 8 bits: at scale 100 its products would be off by 0.4
    contrastive_loss.register_autocast(_device, torch.float32)

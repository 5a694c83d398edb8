"""The symmetric contrastive loss (InfoNCE) of paired embeddings, in one process or over several.

    loss = 1/(2N) · Σ_i [log Σ_j exp(S_ij) − S_ii + log Σ_j exp(S_ji) − S_ii]        S_ij = scale · a_i · b_j

It equals the mean of the two cross entropies of CLIP's logits. Rows are taken as they are: normalise them
before. The matrix S is never in memory, so a batch may be as large as its embeddings allow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from satclip_engine import op_loss
from satclip_engine.tangents import refuse_tangents

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def contrastive_loss(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    *,
    group: ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """a (N, E), b (N, E), scale () → loss (), differentiable by all three.

    Row i of a belongs to row i of b. float32 tensors on the CPU are computed by the compiled kernels, float64
    by the reference; under autocast inputs are converted to float32. Log-sum-exps are kept in float32 there,
    so the loss errs by some 6e-8 of the largest |S_ij|: nothing up to hundreds, everything at 1e7.

    With a `group` of torch.distributed, each process holds its own rows of a and of b, not necessarily as
    many as the others, and gets the loss of all rows together. Gradients are such that their mean over the
    processes, which is what DistributedDataParallel computes for parameters, is the gradient that a single
    process with all rows would compute: those by a and b are the number of processes times the derivative of
    the loss, the one by scale is the derivative itself, the same everywhere. All processes must call
    backward, with the same gradient of the loss.
    """
    if torch.is_autocast_enabled(a.device.type):
        a, b = (tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in (a, b))
    factor = torch.as_tensor(scale, device=a.device).to(a.dtype)
    refuse_tangents("contrastive_loss", a, b, factor)
    if group is None:
        return op_loss.contrastive_loss(a, b, factor, backend)[0]
    return _SharedLoss.apply(a, b, factor, group, backend)


class _SharedLoss(torch.autograd.Function):
    """Each process computes its rows of S, with all columns.

    Row sums are complete; column sums and the gradient by b are combined over the processes.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, group: ProcessGroup, backend: str) -> Tensor:
        op_loss.check_operands(a, b, scale)
        if a.shape != b.shape:
            raise ValueError(f"expected as many rows in a as in b, got {len(a)} and {len(b)}")
        with op_loss.unnarrowed(a):
            return _SharedLoss._forward(ctx, a, b, scale, group, backend)

    @staticmethod
    def _forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, group: ProcessGroup, backend: str) -> Tensor:
        sizes = _sizes(len(a), a.device, group)
        offset, count = sum(sizes[: dist.get_rank(group)]), sum(sizes)
        every_b = _gathered(b, sizes, group)  # [N, E]
        row_lse, column_share, partner = op_loss.log_sum_exps(a, every_b, scale, offset, backend)
        column_lse = _combined(column_share, group)
        own_columns = column_lse[offset : offset + len(a)]
        loss = op_loss.mean_loss(row_lse, own_columns, partner, count).double()
        dist.all_reduce(loss, group=group)
        ctx.save_for_backward(a, every_b, scale, row_lse, column_lse)
        ctx.group, ctx.backend, ctx.offset = group, backend, offset
        return loss.to(a.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        if torch.is_grad_enabled():  # create_graph=True; once_differentiable lets it pass for a scalar loss
            raise RuntimeError("contrastive_loss has no second derivatives")
        a, every_b, scale, row_lse, column_lse = ctx.saved_tensors
        factor = grads[0] / (2 * len(every_b))
        with op_loss.unnarrowed(a):
            da, db, dscale = op_loss.gradients(
                a, every_b, scale, row_lse, column_lse, ctx.offset, factor, ctx.backend
            )
        dist.all_reduce(db, group=ctx.group)
        dist.all_reduce(dscale, group=ctx.group)
        processes = dist.get_world_size(ctx.group)
        own_db = db[ctx.offset : ctx.offset + len(a)]
        return da * processes, own_db * processes, dscale, None, None


def _sizes(rows: int, device: torch.device, group: ProcessGroup) -> list[int]:
    """Rows of each process."""
    own = torch.tensor([rows], device=device)
    every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, own, group=group)
    return [int(size) for size in every]


def _gathered(rows: Tensor, sizes: list[int], group: ProcessGroup) -> Tensor:
    """All processes' rows below each other; gathered as if each had as many as the longest."""
    longest = max(sizes)
    own = rows.new_zeros(longest, rows.shape[1])
    own[: len(rows)] = rows
    every = [torch.empty_like(own) for _ in sizes]
    dist.all_gather(every, own, group=group)
    return torch.cat([part[:size] for part, size in zip(every, sizes, strict=True)])


def _combined(share: Tensor, group: ProcessGroup) -> Tensor:
    """log Σ exp over the processes, element by element, in the order of their ranks."""
    every = [torch.empty_like(share) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, share, group=group)
    return torch.logsumexp(torch.stack(every), 0)

"""The symmetric contrastive loss (InfoNCE) of paired embeddings, in one process or over several.

    loss = 1/(2N) · Σ_i [log Σ_j exp(S_ij) − S_ii + log Σ_j exp(S_ji) − S_ii]        S_ij = scale · a_i · b_j

It equals the mean of the two cross entropies of CLIP's logits. Rows are taken as they are: normalise them
before. The matrix S is never in memory, so a batch may be as large as its embeddings allow.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from satclip_engine import backends
from satclip_engine._optional import need
from satclip_engine.backends.protocols import Pairs
from satclip_engine.errors import UsageError
from satclip_engine.ops import loss as loss_op
from satclip_engine.ops.autograd import no_autocast, refuse_transforms

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from torch import Tensor
    from torch.distributed import ProcessGroup
else:
    torch = need("torch", extra="torch", why="the contrastive loss")
    dist = torch.distributed


def contrastive_loss(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    *,
    group: ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """a (N, E), b (N, E), scale () or (1,) → loss (), differentiable by all three.

    Row i of a belongs to row i of b. The loss has the wider dtype of a and b, float32 at least: bfloat16 has
    8 bits, with which S_ij would be off by 0.4 at scale 100. Log-sum-exps are kept in the dtype of the rows,
    so in float32 the loss errs by some 6e-8 of the largest |S_ij|: nothing up to hundreds, everything at 1e7.

    backend: "triton" takes float32 on a GPU; "cpu", compiled, float32 on the CPU; "reference" computes in the
        dtype and on the device of the rows; "auto" takes the first of them that takes such rows.

    With a `group` of torch.distributed, each process holds its own rows of a and of b, not necessarily as
    many as the others, and gets the loss of all rows together. Gradients are such that their mean over the
    processes, which is what DistributedDataParallel computes for parameters, is the gradient that a single
    process with all rows would compute: those by a and b are the number of processes times the derivative of
    the loss, the one by scale is the derivative itself, the same everywhere. All processes must call
    backward, with the same gradient of the loss. What one process cannot use is told by all of them, naming
    its rank.

    Raises UsageError (a ValueError) for shapes that are not pairs and for a backend that does not take such
    tensors, TypeError for dtypes, MissingExtra for a backend that cannot run here, NotImplementedError in
    forward-mode differentiation; with a group, UsageError for all of these.
    """
    if group is None:
        return loss_op.contrastive_loss(*_operands(a, b, scale), backend)[0]
    operands, sizes = _agreed(a, b, scale, group, backend)
    return _SharedLoss.apply(*operands, sizes, group, backend)


def _operands(a: Tensor, b: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's tensors, in the wider dtype of the rows, float32 at least."""
    for name, rows in (("a", a), ("b", b)):
        if not isinstance(rows, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(rows).__name__}")
    if a.is_floating_point() and b.is_floating_point():  # others are refused as they are
        wide = functools.reduce(torch.promote_types, (a.dtype, b.dtype), torch.float32)
        a, b = a.to(wide), b.to(wide)
    factor = torch.as_tensor(scale, device=a.device).to(a.dtype)
    if factor.numel() == 1:
        factor = factor.reshape(())
    refuse_transforms("contrastive_loss", a, b, factor)
    return a, b, factor


def _agreed(
    a: Tensor, b: Tensor, scale: Tensor | float, group: ProcessGroup, backend: str
) -> tuple[tuple[Tensor, Tensor, Tensor], list[int]]:
    """The operands of this process and the rows of each, when every process can compute with its own.

    Processes exchange what is wrong before they exchange rows: one that raised alone would leave the others
    waiting for it.
    """
    own, cause = (0, "", ""), None
    try:
        operands = _operands(a, b, scale)
        loss_op.check_pairs(*operands)
        backends.resolve_for(backend, operands[0])
        own = (len(a), f"rows of {a.shape[1]} {operands[0].dtype}", "")
    except Exception as error:  # whatever it is, the others must hear of it
        own, cause = (0, "", str(error) or repr(error)), error
    every: list[tuple[int, str, str]] = [own] * dist.get_world_size(group)
    dist.all_gather_object(every, own, group=group)
    sizes, kinds, faults = zip(*every, strict=True)
    complaints = [f"rank {rank}: {fault}" for rank, fault in enumerate(faults) if fault]
    if not complaints:
        complaints = [
            f"rank {rank}: expected {kinds[0]}, as rank 0 has, got {kind}"
            for rank, kind in enumerate(kinds)
            if kind != kinds[0]
        ]
    if complaints:
        raise UsageError("; ".join(complaints)) from cause
    return operands, list(sizes)


class _SharedLoss(torch.autograd.Function):
    """Each process computes its rows of S, with all columns.

    Row sums are complete; column sums and the gradient by b are combined over the processes.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, scale: Tensor, sizes: list[int], group: ProcessGroup, backend: str
    ) -> Tensor:
        with no_autocast(a):
            return _SharedLoss._forward(ctx, a, b, scale, sizes, group, backend)

    @staticmethod
    def _forward(
        ctx: Any, a: Tensor, b: Tensor, scale: Tensor, sizes: list[int], group: ProcessGroup, backend: str
    ) -> Tensor:
        offset, count = sum(sizes[: dist.get_rank(group)]), sum(sizes)
        every_b = _gathered(b, sizes, group)  # [N, E]
        pairs = Pairs(a, every_b, scale, offset)
        row_lse, column_share, partner = backends.resolve_for(backend, a).log_sum_exps(pairs)
        column_lse = _combined(column_share, group)
        own_columns = column_lse[offset : offset + len(a)]
        loss = loss_op.mean_loss(row_lse, own_columns, partner, count).double()
        dist.all_reduce(loss, group=group)
        ctx.save_for_backward(a, every_b, scale, row_lse, column_lse)
        ctx.group, ctx.backend, ctx.offset = group, backend, offset
        return loss.to(a.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        if torch.is_grad_enabled():  # create_graph=True; once_differentiable lets it pass for a scalar loss
            raise RuntimeError("contrastive_loss has no second derivatives")
        a, every_b, scale, row_lse, column_lse = ctx.saved_tensors
        factor = grads[0] / (2 * len(every_b))
        with no_autocast(a):
            implementation = backends.resolve_for(ctx.backend, a)
            pairs = Pairs(a, every_b, scale, ctx.offset)
            da, db, dscale = implementation.loss_gradients(pairs, row_lse, column_lse, factor)
        dist.all_reduce(db, group=ctx.group)
        dist.all_reduce(dscale, group=ctx.group)
        processes = dist.get_world_size(ctx.group)
        own_db = db[ctx.offset : ctx.offset + len(a)]
        return da * processes, own_db * processes, dscale, None, None, None


def _gathered(rows: Tensor, sizes: list[int], group: ProcessGroup) -> Tensor:
    """All processes' rows below each other; gathered as if each had as many as the longest."""
    longest = max(sizes)
    own = rows.new_zeros(longest, rows.shape[1])
    own[: len(rows)] = rows
    every = [torch.empty_like(own) for _ in sizes]
    dist.all_gather(every, own, group=group)
    return torch.cat([padded[:size] for padded, size in zip(every, sizes, strict=True)])


def _combined(share: Tensor, group: ProcessGroup) -> Tensor:
    """log Σ exp over the processes, element by element, in the order of their ranks."""
    every = [torch.empty_like(share) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, share, group=group)
    return torch.logsumexp(torch.stack(every), 0)

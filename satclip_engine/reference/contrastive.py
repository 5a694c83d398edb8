"""The definition of the contrastive loss and its gradient, in plain PyTorch.

    S_ij = scale · a_i · b_j    row_lse_i = log Σ_j exp S_ij    column_lse_j = log Σ_i exp S_ij
    loss = 1/(2N) · Σ_i (row_lse_i + column_lse_i − 2 S_ii)

Row i's partner is row i of b; `offset` is for a share of the rows, whose partners begin there. S is in memory
a block of rows at a time. Every other implementation is correct when it equals this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from satclip_engine._optional import need

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = need("torch", extra="torch", why="the contrastive loss")

_BLOCK_BYTES = 32 << 20


def contrastive_loss(a: Tensor, b: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a (N, E), b (N, E), scale () → loss (), row_lse (N,), column_lse (N,)."""
    row_lse, column_lse, partner = log_sum_exps(a, b, scale)
    return (row_lse + column_lse - 2 * partner).mean() / 2, row_lse, column_lse


def log_sum_exps(
    a: Tensor, b: Tensor, scale: Tensor | float, offset: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """a (n, E), b (N, E) → row_lse (n,), column_lse (N,), S of each row with its partner (n,)."""
    row_lse, partner = a.new_empty(len(a)), a.new_empty(len(a))
    column_lse = b.new_full((len(b),), -torch.inf)
    for rows in _blocks(a, b):
        s = scale * (a[rows] @ b.T)  # [rows, N]
        row_lse[rows] = torch.logsumexp(s, 1)
        column_lse = torch.logaddexp(column_lse, torch.logsumexp(s, 0))
        partner[rows] = torch.diagonal(s, offset + rows.start)
    return row_lse, column_lse, partner


def contrastive_loss_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor, row_lse: Tensor, column_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by a (N, E), b (N, E) and scale (), given the one by the loss ()."""
    return gradients(a, b, scale, row_lse, column_lse, 0, grad / (2 * len(b)))


def gradients(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    row_lse: Tensor,
    column_lse: Tensor,
    offset: int,
    factor: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The share of a's rows in the gradients of factor · Σ_i (row_lse_i + column_lse_i − 2 S_ii).

    a (n, E), b (N, E), row_lse (n,), column_lse (N,) over all rows → da (n, E), db (N, E), dscale ().
    """
    da, db, dscale = torch.empty_like(a), torch.zeros_like(b), a.new_zeros(())
    for rows in _blocks(a, b):
        products = a[rows] @ b.T  # [rows, N]
        s = scale * products
        ds = torch.exp(s - row_lse[rows, None]) + torch.exp(s - column_lse)
        ds.diagonal(offset + rows.start).sub_(2)
        ds = factor * ds
        da[rows] = scale * (ds @ b)
        db += scale * (ds.T @ a[rows])
        dscale = dscale + (ds * products).sum()
    return da, db, dscale


def _blocks(a: Tensor, b: Tensor) -> Iterator[slice]:
    """Slices of a's rows whose products with b take _BLOCK_BYTES in float64, or one row."""
    size = max(1, _BLOCK_BYTES // (8 * max(1, len(b))))
    return (slice(start, min(start + size, len(a))) for start in range(0, len(a), size))

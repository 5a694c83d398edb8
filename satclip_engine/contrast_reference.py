"""The definition of the contrastive loss and its gradient, in plain PyTorch.

    S_ij = scale · a_i · b_j    row_lse_i = log Σ_j exp S_ij    column_lse_j = log Σ_i exp S_ij
    loss = 1/(2N) · Σ_i (row_lse_i + column_lse_i − 2 S_ii)

Row i's partner is row i of b; `offset` is for a share of the rows, whose partners begin there. The whole
matrix S is in memory. Every other implementation is correct when it equals this one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def contrastive_loss(a: Tensor, b: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a (N, E), b (N, E), scale () → loss (), row_lse (N,), column_lse (N,)."""
    row_lse, column_lse, partner = log_sum_exps(a, b, scale)
    return (row_lse + column_lse - 2 * partner).mean() / 2, row_lse, column_lse


def log_sum_exps(
    a: Tensor, b: Tensor, scale: Tensor | float, offset: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """a (n, E), b (N, E) → row_lse (n,), column_lse (N,), S of each row with its partner (n,)."""
    s = scale * (a @ b.T)  # [n, N]
    return torch.logsumexp(s, 1), torch.logsumexp(s, 0), torch.diagonal(s, offset)


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
    products = a @ b.T  # [n, N]
    s = scale * products
    ds = torch.exp(s - row_lse[:, None]) + torch.exp(s - column_lse)
    ds.diagonal(offset).sub_(2)
    ds = factor * ds
    return scale * (ds @ b), scale * (ds.T @ a), (ds * products).sum()

"""Gradients of Σ_i (row_lse_i + column_lse_i − 2 S_ii) by a, b and scale; loss.py says how."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.contrastive.log_sum_exps import exponential
from satclip_engine.kernels.contrastive.partition import loss_config, splits
from satclip_engine.kernels.contrastive.similarities import load_tile, similarities
from satclip_engine.kernels.device_functions.split_fp16 import split, split_dot, unscale
from satclip_engine.kernels.launch import Work, cdiv, launch, select_config
from satclip_engine.kernels.split_operands import SplitPadded, split_padded
from satclip_engine.kernels.tuning import Config

_SCALE = tl.constexpr(16384.0)  # of P, at most 2 in size, before it is split

# Others whose share of a gradient adds up on tensor cores, which cut every addition off
# (split_dot_accumulate). Sums of several chunks are added in memory, in float32, by one launch after the
# other: registers have no room for a second sum, and 8 bytes move for 6000 multiply-adds.
CHUNK_ROWS = 1024


@triton.jit
def _probability(s, lse):
    """Compute exp(s − lse), no more than 1 even where S is known to no better than 1.

    Where S alone makes its log-sum-exp, both are the same number and this is 1, so that partners' P is 0. The
    minimum comes first lest the product in s and the difference become one operation, with s not rounded.
    """
    return exponential(tl.minimum(s, lse, propagate_nan=tl.PropagateNan.ALL) - lse)


@triton.jit
def _loss_gradients(
    own,
    other,
    own_largest,
    other_largest,
    scale,
    own_lse,  # (count,)
    other_lse,  # (others,)
    partial,  # (splits, count, EMBED): Σ_other P · other
    own_plane,
    other_plane,
    count,
    others,
    shift,  # own row i's partner is the other row i + shift
    first,  # other row of the chunk
    share,  # others of a split in a chunk
    EXACT: tl.constexpr,
    EMBED: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    element = tl.program_id(1) * BLOCK_E
    begin = first + tl.program_id(2) * share
    other_scale = unscale(tl.load(other_largest))
    unit = unscale(tl.load(own_largest)) * other_scale * tl.load(scale)
    row_lse = tl.load(own_lse + rows, mask=rows < count, other=0.0)
    x_high, x_low = load_tile(own, own_plane, rows, 0, WIDTH, BLOCK_K)
    sum = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    for start in range(begin, tl.minimum(begin + share, others), BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        # Missing rows are zeros in the pairs, and add nothing whatever their P.
        column_lse = tl.load(other_lse + columns, mask=columns < others, other=0.0)
        y_high, y_low = load_tile(other, other_plane, columns, element, WIDTH, BLOCK_E)
        s = unit * similarities(
            x_high, x_low, y_high, y_low, own, other, own_plane, other_plane, rows, columns, WIDTH, BLOCK_K
        )
        p = _probability(s, row_lse[:, None]) + _probability(s, column_lse[None, :])
        p -= tl.where((rows + shift)[:, None] == columns[None, :], 2.0, 0.0)
        p_high, p_low = split(p * _SCALE)
        if EXACT:  # noqa: SIM108 — a constant
            sum = split_dot(p_high, p_low, y_high, y_low, sum)
        else:
            sum = tl.dot(p_high, y_high, sum)
    elements = element + tl.arange(0, BLOCK_E)
    pointers = partial + (tl.program_id(2).to(tl.int64) * count + rows)[:, None] * EMBED + elements[None, :]
    present = (rows < count)[:, None] & (elements < EMBED)[None, :]
    # Atomic to save the registers of the sum so far; one program of a launch adds, so the order is fixed.
    tl.atomic_add(pointers, sum * (other_scale / _SCALE), mask=present, sem="relaxed")


@triton.jit
def _loss_gather(
    partial,  # (amount, size)
    own,  # (size,)
    scale,
    factor,
    gradient,  # (size,): may be the only share
    dots,  # of each program, float64: Σ own · Σ partial
    size,
    amount,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < size
    sum = tl.zeros((BLOCK,), tl.float32)
    pointers = partial + index
    for _ in range(amount):
        sum += tl.load(pointers, mask=mask, other=0.0)
        pointers += size
    x = tl.load(own + index, mask=mask, other=0.0)
    tl.store(dots + tl.program_id(0), tl.sum(x.to(tl.float64) * sum.to(tl.float64), 0))
    tl.store(gradient + index, sum * (tl.load(scale) * tl.load(factor)), mask=mask)


def gradients(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    offset: int,
    factor: Tensor,
    precision: str = "exact",
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the share of a's rows in the gradients of factor · Σ_i (row_lse_i + column_lse_i − 2 S_ii).

    a (n, E), b (N, E), row_lse (n,), column_lse (N,) over all rows → da (n, E), db (N, E), dscale ()

    precision: "exact", or "fast": S is exact, but P and the rows that it multiplies are rounded to 11 bits.
        da then errs by up to 2⁻¹⁰ · factor · scale · Σ_j |P_ij b_j|, and db and dscale likewise.
    """
    a, b = a.contiguous(), b.contiguous()
    config = loss_config("loss_gradients" if precision == "exact" else "loss_gradients_fast", a)
    block = max(config["BLOCK_K"], config["BLOCK_E"])
    x, y = split_padded(a, block), split_padded(b, block)
    row_lse, column_lse = row_lse.contiguous(), column_lse.contiguous()
    a_partial = _partial_gradient(x, y, a, b, scale, row_lse, column_lse, offset, config, precision)
    b_partial = _partial_gradient(y, x, b, a, scale, column_lse, row_lse, -offset, config, precision)
    da, dots = _gather(a_partial, a, scale, factor)
    db, _ = _gather(b_partial, b, scale, factor)
    return da, db, (dots.sum() * factor).to(scale.dtype)


def _partial_gradient(
    x: SplitPadded,
    y: SplitPadded,
    own: Tensor,
    other: Tensor,
    scale: Tensor,
    own_lse: Tensor,
    other_lse: Tensor,
    shift: int,
    config: Config,
    precision: str,
) -> Tensor:
    """Sum P · other of each own row, split by split: (splits, count, E)."""
    (count, embed), others, exact = own.shape, len(other), precision == "exact"
    blocks, chunks = cdiv(count, config["BLOCK_M"]), x.width // config["BLOCK_E"]
    cuts, _ = splits(blocks * chunks, others, config["BLOCK_N"], own)
    partial = own.new_zeros((cuts, count, embed))
    for first in range(0, others, cuts * CHUNK_ROWS):
        chunk_rows = min(cuts * CHUNK_ROWS, others - first)
        launch(
            _loss_gradients,
            (blocks, chunks, cuts),
            config,
            Work(
                half=count * chunk_rows * embed * (3 * chunks + (3 if exact else 1)),
                fp32=9 * count * chunk_rows * chunks,
                bytes=4 * (count + chunk_rows) * embed + 8 * partial.numel(),
            ),
            own=x.values,
            other=y.values,
            own_largest=x.largest,
            other_largest=y.largest,
            scale=scale,
            own_lse=own_lse,
            other_lse=other_lse,
            partial=partial,
            own_plane=x.plane,
            other_plane=y.plane,
            count=count,
            others=others,
            shift=shift,
            first=first,
            share=cdiv(cdiv(chunk_rows, cuts), config["BLOCK_N"]) * config["BLOCK_N"],
            EXACT=exact,
            EMBED=embed,
            WIDTH=x.width,
        )
    return partial


def _gather(partial: Tensor, own: Tensor, scale: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient by `own` (count, E), and numbers whose sum is the gradient by scale over factor."""
    config = select_config("loss_gather", own.device)
    programs = cdiv(own.numel(), config["BLOCK"])
    gradient = partial[0] if len(partial) == 1 else torch.empty_like(own)
    dots = own.new_empty(programs, dtype=torch.float64)
    launch(
        _loss_gather,
        (programs,),
        config,
        Work(fp32=partial.numel(), fp64=own.numel(), bytes=4 * (partial.numel() + 2 * own.numel())),
        partial=partial,
        own=own,
        scale=scale,
        factor=factor,
        gradient=gradient,
        dots=dots,
        size=own.numel(),
        amount=len(partial),
    )
    return gradient, dots

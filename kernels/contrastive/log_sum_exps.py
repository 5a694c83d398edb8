"""Log-sum-exps of S = scale · a · bᵀ along rows and columns; loss.py says how."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.contrastive.partition import loss_config, splits
from satclip_engine.kernels.contrastive.similarities import load_tile, similarities
from satclip_engine.kernels.device_functions.split_fp16 import unscale
from satclip_engine.kernels.launch import Work, cdiv, launch, select_config
from satclip_engine.kernels.split_operands import split_padded

STRIPE_BLOCKS = 128  # blocks of rows whose shares of the columns' sums are in memory at a time
_LOWEST = tl.constexpr(-3.0e38)  # where maxima start: −∞ less −∞ would be NaN


@triton.jit
def exponential(x):
    """e^x, 0 below 2⁻¹²⁶. tl.exp would take three instructions more for results below that."""
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def _loss_sums(
    a,
    b,
    scale,
    a_largest,
    b_largest,
    row_partial,  # (splits, 2, n)
    column_partial,  # (blocks of this stripe, 2, N)
    partner,  # (n,)
    a_plane,
    b_plane,
    first,  # row of the stripe
    n,
    N,
    offset,
    share,  # columns of a split
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = first + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    begin = tl.program_id(1) * share
    first_partner = offset + first + tl.program_id(0) * BLOCK_M
    unit = unscale(tl.load(a_largest)) * unscale(tl.load(b_largest)) * tl.load(scale)
    a_high, a_low = load_tile(a, a_plane, rows, 0, WIDTH, BLOCK_K)
    top = tl.full((BLOCK_M,), _LOWEST, tl.float32)
    sum = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(begin, tl.minimum(begin + share, N), BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        b_high, b_low = load_tile(b, b_plane, columns, 0, WIDTH, BLOCK_K)
        s = unit * similarities(
            a_high, a_low, b_high, b_low, a, b, a_plane, b_plane, rows, columns, WIDTH, BLOCK_K
        )
        s = tl.where((rows < n)[:, None] & (columns < N)[None, :], s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        sum = sum * exponential(top - new_top) + tl.sum(exponential(s - new_top[:, None]), 1)
        top = new_top
        column_top = tl.maximum(tl.max(s, 0), _LOWEST)
        pointers = column_partial + tl.program_id(0).to(tl.int64) * 2 * N + columns
        tl.store(pointers, column_top, mask=columns < N)
        tl.store(pointers + N, tl.sum(exponential(s - column_top[None, :]), 0), mask=columns < N)
        if (start < first_partner + BLOCK_M) & (first_partner < start + BLOCK_N):
            own = (rows + offset)[:, None] == columns[None, :]
            mask = (rows < n) & (rows + offset >= start) & (rows + offset < start + BLOCK_N)
            tl.store(partner + rows, tl.sum(tl.where(own, s, 0.0), 1), mask=mask)
    pointers = row_partial + tl.program_id(1).to(tl.int64) * 2 * n + rows
    tl.store(pointers, top, mask=rows < n)
    tl.store(pointers + n, sum, mask=rows < n)


@triton.jit
def _loss_fold(partial, out, count, amount, LOG: tl.constexpr, BLOCK: tl.constexpr):
    """Fold sums of exponentials as (maximum, sum / e^maximum): (amount, 2, count) → (2, count), or log."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    top = tl.full((BLOCK,), _LOWEST, tl.float32)
    sum = tl.zeros((BLOCK,), tl.float32)
    pointers = partial + index
    for _ in range(amount):
        other_top = tl.load(pointers, mask=mask, other=0.0)
        new_top = tl.maximum(top, other_top)
        other_sum = tl.load(pointers + count, mask=mask, other=0.0)
        sum = sum * exponential(top - new_top) + other_sum * exponential(other_top - new_top)
        top = new_top
        pointers += 2 * count
    if LOG:
        tl.store(out + index, top + tl.log(sum), mask=mask)
    else:
        tl.store(out + index, top, mask=mask)
        tl.store(out + count + index, sum, mask=mask)


def log_sum_exps(a: Tensor, b: Tensor, scale: Tensor, offset: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce a (n, E), b (N, E), scale () → row_lse (n,), column_lse (N,) of these rows, S_ii (n,)."""
    a, b = a.contiguous(), b.contiguous()
    (n, embed), N = a.shape, len(b)
    config = loss_config("loss_sums", a)
    x, y = split_padded(a, config["BLOCK_K"]), split_padded(b, config["BLOCK_K"])
    blocks = cdiv(n, config["BLOCK_M"])
    cuts, share = splits(min(blocks, STRIPE_BLOCKS), N, config["BLOCK_N"], a)
    row_partial, partner = a.new_empty((cuts, 2, n)), a.new_empty(n)
    column_partial = a.new_empty((min(blocks, STRIPE_BLOCKS), 2, N))
    stripes = a.new_empty((cdiv(blocks, STRIPE_BLOCKS), 2, N))
    for stripe in range(len(stripes)):
        stripe_blocks = min(STRIPE_BLOCKS, blocks - stripe * STRIPE_BLOCKS)
        rows = min(stripe_blocks * config["BLOCK_M"], n - stripe * STRIPE_BLOCKS * config["BLOCK_M"])
        launch(
            _loss_sums,
            (stripe_blocks, cuts),
            config,
            Work(
                half=3 * rows * N * embed,
                fp32=6 * rows * N,
                bytes=4 * (rows + N) * embed + 8 * stripe_blocks * N,
            ),
            a=x.values,
            b=y.values,
            scale=scale,
            a_largest=x.largest,
            b_largest=y.largest,
            row_partial=row_partial,
            column_partial=column_partial,
            partner=partner,
            a_plane=x.plane,
            b_plane=y.plane,
            first=stripe * STRIPE_BLOCKS * config["BLOCK_M"],
            n=n,
            N=N,
            offset=offset,
            share=share,
            WIDTH=x.width,
        )
        _fold(column_partial[:stripe_blocks], stripes[stripe])
    row_lse, column_lse = a.new_empty(n), b.new_empty(N)
    _fold(row_partial, row_lse)
    _fold(stripes, column_lse)
    return row_lse, column_lse, partner


def _fold(partial: Tensor, out: Tensor) -> None:
    """Fold partial (amount, 2, count) → out (2, count), or their log-sum-exps (count,)."""
    count = partial.shape[2]
    config = select_config("loss_fold", partial.device)
    launch(
        _loss_fold,
        (cdiv(count, config["BLOCK"]),),
        config,
        Work(fp32=3 * partial.numel(), bytes=4 * (partial.numel() + out.numel())),
        partial=partial,
        out=out,
        count=count,
        amount=len(partial),
        LOG=out.ndim == 1,
    )

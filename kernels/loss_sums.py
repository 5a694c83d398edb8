"""Log-sum-exps of S = scale · a · bᵀ along rows and columns; loss.py says how."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.halves import down
from satclip_engine.kernels.launch import Work, cdiv, config, launch
from satclip_engine.kernels.loss_pairs import pairs, products, tile
from satclip_engine.kernels.loss_shapes import shape_for, splits

STRIPE = 128  # blocks of rows whose parts of the columns' sums are kept at a time
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
    row_parts,  # (splits, 2, n)
    column_parts,  # (blocks of this stripe, 2, N)
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
    unit = down(tl.load(a_largest)) * down(tl.load(b_largest)) * tl.load(scale)
    a_high, a_low = tile(a, a_plane, rows, 0, WIDTH, BLOCK_K)
    top = tl.full((BLOCK_M,), _LOWEST, tl.float32)
    sum = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(begin, tl.minimum(begin + share, N), BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        b_high, b_low = tile(b, b_plane, columns, 0, WIDTH, BLOCK_K)
        s = unit * products(
            a_high, a_low, b_high, b_low, a, b, a_plane, b_plane, rows, columns, WIDTH, BLOCK_K
        )
        s = tl.where((rows < n)[:, None] & (columns < N)[None, :], s, float("-inf"))
        now = tl.maximum(top, tl.max(s, 1))
        sum = sum * exponential(top - now) + tl.sum(exponential(s - now[:, None]), 1)
        top = now
        above = tl.maximum(tl.max(s, 0), _LOWEST)
        to = column_parts + tl.program_id(0).to(tl.int64) * 2 * N + columns
        tl.store(to, above, mask=columns < N)
        tl.store(to + N, tl.sum(exponential(s - above[None, :]), 0), mask=columns < N)
        if (start < first_partner + BLOCK_M) & (first_partner < start + BLOCK_N):
            own = (rows + offset)[:, None] == columns[None, :]
            here = (rows < n) & (rows + offset >= start) & (rows + offset < start + BLOCK_N)
            tl.store(partner + rows, tl.sum(tl.where(own, s, 0.0), 1), mask=here)
    to = row_parts + tl.program_id(1).to(tl.int64) * 2 * n + rows
    tl.store(to, top, mask=rows < n)
    tl.store(to + n, sum, mask=rows < n)


@triton.jit
def _loss_fold(parts, out, count, amount, LOG: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of exponentials as (maximum, sum / e^maximum): parts (amount, 2, count) → one part, or its log."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = at < count
    top = tl.full((BLOCK,), _LOWEST, tl.float32)
    sum = tl.zeros((BLOCK,), tl.float32)
    part = parts + at
    for _ in range(amount):
        part_top = tl.load(part, mask=here, other=0.0)
        now = tl.maximum(top, part_top)
        part_sum = tl.load(part + count, mask=here, other=0.0)
        sum = sum * exponential(top - now) + part_sum * exponential(part_top - now)
        top = now
        part += 2 * count
    if LOG:
        tl.store(out + at, top + tl.log(sum), mask=here)
    else:
        tl.store(out + at, top, mask=here)
        tl.store(out + count + at, sum, mask=here)


def log_sum_exps(a: Tensor, b: Tensor, scale: Tensor, offset: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """a (n, E), b (N, E), scale () → row_lse (n,), column_lse (N,) over these rows, partner (n,): S_ii."""
    a, b = a.contiguous(), b.contiguous()
    (n, embed), N = a.shape, len(b)
    shape = shape_for("loss_sums", a)
    x, y = pairs(a, shape["BLOCK_K"]), pairs(b, shape["BLOCK_K"])
    blocks = cdiv(n, shape["BLOCK_M"])
    parts, share = splits(min(blocks, STRIPE), N, shape["BLOCK_N"], a)
    row_parts, partner = a.new_empty((parts, 2, n)), a.new_empty(n)
    column_parts = a.new_empty((min(blocks, STRIPE), 2, N))
    stripes = a.new_empty((cdiv(blocks, STRIPE), 2, N))
    for stripe in range(len(stripes)):
        here = min(STRIPE, blocks - stripe * STRIPE)
        rows = min(here * shape["BLOCK_M"], n - stripe * STRIPE * shape["BLOCK_M"])
        launch(
            _loss_sums,
            (here, parts),
            shape,
            Work(half=3 * rows * N * embed, fp32=6 * rows * N, bytes=4 * (rows + N) * embed + 8 * here * N),
            a=x.values,
            b=y.values,
            scale=scale,
            a_largest=x.largest,
            b_largest=y.largest,
            row_parts=row_parts,
            column_parts=column_parts,
            partner=partner,
            a_plane=x.plane,
            b_plane=y.plane,
            first=stripe * STRIPE * shape["BLOCK_M"],
            n=n,
            N=N,
            offset=offset,
            share=share,
            WIDTH=x.width,
        )
        _fold(column_parts[:here], stripes[stripe])
    row_lse, column_lse = a.new_empty(n), b.new_empty(N)
    _fold(row_parts, row_lse)
    _fold(stripes, column_lse)
    return row_lse, column_lse, partner


def _fold(parts: Tensor, out: Tensor) -> None:
    """parts (amount, 2, count) → out (2, count), or their log-sum-exps (count,)."""
    count = parts.shape[2]
    shape = config("loss_fold", parts.device)
    launch(
        _loss_fold,
        (cdiv(count, shape["BLOCK"]),),
        shape,
        Work(fp32=3 * parts.numel(), bytes=4 * (parts.numel() + out.numel())),
        parts=parts,
        out=out,
        count=count,
        amount=len(parts),
        LOG=out.ndim == 1,
    )

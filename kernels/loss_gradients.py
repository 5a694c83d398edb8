"""Gradients of Σ_i (row_lse_i + column_lse_i − 2 S_ii) by a, b and scale; loss.py says how."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.halves import down, multiplied, split
from satclip_engine.kernels.launch import Work, cdiv, config, launch
from satclip_engine.kernels.loss_pairs import Pairs, pairs, products, tile
from satclip_engine.kernels.loss_shapes import shape_for, splits
from satclip_engine.kernels.loss_sums import exponential
from satclip_engine.kernels.tuning import Config

_SCALE = tl.constexpr(16384.0)  # of P, at most 2 in size, before it is split

# Others whose share of a gradient adds up on tensor cores, which cut every addition off (halves.added). Sums
# of several stretches are added in memory, in float32, by one launch after the other: registers have no room
# for a second sum, and 8 bytes move for 6000 multiply-adds.
STRETCH = 1024


@triton.jit
def _probability(s, lse):
    """exp(s − lse), no more than 1 even where S is known to no better than 1.

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
    parts,  # (splits, count, EMBED): Σ_other P · other
    own_plane,
    other_plane,
    count,
    others,
    shift,  # own row i's partner is the other row i + shift
    first,  # other row of the stretch
    share,  # others of a split in a stretch
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
    other_down = down(tl.load(other_largest))
    unit = down(tl.load(own_largest)) * other_down * tl.load(scale)
    row_lse = tl.load(own_lse + rows, mask=rows < count, other=0.0)
    x_high, x_low = tile(own, own_plane, rows, 0, WIDTH, BLOCK_K)
    sum = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    for start in range(begin, tl.minimum(begin + share, others), BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        # Missing rows are zeros in the pairs, and add nothing whatever their P.
        column_lse = tl.load(other_lse + columns, mask=columns < others, other=0.0)
        y_high, y_low = tile(other, other_plane, columns, element, WIDTH, BLOCK_E)
        s = unit * products(
            x_high, x_low, y_high, y_low, own, other, own_plane, other_plane, rows, columns, WIDTH, BLOCK_K
        )
        p = _probability(s, row_lse[:, None]) + _probability(s, column_lse[None, :])
        p -= tl.where((rows + shift)[:, None] == columns[None, :], 2.0, 0.0)
        p_high, p_low = split(p * _SCALE)
        if EXACT:  # noqa: SIM108 — a constant
            sum = multiplied(p_high, p_low, y_high, y_low, sum)
        else:
            sum = tl.dot(p_high, y_high, sum)
    elements = element + tl.arange(0, BLOCK_E)
    to = parts + (tl.program_id(2).to(tl.int64) * count + rows)[:, None] * EMBED + elements[None, :]
    present = (rows < count)[:, None] & (elements < EMBED)[None, :]
    # Atomic to save the registers of what is there; one program of a launch adds, so the order is fixed.
    tl.atomic_add(to, sum * (other_down / _SCALE), mask=present, sem="relaxed")


@triton.jit
def _loss_gather(
    parts,  # (amount, size)
    own,  # (size,)
    scale,
    factor,
    gradient,  # (size,): may be the only part
    dots,  # of each program, float64: Σ own · Σ_part parts
    size,
    amount,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < size
    sum = tl.zeros((BLOCK,), tl.float32)
    part = parts + at
    for _ in range(amount):
        sum += tl.load(part, mask=here, other=0.0)
        part += size
    x = tl.load(own + at, mask=here, other=0.0)
    tl.store(dots + tl.program_id(0), tl.sum(x.to(tl.float64) * sum.to(tl.float64), 0))
    tl.store(gradient + at, sum * (tl.load(scale) * tl.load(factor)), mask=here)


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
    """The share of a's rows in the gradients of factor · Σ_i (row_lse_i + column_lse_i − 2 S_ii).

    a (n, E), b (N, E), row_lse (n,), column_lse (N,) over all rows → da (n, E), db (N, E), dscale ()

    precision: "exact", or "fast": S is exact, but P and the rows that it multiplies are rounded to 11 bits.
        da then errs by up to 2⁻¹⁰ · factor · scale · Σ_j |P_ij b_j|, and db and dscale likewise.
    """
    a, b = a.contiguous(), b.contiguous()
    shape = shape_for("loss_gradients" if precision == "exact" else "loss_gradients_fast", a)
    block = max(shape["BLOCK_K"], shape["BLOCK_E"])
    x, y = pairs(a, block), pairs(b, block)
    row_lse, column_lse = row_lse.contiguous(), column_lse.contiguous()
    a_parts = _parts(x, y, a, b, scale, row_lse, column_lse, offset, shape, precision)
    b_parts = _parts(y, x, b, a, scale, column_lse, row_lse, -offset, shape, precision)
    da, dots = _gathered(a_parts, a, scale, factor)
    db, _ = _gathered(b_parts, b, scale, factor)
    return da, db, (dots.sum() * factor).to(scale.dtype)


def _parts(
    x: Pairs,
    y: Pairs,
    own: Tensor,
    other: Tensor,
    scale: Tensor,
    own_lse: Tensor,
    other_lse: Tensor,
    shift: int,
    shape: Config,
    precision: str,
) -> Tensor:
    """Σ_other P · other of each own row, in parts: (parts, count, E)."""
    (count, embed), others, exact = own.shape, len(other), precision == "exact"
    blocks, chunks = cdiv(count, shape["BLOCK_M"]), x.width // shape["BLOCK_E"]
    cuts, _ = splits(blocks * chunks, others, shape["BLOCK_N"], own)
    parts = own.new_zeros((cuts, count, embed))
    for first in range(0, others, cuts * STRETCH):
        here = min(cuts * STRETCH, others - first)
        launch(
            _loss_gradients,
            (blocks, chunks, cuts),
            shape,
            Work(
                half=count * here * embed * (3 * chunks + (3 if exact else 1)),
                fp32=9 * count * here * chunks,
                bytes=4 * (count + here) * embed + 8 * parts.numel(),
            ),
            own=x.values,
            other=y.values,
            own_largest=x.largest,
            other_largest=y.largest,
            scale=scale,
            own_lse=own_lse,
            other_lse=other_lse,
            parts=parts,
            own_plane=x.plane,
            other_plane=y.plane,
            count=count,
            others=others,
            shift=shift,
            first=first,
            share=cdiv(cdiv(here, cuts), shape["BLOCK_N"]) * shape["BLOCK_N"],
            EXACT=exact,
            EMBED=embed,
            WIDTH=x.width,
        )
    return parts


def _gathered(parts: Tensor, own: Tensor, scale: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient by `own` (count, E), and numbers whose sum is the gradient by scale over factor."""
    shape = config("loss_gather", own.device)
    programs = cdiv(own.numel(), shape["BLOCK"])
    gradient = parts[0] if len(parts) == 1 else torch.empty_like(own)
    dots = own.new_empty(programs, dtype=torch.float64)
    launch(
        _loss_gather,
        (programs,),
        shape,
        Work(fp32=parts.numel(), fp64=own.numel(), bytes=4 * (parts.numel() + 2 * own.numel())),
        parts=parts,
        own=own,
        scale=scale,
        factor=factor,
        gradient=gradient,
        dots=dots,
        size=own.numel(),
        amount=len(parts),
    )
    return gradient, dots

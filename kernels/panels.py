"""The first layer on rows of constant latitude: Legendre functions contracted with its weights over l.

    G[row][term][unit] = Σ_l P̄(l, m)(x) · W₁[unit, (l, ±m)]        2L − 1 terms, ordered as those of waves.py

A row costs L² multiply-adds a unit, once, and leaves a pixel 2L − 1 of them. Rows are contracted in blocks, so
that W₁ is read once for a block. Results lie as right operands (halves.py) of the synthesis.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.halves import split
from satclip_engine.kernels.harmonics import columns
from satclip_engine.kernels.launch import Work, cdiv, config, launch


@triton.jit
def _store(to, value, step, mask):
    high, low = split(value)
    tl.store(to, high, mask)
    tl.store(to + step, low, mask)
    tl.store(to + 2 * step, high, mask)


@triton.jit
def _panels(
    legendre,  # [L²][rows] float32: P̄(l, m) at l² + l + m
    weights,  # [L²][width] float32
    out,  # [rows][depth][width] float16
    rows,
    degrees,
    depth,
    width,
    BLOCK_R: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """One order: cosine and sine term of a block of rows and units.

    Products in float32, not 3×TF32: the first layer carries a factor of 30 and what training adds to it.
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    unit = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    m = tl.program_id(2)
    in_rows, in_units = row < rows, unit < width
    cosines = tl.zeros((BLOCK_R, BLOCK_U), tl.float32)
    sines = tl.zeros((BLOCK_R, BLOCK_U), tl.float32)
    for start in range(m, degrees, BLOCK_L):
        l = start + tl.arange(0, BLOCK_L).to(tl.int64)  # noqa: E741
        in_l = l < degrees
        at = l * l + l
        p = tl.load(legendre + (at + m)[None, :] * rows + row[:, None], in_l[None, :] & in_rows[:, None], 0.0)
        mask = in_l[:, None] & in_units[None, :]
        positive = tl.load(weights + (at + m)[:, None] * width + unit[None, :], mask, 0.0)
        negative = tl.load(weights + (at - m)[:, None] * width + unit[None, :], mask, 0.0)
        cosines = tl.dot(p, positive, cosines, input_precision="ieee")
        sines = tl.dot(p, negative, sines, input_precision="ieee")
    to = out + row[:, None].to(tl.int64) * depth * width + unit[None, :]
    mask = in_rows[:, None] & in_units[None, :]
    _store(to + m * width, cosines, (2 * degrees - 1) * width, mask)
    _store(to + (degrees - 1 + m) * width, sines, (2 * degrees - 1) * width, mask & (m > 0))


def panels(lat: Tensor, weights: Tensor, degrees: int, out: Tensor) -> Tensor:
    """Of latitudes (H,) float64 and the first layer's weights (L², width), scaled to float16's range.

    out: (≥ H, depth, width) float16, zero beyond the 3·(2L − 1) terms. Returns its first H rows.
    """
    rows, (_, depth, width) = len(lat), out.shape
    legendre = _legendre(lat, degrees)
    shape = config("panels", lat.device)
    launch(
        _panels,
        (cdiv(rows, shape["BLOCK_R"]), cdiv(width, shape["BLOCK_U"]), degrees),
        shape,
        Work(
            fp32=rows * width * degrees**2,
            bytes=4 * (legendre.numel() + weights.numel()) + 6 * rows * (2 * degrees - 1) * width,
        ),
        legendre=legendre,
        weights=weights,
        out=out,
        rows=rows,
        degrees=degrees,
        depth=depth,
        width=width,
    )
    return out[:rows]


def _legendre(lat: Tensor, degrees: int) -> Tensor:
    """P̄(l, m) at l² + l + m, (L², H) float32: harmonics where φ = 0, so cosines are 1."""
    return columns(torch.stack([torch.full_like(lat, -180.0), lat], 1), degrees, dtype=torch.float32)

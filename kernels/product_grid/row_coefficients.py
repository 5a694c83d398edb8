"""Fourier coefficients of the first layer on rows of latitude: Legendre functions contracted with weights.

    G[row][term][unit] = Σ_l P̄(l, m)(x) · W₁[unit, (l, ±m)]    2L − 1 terms, ordered as in fourier_basis.py

A row costs L² multiply-adds a unit, once, and leaves a pixel 2L − 1 of them. Rows are contracted in blocks,
so that W₁ is read once for a block. Results are right operands of the Fourier synthesis.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.device_functions.split_fp16 import split
from satclip_engine.kernels.harmonics import harmonic_columns
from satclip_engine.kernels.launch import Work, cdiv, launch, select_config


@triton.jit
def _store_split(pointers, value, plane, mask):
    high, low = split(value)
    tl.store(pointers, high, mask)
    tl.store(pointers + plane, low, mask)


@triton.jit
def _row_coefficients(
    legendre,  # [L²][rows] float32: P̄(l, m) at l² + l + m
    weights,  # [L²][width] float32
    out,  # [rows][2][depth][width] float16
    rows,
    degrees,
    depth,
    width,
    BLOCK_R: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Contract one order: cosine and sine term of a block of rows and units.

    Products in float32, not split-fp16: the first layer carries a factor of 30 and what training adds to it.
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
        zonal = l * l + l
        p = tl.load(
            legendre + (zonal + m)[None, :] * rows + row[:, None], in_l[None, :] & in_rows[:, None], 0.0
        )
        mask = in_l[:, None] & in_units[None, :]
        positive = tl.load(weights + (zonal + m)[:, None] * width + unit[None, :], mask, 0.0)
        negative = tl.load(weights + (zonal - m)[:, None] * width + unit[None, :], mask, 0.0)
        cosines = tl.dot(p, positive, cosines, input_precision="ieee")
        sines = tl.dot(p, negative, sines, input_precision="ieee")
    pointers = out + row[:, None].to(tl.int64) * (2 * depth * width) + unit[None, :]
    mask = in_rows[:, None] & in_units[None, :]
    _store_split(pointers + m * width, cosines, depth * width, mask)
    _store_split(pointers + (degrees - 1 + m) * width, sines, depth * width, mask & (m > 0))


def row_coefficients(lat: Tensor, weights: Tensor, degrees: int, out: Tensor) -> Tensor:
    """Contract at latitudes (H,) float64 with the first layer's weights (L², width), of float16's range.

    out: (≥ H, 2, depth, width) float16 for high and low, zero beyond the terms; its first H rows come back.
    """
    rows, (depth, width) = len(lat), out.shape[2:]
    legendre = _legendre(lat, degrees)
    config = select_config("row_coefficients", lat.device)
    launch(
        _row_coefficients,
        (cdiv(rows, config["BLOCK_R"]), cdiv(width, config["BLOCK_U"]), degrees),
        config,
        Work(
            fp32=rows * width * degrees**2,
            bytes=4 * (legendre.numel() + weights.numel()) + 4 * rows * (2 * degrees - 1) * width,
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
    return harmonic_columns(torch.stack([torch.full_like(lat, -180.0), lat], 1), degrees, dtype=torch.float32)

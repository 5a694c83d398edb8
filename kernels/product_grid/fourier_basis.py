"""Fourier basis of a grid's columns, cos mφ and sin mφ: left operands of the Fourier synthesis.

Term m < L is cos mφ, term L + m − 1 is sin mφ for m ≥ 1; φ = lon + 180°, hence cos mφ = (−1)^m cos(m·lon).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.device_functions.sincos_degrees import sincos_degrees
from satclip_engine.kernels.device_functions.split_fp16 import split
from satclip_engine.kernels.launch import Work, cdiv, launch, select_config


@triton.jit
def _fourier_basis(
    longitudes,  # [columns] float64, degrees in [−360, 360]
    out,  # [≥ columns][2][depth] float16
    columns,
    degrees,
    depth,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    term = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    order = tl.where(term < degrees, term, term - degrees + 1)
    longitude = tl.load(longitudes + column, column < columns, 0.0)
    sine, cosine = sincos_degrees(order.to(tl.float64)[None, :] * longitude[:, None])
    value = tl.where((term < degrees)[None, :], cosine, sine).to(tl.float32)
    high, low = split(tl.where((order & 1 != 0)[None, :], -value, value))
    mask = (column < columns)[:, None] & (term < 2 * degrees - 1)[None, :]
    pointers = out + column.to(tl.int64)[:, None] * (2 * depth) + term[None, :]
    tl.store(pointers, high, mask)
    tl.store(pointers + depth, low, mask)


def fourier_basis(lon: Tensor, degrees: int, depth: int, multiple: int) -> Tensor:
    """Compute the basis at longitudes (W,) float64 degrees → (W up to a multiple, 2, depth) float16.

    High and low parts; padded columns and terms are zero.
    """
    columns, terms = len(lon), 2 * degrees - 1
    out = lon.new_zeros((cdiv(columns, multiple) * multiple, 2, depth), dtype=torch.float16)
    config = select_config("fourier_basis", lon.device)
    launch(
        _fourier_basis,
        (cdiv(columns, config["BLOCK_C"]), cdiv(terms, config["BLOCK_T"])),
        config,
        Work(fp64=20 * columns * terms, bytes=8 * columns + 2 * out.numel()),
        longitudes=torch.fmod(lon, 360.0),  # exact
        out=out,
        columns=columns,
        degrees=degrees,
        depth=depth,
    )
    return out

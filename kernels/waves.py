"""The trigonometric functions of a grid's columns, left operands of the Fourier synthesis.

Term m < L is cos mφ, term L + m − 1 is sin mφ for m ≥ 1; φ = lon + 180°, hence cos mφ = (−1)^m cos(m·lon).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.basis import sine_cosine
from satclip_engine.kernels.halves import split
from satclip_engine.kernels.launch import Work, cdiv, config, launch


@triton.jit
def _waves(
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
    sine, cosine = sine_cosine(order.to(tl.float64)[None, :] * longitude[:, None])
    value = tl.where((term < degrees)[None, :], cosine, sine).to(tl.float32)
    high, low = split(tl.where((order & 1 != 0)[None, :], -value, value))
    mask = (column < columns)[:, None] & (term < 2 * degrees - 1)[None, :]
    to = out + column.to(tl.int64)[:, None] * (2 * depth) + term[None, :]
    tl.store(to, high, mask)
    tl.store(to + depth, low, mask)


def waves(lon: Tensor, degrees: int, depth: int, multiple: int) -> Tensor:
    """Of longitudes (W,) in degrees, float64 → (W up to a multiple, 2, depth) float16, high and low halves.

    What has no column or term is zero.
    """
    columns, terms = len(lon), 2 * degrees - 1
    out = lon.new_zeros((cdiv(columns, multiple) * multiple, 2, depth), dtype=torch.float16)
    shape = config("waves", lon.device)
    launch(
        _waves,
        (cdiv(columns, shape["BLOCK_C"]), cdiv(terms, shape["BLOCK_T"])),
        shape,
        Work(fp64=20 * columns * terms, bytes=8 * columns + 2 * out.numel()),
        longitudes=torch.fmod(lon, 360.0),  # exact
        out=out,
        columns=columns,
        degrees=degrees,
        depth=depth,
    )
    return out

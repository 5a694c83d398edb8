"""Real spherical harmonics of points in memory: the basis that encode.py makes in registers.

harmonics(lonlat, 40)                       # (N, 2) float64 -> (N, 1600) float64, column l² + l + m
harmonic_columns(lonlat, 40, dtype=torch.float32)    # the same as (1600, N)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.launch import Work, cdiv, launch, select_config
from satclip_engine.kernels.recurrence import recurrence_starts, recurrence_step, schedule


@triton.jit
def _harmonics(
    x,  # [count]
    starts,  # [2L−1, count]
    a,  # [STEPS · LANES] and so on, see Schedule
    c,
    sequence,
    column,
    out,  # [L², count]
    count,
    steps,
    LANES: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    lanes = tl.program_id(1) * LANES + tl.arange(0, LANES)
    width = tl.num_programs(1) * LANES
    in_rows = rows < count
    cos_theta = tl.load(x + rows, in_rows, 0.0)
    current, previous = tl.zeros((LANES, BLOCK_N), tl.float64), tl.zeros((LANES, BLOCK_N), tl.float64)
    for step in range(steps):
        k = step * width + lanes
        begins, columns = tl.load(sequence + k), tl.load(column + k)
        mask = (begins >= 0)[:, None] & in_rows[None, :]
        start = tl.load(starts + begins.to(tl.int64)[:, None] * count + rows[None, :], mask, 0.0)
        following = recurrence_step(
            tl.load(a + k)[:, None], tl.load(c + k)[:, None], cos_theta[None, :], current, previous, start
        )
        previous = current
        current = following
        mask = (columns >= 0)[:, None] & in_rows[None, :]
        tl.store(out + columns[:, None] * count + rows[None, :], current.to(out.dtype.element_ty), mask)


def harmonic_columns(
    lonlat: Tensor, degrees: int, *, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """Harmonics of (N, 2) float64 degrees, longitude first -> (L², N) of `dtype`, computed in float64.

    NaN where a point is not finite.
    """
    count, config = len(lonlat), select_config("harmonics", lonlat.device)
    out = torch.empty(degrees**2, count, dtype=dtype, device=lonlat.device) if out is None else out
    x, first = recurrence_starts(lonlat, degrees)
    groups = cdiv(min(MAX_LANES, 2 * degrees - 1), config["LANES"])
    plan = schedule(degrees, groups * config["LANES"], lonlat.device)
    launch(
        _harmonics,
        (cdiv(count, config["BLOCK_N"]), groups),
        config,
        Work(
            fp64=3 * count * degrees**2,
            bytes=8 * (x.numel() + first.numel()) + out.numel() * out.element_size(),
        ),
        x=x,
        starts=first,
        a=plan.a,
        c=plan.c,
        sequence=plan.sequence,
        column=plan.column,
        out=out,
        count=count,
        steps=plan.steps,
    )
    return out


MAX_LANES = 32  # sequences side by side; more would leave none behind them to fill the lanes at L = 40


def harmonics(lonlat: Tensor, degrees: int) -> Tensor:
    """Orthonormal real harmonics of (N, 2) float64 degrees, longitude first -> (N, L²) float64."""
    return harmonic_columns(lonlat, degrees, dtype=torch.float64).T.contiguous()

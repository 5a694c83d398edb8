"""Legendre recurrences of spherical harmonics: their sequences, schedules and starting values.

Harmonics are the columns l² + l + m of degree l < L (csrc/harmonics.h). Those of one order, cosine or sine,
make a sequence: number m for cos mφ, L − 1 + m for sin mφ, 2L − 1 in all. Along a sequence, l = |m|..L−1,

    Y(l) = a(l,m) · x · Y(l−1) + c(l,m) · Y(l−2)        x = cos θ = −sin(lat)

in float64 (Holmes & Featherstone 2002, eq. 11), trigonometric factor and all, because the recurrence is
linear: only its start P̄(m,m)·cos mφ holds the longitude. A schedule lays the sequences end to end on the
lanes of a tile, so that every step yields a full tile: 50 steps of 32 lanes at L = 40, none of them idle.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.device_functions.sincos_degrees import sincos_degrees
from satclip_engine.kernels.launch import Work, cdiv, launch, select_config


@dataclass(frozen=True)
class Schedule:
    """Work of each lane at each step, as tensors [steps · lanes]."""

    steps: int
    lanes: int
    a: Tensor  # float64; 0 where a sequence starts
    c: Tensor  # float64; 0 there and at the step after
    sequence: Tensor  # int32: the sequence that starts here, −1 where none does
    column: Tensor  # int64: the harmonic l² + l + m made here, −1 where none is


@functools.lru_cache(maxsize=32)  # sent once: a copy from the host's memory waits for all that was started
def schedule(degrees: int, lanes: int, device: torch.device) -> Schedule:
    """Lay the sequences of L degrees on so many lanes, in as few steps as the packing finds."""
    steps, table = _table(degrees, lanes)
    a, c, sequence, column = (torch.from_numpy(values).to(device) for values in table)
    return Schedule(steps, lanes, a, c, sequence, column)


def _table(degrees: int, lanes: int) -> tuple[int, tuple[np.ndarray, ...]]:
    steps = max(degrees, -(-(degrees**2) // lanes))
    while (placements := _pack(degrees, lanes, steps)) is None:
        steps += 1
    a, c = np.zeros((steps, lanes)), np.zeros((steps, lanes))
    sequence = np.full((steps, lanes), -1, np.int32)
    column = np.full((steps, lanes), -1, np.int64)
    for m, begin, lane in placements:
        order = abs(m)
        l = np.arange(order, degrees)  # noqa: E741
        step = begin + l - order
        a[step[1:], lane] = _a(l[1:], order)
        c[step[2:], lane] = -_a(l[2:], order) / _a(l[2:] - 1, order)
        sequence[begin, lane] = order if m >= 0 else degrees - 1 + order
        column[step, lane] = l * l + l + m
    return steps, (a.ravel(), c.ravel(), sequence.ravel(), column.ravel())


def _pack(degrees: int, lanes: int, steps: int) -> list[tuple[int, int, int]] | None:
    """Order, first step and lane of every sequence; None if they do not fit. Best fit, the longest first."""
    free = [steps] * lanes
    placements = []
    for m in (m for order in range(degrees) for m in ((order, -order) if order else (0,))):
        length = degrees - abs(m)
        fitting = [(room, lane) for lane, room in enumerate(free) if room >= length]
        if not fitting:
            return None
        room, lane = min(fitting)
        placements.append((m, steps - room, lane))
        free[lane] = room - length
    return placements


def _a(l: np.ndarray, m: int) -> np.ndarray:  # noqa: E741
    return np.sqrt((4.0 * l * l - 1) / (l * l - m * m))


@triton.jit
def recurrence_step(a, c, x, current, previous, start):
    """The next harmonics of all lanes."""
    return a * x * current + c * previous + start


_FIRST = tl.constexpr(math.sqrt(1 / (4 * math.pi)))
_SQRT2 = tl.constexpr(math.sqrt(2))


@triton.jit
def _recurrence_starts(
    lon,  # [count] float64, within ±360
    lat,  # [count] float64, by its stride
    diagonal,  # [L] float64: P̄(m,m) = P̄(m−1,m−1) · cos(lat) · diagonal[m]
    x,  # [count] float64
    starts,  # [2L−1, count] float64
    count,
    lat_stride,
    degrees,
    BLOCK_N: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = rows < count
    longitude = tl.load(lon + rows, mask, 0.0)
    latitude = tl.load(lat + rows * lat_stride, mask, 0.0)
    invalid = (longitude - longitude) + (latitude - latitude)  # 0, or NaN when one is not finite
    sine, cosine_latitude = sincos_degrees(latitude)
    tl.store(x + rows, invalid - sine, mask)
    sine1, cosine1 = sincos_degrees(longitude)
    sine1, cosine1 = -sine1, -cosine1  # of φ = lon + 180°
    sectoral = _FIRST + invalid
    cosine, sine = tl.full((BLOCK_N,), 1.0, tl.float64), tl.full((BLOCK_N,), 0.0, tl.float64)
    cosines = starts + rows
    sines = cosines + tl.cast(degrees - 1, tl.int64) * count
    tl.store(cosines, sectoral, mask)
    for m in range(1, degrees):
        sectoral = sectoral * (cosine_latitude * tl.load(diagonal + m))
        # As on the CPU, lest the recurrence meet a subnormal; what grows from it is below 1e-159.
        sectoral = tl.where(sectoral < 1e-200, 0.0, sectoral)
        cosine, sine = cosine * cosine1 - sine * sine1, sine * cosine1 + cosine * sine1
        cosines += count
        sines += count
        tl.store(cosines, sectoral * _SQRT2 * cosine, mask)
        tl.store(sines, sectoral * _SQRT2 * sine, mask)


def recurrence_starts(lonlat: Tensor, degrees: int) -> tuple[Tensor, Tensor]:
    """Compute x (N,) and the first harmonic of every sequence (2L − 1, N), of (N, 2) degrees; all float64.

    NaN where a point is not finite; latitudes are within ±90.
    """
    count, config = len(lonlat), select_config("recurrence_starts", lonlat.device)
    x, first = lonlat.new_empty(count), lonlat.new_empty(2 * degrees - 1, count)
    launch(
        _recurrence_starts,
        (cdiv(count, config["BLOCK_N"]),),
        config,
        Work(fp64=count * (60 + 8 * degrees), bytes=8 * (lonlat.numel() + x.numel() + first.numel())),
        lon=torch.fmod(lonlat[:, 0], 360),  # exact for any number of turns
        lat=lonlat[:, 1],
        diagonal=_diagonal(degrees, lonlat.device),
        x=x,
        starts=first,
        count=count,
        lat_stride=lonlat.stride(0),
        degrees=degrees,
    )
    return x, first


@functools.lru_cache(maxsize=32)
def _diagonal(degrees: int, device: torch.device) -> Tensor:
    m = np.arange(degrees)
    return torch.from_numpy(np.sqrt((2 * m + 1) / np.maximum(2 * m, 1))).to(device)

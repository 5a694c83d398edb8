"""Which harmonic is made where: sequences, schedules and starts of the Legendre recurrences.

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

from satclip_engine.kernels.launch import Work, cdiv, config, launch


@dataclass(frozen=True)
class Schedule:
    """What each lane does at each step, as tensors [steps · lanes]."""

    steps: int
    lanes: int
    a: Tensor  # float64; 0 where a sequence starts
    c: Tensor  # float64; 0 there and at the step after
    sequence: Tensor  # int32: the sequence that starts here, −1 where none does
    column: Tensor  # int64: the harmonic l² + l + m made here, −1 where none is


@functools.lru_cache(maxsize=32)  # sent once: a copy from the host's memory waits for all that was started
def schedule(degrees: int, lanes: int, device: torch.device) -> Schedule:
    """The sequences of L degrees on so many lanes, in as few steps as the packing finds."""
    steps, table = _table(degrees, lanes)
    a, c, sequence, column = (torch.from_numpy(values).to(device) for values in table)
    return Schedule(steps, lanes, a, c, sequence, column)


def _table(degrees: int, lanes: int) -> tuple[int, tuple[np.ndarray, ...]]:
    steps = max(degrees, -(-(degrees**2) // lanes))
    while (placed := _packed(degrees, lanes, steps)) is None:
        steps += 1
    a, c = np.zeros((steps, lanes)), np.zeros((steps, lanes))
    sequence = np.full((steps, lanes), -1, np.int32)
    column = np.full((steps, lanes), -1, np.int64)
    for m, begin, lane in placed:
        order = abs(m)
        l = np.arange(order, degrees)  # noqa: E741
        at = begin + l - order
        a[at[1:], lane] = _a(l[1:], order)
        c[at[2:], lane] = -_a(l[2:], order) / _a(l[2:] - 1, order)
        sequence[begin, lane] = order if m >= 0 else degrees - 1 + order
        column[at, lane] = l * l + l + m
    return steps, (a.ravel(), c.ravel(), sequence.ravel(), column.ravel())


def _packed(degrees: int, lanes: int, steps: int) -> list[tuple[int, int, int]] | None:
    """Order, first step and lane of every sequence; None if they do not fit. Best fit, the longest first."""
    left = [steps] * lanes
    placed = []
    for m in (m for order in range(degrees) for m in ((order, -order) if order else (0,))):
        length = degrees - abs(m)
        fitting = [(room, lane) for lane, room in enumerate(left) if room >= length]
        if not fitting:
            return None
        room, lane = min(fitting)
        placed.append((m, steps - room, lane))
        left[lane] = room - length
    return placed


def _a(l: np.ndarray, m: int) -> np.ndarray:  # noqa: E741
    return np.sqrt((4.0 * l * l - 1) / (l * l - m * m))


@triton.jit
def advanced(a, c, x, now, before, start):
    """The next harmonics of all lanes."""
    return a * x * now + c * before + start


@triton.jit
def sine_cosine(degrees):
    """Of angles within ±360°, in float64: multiples of 90° give exact zeros and ones."""
    quarter = tl.floor(degrees * (1 / 90) + 0.5)
    r = (degrees - quarter * 90.0) * 0.017453292519943295  # |r| ≤ π/4; the difference is exact
    t = r * r
    # Taylor's series to r¹⁷ and r¹⁶: what they leave is below 3e-18.
    s = tl.full(t.shape, 1 / 355687428096000, tl.float64)
    for factorial in tl.static_range(7):
        s = s * t + _SINE[factorial]
    s = s * t * r + r
    c = tl.full(t.shape, 1 / 20922789888000, tl.float64)
    for factorial in tl.static_range(8):
        c = c * t + _COSINE[factorial]
    q = quarter.to(tl.int32) & 3
    sine = tl.where(q == 0, s, tl.where(q == 1, c, tl.where(q == 2, -s, -c)))
    cosine = tl.where(q == 0, c, tl.where(q == 1, -s, tl.where(q == 2, -c, s)))
    return sine, cosine


_SINE = tl.constexpr(tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(7, 0, -1)))
_COSINE = tl.constexpr(tuple((-1) ** k / math.factorial(2 * k) for k in range(7, -1, -1)))
_FIRST = tl.constexpr(math.sqrt(1 / (4 * math.pi)))
_SQRT2 = tl.constexpr(math.sqrt(2))


@triton.jit
def _starts(
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
    nowhere = (longitude - longitude) + (latitude - latitude)  # 0, or NaN when one is not finite
    sine, slant = sine_cosine(latitude)
    tl.store(x + rows, nowhere - sine, mask)
    sine1, cosine1 = sine_cosine(longitude)
    sine1, cosine1 = -sine1, -cosine1  # of φ = lon + 180°
    sectoral = _FIRST + nowhere
    cosine, sine = tl.full((BLOCK_N,), 1.0, tl.float64), tl.full((BLOCK_N,), 0.0, tl.float64)
    cosines = starts + rows
    sines = cosines + tl.cast(degrees - 1, tl.int64) * count
    tl.store(cosines, sectoral, mask)
    for m in range(1, degrees):
        sectoral = sectoral * (slant * tl.load(diagonal + m))
        # As on the CPU, lest the recurrence meet a subnormal; what grows from it is below 1e-159.
        sectoral = tl.where(sectoral < 1e-200, 0.0, sectoral)
        cosine, sine = cosine * cosine1 - sine * sine1, sine * cosine1 + cosine * sine1
        cosines += count
        sines += count
        tl.store(cosines, sectoral * _SQRT2 * cosine, mask)
        tl.store(sines, sectoral * _SQRT2 * sine, mask)


def starts(lonlat: Tensor, degrees: int) -> tuple[Tensor, Tensor]:
    """x (N,) and the first harmonic of every sequence (2L − 1, N), float64; (N, 2) float64 degrees.

    NaN where a place is not finite; latitudes are within ±90.
    """
    count, shape = len(lonlat), config("starts", lonlat.device)
    x, first = lonlat.new_empty(count), lonlat.new_empty(2 * degrees - 1, count)
    launch(
        _starts,
        (cdiv(count, shape["BLOCK_N"]),),
        shape,
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

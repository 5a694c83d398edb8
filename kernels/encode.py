"""Embeddings of scattered places, and the gradients of training.

    out, saved = forward(lonlat, weights, biases, dropout=0.5, seed=7)       # (N, 2) -> (N, E), (N, ΣH)
    d_first, d_weights, d_biases = backward(grad, lonlat, weights, biases, saved, dropout=0.5)

What they compute is defined in reference.gradients. Harmonics of a tile of places are made in registers
step by step and multiplied into the first layer's sums at once; L² harmonics of a place never exist together.
Backward makes them anew, a stretch of places at a time, in memory that stays in the second-level cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels import dropout as masks
from satclip_engine.kernels.basis import advanced, schedule, starts
from satclip_engine.kernels.dense import (
    Dropout,
    Outer,
    dense,
    moved,
    outer,
    pull_back,
    row_stride,
    stored,
)
from satclip_engine.kernels.halves import PASSES, added, down, halves, split
from satclip_engine.kernels.harmonics import columns
from satclip_engine.kernels.launch import Work, cdiv, config, launch
from satclip_engine.kernels.tail import WIDEST, tail

SCRATCH = 64 << 20  # bytes of pre-activations that are kept when nobody asks for them
STRETCH = 16 << 20  # bytes of harmonics that backward has at once: a third of an H100's second-level cache
FEWEST = 512  # places of such a stretch, however many harmonics they have


@triton.jit(do_not_specialize=masks.ARGUMENTS)
def _first(
    x,  # [count] float64
    starts,  # [2L−1, count] float64
    a,  # [steps · LANES] and so on, see Schedule
    c,
    sequence,
    weight,  # [2, outputs, steps · LANES] high and low halves, in the order of the schedule
    weight_largest,  # [outputs] of them
    bias,  # [outputs]
    out,  # [count, outputs], or None
    activated,  # [count, outputs] for the result's sines, or None
    count,
    outputs,
    steps,
    plane,
    out_stride,
    activated_stride,
    seed: tl.int64,
    threshold: tl.uint32,
    scale,
    layer,
    DROPOUT: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    row = tl.program_id(0) // tl.cdiv(outputs, BLOCK_M)
    column = tl.program_id(0) % tl.cdiv(outputs, BLOCK_M)
    rows = row.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    units = column * BLOCK_M + tl.arange(0, BLOCK_M)
    in_rows, in_units = rows < count, units < outputs
    there = tl.minimum(rows, count - 1)  # rather than a mask at every step, which takes registers
    at = tl.load(x + there)
    now, before = tl.zeros((BLOCK_N, LANES), tl.float64), tl.zeros((BLOCK_N, LANES), tl.float64)
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(steps):
        k = step * LANES + tl.arange(0, LANES)
        begins = tl.load(sequence + k)
        begin = starts + begins.to(tl.int64)[None, :] * count + there[:, None]
        start = tl.load(begin, (begins >= 0)[None, :], 0.0)
        after = advanced(tl.load(a + k)[None, :], tl.load(c + k)[None, :], at[:, None], now, before, start)
        before = now
        now = after
        right = weight + units[None, :].to(tl.int64) * (steps * LANES) + k[:, None]
        right_high = tl.load(right, in_units[None, :], 0.0)
        right_low = tl.load(right + plane, in_units[None, :], 0.0)
        high, low = split(now.to(tl.float32))  # |Y| is √(L/2π) at most
        sums = added(high, low, right_high, right_low, sums)
    sums *= down(tl.load(weight_largest + units, in_units, 0.0))[None, :]
    sums += tl.load(bias + units, in_units, 0.0)[None, :]
    if DROPOUT:
        sums = masks.dropped(sums, rows, units, layer, seed, threshold, scale, BLOCK_M)
    mask = in_rows[:, None] & in_units[None, :]
    stored(sums, rows, units, mask, out, out_stride, activated, activated_stride)


def forward(
    lonlat: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    dropout: float = 0.0,
    seed: int = 0,
    precision: str = "exact",
    keep: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Embeddings (N, E), and the hidden pre-activations (N, ΣH) side by side unless `keep` is false.

    lonlat: (N, 2) float64 degrees, longitude first, latitudes checked. weights, biases: float32, folded, the
    first weight (H, L²). Dropped pre-activations are −0. A place's result has the same bits in every batch
    but for dropout, which goes by its row.
    """
    if dropout and not keep:
        raise ValueError("dropout goes by the row of a batch, which is cut where nothing is kept")
    count, widths = len(lonlat), [len(weight) for weight in weights[:-1]]
    network = _Network(weights, biases, precision)
    out = weights[0].new_empty(count, len(weights[-1]))
    saved = weights[0].new_empty(count, sum(widths)) if keep else None
    stretch = max(1, count) if keep else max(FEWEST, SCRATCH // (4 * sum(widths)))
    scratch = network.scratch(min(stretch, count), keep)
    for start in range(0, count, stretch):
        part = lonlat[start : start + stretch]
        hidden = [
            Hidden(*layer)
            for layer in zip(
                [None] * len(widths) if saved is None else saved.split(widths, 1),
                [None if h is None else h[: len(part)] for h in scratch],
                strict=True,
            )
        ]
        network.into(out[start : start + stretch], hidden, part, dropout, seed)
    return out, saved


@dataclass(frozen=True)
class Hidden:
    """Where a hidden layer goes: its pre-activations (N, H) float32, its sines (N, H), or both."""

    z: Tensor | None
    h: Tensor | None

    @property
    def operand(self) -> tuple[Tensor, bool]:
        """What the next layer reads, and whether that still lacks the sine."""
        if self.h is not None:
            return self.h, False
        assert self.z is not None
        return self.z, True


class _Network:
    """Layers as kernels take them: the first weight in the order of the schedule, the rest as given."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], precision: str) -> None:
        first = weights[0]
        self.degrees = math.isqrt(first.shape[1])
        self.shape = config("first", first.device, len(first))
        self.plan = schedule(self.degrees, self.shape["LANES"], first.device)
        self.first = halves(first, self.plan.column)
        self.weights, self.biases, self.precision = weights, biases, precision
        self.fused = precision == "fast" and len(weights) > 2 and len(weights[-1]) <= WIDEST

    def scratch(self, count: int, keep: bool) -> list[Tensor | None]:
        """Memory for the hidden layers' sines.

        In 16 bits they are half of what they come from, and every block of the next layer's units would take
        them anew; in float32, where pre-activations are kept, that costs less than writing both.
        """
        half = self.precision == "fast"
        if keep and not half:
            return [None] * (len(self.weights) - 1)
        dtype = torch.float16 if half else torch.float32
        sizes = [len(weight) for weight in self.weights[:-1]]
        made = [torch.empty(count, size, dtype=dtype, device=self.biases[0].device) for size in sizes]
        return [*made[:-1], None] if self.fused else list(made)

    def into(self, out: Tensor, hidden: Sequence[Hidden], lonlat: Tensor, dropout: float, seed: int) -> None:
        """Fill embeddings (N, E) and what is asked for of the hidden layers; rows are contiguous."""
        weights, biases, last = self.weights, self.biases, len(self.weights) - 1
        self._first(hidden[0], lonlat, Dropout(dropout, seed, 0))
        for layer in range(1, last - 1 if self.fused else last):
            below, sine = hidden[layer - 1].operand
            dense(
                below,
                weights[layer],
                biases[layer],
                sine=sine,
                dropout=Dropout(dropout, seed, layer),
                precision=self.precision,
                out=hidden[layer].z,
                activated=hidden[layer].h,
            )
        if self.fused:
            mask = Dropout(dropout, seed, last - 1)
            below, _ = hidden[-2].operand
            tail(below, weights[-2:], biases[-2:], dropout=mask, between=hidden[-1].z, out=out)
        else:
            below, sine = hidden[-1].operand
            dense(below, weights[last], biases[last], sine=sine, precision=self.precision, out=out)

    def _first(self, into: Hidden, lonlat: Tensor, dropout: Dropout) -> None:
        count, outputs = len(lonlat), len(self.weights[0])
        x, first = starts(lonlat, self.degrees)
        products = count * outputs * self.degrees**2
        tiles = cdiv(outputs, self.shape["BLOCK_M"])
        launch(
            _first,
            (cdiv(count, self.shape["BLOCK_N"]) * tiles,),
            self.shape,
            Work(
                half=PASSES * products,
                fp64=3 * tiles * count * self.degrees**2,
                bytes=moved(x, first, self.first.values, into.z, into.h),
            ),
            x=x,
            starts=first,
            a=self.plan.a,
            c=self.plan.c,
            sequence=self.plan.sequence,
            weight=self.first.values,
            weight_largest=self.first.largest,
            bias=self.biases[0],
            out=into.z,
            activated=into.h,
            count=count,
            outputs=outputs,
            steps=self.plan.steps,
            plane=self.first.values[0].numel(),
            out_stride=row_stride(into.z),
            activated_stride=row_stride(into.h),
            DROPOUT=dropout.probability > 0,
            **dropout.arguments,
        )


def backward(
    grad: Tensor,
    lonlat: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    saved: Tensor,
    *,
    dropout: float = 0.0,
    precision: str = "exact",
    deterministic: bool = True,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Gradients of the first layer's pre-activations (N, H), of all weights and of all biases.

    grad: (N, E), of the embeddings; saved: what forward kept; the other arguments as there.
    deterministic: see dense.Outer.
    """
    hidden = saved.split([len(weight) for weight in weights[:-1]], 1)
    d_weights, d_biases = [], []
    dz = grad.contiguous()
    for layer in range(len(weights) - 1, 0, -1):
        z = hidden[layer - 1]
        d_weights.append(outer(dz, z, sine=True, precision=precision, deterministic=deterministic))
        d_biases.append(dz.sum(0))
        dz = pull_back(dz, weights[layer], z, dropout=Dropout(dropout), precision=precision)
    d_weights.append(_first_gradient(dz, lonlat, weights[0].shape[1], deterministic))
    d_biases.append(dz.sum(0))
    return dz, d_weights[::-1], d_biases[::-1]


def _first_gradient(dz: Tensor, lonlat: Tensor, features: int, deterministic: bool) -> Tensor:
    """Σ_n dz_n ⊗ Y_n, (H, L²): always exact, like the first layer itself.

    Harmonics pass through memory here. A recurrence yields a column of each lane a step while sums over
    places must stay in registers: a program that made its own would repeat the recurrence up to its block of
    columns, 13 such blocks at L = 40 taking as long as the products, or read states as large as half of
    what it saves. Written once and read once for every BLOCK_M units, harmonics stay in the last cache.
    """
    # Columns of harmonics begin at multiples of 16 places, or loads would be narrow.
    stretch = max(FEWEST, STRETCH // (4 * features) // 64 * 64)
    total = Outer(
        dz.shape[1], features, dz, half=None, deterministic=deterministic, strides=(len(lonlat) % stretch,)
    )
    scratch = dz.new_empty(features * min(stretch, len(lonlat)))
    for start in range(0, len(lonlat), stretch):
        part = lonlat[start : start + stretch]
        made = columns(
            part,
            math.isqrt(features),
            dtype=torch.float32,
            out=scratch[: features * len(part)].view(features, len(part)),
        )
        total.add(dz[start : start + stretch], made.T, sine=False)
    return total.total()

"""Embeddings of scattered points, and the gradients of training.

    out, saved = forward(lonlat, weights, biases, dropout=0.5, seed=7)       # (N, 2) -> (N, E), (N, ΣH)
    d_first, d_weights, d_biases = backward(grad, lonlat, weights, biases, saved, dropout=0.5)

What they compute is defined in reference.gradients. Harmonics of a tile of points are made in registers
step by step and multiplied into the first layer's sums at once; L² harmonics of a point never exist together.
Backward makes them anew, a chunk of the batch at a time, in memory that stays in the second-level cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.dense import (
    LayerDropout,
    WeightGradient,
    dense,
    input_gradient,
    row_stride,
    store_layer,
    tensor_bytes,
    weight_gradient,
)
from satclip_engine.kernels.device_functions.dropout import UNSPECIALISED, apply_dropout
from satclip_engine.kernels.device_functions.split_fp16 import PASSES, split, split_dot_accumulate, unscale
from satclip_engine.kernels.harmonics import harmonic_columns
from satclip_engine.kernels.last_layers import MAX_OUTPUTS, last_layers
from satclip_engine.kernels.launch import Work, cdiv, launch, select_config
from satclip_engine.kernels.recurrence import recurrence_starts, recurrence_step, schedule
from satclip_engine.kernels.split_operands import split_rows

SCRATCH_BYTES = 64 << 20  # of pre-activations of a chunk, where nobody asks for them
HARMONICS_BYTES = 16 << 20  # that backward has at once: a third of an H100's second-level cache
MIN_CHUNK_POINTS = 512  # of such a chunk of the batch, however many harmonics they have


@triton.jit(do_not_specialize=UNSPECIALISED)
def _first_layer(
    x,  # [count] float64
    starts,  # [2L−1, count] float64
    a,  # [steps · LANES] and so on, see Schedule
    c,
    sequence,
    weight,  # [2, outputs, steps · LANES] high and low parts, in the order of the schedule
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
    clamped = tl.minimum(rows, count - 1)  # rather than a mask at every step, which takes registers
    cos_theta = tl.load(x + clamped)
    current, previous = tl.zeros((BLOCK_N, LANES), tl.float64), tl.zeros((BLOCK_N, LANES), tl.float64)
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(steps):
        k = step * LANES + tl.arange(0, LANES)
        begins = tl.load(sequence + k)
        begin = starts + begins.to(tl.int64)[None, :] * count + clamped[:, None]
        start = tl.load(begin, (begins >= 0)[None, :], 0.0)
        following = recurrence_step(
            tl.load(a + k)[None, :], tl.load(c + k)[None, :], cos_theta[:, None], current, previous, start
        )
        previous = current
        current = following
        right = weight + units[None, :].to(tl.int64) * (steps * LANES) + k[:, None]
        right_high = tl.load(right, in_units[None, :], 0.0)
        right_low = tl.load(right + plane, in_units[None, :], 0.0)
        high, low = split(current.to(tl.float32))  # |Y| is √(L/2π) at most
        sums = split_dot_accumulate(high, low, right_high, right_low, sums)
    sums *= unscale(tl.load(weight_largest + units, in_units, 0.0))[None, :]
    sums += tl.load(bias + units, in_units, 0.0)[None, :]
    if DROPOUT:
        sums = apply_dropout(sums, rows, units, layer, seed, threshold, scale, BLOCK_M)
    mask = in_rows[:, None] & in_units[None, :]
    store_layer(sums, rows, units, mask, out, out_stride, activated, activated_stride)


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
    first weight (H, L²). Dropped pre-activations are −0. A point's result has the same bits in every batch
    but for dropout, which goes by its row.
    """
    if dropout and not keep:
        raise ValueError("dropout needs keep=True: it goes by the row of a batch, which is cut otherwise")
    count, widths = len(lonlat), [len(weight) for weight in weights[:-1]]
    network = _ScheduledNetwork(weights, biases, precision)
    out = weights[0].new_empty(count, len(weights[-1]))
    saved = weights[0].new_empty(count, sum(widths)) if keep else None
    chunk_points = max(1, count) if keep else max(MIN_CHUNK_POINTS, SCRATCH_BYTES // (4 * sum(widths)))
    scratch = network.scratch(min(chunk_points, count), keep)
    for start in range(0, count, chunk_points):
        chunk = lonlat[start : start + chunk_points]
        hidden = [
            HiddenLayer(*layer)
            for layer in zip(
                [None] * len(widths) if saved is None else saved.split(widths, 1),
                [None if h is None else h[: len(chunk)] for h in scratch],
                strict=True,
            )
        ]
        network.into(out[start : start + chunk_points], hidden, chunk, dropout, seed)
    return out, saved


@dataclass(frozen=True)
class HiddenLayer:
    """Memory for a hidden layer: its pre-activations (N, H) float32, its sines (N, H), or both."""

    z: Tensor | None
    h: Tensor | None

    @property
    def operand(self) -> tuple[Tensor, bool]:
        """Left operand of the next layer, and True where it still lacks the sine."""
        if self.h is not None:
            return self.h, False
        assert self.z is not None
        return self.z, True


class _ScheduledNetwork:
    """Layers, the first weight split and in the order of the recurrences' schedule, the rest as they are."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], precision: str) -> None:
        first = weights[0]
        self.degrees = math.isqrt(first.shape[1])
        self.config = select_config("first_layer", first.device, len(first))
        self.schedule = schedule(self.degrees, self.config["LANES"], first.device)
        self.first = split_rows(first, self.schedule.column)
        self.weights, self.biases, self.precision = weights, biases, precision
        self.fused = precision == "fast" and len(weights) > 2 and len(weights[-1]) <= MAX_OUTPUTS

    def scratch(self, count: int, keep: bool) -> list[Tensor | None]:
        """Allocate memory for the hidden layers' sines.

        In 16 bits they are half of what they come from, and every block of the next layer's units would take
        them anew; in float32, where pre-activations are saved, that costs less than writing both.
        """
        half = self.precision == "fast"
        if keep and not half:
            return [None] * (len(self.weights) - 1)
        dtype = torch.float16 if half else torch.float32
        sizes = [len(weight) for weight in self.weights[:-1]]
        sines = [torch.empty(count, size, dtype=dtype, device=self.biases[0].device) for size in sizes]
        return [*sines[:-1], None] if self.fused else list(sines)

    def into(
        self, out: Tensor, hidden: Sequence[HiddenLayer], lonlat: Tensor, dropout: float, seed: int
    ) -> None:
        """Fill embeddings (N, E) and what is asked for of the hidden layers; rows are contiguous."""
        weights, biases, last = self.weights, self.biases, len(self.weights) - 1
        self._first_layer(hidden[0], lonlat, LayerDropout(dropout, seed, 0))
        for layer in range(1, last - 1 if self.fused else last):
            below, sine = hidden[layer - 1].operand
            dense(
                below,
                weights[layer],
                biases[layer],
                sine=sine,
                dropout=LayerDropout(dropout, seed, layer),
                precision=self.precision,
                out=hidden[layer].z,
                activated=hidden[layer].h,
            )
        if self.fused:
            layer_dropout = LayerDropout(dropout, seed, last - 1)
            below, _ = hidden[-2].operand
            last_layers(below, weights[-2:], biases[-2:], dropout=layer_dropout, z=hidden[-1].z, out=out)
        else:
            below, sine = hidden[-1].operand
            dense(below, weights[last], biases[last], sine=sine, precision=self.precision, out=out)

    def _first_layer(self, into: HiddenLayer, lonlat: Tensor, dropout: LayerDropout) -> None:
        count, outputs = len(lonlat), len(self.weights[0])
        x, first = recurrence_starts(lonlat, self.degrees)
        products = count * outputs * self.degrees**2
        tiles = cdiv(outputs, self.config["BLOCK_M"])
        launch(
            _first_layer,
            (cdiv(count, self.config["BLOCK_N"]) * tiles,),
            self.config,
            Work(
                half=PASSES * products,
                fp64=3 * tiles * count * self.degrees**2,
                bytes=tensor_bytes(x, first, self.first.values, into.z, into.h),
            ),
            x=x,
            starts=first,
            a=self.schedule.a,
            c=self.schedule.c,
            sequence=self.schedule.sequence,
            weight=self.first.values,
            weight_largest=self.first.largest,
            bias=self.biases[0],
            out=into.z,
            activated=into.h,
            count=count,
            outputs=outputs,
            steps=self.schedule.steps,
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

    grad: (N, E), of the embeddings; saved: the second result of forward; the other arguments as there.
    deterministic: see dense.WeightGradient.
    """
    hidden = saved.split([len(weight) for weight in weights[:-1]], 1)
    d_weights, d_biases = [], []
    dz = grad.contiguous()
    for layer in range(len(weights) - 1, 0, -1):
        z = hidden[layer - 1]
        d_weights.append(weight_gradient(dz, z, sine=True, precision=precision, deterministic=deterministic))
        d_biases.append(dz.sum(0))
        dz = input_gradient(dz, weights[layer], z, dropout=LayerDropout(dropout), precision=precision)
    d_weights.append(_first_gradient(dz, lonlat, weights[0].shape[1], deterministic))
    d_biases.append(dz.sum(0))
    return dz, d_weights[::-1], d_biases[::-1]


def _first_gradient(dz: Tensor, lonlat: Tensor, features: int, deterministic: bool) -> Tensor:
    """Σ_n dz_n ⊗ Y_n, (H, L²): always exact, like the first layer itself.

    Harmonics pass through memory here. A recurrence yields a column of each lane a step while sums over
    points must stay in registers: a program that made its own would repeat the recurrence up to its block of
    columns, 13 such blocks at L = 40 taking as long as the products, or read states as large as half of
    what it saves. Written once and read once for every BLOCK_M units, harmonics stay in the last cache.
    """
    # Columns of harmonics begin at multiples of 16 points, or loads would be narrow.
    chunk_points = max(MIN_CHUNK_POINTS, HARMONICS_BYTES // (4 * features) // 64 * 64)
    gradient = WeightGradient(
        dz.shape[1],
        features,
        dz,
        half=None,
        deterministic=deterministic,
        strides=(len(lonlat) % chunk_points,),
    )
    scratch = dz.new_empty(features * min(chunk_points, len(lonlat)))
    for start in range(0, len(lonlat), chunk_points):
        chunk = lonlat[start : start + chunk_points]
        harmonics = harmonic_columns(
            chunk,
            math.isqrt(features),
            dtype=torch.float32,
            out=scratch[: features * len(chunk)].view(features, len(chunk)),
        )
        gradient.add(dz[start : start + chunk_points], harmonics.T, sine=False)
    return gradient.total()

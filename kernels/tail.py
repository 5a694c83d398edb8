"""The last two layers in one kernel, in 16 bits: hidden activations between them never leave the registers.

    tail(h, weights, biases, out=out)       # W₃ sin(W₂ h + b₂) + b₃, (N, K) -> (N, E)

A program takes the middle layer a block of units at a time: pre-activations, sine, and at once their share of
all E results. The operand of that second product, BLOCK_M × E, must fit into shared memory: 64 KB in 16 bits,
128 KB and its low halves as much again in 3×TF32. So "exact" goes layer by layer (dense.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels import dropout as masks
from satclip_engine.kernels.dense import NO_DROPOUT, Dropout, moved, row_stride
from satclip_engine.kernels.launch import Work, cdiv, config, launch
from satclip_engine.kernels.sine import sine

WIDEST = 256  # results that a program holds


@triton.jit(do_not_specialize=masks.ARGUMENTS)
def _tail(
    h,  # [count, inputs] float16
    weight,  # [units, inputs] float16
    bias,  # [units]
    last_weight,  # [outputs, units] float16
    last_bias,  # [outputs]
    between,  # [count, units] for the middle layer's pre-activations, or None
    out,  # [count, outputs]
    count,
    inputs,
    units,
    outputs,
    h_stride,
    between_stride,
    out_stride,
    seed: tl.int64,
    threshold: tl.uint32,
    scale,
    layer,
    DROPOUT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    results = tl.arange(0, WIDTH)
    in_rows, in_results = rows < count, results < outputs
    total = tl.zeros((BLOCK_N, WIDTH), tl.float32)
    for begin in range(0, units, BLOCK_M):
        m = begin + tl.arange(0, BLOCK_M)
        in_units = m < units
        sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for start in range(0, inputs, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            in_k = k < inputs
            left = tl.load(h + rows[:, None] * h_stride + k[None, :], in_rows[:, None] & in_k[None, :], 0.0)
            at = m[None, :] * inputs + k[:, None]
            right = tl.load(weight + at, in_units[None, :] & in_k[:, None], 0.0)
            sums = tl.dot(left, right, sums)
        sums += tl.load(bias + m, in_units, 0.0)[None, :]
        if DROPOUT:
            sums = masks.dropped(sums, rows, m, layer, seed, threshold, scale, BLOCK_M)
        if between is not None:
            mask = in_rows[:, None] & in_units[None, :]
            tl.store(between + rows[:, None] * between_stride + m[None, :], sums, mask)
        at = results[None, :] * units + m[:, None]
        right = tl.load(last_weight + at, in_results[None, :] & in_units[:, None], 0.0)
        total = tl.dot(sine(sums).to(tl.float16), right, total)
    total += tl.load(last_bias + results, in_results, 0.0)[None, :]
    tl.store(
        out + rows[:, None] * out_stride + results[None, :], total, in_rows[:, None] & in_results[None, :]
    )


def tail(
    h: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    dropout: Dropout = NO_DROPOUT,
    between: Tensor | None = None,
    out: Tensor,
) -> Tensor:
    """Fill out (N, E ≤ WIDEST) from sines h (N, K) float16 through the last two layers, (M, K) and (E, M).

    between: (N, M) float32 for the pre-activations of the layer between, dropped out by `dropout`.
    """
    (count, inputs), units, outputs = h.shape, len(weights[0]), len(weights[1])
    shape = config("tail" if between is None else "tail_kept", h.device)
    halves = [weight.to(torch.float16) for weight in weights]
    launch(
        _tail,
        (cdiv(count, shape["BLOCK_N"]),),
        shape,
        Work(half=count * units * (inputs + outputs), bytes=moved(h, *halves, between, out)),
        h=h,
        weight=halves[0],
        bias=biases[0],
        last_weight=halves[1],
        last_bias=biases[1],
        between=between,
        out=out,
        count=count,
        inputs=inputs,
        units=units,
        outputs=outputs,
        h_stride=h.stride(0),
        between_stride=row_stride(between),
        out_stride=out.stride(0),
        DROPOUT=dropout.probability > 0,
        WIDTH=max(16, triton.next_power_of_2(outputs)),
        **dropout.arguments,
    )
    return out

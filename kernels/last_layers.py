"""The last two layers in one kernel, in 16 bits: hidden activations between them never leave the registers.

    last_layers(h, weights, biases, out=out)       # W₃ sin(W₂ h + b₂) + b₃, (N, K) -> (N, E)

A program takes the middle layer a block of units at a time: pre-activations, sine, and at once their share of
all E results. The operand of that second product, BLOCK_M × E, must fit into shared memory: 64 KB in 16 bits,
128 KB and its low parts as much again in 3×TF32. So "exact" goes layer by layer (dense.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.dense import NO_DROPOUT, LayerDropout, row_stride, tensor_bytes
from satclip_engine.kernels.device_functions.dropout import UNSPECIALISED, apply_dropout
from satclip_engine.kernels.device_functions.sine import sine
from satclip_engine.kernels.launch import Work, cdiv, launch, select_config

MAX_OUTPUTS = 256  # that a program holds


@triton.jit(do_not_specialize=UNSPECIALISED)
def _last_layers(
    h,  # [count, inputs] float16
    weight,  # [units, inputs] float16
    bias,  # [units]
    last_weight,  # [outputs, units] float16
    last_bias,  # [outputs]
    z,  # [count, units] for the middle layer's pre-activations, or None
    out,  # [count, outputs]
    count,
    inputs,
    units,
    outputs,
    h_stride,
    z_stride,
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
            offsets = m[None, :] * inputs + k[:, None]
            right = tl.load(weight + offsets, in_units[None, :] & in_k[:, None], 0.0)
            sums = tl.dot(left, right, sums)
        sums += tl.load(bias + m, in_units, 0.0)[None, :]
        if DROPOUT:
            sums = apply_dropout(sums, rows, m, layer, seed, threshold, scale, BLOCK_M)
        if z is not None:
            mask = in_rows[:, None] & in_units[None, :]
            tl.store(z + rows[:, None] * z_stride + m[None, :], sums, mask)
        offsets = results[None, :] * units + m[:, None]
        right = tl.load(last_weight + offsets, in_results[None, :] & in_units[:, None], 0.0)
        total = tl.dot(sine(sums).to(tl.float16), right, total)
    total += tl.load(last_bias + results, in_results, 0.0)[None, :]
    tl.store(
        out + rows[:, None] * out_stride + results[None, :], total, in_rows[:, None] & in_results[None, :]
    )


def last_layers(
    h: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    dropout: LayerDropout = NO_DROPOUT,
    z: Tensor | None = None,
    out: Tensor,
) -> Tensor:
    """Fill out (N, E ≤ MAX_OUTPUTS) from sines h (N, K) float16 through the last layers, (M, K) and (E, M).

    z: (N, M) float32 for the pre-activations of the layer between, after `dropout`.
    """
    (count, inputs), units, outputs = h.shape, len(weights[0]), len(weights[1])
    config = select_config("last_layers" if z is None else "last_layers_saved", h.device)
    half_weights = [weight.to(torch.float16) for weight in weights]
    launch(
        _last_layers,
        (cdiv(count, config["BLOCK_N"]),),
        config,
        Work(half=count * units * (inputs + outputs), bytes=tensor_bytes(h, *half_weights, z, out)),
        h=h,
        weight=half_weights[0],
        bias=biases[0],
        last_weight=half_weights[1],
        last_bias=biases[1],
        z=z,
        out=out,
        count=count,
        inputs=inputs,
        units=units,
        outputs=outputs,
        h_stride=h.stride(0),
        z_stride=row_stride(z),
        out_stride=out.stride(0),
        DROPOUT=dropout.probability > 0,
        WIDTH=max(16, triton.next_power_of_2(outputs)),
        **dropout.arguments,
    )
    return out

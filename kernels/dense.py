"""Dense layers on sines: values, input gradient (VJP) and weight gradient.

    dense(z, weight, bias, sine=True)      # weight · sin(z) + bias, (N, K) -> (N, M)
    input_gradient(dz, weight, z)          # cos(z) ⊙ (weightᵀ · dz), (N, M) -> (N, K)
    weight_gradient(dz, z, sine=True)      # Σ_n dz_n ⊗ sin(z_n), (N, M), (N, K) -> (M, K)

Sines and cosines are made while operands and results are in registers; memory holds pre-activations only.
precision: "exact" multiplies float32 as pairs of float16 (device_functions/split_fp16.py); "fast" rounds
operands to 16 bits. Sums are float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from satclip_engine.kernels.device_functions.dropout import UNSPECIALISED, apply_dropout, saved_factors
from satclip_engine.kernels.device_functions.sine import cosine, sine
from satclip_engine.kernels.device_functions.split_fp16 import (
    PASSES,
    scale_up,
    split,
    split_dot_accumulate,
    unscale,
)
from satclip_engine.kernels.launch import Work, cdiv, interpreted, launch, select_config
from satclip_engine.kernels.split_operands import largest, split_rows


@dataclass(frozen=True)
class LayerDropout:
    """Dropout of one hidden layer; none by default."""

    probability: float = 0.0
    seed: int = 0
    layer: int = 0

    @property
    def scale(self) -> float:
        return 1 / (1 - self.probability)

    @property
    def arguments(self) -> dict[str, float | int]:
        """Arguments of kernels with dropout."""
        threshold = math.floor(self.probability * 2**32)
        return {"threshold": threshold, "scale": self.scale, "seed": self.seed, "layer": self.layer}


NO_DROPOUT = LayerDropout()
INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def _half_dot(a, b, sums, HALF: tl.constexpr):
    """sums + a · b, both rounded to 16 bits."""
    if INTERPRETED:  # its dot does not know bfloat16; products of 16 bits are exact in float32
        sums = tl.dot(a.to(HALF).to(tl.float32), b.to(HALF).to(tl.float32), sums)
    else:
        sums = tl.dot(a.to(HALF), b.to(HALF), sums)
    return sums


@triton.jit(do_not_specialize=UNSPECIALISED)
def _dense(
    a,  # [count, inputs]
    weight,  # [outputs, inputs] in 16 bits, by its strides; or split in high and low, `plane` apart
    weight_largest,  # [outputs] of the split weight, or None
    bias,  # [outputs] or None
    z,  # [count, outputs] pre-activations whose cosines multiply the result, or None
    out,  # [count, outputs], or None
    activated,  # [count, outputs] for the result's sines, or None
    count,
    inputs,
    outputs,
    a_stride,
    plane,
    weight_stride_out,
    weight_stride_in,
    z_stride,
    out_stride,
    activated_stride,
    seed: tl.int64,
    threshold: tl.uint32,
    scale,
    layer,
    SINE: tl.constexpr,
    SCALED: tl.constexpr,
    DROPOUT: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Programs that run together share a few rows of `a` and all of the weight, which stays in L2.
    row = tl.program_id(0) // tl.cdiv(outputs, BLOCK_M)
    column = tl.program_id(0) % tl.cdiv(outputs, BLOCK_M)
    rows = row.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    units = column * BLOCK_M + tl.arange(0, BLOCK_M)
    in_rows, in_units = rows < count, units < outputs
    size = tl.full((BLOCK_N,), 0.0, tl.float32)
    if SCALED:  # points differ in the size of their gradients
        for start in range(0, inputs, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            mask = in_rows[:, None] & (k < inputs)[None, :]
            a_size = tl.abs(tl.load(a + rows[:, None] * a_stride + k[None, :], mask, 0.0))
            size = tl.maximum(size, tl.max(tl.where(a_size < float("inf"), a_size, 0.0), 1))
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for start in range(0, inputs, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        in_k = k < inputs
        left = tl.load(a + rows[:, None] * a_stride + k[None, :], in_rows[:, None] & in_k[None, :], 0.0)
        if SINE:
            left = sine(left)
        offsets = units[None, :] * weight_stride_out + k[:, None] * weight_stride_in
        mask = in_k[:, None] & in_units[None, :]
        right = tl.load(weight + offsets, mask, 0.0)
        if HALF is None:
            if SCALED:
                left *= scale_up(size)[:, None]
            high, low = split(left)
            sums = split_dot_accumulate(high, low, right, tl.load(weight + plane + offsets, mask, 0.0), sums)
        else:
            sums = _half_dot(left, right, sums, HALF)
    if HALF is None:
        sums *= unscale(tl.load(weight_largest + units, in_units, 0.0))[None, :]
    if SCALED:
        sums *= unscale(size)[:, None]
    mask = in_rows[:, None] & in_units[None, :]
    if bias is not None:
        sums += tl.load(bias + units, in_units, 0.0)[None, :]
    if DROPOUT and z is None:
        sums = apply_dropout(sums, rows, units, layer, seed, threshold, scale, BLOCK_M)
    if z is not None:
        inner = tl.load(z + rows[:, None] * z_stride + units[None, :], mask, 0.0)
        sums *= cosine(inner)
        if DROPOUT:
            sums *= saved_factors(inner, scale)
    store_layer(sums, rows, units, mask, out, out_stride, activated, activated_stride)


@triton.jit
def store_layer(z, rows, units, mask, out, out_stride, activated, activated_stride):
    """Store pre-activations where `out` is not None, their sines where `activated` is not None."""
    if out is not None:
        tl.store(out + rows[:, None] * out_stride + units[None, :], z, mask)
    if activated is not None:
        pointers = activated + rows[:, None] * activated_stride + units[None, :]
        tl.store(pointers, sine(z).to(activated.dtype.element_ty), mask)


def dense(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    sine: bool = True,
    dropout: LayerDropout = NO_DROPOUT,
    precision: str = "exact",
    out: Tensor | None = None,
    activated: Tensor | None = None,
) -> Tensor | None:
    """Compute weight · sin(a) + bias, or · a, then dropout: (N, K), (M, K), (M,) -> (N, M) float32.

    a: float32, or float16 for "fast"; rows of a, out and activated are contiguous. activated: filled with
    the result's sines, in float32 or float16; then the result itself goes only to an `out` that is given.
    A row's result has the same bits in every batch.
    """
    if out is None and activated is None:
        out = torch.empty(len(a), len(weight), dtype=torch.float32, device=a.device)
    _launch_dense(
        "dense", a, weight, bias, None, sine, dropout, half_type(precision, torch.float16), out, activated
    )
    return out


def input_gradient(
    dz: Tensor,
    weight: Tensor,
    z: Tensor,
    *,
    dropout: LayerDropout = NO_DROPOUT,
    precision: str = "exact",
) -> Tensor:
    """Gradient of the pre-activations z below a layer: (N, M), (M, K), (N, K) -> (N, K) float32.

    z: as saved by forward, dropped ones −0. "fast" takes bfloat16, whose range gradients need.
    """
    half = half_type(precision, torch.bfloat16)
    out = torch.empty(z.shape, dtype=torch.float32, device=z.device)
    _launch_dense("input_gradient", dz, weight.T, None, z, False, dropout, half, out, None)
    return out


def _launch_dense(
    name: str,
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    sine: bool,
    dropout: LayerDropout,
    half: torch.dtype | None,
    out: Tensor | None,
    activated: Tensor | None,
) -> None:
    (count, inputs), outputs = a.shape, len(weight)
    config = select_config(name if half is None else f"{name}_fast", a.device, inputs, outputs)
    weight_split = split_rows(weight) if half is None else None
    right = weight.to(half) if weight_split is None else weight_split.values[0]
    launch(
        _dense,
        (cdiv(count, config["BLOCK_N"]) * cdiv(outputs, config["BLOCK_M"]),),
        config,
        _work(count * inputs * outputs, half, tensor_bytes(a, weight, z, out, activated)),
        a=a,
        weight=right,
        weight_largest=None if weight_split is None else weight_split.largest,
        bias=bias,
        z=z,
        out=out,
        activated=activated,
        count=count,
        inputs=inputs,
        outputs=outputs,
        a_stride=a.stride(0),
        plane=weight.numel(),
        weight_stride_out=right.stride(0),
        weight_stride_in=right.stride(1),
        z_stride=row_stride(z),
        out_stride=row_stride(out),
        activated_stride=row_stride(activated),
        SINE=sine,
        SCALED=half is None and z is not None,
        DROPOUT=dropout.probability > 0,
        HALF=half and TRITON_DTYPES[half],
        **dropout.arguments,
    )


def row_stride(tensor: Tensor | None) -> int:
    """Elements from one row to the next; 0 for None."""
    return 0 if tensor is None else tensor.stride(0)


def tensor_bytes(*tensors: Tensor | None) -> int:
    """Sum the bytes of tensors; None has none."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


@triton.jit
def _weight_gradient(
    dz,  # [count, outputs]
    dz_largest,  # its largest element, or None in 16 bits
    z,  # [count, inputs], by its strides
    partial,  # [splits, outputs, inputs], or [outputs, inputs] to add to
    count,
    outputs,
    inputs,
    dz_stride,
    z_stride_row,
    z_stride_in,
    share,  # rows of a split, whole blocks
    SINE: tl.constexpr,
    ATOMIC: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    units = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    split_index = tl.program_id(2)
    in_units, in_k = units < outputs, k < inputs
    sums = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    first = split_index * share
    for start in range(first, tl.minimum(first + share, count), BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N).to(tl.int64)
        in_rows = rows < count
        left = tl.load(
            dz + rows[None, :] * dz_stride + units[:, None], in_units[:, None] & in_rows[None, :], 0.0
        )
        right = tl.load(
            z + rows[:, None] * z_stride_row + k[None, :] * z_stride_in,
            in_rows[:, None] & in_k[None, :],
            0.0,
        )
        if SINE:
            right = sine(right)
        if HALF is None:
            left_high, left_low = split(left * scale_up(tl.load(dz_largest)))
            right_high, right_low = split(right)
            sums = split_dot_accumulate(left_high, left_low, right_high, right_low, sums)
        else:
            sums = _half_dot(left, right, sums, HALF)
    if HALF is None:
        sums *= unscale(tl.load(dz_largest))
    mask = in_units[:, None] & in_k[None, :]
    offsets = units[:, None].to(tl.int64) * inputs + k[None, :]
    if ATOMIC:
        tl.atomic_add(partial + offsets, sums, mask, sem="relaxed")
    else:
        offsets += split_index.to(tl.int64) * outputs * inputs
        tl.store(partial + offsets, sums + tl.load(partial + offsets, mask, 0.0), mask)


class WeightGradient:
    """Σ_n dz_n ⊗ h_n over batches that are added one after the other: a weight's gradient, (M, K) float32.

    The sum over points is split, so that small weights fill the GPU. deterministic: every split adds up in
    memory of its own and these are added in order, the same bits every time; otherwise by atomic additions,
    in a `splits`-th of the memory. strides: of what will be added, as far as known.
    """

    def __init__(
        self,
        outputs: int,
        inputs: int,
        like: Tensor,
        *,
        half: torch.dtype | None,
        deterministic: bool,
        strides: Sequence[int] = (),
    ) -> None:
        self._half, self._atomic = half, not deterministic
        self._config = select_config(
            "weight_gradient" if half is None else "weight_gradient_fast",
            like.device,
            outputs,
            inputs,
            *strides,
        )
        self._tiles = cdiv(outputs, self._config["BLOCK_M"]), cdiv(inputs, self._config["BLOCK_K"])
        self._splits = max(1, SPLIT_PROGRAMS // (self._tiles[0] * self._tiles[1]))
        self._partial = like.new_zeros(1 if self._atomic else self._splits, outputs, inputs)

    def add(self, dz: Tensor, h: Tensor, *, sine: bool) -> None:
        """Add Σ_n dz_n ⊗ h_n: dz (n, M) contiguous, h (n, K) of any strides, of order one, or its sines."""
        count, (_, outputs, inputs) = len(dz), self._partial.shape
        block = self._config["BLOCK_N"]
        share = max(1, cdiv(cdiv(count, self._splits), block)) * block
        launch(
            _weight_gradient,
            (*self._tiles, cdiv(count, share)),
            self._config,
            _work(count * outputs * inputs, self._half, tensor_bytes(dz, h) + 4 * outputs * inputs),
            dz=dz,
            dz_largest=largest(dz) if self._half is None else None,
            z=h,
            partial=self._partial,
            count=count,
            outputs=outputs,
            inputs=inputs,
            dz_stride=dz.stride(0),
            z_stride_row=h.stride(0),
            z_stride_in=h.stride(1),
            share=share,
            SINE=sine,
            ATOMIC=self._atomic,
            HALF=self._half and TRITON_DTYPES[self._half],
        )

    def total(self) -> Tensor:
        """Sum of what was added, (M, K)."""
        return self._partial.sum(0)


SPLIT_PROGRAMS = 264  # that a split sum makes: two for each of the 132 processors of an H100
TRITON_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def weight_gradient(
    dz: Tensor, z: Tensor, *, sine: bool, precision: str = "exact", deterministic: bool = True
) -> Tensor:
    """Sum dz_n ⊗ sin(z_n), or dz_n ⊗ z_n, over n: (N, M), (N, K) -> (M, K) float32. "fast" takes bfloat16."""
    half = half_type(precision, torch.bfloat16)
    strides = (dz.stride(0), *z.stride())
    gradient = WeightGradient(
        dz.shape[1], z.shape[1], dz, half=half, deterministic=deterministic, strides=strides
    )
    gradient.add(dz, z, sine=sine)
    return gradient.total()


def half_type(precision: str, dtype: torch.dtype) -> torch.dtype | None:
    """16-bit type of operands for "fast", None for "exact"."""
    return {"exact": None, "fast": dtype}[precision]


def _work(products: int, half: torch.dtype | None, size: int) -> Work:
    return Work(half=products if half else PASSES * products, bytes=size)

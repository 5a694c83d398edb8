"""Workloads of the public launchers, as data: for ahead-of-time compilation, for tuning, for tests.

A workload has an op, the launcher's operation, and sizes of its arguments. On tensors without memory (device
"meta", inside `launch.recording`) it only tells which kernels would start, in which configuration and with
how much work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from satclip_engine.kernels.launch import Launch, Recording, recording

SIREN = (512, 512, 256)  # outputs of the layers of every released model


@dataclass(frozen=True)
class KernelWorkload:
    """Op and sizes; rows, columns: points and 1, pixels of a raster, or rows of a and of b in a loss."""

    op: str
    rows: int
    columns: int = 1
    degrees: int = 40
    sizes: tuple[int, ...] = SIREN
    precision: str = "exact"
    dropout: float = 0.0
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """Name in tables, such as "forward L=40, 8192, exact"."""
        labels = [
            self.op if self.op == "loss" else f"{self.op} L={self.degrees}",
            f"{self.rows}×{self.columns}" if self.columns > 1 else f"{self.rows}",
            "–".join(map(str, self.sizes)) if self.sizes != SIREN and self.op != "harmonics" else "",
            self.precision if self.op != "harmonics" else "",
            f"dropout {self.dropout:g}" if self.dropout else "",
            self.dtype if self.dtype != "float32" else "",
        ]
        return ", ".join(label for label in labels if label)


@dataclass(frozen=True)
class WorkloadInputs:
    """Tensors of a workload; random where they have memory, the same every time."""

    workload: KernelWorkload
    device: torch.device

    def random(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        """Tensor of that shape, uniform in ±scale."""
        values = torch.empty(shape, dtype=dtype, device=self.device)
        if self.device.type == "meta":
            return values
        generator = torch.Generator(self.device).manual_seed(len(shape) * 1000 + shape[0])
        return values.uniform_(-scale, scale, generator=generator)

    def lonlat(self) -> Tensor:
        """Points (N, 2) in degrees."""
        return self.random(self.workload.rows, 2, dtype=torch.float64, scale=90.0)

    def weights(self) -> list[Tensor]:
        """Weights as SIREN initialises them, frequencies multiplied in."""
        widths = (self.workload.degrees**2, *self.workload.sizes)
        bounds = [30 / widths[0], *((6 / width) ** 0.5 for width in widths[1:-1])]
        return [
            self.random(outputs, inputs, scale=bound)
            for (inputs, outputs), bound in zip(pairwise(widths), bounds, strict=True)
        ]

    def biases(self) -> list[Tensor]:
        return [self.random(outputs, scale=0.1) for outputs in self.workload.sizes]


def _harmonics(workload: KernelWorkload, inputs: WorkloadInputs) -> tuple[Tensor, ...]:
    from satclip_engine.kernels.harmonics import harmonics

    return (harmonics(inputs.lonlat(), workload.degrees),)


def _embed(workload: KernelWorkload, inputs: WorkloadInputs) -> tuple[Tensor, ...]:
    from satclip_engine.kernels import encode

    out, _ = encode.forward(
        inputs.lonlat(), inputs.weights(), inputs.biases(), precision=workload.precision, keep=False
    )
    return (out,)


def _forward(workload: KernelWorkload, inputs: WorkloadInputs) -> tuple[Tensor, ...]:
    from satclip_engine.kernels import encode

    out, saved = encode.forward(
        inputs.lonlat(),
        inputs.weights(),
        inputs.biases(),
        dropout=workload.dropout,
        seed=7,
        precision=workload.precision,
    )
    assert saved is not None
    return out, saved


def _backward(
    workload: KernelWorkload, inputs: WorkloadInputs, deterministic: bool = True
) -> tuple[Tensor, ...]:
    from satclip_engine.kernels import encode

    grad = inputs.random(workload.rows, workload.sizes[-1])
    saved = inputs.random(workload.rows, sum(workload.sizes[:-1]))
    d_first, d_weights, d_biases = encode.backward(
        grad,
        inputs.lonlat(),
        inputs.weights(),
        inputs.biases(),
        saved,
        dropout=workload.dropout,
        precision=workload.precision,
        deterministic=deterministic,
    )
    return d_first, *d_weights, *d_biases


def _backward_atomic(workload: KernelWorkload, inputs: WorkloadInputs) -> tuple[Tensor, ...]:
    return _backward(workload, inputs, deterministic=False)


def _loss(workload: KernelWorkload, inputs: WorkloadInputs) -> tuple[Tensor, ...]:
    from satclip_engine.kernels import loss

    width, offset = workload.sizes[-1], 0
    a, b = inputs.random(workload.rows, width), inputs.random(workload.columns, width)
    scale, factor = inputs.random(1)[0], inputs.random(1)[0]
    row_lse, column_lse, partner = loss.log_sum_exps(a, b, scale, offset)
    gradients = loss.gradients(a, b, scale, row_lse, column_lse, offset, factor, workload.precision)
    return row_lse, column_lse, partner, *gradients


def _grid(workload: KernelWorkload, inputs: WorkloadInputs) -> tuple[Tensor, ...]:
    from satclip_engine.kernels import grid
    from satclip_engine.kernels.device_functions.quantise import DeviceQuantise

    network = grid.prepare(workload.degrees, inputs.weights(), inputs.biases(), workload.precision)
    lat = inputs.random(workload.rows, dtype=torch.float64, scale=90.0)
    lon = inputs.random(workload.columns, dtype=torch.float64, scale=180.0)
    if workload.dtype == "float32":
        return (grid.encode_grid(network, lat, lon),)
    steps, offset = inputs.random(workload.sizes[-1]), inputs.random(workload.sizes[-1])
    return (grid.encode_grid(network, lat, lon, quantise=DeviceQuantise(workload.dtype, steps, offset)),)


OPS: dict[str, Callable[[KernelWorkload, WorkloadInputs], tuple[Tensor, ...]]] = {
    "harmonics": _harmonics,
    "embed": _embed,
    "forward": _forward,
    "backward": _backward,
    "backward, atomic": _backward_atomic,
    "loss": _loss,
    "grid": _grid,
}

PRECISIONS = ("exact", "fast")
TRAINING = ("forward", "backward")

# What users run: the shapes that configurations are chosen by.
WORKLOADS: tuple[KernelWorkload, ...] = (
    *(
        KernelWorkload(op, 8192, degrees=degrees, precision=precision, dropout=0.5)
        for degrees in (40, 10)
        for precision in PRECISIONS
        for op in TRAINING
    ),
    *(KernelWorkload("loss", pairs, pairs, precision=p) for pairs in (8192, 32_768) for p in PRECISIONS),
    *(KernelWorkload("embed", 100_000, degrees=degrees, precision="exact") for degrees in (40, 10)),
    KernelWorkload("embed", 100_000, precision="fast"),
    *(KernelWorkload("grid", 64, 3600, precision=precision) for precision in PRECISIONS),
    KernelWorkload("grid", 64, 3600, precision="fast", dtype="int8"),
    KernelWorkload("harmonics", 8192),
)

# What else is compiled: sizes that nothing divides, other depths, higher degrees, the other store.
EDGE_WORKLOADS: tuple[KernelWorkload, ...] = (
    *(
        KernelWorkload(op, 1001, degrees=7, sizes=(50, 30, 20, 17), precision=p)
        for p in PRECISIONS
        for op in TRAINING
    ),
    KernelWorkload("forward", 1000, degrees=8, sizes=(64, 64, 48, 32), precision="fast"),
    *(KernelWorkload(op, 999, degrees=100, dropout=0.5) for op in TRAINING),
    KernelWorkload("backward, atomic", 8192, dropout=0.5),
    KernelWorkload("backward, atomic", 8192, dropout=0.5, precision="fast"),
    KernelWorkload("embed", 77, degrees=1, sizes=(33, 9)),
    *(
        KernelWorkload(op, 1, degrees=1, sizes=(1, 1), dropout=0.5) for op in TRAINING
    ),  # ones become constants
    *(
        KernelWorkload("loss", 777, 2049, sizes=(width,), precision=p)
        for width in (100, 320)
        for p in PRECISIONS
    ),
    *(KernelWorkload("grid", 33, 101, degrees=100, precision=precision) for precision in PRECISIONS),
    KernelWorkload("grid", 5, 7, degrees=3, sizes=(20, 9), dtype="int16"),
    KernelWorkload("harmonics", 777, degrees=9),
)

# All ops in sizes that an interpreter runs in a second or so, most of them ragged.
SMALL_WORKLOADS: tuple[KernelWorkload, ...] = (
    *(
        KernelWorkload(op, 37, degrees=5, sizes=(24, 20, 9), precision=precision, dropout=0.3)
        for precision in PRECISIONS
        for op in (*TRAINING, "backward, atomic")
    ),
    KernelWorkload("forward", 19, degrees=3, sizes=(24, 20, 12, 9), precision="fast"),
    *(
        KernelWorkload("embed", 19, degrees=4, sizes=(20, 16, 9), precision=precision)
        for precision in PRECISIONS
    ),
    *(KernelWorkload("loss", 37, 50, sizes=(width,), precision=p) for width in (12, 300) for p in PRECISIONS),
    *(
        KernelWorkload("grid", 5, 23, degrees=4, sizes=(20, 16, 9), precision=precision, dtype=dtype)
        for precision in PRECISIONS
        for dtype in ("float32", "int8", "int16")
    ),
    KernelWorkload("harmonics", 21, degrees=6),
)


def run(workload: KernelWorkload, device: torch.device | str) -> tuple[Tensor, ...]:
    """Run the workload's op on that device and return its results."""
    return OPS[workload.op](workload, WorkloadInputs(workload, torch.device(device)))


def record_launches(workload: KernelWorkload, capability: str) -> Recording:
    """Record the kernels that a GPU of that capability would start for a workload."""
    with recording(capability) as record:
        run(workload, "meta")
    return record


def free_constants(launch: Launch) -> dict[str, Any]:
    """Constants of a launch that its configuration does not set."""
    constants = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    return {
        name: value
        for name, value in launch.arguments.items()
        if name in constants and name not in launch.config.blocks
    }

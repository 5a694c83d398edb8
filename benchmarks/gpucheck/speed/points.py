"""Embeddings of scattered points that lie on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from gpucheck.parity import VALUES, relative
from gpucheck.speed import plain
from gpucheck.speed.comparison import (
    BASELINE_TOLERANCE,
    Accelerator,
    Comparison,
    GpuImplementation,
    SpeedWorkload,
)
from satclip_engine import backends, reference
from satclip_engine.bench.inputs import multiply_adds, scattered, siren
from satclip_engine.bench.suites.torch_baselines import dense_encoder
from satclip_engine.device import CPU
from satclip_engine.kernels.tools.workloads import KernelWorkload
from satclip_engine.weights import Layers

_COMPARED_POINTS = 256
_MAX_CPU_POINTS = 1 << 18  # at L = 40; it takes seconds for more


def run(comparison: Comparison) -> None:
    """Measure all sizes; torch.compile on the first, at the end."""
    sizes = comparison.sizes
    batches = [
        PointBatch(degrees, count, sizes.widths, comparison.accelerator) for degrees, count in sizes.points
    ]
    for batch in batches:
        comparison.run(batch.workload, batch.implementations())
    comparison.run(batches[0].workload, [batches[0].plain("torch.compile")])


@dataclass(frozen=True)
class PointBatch:
    """Points and a network."""

    degrees: int
    count: int
    widths: tuple[int, ...]
    accelerator: Accelerator

    @cached_property
    def layers(self) -> Layers:
        return siren(self.degrees, self.widths)

    @cached_property
    def lonlat(self) -> np.ndarray:
        return scattered(self.count)

    @cached_property
    def on_device(self) -> Any:
        return torch.from_numpy(self.lonlat).to(self.accelerator.device)

    @property
    def workload(self) -> SpeedWorkload:
        name = f"points L={self.degrees}, N={self.count:,}"
        return SpeedWorkload(name, "points", self.count, multiply_adds(self.degrees, self.widths))

    def implementations(self) -> Iterator[GpuImplementation]:
        for precision in VALUES:
            yield self._triton(precision)
        yield self.plain("PyTorch eager")
        if self.degrees < 40 or self.count < _MAX_CPU_POINTS:
            yield prepared_backend(
                self.workload,
                "cpu",
                self.layers,
                CPU,
                "exact",
                lambda prepared: prepared.encode(self.lonlat),
                self.error,
            )

    def plain(self, name: str) -> GpuImplementation:
        """PyTorch, eager or compiled as the name says."""
        return plain_points(self.workload, name, self.layers, self.on_device, self.error, self.accelerator)

    def _triton(self, precision: str) -> GpuImplementation:
        def prepare() -> Callable[[], Any]:
            from satclip_engine.kernels import encode as kernels

            network = plain.tensors(self.layers, self.accelerator.device)
            return lambda: kernels.forward(self.on_device, *network, precision=precision, keep=False)[0]

        launch = KernelWorkload(
            "embed", self.count, degrees=self.degrees, sizes=self.widths, precision=precision
        )
        return self.workload.implementation(
            f"triton {precision}", prepare, self.error, VALUES[precision], launches=(launch,)
        )

    def error(self, out: Any) -> float:
        """Error of some embeddings."""
        rows = np.unique(np.linspace(0, self.count - 1, _COMPARED_POINTS).astype(int))
        values = torch.as_tensor(out)
        compared = values[torch.from_numpy(rows).to(values.device)]
        return relative(compared, reference.encode(self.lonlat[rows], self.layers))


def plain_points(
    workload: SpeedWorkload,
    name: str,
    layers: Layers,
    lonlat: Any,
    error: Callable[[Any], float],
    accelerator: Accelerator,
) -> GpuImplementation:
    """Plain PyTorch for points on the device, eager or compiled as the name says."""

    def prepare() -> Callable[[], Any]:
        encode = dense_encoder(layers.degrees, torch.float32, accelerator.device)
        return plain.in_blocks(accelerator.compile(encode) if "compile" in name else encode, layers, lonlat)

    return workload.implementation(name, prepare, error, BASELINE_TOLERANCE)


def prepared_backend(
    workload: SpeedWorkload,
    backend: str,
    layers: Layers,
    device: Any,
    precision: str,
    run: Callable[[Any], Any],
    error: Callable[[Any], float],
) -> GpuImplementation:
    """A row of backends.TABLE, from arrays of the host to arrays of the host."""

    def prepare() -> Callable[[], Any]:
        prepared = backends.resolve(backend, device).prepare(layers, device=device, precision=precision)
        return lambda: run(prepared)

    name = f"{backend} {precision}, host to host" if backend != "cpu" else "cpu"
    return workload.implementation(name, prepare, error, VALUES[precision], on_gpu=False)

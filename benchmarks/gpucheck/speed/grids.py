"""Rasters of 0.1° pixels from 45° north downwards: on the GPU, and from it to the host's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from gpucheck.parity import VALUES, relative
from gpucheck.rows import Note
from gpucheck.speed import plain
from gpucheck.speed.comparison import Accelerator, Comparison, GpuImplementation, SpeedWorkload
from gpucheck.speed.points import plain_points, prepared_backend
from satclip_engine import backends, reference
from satclip_engine.bench.inputs import grid_multiply_adds, pixel_centres, siren
from satclip_engine.device import CPU, parse_device
from satclip_engine.kernels.tools.workloads import KernelWorkload
from satclip_engine.weights import Layers

_HOST = (("triton", "fast"), ("triton", "exact"), ("cuda", "exact"), ("cuda", "fast"), ("cpu", "exact"))
_COMPARED_PIXELS = 64  # about


def run(comparison: Comparison) -> None:
    """Measure all sizes, beside the same pixels as points."""
    sizes, accelerator = comparison.sizes, comparison.accelerator
    rasters = [Raster(*size, sizes.widths, accelerator) for size in sizes.grids]
    for row in backends.TABLE:
        if row.name == "cuda" and (reason := missing("cuda", accelerator)):
            comparison.rows.add(Note("cuda", f"not measured: {reason}", ok=accelerator.dry))
    for raster in rasters:
        comparison.run(raster.workload, raster.implementations())
    for name in ("PyTorch eager, as points", "torch.compile, as points"):
        comparison.run(rasters[0].workload, [rasters[0].plain(name)])


def missing(backend: str, accelerator: Accelerator) -> str | None:
    """Reason why a row of the table cannot run here, or None."""
    row = next((row for row in backends.TABLE if row.name == backend), None)
    if row is None:
        return "no such backend"
    return row.missing() or row.unfit(parse_device(accelerator.device))


@dataclass(frozen=True)
class Raster:
    """A window and a network."""

    degrees: int
    height: int
    width: int
    widths: tuple[int, ...]
    accelerator: Accelerator

    @cached_property
    def layers(self) -> Layers:
        return siren(self.degrees, self.widths)

    @cached_property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Latitudes and longitudes."""
        return 45 - 0.1 * np.arange(self.height), -180 + 360 / self.width * np.arange(self.width)

    @cached_property
    def touched(self) -> np.ndarray:
        """The host's memory for the result, with its pages mapped."""
        return np.zeros((self.height, self.width, self.widths[-1]), np.float32) + np.float32(1)

    @property
    def workload(self) -> SpeedWorkload:
        name = f"grid L={self.degrees}, {self.height}×{self.width}"
        multiply_adds = grid_multiply_adds(self.degrees, self.widths)
        return SpeedWorkload(name, "pixels", float(self.height * self.width), multiply_adds)

    def implementations(self) -> Iterator[GpuImplementation]:
        for precision in VALUES:
            for dtype in ("float32", "int8"):
                yield self._triton(precision, dtype)
        for backend, precision in _HOST:
            if backend == "cpu" or not missing(backend, self.accelerator):
                device = CPU if backend == "cpu" else parse_device(self.accelerator.device)
                yield prepared_backend(
                    self.workload, backend, self.layers, device, precision, self._fill, self.error
                )

    def _fill(self, prepared: Any) -> Any:
        return prepared.encode_grid(*self.axes, out=self.touched)

    def _triton(self, precision: str, dtype: str) -> GpuImplementation:
        def prepare() -> Callable[[], Any]:
            from satclip_engine.kernels import grid as kernels
            from satclip_engine.kernels.device_functions.quantise import DeviceQuantise

            device = self.accelerator.device
            network = kernels.prepare(self.degrees, *plain.tensors(self.layers, device), precision)
            axes = [torch.from_numpy(axis).to(device) for axis in self.axes]
            if dtype == "float32":
                return lambda: kernels.encode_grid(network, *axes)
            inverse = torch.full((self.widths[-1],), 50.0, device=device)
            quantise = DeviceQuantise(dtype, inverse, torch.zeros_like(inverse))
            return lambda: kernels.encode_grid(network, *axes, quantise=quantise)

        launch = KernelWorkload(
            "grid",
            self.height,
            self.width,
            degrees=self.degrees,
            sizes=self.widths,
            precision=precision,
            dtype=dtype,
        )
        # Codes are compared in parity.py; here their scale is any.
        check = self.error if dtype == "float32" else (lambda out: 0.0)
        return self.workload.implementation(
            f"triton {precision} {dtype}", prepare, check, VALUES[precision], launches=(launch,)
        )

    def plain(self, name: str) -> GpuImplementation:
        """PyTorch for the same pixels as points."""
        lonlat = torch.from_numpy(pixel_centres(*self.axes)).to(self.accelerator.device)

        def error(out: Any) -> float:
            return self.error(out.view(self.height, self.width, -1))

        return plain_points(self.workload, name, self.layers, lonlat, error, self.accelerator)

    def error(self, out: Any) -> float:
        """Error of some pixels of the last row."""
        lat, lon = self.axes
        columns = np.arange(0, self.width, max(1, self.width // _COMPARED_PIXELS))
        last = torch.as_tensor(out[-1]).cpu()[torch.from_numpy(columns)]
        return relative(last, reference.encode_grid(lat[-1:], lon[columns], self.layers)[0])

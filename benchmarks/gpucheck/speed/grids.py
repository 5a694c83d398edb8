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
from gpucheck.speed.contest import Case, Contest, Contestant, Place
from gpucheck.speed.points import host, plain_places
from satclip_engine import backends, reference
from satclip_engine.bench.workload import grid_multiply_adds, siren
from satclip_engine.device import CPU, parse_device
from satclip_engine.kernels.tools.workloads import KernelWorkload
from satclip_engine.weights.layers import Layers

_HOST = (("triton", "fast"), ("triton", "exact"), ("cuda", "exact"), ("cuda", "fast"), ("cpu", "exact"))


def run(contest: Contest) -> None:
    """All sizes, beside the same pixels as points."""
    works = [Raster(*size, contest.sizes.widths, contest.place) for size in contest.sizes.grids]
    for row in backends.TABLE:
        if row.name == "cuda" and (reason := missing("cuda", contest.place)):
            contest.rows.add(Note("cuda", f"not measured: {reason}", ok=contest.place.dry))
    for work in works:
        contest.run(work.case, work.contestants())
    for name in ("PyTorch eager, as points", "torch.compile, as points"):
        contest.run(works[0].case, [works[0].plain(name)])


def missing(backend: str, place: Place) -> str | None:
    """Why a row of the table is not there."""
    row = next((row for row in backends.TABLE if row.name == backend), None)
    return "no such backend" if row is None else row.missing() or row.unfit(parse_device(place.device))


@dataclass(frozen=True)
class Raster:
    """A window and a network."""

    degrees: int
    height: int
    width: int
    widths: tuple[int, ...]
    place: Place

    @cached_property
    def layers(self) -> Layers:
        return siren(self.degrees, self.widths)

    @cached_property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Latitudes and longitudes."""
        return 45 - 0.1 * np.arange(self.height), -180 + 360 / self.width * np.arange(self.width)

    @cached_property
    def touched(self) -> np.ndarray:
        """The host's memory for the result, its pages there."""
        return np.zeros((self.height, self.width, self.widths[-1]), np.float32) + np.float32(1)

    @property
    def case(self) -> Case:
        name = f"grid L={self.degrees}, {self.height}×{self.width}"
        each = grid_multiply_adds(self.degrees, self.widths)
        return Case(name, "pixels", float(self.height * self.width), each)

    def contestants(self) -> Iterator[Contestant]:
        for precision in VALUES:
            for dtype in ("float32", "int8"):
                yield self._triton(precision, dtype)
        for backend, precision in _HOST:
            if backend == "cpu" or not missing(backend, self.place):
                device = CPU if backend == "cpu" else parse_device(self.place.device)
                yield host(backend, self.layers, device, precision, self._filled, self.error)

    def _filled(self, prepared: Any) -> Any:
        return prepared.encode_grid(*self.axes, out=self.touched)

    def _triton(self, precision: str, dtype: str) -> Contestant:
        def make() -> Callable[[], Any]:
            from satclip_engine.kernels import grid as kernels
            from satclip_engine.kernels.device_functions.quantise import Quantise

            device = self.place.device
            network = kernels.prepare(self.degrees, *plain.tensors(self.layers, device), precision)
            axes = [torch.from_numpy(axis).to(device) for axis in self.axes]
            if dtype == "float32":
                return lambda: kernels.encode_grid(network, *axes)
            inverse = torch.full((self.widths[-1],), 50.0, device=device)
            quantise = Quantise(dtype, inverse, torch.zeros_like(inverse))
            return lambda: kernels.encode_grid(network, *axes, quantise=quantise)

        scene = KernelWorkload(
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
        return Contestant(f"triton {precision} {dtype}", make, check, VALUES[precision], scenes=(scene,))

    def plain(self, name: str) -> Contestant:
        """PyTorch for the same pixels as places."""
        lat, lon = self.axes
        places = np.stack(np.meshgrid(lon, lat), -1).reshape(-1, 2)
        there = torch.from_numpy(places).to(self.place.device)

        def error(out: Any) -> float:
            return self.error(out.view(self.height, self.width, -1))

        return plain_places(name, self.layers, there, error, self.place)

    def error(self, out: Any) -> float:
        """Of some pixels of the last row."""
        lat, lon = self.axes
        some = np.arange(0, self.width, max(1, self.width // 64))
        last = torch.as_tensor(out[-1]).cpu()[torch.from_numpy(some)]
        return relative(last, reference.encode_grid(lat[-1:], lon[some], self.layers)[0])

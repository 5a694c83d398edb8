"""The compiled CPU kernels as a backend: C++ for each instruction set, chosen for this processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from satclip_engine.backends.compiled import _C, MISSING
from satclip_engine.backends.protocols import CALLS, Calls, Check, Prepared
from satclip_engine.device import CPU, Device, available_cores, not_here
from satclip_engine.weights import Layers

if TYPE_CHECKING:
    from torch import Tensor


class Cpu:
    """Fused C++ kernels, compiled once per instruction set and chosen for this processor."""

    name, devices, trains, grids_only = "cpu", ("cpu",), True, None

    def missing(self) -> str | None:
        return None if _C is not None else MISSING

    def unfit(self, device: Device) -> str | None:
        return not_here(self.name, device)

    def harmonics(self, lonlat: np.ndarray, degrees: int, threads: int = 1) -> np.ndarray:
        return _C.harmonics(lonlat, degrees, threads)

    def prepare(
        self,
        layers: Layers,
        threads: int | None = None,
        *,
        device: Device = CPU,
        precision: str = "exact",
        isa: str | None = None,
    ) -> Prepared:
        network = _C.Network(layers.degrees, list(layers.weights), list(layers.biases), isa)
        return PreparedCpu(layers, network, threads or available_cores())


@dataclass(frozen=True, eq=False)
class PreparedCpu:
    """Weights packed in float32 for one instruction set."""

    layers: Layers
    network: _C.Network
    threads: int
    name: str = Cpu.name
    device: str = "cpu"
    calls: Calls = CALLS

    @property
    def isa(self) -> str:
        return self.network.isa

    def encode(
        self,
        lonlat: np.ndarray,
        out: np.ndarray | None = None,
        threads: int | None = None,
        check: Check | None = None,
    ) -> np.ndarray:
        if out is None:
            out = np.empty((len(lonlat), self.layers.embed_dim), np.float32)
        self.network.encode(lonlat, out, self.threads if threads is None else threads, check)
        return out

    def encode_grid(
        self,
        lat: np.ndarray,
        lon: np.ndarray,
        out: np.ndarray | None = None,
        threads: int | None = None,
        check: Check | None = None,
    ) -> np.ndarray:
        if out is None:
            out = np.empty((len(lat), len(lon), self.layers.embed_dim), np.float32)
        self.network.encode_grid(lat, lon, out, self.threads if threads is None else threads, check)
        return out

    def encode_tensor(self, lonlat: Tensor) -> Tensor | None:
        return None

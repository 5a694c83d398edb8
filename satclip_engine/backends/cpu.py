"""The compiled CPU kernels as a backend: C++ for each instruction set, chosen for this processor."""

from __future__ import annotations

import numpy as np

from satclip_engine.backends.compiled import _C, MISSING
from satclip_engine.backends.protocols import CALL, Call, Prepared
from satclip_engine.device import CPU, Device, available_cores, not_here
from satclip_engine.weights import Layers


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


class PreparedCpu(Prepared):
    """Weights packed in float32 for one instruction set."""

    name, device = Cpu.name, "cpu"

    def __init__(self, layers: Layers, network: _C.Network, threads: int) -> None:
        self.network, self.threads, self.isa = network, threads, network.isa
        self.degrees, self.widths = layers.degrees, layers.widths

    def encode(self, lonlat: np.ndarray, out: np.ndarray | None = None, call: Call = CALL) -> np.ndarray:
        if out is None:
            out = np.empty((len(lonlat), self.embed_dim), np.float32)
        self.network.encode(lonlat, out, call.threads or self.threads, call.check)
        return out

    def encode_grid(
        self, lat: np.ndarray, lon: np.ndarray, out: np.ndarray | None = None, call: Call = CALL
    ) -> np.ndarray:
        if out is None:
            out = np.empty((len(lat), len(lon), self.embed_dim), np.float32)
        self.network.encode_grid(lat, lon, out, call.threads or self.threads, call.check)
        return out

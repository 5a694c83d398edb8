"""The definition as a backend: plain PyTorch in float64, slow and exact."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from satclip_engine import reference
from satclip_engine.backends.protocols import CALL, Call, Prepared
from satclip_engine.device import CPU, Device, not_here
from satclip_engine.weights import Layers


class Reference:
    """Plain PyTorch in float64: the definition, slow and exact. Results are float64 unless `out` is given."""

    name, devices, trains, grids_only = "reference", ("cpu",), True, None

    def missing(self) -> str | None:
        if find_spec("torch") is None:
            return 'it needs torch: pip install "satclip-engine[torch]"'
        return None

    def unfit(self, device: Device) -> str | None:
        return not_here(self.name, device)

    def harmonics(self, lonlat: np.ndarray, degrees: int, threads: int = 1) -> np.ndarray:
        return reference.harmonics(lonlat, degrees)

    def prepare(
        self, layers: Layers, threads: int | None = None, *, device: Device = CPU, precision: str = "exact"
    ) -> Prepared:
        return PreparedReference(layers)


class PreparedReference(Prepared):
    """The network as it is; PyTorch decides about threads, and a call is not checked before it ends."""

    name, isa, device = Reference.name, "float64", "cpu"

    def __init__(self, layers: Layers) -> None:
        self.layers, self.degrees, self.widths = layers, layers.degrees, layers.widths

    def encode(self, lonlat: np.ndarray, out: np.ndarray | None = None, call: Call = CALL) -> np.ndarray:
        return _into(out, reference.encode(lonlat, self.layers))

    def encode_grid(
        self, lat: np.ndarray, lon: np.ndarray, out: np.ndarray | None = None, call: Call = CALL
    ) -> np.ndarray:
        return _into(out, reference.encode_grid(lat, lon, self.layers))


def _into(out: np.ndarray | None, values: np.ndarray) -> np.ndarray:
    if out is None:
        return values
    out[...] = values
    return out

"""The definition as a backend: plain PyTorch in float64, slow and exact."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from satclip_engine import reference
from satclip_engine.backends.protocols import CALLS, Calls, Check, Prepared
from satclip_engine.device import CPU, Device, not_here
from satclip_engine.weights import Layers

if TYPE_CHECKING:
    from torch import Tensor


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


@dataclass(frozen=True, eq=False)
class PreparedReference:
    """The network as it is; PyTorch decides about threads, and a call is not checked before it ends."""

    layers: Layers
    name: str = Reference.name
    isa: str = "float64"
    device: str = "cpu"
    calls: Calls = CALLS

    def encode(
        self,
        lonlat: np.ndarray,
        out: np.ndarray | None = None,
        threads: int | None = None,
        check: Check | None = None,
    ) -> np.ndarray:
        return _into(out, reference.encode(lonlat, self.layers))

    def encode_grid(
        self,
        lat: np.ndarray,
        lon: np.ndarray,
        out: np.ndarray | None = None,
        threads: int | None = None,
        check: Check | None = None,
    ) -> np.ndarray:
        return _into(out, reference.encode_grid(lat, lon, self.layers))

    def encode_tensor(self, lonlat: Tensor) -> Tensor | None:
        return None


def _into(out: np.ndarray | None, values: np.ndarray) -> np.ndarray:
    if out is None:
        return values
    out[...] = values
    return out

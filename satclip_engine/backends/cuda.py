"""The compiled CUDA kernels as a backend: product grids on an NVIDIA GPU without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from satclip_engine.backends.compiled import _C, MISSING
from satclip_engine.backends.protocols import Calls, Check, Prepared, gpu_calls
from satclip_engine.device import CPU, Device, absence, available_cores, too_old_for
from satclip_engine.errors import MissingExtra
from satclip_engine.weights import Layers

if TYPE_CHECKING:
    from torch import Tensor


_GRIDS_ONLY = (
    "backend 'cuda' computes grids of rows of latitude only: for single points and projected grids on a GPU, "
    "pip install \"satclip-engine[torch]\" and choose backend 'triton'"
)


class Cuda:
    """Compiled CUDA kernels for product grids, present if nvcc was there when the package was built.

    It has no operators on tensors and does not train: its methods are those of Backend, not TrainingBackend.
    """

    name, devices, grids_only = "cuda", ("cuda",), _GRIDS_ONLY

    def missing(self) -> str | None:
        return MISSING if _C is None else getattr(_C, "cuda_missing", "reinstall satclip-engine")

    def unfit(self, device: Device) -> str | None:
        if device.kind != "cuda":
            return "backend 'cuda' computes on a GPU: choose device 'cuda'"
        gpus = _C.cuda_devices()
        if (absent := absence(device, len(gpus), "a CUDA driver", _C.cuda_no_devices())) is not None:
            return absent
        _, capability = gpus[device.index or 0]
        return too_old_for(self.name, device, capability)

    def harmonics(self, lonlat: np.ndarray, degrees: int, threads: int = 1) -> np.ndarray:
        raise MissingExtra(_GRIDS_ONLY)

    def prepare(
        self, layers: Layers, threads: int | None = None, *, device: Device = CPU, precision: str = "exact"
    ) -> Prepared:
        index = device.index or 0
        network = _C.CudaNetwork(layers.degrees, list(layers.weights), list(layers.biases), precision, index)
        return PreparedCuda(layers, network, threads or available_cores())


@dataclass(frozen=True, eq=False)
class PreparedCuda:
    """Weights on a GPU. What overlaps there is arranged in csrc/cuda."""

    layers: Layers
    network: _C.CudaNetwork
    threads: int
    name: str = Cuda.name

    @property
    def device(self) -> str:
        return f"cuda:{self.network.device}"

    @property
    def isa(self) -> str:
        _, (major, minor) = _C.cuda_devices()[self.network.device]
        return f"cuda sm_{major}{minor} {self.network.precision}"

    @property
    def calls(self) -> Calls:
        return gpu_calls(self.layers.embed_dim)

    def encode(
        self,
        lonlat: np.ndarray,
        out: np.ndarray | None = None,
        threads: int | None = None,
        check: Check | None = None,
    ) -> np.ndarray:
        raise MissingExtra(_GRIDS_ONLY)

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
        threads = self.threads if threads is None else threads
        # Whole rows are made and copied at once: of a wide grid they would take any amount of memory.
        most = self.calls.places
        for left in range(0, max(1, len(lon)), most):
            part = lon[left : left + most]
            self.network.encode_grid(lat, part, out[:, left : left + most], threads=threads, check=check)
        return out

    def encode_tensor(self, lonlat: Tensor) -> Tensor | None:
        return None

"""The compiled CUDA kernels as a backend: product grids on an NVIDIA GPU without PyTorch."""

from __future__ import annotations

import numpy as np

from satclip_engine.backends.compiled import _C, MISSING
from satclip_engine.backends.protocols import CALL, Call, Prepared, gpu_batch_hints
from satclip_engine.device import CPU, Device, absence, available_cores, too_old_for
from satclip_engine.errors import MissingExtra
from satclip_engine.weights import Layers

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


class PreparedCuda(Prepared):
    """Weights on a GPU. What overlaps there is arranged in csrc/cuda."""

    name = Cuda.name

    def __init__(self, layers: Layers, network: _C.CudaNetwork, threads: int) -> None:
        self.network, self.threads, self.device = network, threads, f"cuda:{network.device}"
        self.degrees, self.widths = layers.degrees, layers.widths
        _, (major, minor) = _C.cuda_devices()[network.device]
        self.isa = f"cuda sm_{major}{minor} {network.precision}"
        self.hints = gpu_batch_hints(layers.embed_dim)

    def encode(self, lonlat: np.ndarray, out: np.ndarray | None = None, call: Call = CALL) -> np.ndarray:
        raise MissingExtra(_GRIDS_ONLY)

    def encode_grid(
        self, lat: np.ndarray, lon: np.ndarray, out: np.ndarray | None = None, call: Call = CALL
    ) -> np.ndarray:
        if out is None:
            out = np.empty((len(lat), len(lon), self.embed_dim), np.float32)
        threads, width = call.threads or self.threads, self.hints.batch_size
        # Whole rows are made and copied at once: of a wide grid they would take any amount of memory.
        for left in range(0, max(1, len(lon)), width):
            columns = slice(left, left + width)
            self.network.encode_grid(lat, lon[columns], out[:, columns], threads=threads, check=call.check)
        return out

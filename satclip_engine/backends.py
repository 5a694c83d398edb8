"""The table of implementations, best first. A row says why it cannot run; nothing else branches on a backend.

    resolve("auto", Device("cuda")).prepare(layers, device=Device("cuda")).encode(lonlat) -> (N, E)

"auto" takes the first row for such a device that runs here; a backend asked for by name runs or raises.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import numpy as np

from satclip_engine import reference
from satclip_engine.device import CPU, Device, absence, too_old, torch_absence
from satclip_engine.errors import MissingExtra, UsageError
from satclip_engine.layers import Layers
from satclip_engine.prepared import CALLS, Calls, Check, Prepared, gpu_calls

if TYPE_CHECKING:
    from torch import Tensor

try:
    from satclip_engine import _C
except ImportError as error:  # an installation without the compiled core still has the reference
    _C = None  # type: ignore[assignment]
    _C_MISSING = f"the compiled kernels cannot be loaded ({error}); reinstall satclip-engine"


class Backend(Protocol):
    """A row of the table."""

    @property
    def name(self) -> str: ...
    @property
    def devices(self) -> tuple[str, ...]:
        """Kinds of device on which "auto" may choose it."""

    @property
    def trains(self) -> bool:
        """Whether tensors.TABLE has a row of that name, with gradients."""

    @property
    def grids_only(self) -> str | None:
        """Why it computes only separable grids, and what computes others; None when it does more."""

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""

    def unfit(self, device: Device) -> str | None:
        """Why it does not compute on that device, in a sentence; or None. Asked where it is not missing."""

    def harmonics(self, lonlat: np.ndarray, degrees: int, threads: int = 1) -> np.ndarray:
        """(N, 2) float64 degrees → (N, L²) float64 orthonormal real harmonics in the order l² + l + m."""

    def prepare(
        self, layers: Layers, threads: int | None = None, *, device: Device = CPU, precision: str = "exact"
    ) -> Prepared:
        """Lay a network out for this backend; `threads` is the default of its calls."""


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _not_here(name: str, device: Device) -> str | None:
    """Why a backend of the CPU does not compute on a device."""
    return None if device == CPU else f"backend {name!r} computes on the CPU, not on device '{device}'"


def _needs(name: str, device: Device, capability: tuple[int, int]) -> str | None:
    """Why a backend does not compute on a GPU of that compute capability."""
    reason = too_old(f"device '{device}'", capability)
    return None if reason is None else f"backend {name!r} {reason}: use 'cpu'"


class Triton:
    """Triton's kernels on a GPU; on the CPU by its interpreter, when asked for by name."""

    name, devices, trains, grids_only = "triton", ("cuda",), True, None

    def missing(self) -> str | None:
        for module in ("torch", "triton"):
            if find_spec(module) is None:
                return f'it needs {module}: pip install "satclip-engine[torch]"'
        return None

    def unfit(self, device: Device) -> str | None:
        if device.kind == "cuda":
            return torch_absence(device) or self._too_old(device)
        from satclip_engine.kernels.launch import interpreted

        if interpreted():
            return None
        return (
            "backend 'triton' computes on a GPU: choose device 'cuda', "
            "or set TRITON_INTERPRET=1 before the start to run it on the CPU, slowly"
        )

    def _too_old(self, device: Device) -> str | None:
        import torch

        return _needs(self.name, device, torch.cuda.get_device_capability(device.index))

    def harmonics(self, lonlat: np.ndarray, degrees: int, threads: int = 1) -> np.ndarray:
        import torch

        from satclip_engine.kernels.harmonics import harmonics
        from satclip_engine.kernels.launch import interpreted

        places = torch.from_numpy(np.ascontiguousarray(lonlat))
        return harmonics(places if interpreted() else places.cuda(), degrees).cpu().numpy()

    def prepare(
        self, layers: Layers, threads: int | None = None, *, device: Device = CPU, precision: str = "exact"
    ) -> Prepared:
        from satclip_engine.gpu import PreparedTriton

        return PreparedTriton(layers, device, precision, threads or available_cores())


_GRIDS_ONLY = (
    "backend 'cuda' computes grids of rows of latitude only: for single places and projected grids on a GPU, "
    "pip install \"satclip-engine[torch]\" and choose backend 'triton'"
)


class Cuda:
    """Compiled CUDA kernels for product grids, where nvcc was there when the package was built."""

    name, devices, trains, grids_only = "cuda", ("cuda",), False, _GRIDS_ONLY

    def missing(self) -> str | None:
        return _C_MISSING if _C is None else getattr(_C, "cuda_missing", "reinstall satclip-engine")

    def unfit(self, device: Device) -> str | None:
        if device.kind != "cuda":
            return "backend 'cuda' computes on a GPU: choose device 'cuda'"
        found = _C.cuda_devices()
        if (absent := absence(device, len(found), "a CUDA driver", _C.cuda_no_devices())) is not None:
            return absent
        return _needs(self.name, device, found[device.index or 0][1])

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


class Cpu:
    """Fused C++ kernels, compiled once per instruction set and chosen for this processor."""

    name, devices, trains, grids_only = "cpu", ("cpu",), True, None

    def missing(self) -> str | None:
        return None if _C is not None else _C_MISSING

    def unfit(self, device: Device) -> str | None:
        return _not_here(self.name, device)

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


class Reference:
    """Plain PyTorch in float64: the definition, slow and exact. Results are float64 unless `out` is given."""

    name, devices, trains, grids_only = "reference", ("cpu",), True, None

    def missing(self) -> str | None:
        if find_spec("torch") is None:
            return 'it needs torch: pip install "satclip-engine[torch]"'
        return None

    def unfit(self, device: Device) -> str | None:
        return _not_here(self.name, device)

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


TABLE: tuple[Backend, ...] = (Triton(), Cuda(), Cpu(), Reference())
NAMES = ("auto", *(row.name for row in TABLE))


def resolve(name: str = "auto", device: Device = CPU) -> Backend:
    """The backend of that name, or for "auto" the first for such a device that runs here.

    Raises UsageError for an unknown name and for a device that is not there or not the backend's,
    MissingExtra when the backend asked for, or every one for the device, is not installed.
    """
    if name == "auto":
        return _best(device)
    for row in TABLE:
        if row.name == name:
            if (missing := row.missing()) is not None:
                raise MissingExtra(f"backend {name!r} cannot run here: {missing}")
            if (unfit := row.unfit(device)) is not None:
                raise UsageError(unfit)
            return row
    raise UsageError(f"unknown backend {name!r}: choose from {', '.join(NAMES)}")


def grids_only(name: str) -> str | None:
    """Why the backend of that name computes only separable grids, in a sentence; None when it does more."""
    return next((row.grids_only for row in TABLE if row.name == name), None)


def _best(device: Device) -> Backend:
    rows = [row for row in TABLE if device.kind in row.devices]
    missing = {row: row.missing() for row in rows}
    unfit = {row: row.unfit(device) for row in rows if missing[row] is None}
    for row, reason in unfit.items():
        if reason is None:
            return row
    if unfit:
        raise UsageError(str(next(iter(unfit.values()))))
    reasons = "; ".join(f"{row.name}: {reason}" for row, reason in missing.items())
    raise MissingExtra(reasons if device == CPU else f"device '{device}': {reasons}")

"""The table of implementations, best first. A row says why it cannot run; nothing else branches on a backend.

    resolve("auto").prepare(layers).encode(lonlat) -> (N, E)

"auto" takes the first row that runs here; a backend asked for by name runs or raises.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

import numpy as np

from satclip_engine import reference
from satclip_engine.errors import MissingExtra, UsageError
from satclip_engine.weights import Layers

try:
    from satclip_engine import _C
except ImportError as error:  # an installation without the compiled core still has the reference
    _C = None  # type: ignore[assignment]
    _C_MISSING = f"the compiled kernels cannot be loaded ({error}); reinstall satclip-engine"


Check = Callable[[], object]


class Prepared(Protocol):
    """A network in its backend's own layout. Immutable; safe to use from several threads at once."""

    @property
    def name(self) -> str: ...
    @property
    def isa(self) -> str: ...
    @property
    def layers(self) -> Layers: ...

    def encode(
        self,
        lonlat: np.ndarray,
        out: np.ndarray | None = None,
        threads: int | None = None,
        check: Check | None = None,
    ) -> np.ndarray:
        """(N, 2) float64 degrees, longitude first → (N, E). `out`: float32, contiguous in its last axis.

        `check`: called in the calling thread every 50 ms or so; what it raises ends the call.
        Not-finite places give NaN. Raises ValueError naming the first row with |latitude| > 90.
        """

    def encode_grid(
        self,
        lat: np.ndarray,
        lon: np.ndarray,
        out: np.ndarray | None = None,
        threads: int | None = None,
        check: Check | None = None,
    ) -> np.ndarray:
        """(H,) latitudes × (W,) longitudes, float64 degrees → (H, W, E); otherwise as `encode`."""


class Backend(Protocol):
    """A row of the table."""

    @property
    def name(self) -> str: ...

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""

    def harmonics(self, lonlat: np.ndarray, degrees: int, threads: int = 1) -> np.ndarray:
        """(N, 2) float64 degrees → (N, L²) float64 orthonormal real harmonics in the order l² + l + m."""

    def prepare(self, layers: Layers, threads: int | None = None) -> Prepared:
        """Lay a network out for this backend; `threads` is the default of its calls."""


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Cpu:
    """Fused C++ kernels, compiled once per instruction set and chosen for this processor."""

    name = "cpu"

    def missing(self) -> str | None:
        return None if _C is not None else _C_MISSING

    def harmonics(self, lonlat: np.ndarray, degrees: int, threads: int = 1) -> np.ndarray:
        return _C.harmonics(lonlat, degrees, threads)

    def prepare(self, layers: Layers, threads: int | None = None, isa: str | None = None) -> Prepared:
        network = _C.Network(layers.degrees, list(layers.weights), list(layers.biases), isa)
        return PreparedCpu(layers, network, threads or available_cores())


@dataclass(frozen=True, eq=False)
class PreparedCpu:
    """Weights packed in float32 for one instruction set."""

    layers: Layers
    network: _C.Network
    threads: int
    name: str = Cpu.name

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


class Reference:
    """Plain PyTorch in float64: the definition, slow and exact. Results are float64 unless `out` is given."""

    name = "reference"

    def missing(self) -> str | None:
        if find_spec("torch") is None:
            return 'it needs torch: pip install "satclip-engine[torch]"'
        return None

    def harmonics(self, lonlat: np.ndarray, degrees: int, threads: int = 1) -> np.ndarray:
        return reference.harmonics(lonlat, degrees)

    def prepare(self, layers: Layers, threads: int | None = None) -> Prepared:
        return PreparedReference(layers)


@dataclass(frozen=True, eq=False)
class PreparedReference:
    """The network as it is; PyTorch decides about threads, and a call is not checked before it ends."""

    layers: Layers
    name: str = Reference.name
    isa: str = "float64"

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


def _into(out: np.ndarray | None, values: np.ndarray) -> np.ndarray:
    if out is None:
        return values
    out[...] = values
    return out


TABLE: tuple[Backend, ...] = (Cpu(), Reference())
NAMES = ("auto", *(row.name for row in TABLE))


def resolve(name: str = "auto") -> Backend:
    """The backend of that name, or the first that runs here for "auto".

    Raises UsageError for an unknown name, MissingExtra when that backend cannot run here.
    """
    if name == "auto":
        for row in TABLE:
            if row.missing() is None:
                return row
        raise MissingExtra("; ".join(f"{row.name}: {row.missing()}" for row in TABLE))
    for row in TABLE:
        if row.name == name:
            reason = row.missing()
            if reason is not None:
                raise MissingExtra(f"backend {name!r} cannot run here: {reason}")
            return row
    raise UsageError(f"unknown backend {name!r}: choose from {', '.join(NAMES)}")

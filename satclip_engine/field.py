"""Field: the function that an Encoder evaluates, given by a network (NetworkField) or an atlas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol

import numpy as np

from satclip_engine import backends
from satclip_engine.backends.extremes import Extremes, network_extremes
from satclip_engine.backends.protocols import Prepared, check_precision
from satclip_engine.device import Device
from satclip_engine.errors import UsageError
from satclip_engine.lattice.tolerance import spiral
from satclip_engine.weights import Layers, LocationWeights, Provenance

if TYPE_CHECKING:
    from satclip_engine.lattice.plan import Plan

EXTREMES_POINTS = 1 << 16  # 0.9° apart


@dataclass(frozen=True, eq=False)
class AbsentWeights:
    """Facts for reports about weights that are not at hand; anything else of them raises UsageError."""

    sha256: str
    harmonics: str
    degrees: int
    capacity: int
    hidden_layers: int
    embed_dim: int
    provenance: Provenance
    reason: str  # why they are absent, and the way out

    @property
    def L(self) -> int:
        return self.degrees

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # copy and pickle ask for methods that may be missing
            raise AttributeError(name)
        raise UsageError(self.reason)


class Field(Protocol):
    """A function from points on Earth to embeddings. Immutable; pickles."""

    @property
    def sha256(self) -> str:
        """Identifies the function: weights, harmonics and head."""

    @property
    def embed_dim(self) -> int:
        """Number of outputs, E."""

    @property
    def precision(self) -> str:
        """The least accuracy asked for: "exact" or "fast"."""

    @property
    def weights(self) -> LocationWeights | AbsentWeights:
        """The checkpoint's own weights, without any folded head."""

    @property
    def layers(self) -> Layers:
        """The folded network, a head or selection of bands included. Raises UsageError without one."""

    @property
    def plan(self) -> Plan | None:
        """The only way in which it can be computed; None: as the encoder chooses."""

    def check(self, *, exact: bool, tolerance: float | None) -> None:
        """Raise UsageError for an accuracy that it cannot give."""

    def extremes(self, threads: int) -> Extremes:
        """Least and largest value of each output over the globe, the same on every machine."""

    def with_head(self, weight: np.ndarray, bias: np.ndarray | None = None) -> Field:
        """`weight` (K, E) times the outputs plus `bias` (K,). Raises UsageError for other shapes."""

    def select(self, index: Sequence[int]) -> Field:
        """Some of the outputs."""

    def prepare(self, threads: int) -> Prepared:
        """Lay it out for evaluation; `threads` is the default of calls."""


class NetworkField:
    """A network, evaluated by a backend on a device."""

    plan: Plan | None = None

    def __init__(
        self,
        weights: LocationWeights,
        backend: str,
        device: Device,
        precision: str,
        layers: Layers | None = None,
    ) -> None:
        """layers: the folded network where it is not that of the weights alone."""
        self.weights, self.precision = weights, check_precision(precision)
        self.layers = weights.folded() if layers is None else layers
        self._backend = backends.resolve(backend, device)
        self._how, self._own_layers = (backend, device, precision), layers

    def __reduce__(self) -> tuple[object, ...]:
        return NetworkField, (self.weights, *self._how, self._own_layers)

    @property
    def sha256(self) -> str:
        return self.layers.sha256

    @property
    def embed_dim(self) -> int:
        return self.layers.embed_dim

    def check(self, *, exact: bool, tolerance: float | None) -> None:
        """Any accuracy will do; what float32 cannot keep is refused when a plan is made."""

    def extremes(self, threads: int) -> Extremes:
        return network_extremes(self.layers, spiral(EXTREMES_POINTS), threads)

    def with_head(self, weight: np.ndarray, bias: np.ndarray | None = None) -> NetworkField:
        return NetworkField(self.weights, *self._how, self.layers.with_head(weight, bias))

    def select(self, index: Sequence[int]) -> NetworkField:
        return NetworkField(self.weights, *self._how, self.layers.select(index))

    def prepare(self, threads: int) -> Prepared:
        _, device, precision = self._how
        return self._backend.prepare(self.layers, threads=threads, device=device, precision=precision)

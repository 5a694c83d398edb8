"""Protocols of backends: Backend, a row of the table, and Prepared, a network that it has laid out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from satclip_engine.device import CPU, Device
from satclip_engine.errors import UsageError
from satclip_engine.options import PRECISIONS
from satclip_engine.weights import Layers

if TYPE_CHECKING:
    from torch import Tensor

Check = Callable[[], object]


def check_precision(precision: str) -> str:
    """The precision itself. Raises UsageError for a word that names none."""
    if precision not in PRECISIONS:
        raise UsageError(
            f"precision must be {' or '.join(PRECISIONS)}, not {precision!r}", argument="precision"
        )
    return precision


class Calls(NamedTuple):
    """How a prepared network wants to be called."""

    places: int = 1 << 14  # at once, at least: enough for the CPU's kernels, a tenth of a second of work
    staged: int = 0  # bytes of the largest of the two buffers through which a thread's results pass


CALLS = Calls()

# By roofline an H100 makes 16384 embeddings of 256 numbers in 0.1 ms (exact, on a grid), PCIe 5 brings them
# in 0.3 ms, and starting the kernels takes as long: smaller blocks would wait for their starts, larger ones
# only take more memory.
BLOCK_BYTES = 16 << 20
MAX_PLACES = 1 << 17  # of a block: what lies between the layers takes 2 KB a place


def gpu_calls(embed_dim: int) -> Calls:
    """How a GPU wants to be called whose results come in blocks of BLOCK_BYTES."""
    return Calls(max(1, min(MAX_PLACES, BLOCK_BYTES // (4 * embed_dim))), BLOCK_BYTES)


class Prepared(Protocol):
    """A network in its backend's own layout. Immutable; safe to use from several threads at once."""

    @property
    def name(self) -> str: ...
    @property
    def isa(self) -> str:
        """What decides the bits of a result beside the network: instruction set, architecture, precision."""

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda:0"."""

    @property
    def layers(self) -> Layers: ...
    @property
    def calls(self) -> Calls: ...

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

    def encode_tensor(self, lonlat: Tensor) -> Tensor | None:
        """(N, 2) float64 → (N, E) float32 on the same device, or None when the places would have to leave it.

        Latitudes are checked already.
        """


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

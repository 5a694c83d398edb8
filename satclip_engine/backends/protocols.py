"""Protocols of backends and of prepared networks, and the arguments of training operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

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
    """An implementation of the encoder."""

    @property
    def name(self) -> str: ...
    @property
    def devices(self) -> tuple[str, ...]:
        """Kinds of device on which "auto" may choose it."""

    @property
    def grids_only(self) -> str | None:
        """Reason why it computes only separable grids, and what computes others; None when it does more."""

    def missing(self) -> str | None:
        """Reason why it cannot run here, or None."""

    def unfit(self, device: Device) -> str | None:
        """Reason why it does not compute on that device, a sentence, or None. Asked if it is not missing."""

    def harmonics(self, lonlat: np.ndarray, degrees: int, threads: int = 1) -> np.ndarray:
        """(N, 2) float64 degrees → (N, L²) float64 orthonormal real harmonics in the order l² + l + m."""

    def prepare(
        self, layers: Layers, threads: int | None = None, *, device: Device = CPU, precision: str = "exact"
    ) -> Prepared:
        """Lay a network out for this backend; `threads` is the default of its calls."""


class Network(NamedTuple):
    """Tensors of a network, or their gradients: folded, by layer, all of one dtype on one device."""

    weights: list[Tensor]  # (H, L²), (H, H)..., (E, H)
    biases: list[Tensor]  # (H,)..., (E,)

    @property
    def degrees(self) -> int:
        return math.isqrt(self.weights[0].shape[1])

    @property
    def hidden_widths(self) -> list[int]:
        return [len(weight) for weight in self.weights[:-1]]

    def empty(self, *shape: int) -> Tensor:
        """New memory of the network's dtype, on its device."""
        return self.weights[0].new_empty(shape)

    def contiguous(self) -> Network:
        return Network(*([tensor.contiguous() for tensor in tensors] for tensors in self))


class Dropout(NamedTuple):
    """Share p of the hidden pre-activations that are dropped, those of `seed`; the same by every backend."""

    p: float = 0.0
    seed: int = 0


class Pairs(NamedTuple):
    """Embeddings a (n, E) and b (N, E) and the scale () of their similarities, of one dtype on one device.

    The partner of a's row i is b's row offset + i.
    """

    a: Tensor
    b: Tensor
    scale: Tensor
    offset: int = 0


@runtime_checkable
class TrainingBackend(Backend, Protocol):
    """A backend that computes the operators on PyTorch's tensors too, with gradients.

    Arguments are checked before. Locations are (N, 2) float64 degrees; `saved` is the backend's own.
    """

    @property
    def float32_only(self) -> bool:
        """True where it takes no other dtype."""

    def operators_missing(self) -> str | None:
        """Reason why its operators cannot run here, or None."""

    def unfit_tensor(self, tensor: Tensor) -> str | None:
        """Reason why its operators do not take such tensors, or None. Asked where they are not missing."""

    def embed(self, lonlat: Tensor, network: Network, precision: str) -> Tensor:
        """Compute embeddings (N, E) without keeping anything for gradients."""

    def saved_shape(self, count: int, hidden_widths: list[int]) -> tuple[int, ...]:
        """Shape of what `forward` saves of so many locations, a number that may be a symbol."""

    def forward(
        self, lonlat: Tensor, network: Network, dropout: Dropout, precision: str
    ) -> tuple[Tensor, Tensor]:
        """Compute embeddings (N, E), and what is saved for `backward`."""

    def backward(
        self,
        grad: Tensor,
        lonlat: Tensor,
        network: Network,
        saved: Tensor,
        dropout: Dropout,
        precision: str,
        with_lonlat: bool,
    ) -> tuple[Tensor | None, Network]:
        """Compute gradients of the locations, when asked for, and of the network, from that of embeddings."""

    def log_sum_exps(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """Compute row_lse (n,), column_lse (N,) over these rows and S with the partners (n,)."""

    def loss_gradients(
        self, pairs: Pairs, row_lse: Tensor, column_lse: Tensor, factor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the share of a's rows in the gradients: da (n, E), db (N, E), dscale ()."""

"""Interfaces of backends and of prepared networks; arguments of evaluation and of training operators."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

from satclip_engine.backends.buffers import SCRATCH_BYTES, fill_rows
from satclip_engine.device import CPU, Device
from satclip_engine.errors import UsageError
from satclip_engine.geo.pixels import Index, PixelGrid, indices
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


class Quantise(NamedTuple):
    """Rule by which kernels store values as integer codes: inverse scale and offset, (E,) float32 each."""

    inverse_scale: np.ndarray
    offset: np.ndarray

    def codes(self, values: np.ndarray, dtype: Any) -> np.ndarray:
        """Integer codes of (..., E) float32 values, by the rule of the kernels (csrc/cpu/isa/raster.cpp)."""
        largest = int(np.iinfo(dtype).max)
        codes = np.clip(np.rint((values - self.offset) * self.inverse_scale), -largest, largest)
        return np.where(np.isnan(values), -largest - 1, codes).astype(dtype)


@dataclass(frozen=True, eq=False)
class Call:
    """Options of one evaluation, passed on to all that take part in it."""

    threads: int | None = None  # None: the prepared network's own number
    check: Check | None = None  # called in the calling thread every 50 ms or so; what it raises ends the call
    quantise: Quantise | None = None  # makes `out` int8 or int16 codes, where a network can (see Prepared)


CALL = Call()


class BatchHints(NamedTuple):
    """Recommended batch size, and pinned memory of a calling thread."""

    batch_size: int = 1 << 14  # points at once, at least: a tenth of a second of work for the CPU's kernels
    pinned_bytes: int = 0  # of the larger of the two host buffers through which a thread's results pass


BATCH_HINTS = BatchHints()

# By roofline an H100 makes 16384 embeddings of 256 numbers in 0.1 ms (exact, on a grid), PCIe 5 brings them
# in 0.3 ms, and starting the kernels takes as long: smaller batches would wait for their starts, larger ones
# only take more memory.
BATCH_BYTES = 16 << 20
MAX_BATCH = 1 << 17  # points: what lies between the layers takes 2 KB of each


def gpu_batch_hints(embed_dim: int) -> BatchHints:
    """Hints of a GPU whose results come in batches of BATCH_BYTES."""
    return BatchHints(max(1, min(MAX_BATCH, BATCH_BYTES // (4 * embed_dim))), BATCH_BYTES)


class Prepared(ABC):
    """A network in its backend's own layout. Immutable; safe to use from several threads at once."""

    name: str
    isa: str  # decides the bits of a result beside the network: instruction set, architecture, precision
    device: str  # where it computes: "cpu", "cuda:0"
    degrees: int  # of the network behind it, as
    widths: tuple[int, ...]  # those of its layers, outputs last: what an evaluation costs follows from both
    threads: int = 1  # that compute unless a call says otherwise
    hints: BatchHints = BATCH_HINTS
    makes_codes: ClassVar[bool] = False  # True where `encode` and `encode_grid` obey Call.quantise

    @property
    def embed_dim(self) -> int:
        """Length of an embedding, E."""
        return self.widths[-1]

    def describe_as(self, network: Prepared) -> None:
        """Take the name, the device and the sizes of a network that this stands in front of."""
        self.name, self.isa, self.device = network.name, network.isa, network.device
        self.degrees, self.widths, self.threads = network.degrees, network.widths, network.threads

    @abstractmethod
    def encode(self, lonlat: np.ndarray, out: np.ndarray | None = None, call: Call = CALL) -> np.ndarray:
        """(N, 2) float64 degrees, longitude first → (N, E). `out`: float32, contiguous in its last axis.

        Points that are not finite give NaN. Raises ValueError naming the first row with |latitude| > 90.
        """

    @abstractmethod
    def encode_grid(
        self, lat: np.ndarray, lon: np.ndarray, out: np.ndarray | None = None, call: Call = CALL
    ) -> np.ndarray:
        """(H,) latitudes × (W,) longitudes, float64 degrees → (H, W, E); otherwise as `encode`."""

    def encode_tensor(self, lonlat: Tensor) -> Tensor | None:
        """(N, 2) float64 → (N, E) float32 on the same device, or None when the points would have to leave it.

        Latitudes are checked already.
        """
        return None

    def encode_pixels(
        self,
        pixels: PixelGrid,
        rows: Index = None,
        cols: Index = None,
        out: np.ndarray | None = None,
        call: Call = CALL,
    ) -> np.ndarray:
        """Embed the pixels in `rows` × `cols`: (h, w, E), NaN (no data) outside the CRS's domain.

        out: (h, w, E) float32 of any strides, or int8 or int16 with `call.quantise`. A pixel's value has the
        same bits in every window.
        """
        if call.quantise is not None and not self.makes_codes:
            return self._encode_codes(pixels, rows, cols, out, call, call.quantise)
        dtype = np.float32 if call.quantise is None or out is None else out.dtype
        if pixels.separable:
            lat, lon = pixels.lat(rows), pixels.lon(cols)

            def fill(block: slice, target: np.ndarray) -> None:
                self.encode_grid(lat[block], lon, target, call)

            return fill_rows((lat.size, lon.size, self.embed_dim), out, fill, rows_apart=True, dtype=dtype)
        row, col = indices(rows, pixels.shape[0]), indices(cols, pixels.shape[1])

        def fill_points(block: slice, target: np.ndarray) -> None:
            points = pixels.lonlat(row[block], col).reshape(-1, 2)
            self.encode(points, target.reshape(-1, self.embed_dim), call)

        return fill_rows((row.size, col.size, self.embed_dim), out, fill_points, dtype=dtype)

    def encode_single_pixels(
        self, pixels: PixelGrid, rows: np.ndarray, cols: np.ndarray, call: Call = CALL
    ) -> np.ndarray:
        """Embed single pixels, (n,) rows and columns → (n, E) float32; the same bits as `encode_pixels`."""
        out = np.empty((rows.size, self.embed_dim), np.float32)
        if not pixels.separable:
            return self.encode(pixels.pixel_lonlat(rows, cols), out, call)
        lat, lon = pixels.lat(rows), pixels.lon(cols)
        order = np.argsort(rows, kind="stable")
        for line in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1):
            if line.size:
                values = np.empty((1, line.size, self.embed_dim), np.float32)
                out[line] = self.encode_grid(lat[line[:1]], lon[line], values, call)[0]
        return out

    def _encode_codes(
        self,
        pixels: PixelGrid,
        rows: Index,
        cols: Index,
        out: np.ndarray | None,
        call: Call,
        quantise: Quantise,
    ) -> np.ndarray:
        """As `encode_pixels` with codes, by blocks of float32 rows."""
        if out is None:
            raise ValueError("codes need memory to go to: give out")
        row, plain = indices(rows, pixels.shape[0]), replace(call, quantise=None)
        step = max(1, SCRATCH_BYTES // (4 * max(1, out.shape[1] * out.shape[2])))
        for top in range(0, row.size, step):
            block = slice(top, min(top + step, row.size))
            out[block] = quantise.codes(self.encode_pixels(pixels, row[block], cols, None, plain), out.dtype)
        return out


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

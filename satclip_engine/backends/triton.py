"""Triton's kernels as a backend: on NVIDIA GPUs, or on the CPU by Triton's interpreter.

Arrays of the host go in and out, or tensors that stay on their device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from satclip_engine._forks import Mutex, cached_property
from satclip_engine.backends.protocols import CALL, Call, Dropout, Network, Pairs, Prepared, gpu_batch_hints
from satclip_engine.device import CPU, Device, available_cores, too_old, too_old_for, torch_absence
from satclip_engine.geo.lonlat import as_lonlat, check_latitudes
from satclip_engine.weights import Layers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from satclip_engine.backends.device_copies import CopyStream


class Triton:
    """Triton's kernels in float32 on a GPU; on the CPU by its interpreter, when asked for by name."""

    name, devices, grids_only, float32_only = "triton", ("cuda",), None, True

    def missing(self) -> str | None:
        for module in ("torch", "triton"):
            if find_spec(module) is None:
                return f'it needs {module}: pip install "satclip-engine[torch]"'
        return None

    def unfit(self, device: Device) -> str | None:
        if device.kind == "cuda":
            return torch_absence(device) or self._too_old(device)
        if _interpreted():
            return None
        return (
            "backend 'triton' computes on a GPU: choose device 'cuda', "
            "or set TRITON_INTERPRET=1 before the start to run it on the CPU, slowly"
        )

    def _too_old(self, device: Device) -> str | None:
        import torch

        return too_old_for(self.name, device, torch.cuda.get_device_capability(device.index))

    def harmonics(self, lonlat: np.ndarray, degrees: int, threads: int = 1) -> np.ndarray:
        import torch

        from satclip_engine.kernels.harmonics import harmonics

        points = torch.from_numpy(np.ascontiguousarray(lonlat))
        return harmonics(points if _interpreted() else points.cuda(), degrees).cpu().numpy()

    def prepare(
        self, layers: Layers, threads: int | None = None, *, device: Device = CPU, precision: str = "exact"
    ) -> Prepared:
        return PreparedTriton(layers, device, precision, threads or available_cores())

    def operators_missing(self) -> str | None:
        if (missing := self.missing()) is not None:
            return missing
        import torch

        if torch.cuda.is_available() or _interpreted():
            return None
        return (
            f"{torch_absence(Device('cuda'))}, or set TRITON_INTERPRET=1 before the start to run it "
            "on the CPU, slowly"
        )

    def unfit_tensor(self, tensor: Tensor) -> str | None:
        import torch

        kind = tensor.device.type
        if tensor.dtype != torch.float32 or not (kind == "cuda" or (kind == "cpu" and _interpreted())):
            return f"takes torch.float32 on cuda, not {tensor.dtype} on {tensor.device}"
        if kind == "cuda":
            return too_old(tensor.device, torch.cuda.get_device_capability(tensor.device))
        return None

    def embed(self, lonlat: Tensor, network: Network, precision: str) -> Tensor:
        from satclip_engine.kernels import encode

        operands = lonlat.contiguous(), *network.contiguous()
        return encode.forward(*operands, precision=precision, keep=False)[0]

    def saved_shape(self, count: int, hidden_widths: list[int]) -> tuple[int, ...]:
        return count, sum(hidden_widths)

    def forward(
        self, lonlat: Tensor, network: Network, dropout: Dropout, precision: str
    ) -> tuple[Tensor, Tensor]:
        from satclip_engine.kernels import encode

        operands = lonlat.contiguous(), *network.contiguous()
        return encode.forward(*operands, dropout=dropout.p, seed=dropout.seed, precision=precision)

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
        from satclip_engine.kernels import encode
        from satclip_engine.reference import gradients

        operands = grad.contiguous(), lonlat.contiguous(), *network.contiguous(), saved
        d_first, *d_network = encode.backward(*operands, dropout=dropout.p, precision=precision)
        d_lonlat = gradients.lonlat_backward(d_first, lonlat, network.weights[0]) if with_lonlat else None
        return d_lonlat, Network(*d_network)

    def log_sum_exps(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        from satclip_engine.kernels import loss

        return loss.log_sum_exps(*pairs)

    def loss_gradients(
        self, pairs: Pairs, row_lse: Tensor, column_lse: Tensor, factor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        from satclip_engine.kernels import loss

        a, b, scale, offset = pairs
        return loss.gradients(a, b, scale, row_lse, column_lse, offset, factor)


class PreparedTriton(Prepared):
    """Weights in float32 on a device."""

    name = "triton"

    def __init__(self, layers: Layers, device: Device, precision: str, threads: int) -> None:
        import torch

        from satclip_engine.backends.device_copies import computing_stream

        self.precision, self.threads = precision, threads
        self.degrees, self.widths = layers.degrees, layers.widths
        self.hints = gpu_batch_hints(layers.embed_dim)
        self._device = resolve_device(device)
        self.device, self.isa = str(self._device), architecture(self._device, precision)
        self._weights = [torch.tensor(w, dtype=torch.float32, device=self._device) for w in layers.weights]
        self._biases = [torch.tensor(b, dtype=torch.float32, device=self._device) for b in layers.biases]
        # One stream for all threads: their kernels would only compete, and each stream keeps its own memory.
        self._stream = computing_stream(self._device)
        self._own = threading.local()
        self._preparing = Mutex()

    def encode(self, lonlat: np.ndarray, out: np.ndarray | None = None, call: Call = CALL) -> np.ndarray:
        """As Prepared.encode. call.threads: how many copy results."""
        points = as_lonlat(lonlat)
        if out is None:
            out = np.empty((len(points), self.embed_dim), np.float32)
        blocks = [(rows,) for rows in _slices(len(points), self.hints.batch_size)]
        self._run(blocks, lambda rows: self._forward(self._sent(points[rows])), out, call)
        return out

    def encode_grid(
        self, lat: np.ndarray, lon: np.ndarray, out: np.ndarray | None = None, call: Call = CALL
    ) -> np.ndarray:
        """As Prepared.encode_grid. call.threads: how many copy results."""
        from satclip_engine.kernels import grid

        lat, lon = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
        check_latitudes(lat)
        if out is None:
            out = np.empty((len(lat), len(lon), self.embed_dim), np.float32)
        prepared = self._grid
        across = min(max(1, len(lon)), self.hints.batch_size)
        blocks = [
            (rows, columns)
            for rows in _slices(len(lat), self.hints.batch_size // across)
            for columns in _slices(len(lon), across)
        ]

        def compute(rows: slice, columns: slice) -> Tensor:
            return grid.encode_grid(prepared, self._sent(lat[rows]), self._sent(lon[columns]))

        self._run(blocks, compute, out, call)
        return out

    def encode_tensor(self, lonlat: Tensor) -> Tensor | None:
        """As Prepared.encode_tensor, in torch's current stream."""
        if lonlat.device != self._device:
            return None
        return self._forward(lonlat.contiguous())

    @cached_property
    def _prepared_grid(self) -> Any:
        import torch

        from satclip_engine.kernels import grid

        prepared = grid.prepare(self.degrees, self._weights, self._biases, self.precision)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # another stream than this thread's is to use it
        return prepared

    @property
    def _grid(self) -> Any:
        """The network as the kernels of product grids take it, made when first needed."""
        with self._preparing:
            return self._prepared_grid

    def _forward(self, lonlat: Tensor) -> Tensor:
        from satclip_engine.kernels import encode

        return encode.forward(lonlat, self._weights, self._biases, precision=self.precision, keep=False)[0]

    def _sent(self, array: np.ndarray) -> Tensor:
        import torch

        from satclip_engine.backends.device_copies import to_device

        return to_device(torch.from_numpy(np.ascontiguousarray(array)), self._device)

    def _run(
        self,
        blocks: Sequence[tuple[slice, ...]],
        compute: Callable[..., Tensor],
        out: np.ndarray,
        call: Call,
    ) -> None:
        """Fill out[block] with compute(*block) for every block."""
        from satclip_engine.backends.device_copies import copier, pipelined

        lane = self._lane()
        with copier(call.threads or self.threads) as copy:

            def start(block: tuple[slice, ...], slot: int) -> None:
                if call.check is not None:
                    call.check()
                lane.start(slot, lambda: compute(*block))

            pipelined(blocks, start, lambda block, slot: copy(out[block], lane.finish(slot)))

    def _lane(self) -> CopyStream:
        """The calling thread's own."""
        from satclip_engine.backends.device_copies import make_copy_stream

        if not hasattr(self._own, "copies"):
            self._own.copies = make_copy_stream(self._stream)
        return self._own.copies


def resolve_device(device: Device) -> Any:
    """The torch.device, with its number."""
    import torch

    if device.kind == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(str(device))


def architecture(device: torch.device, precision: str) -> str:
    """Name of all that decides the bits of Triton's kernels: "triton 3.7.1 sm_90 exact"."""
    import triton

    from satclip_engine.kernels.launch import capability

    return f"triton {triton.__version__} {capability(device)} {precision}"


def _interpreted() -> bool:
    from satclip_engine.kernels.launch import interpreted

    return interpreted()


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))

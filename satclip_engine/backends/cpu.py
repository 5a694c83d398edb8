"""The compiled CPU kernels as a backend: C++ for each instruction set, chosen for this processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from satclip_engine.backends.compiled import _C, MISSING
from satclip_engine.backends.protocols import CALL, Call, Dropout, Network, Pairs, Prepared
from satclip_engine.device import CPU, Device, available_cores, cpu_only
from satclip_engine.weights import Layers

if TYPE_CHECKING:
    from torch import Tensor


class Cpu:
    """Fused C++ kernels in float32, compiled once per instruction set and chosen for this processor.

    Operators use as many threads as torch has.
    """

    name, devices, grids_only, float32_only = "cpu", ("cpu",), None, True

    def missing(self) -> str | None:
        return None if _C is not None else MISSING

    def unfit(self, device: Device) -> str | None:
        return cpu_only(self.name, device)

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

    def operators_missing(self) -> str | None:
        return self.missing()

    def unfit_tensor(self, tensor: Tensor) -> str | None:
        import torch

        if tensor.device.type == "cpu" and tensor.dtype == torch.float32:
            return None
        return f"takes torch.float32 on cpu, not {tensor.dtype} on {tensor.device}"

    def embed(self, lonlat: Tensor, network: Network, precision: str) -> Tensor:
        packed = _C.Network(network.degrees, *_arrays(network), None)
        out = network.empty(len(lonlat), len(network.weights[-1]))
        packed.encode(_array(lonlat), out.numpy(), _torch_threads())
        return out

    def saved_shape(self, count: int, hidden_widths: list[int]) -> tuple[int, ...]:
        tile, group = _C.train_tile, _C.train_units
        padded = sum((width + group - 1) // group * group for width in hidden_widths)
        return ((count + tile - 1) // tile * (tile * padded),)

    def forward(
        self, lonlat: Tensor, network: Network, dropout: Dropout, precision: str
    ) -> tuple[Tensor, Tensor]:
        out = network.empty(len(lonlat), len(network.weights[-1]))
        saved = network.empty(*self.saved_shape(len(lonlat), network.hidden_widths))
        _C.train_forward(
            _array(lonlat), *_arrays(network), out.numpy(), saved.numpy(), *dropout, _torch_threads()
        )
        return out, saved

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
        from satclip_engine.reference import gradients

        d_network = Network(*([network.empty(*tensor.shape) for tensor in tensors] for tensors in network))
        d_weights, d_biases = ([tensor.numpy() for tensor in tensors] for tensors in d_network)
        d_first = network.empty(len(lonlat), len(network.weights[0])) if with_lonlat else None
        _C.train_backward(
            _array(grad),
            _array(lonlat),
            *_arrays(network),
            _array(saved),
            dropout.p,
            d_weights,
            d_biases,
            None if d_first is None else d_first.numpy(),
            _torch_threads(),
        )
        if d_first is None:
            return None, d_network
        return gradients.lonlat_backward(d_first, lonlat, network.weights[0]), d_network

    def log_sum_exps(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        a, b, scale, offset = pairs
        sums = _C.loss_forward(_array(a), _array(b), float(scale), offset, _torch_threads())
        row_lse, column_lse, partner = map(torch.from_numpy, sums)
        return row_lse, column_lse, partner

    def loss_gradients(
        self, pairs: Pairs, row_lse: Tensor, column_lse: Tensor, factor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        a, b, scale, offset = pairs
        da, db, dscale = _C.loss_backward(
            _array(a),
            _array(b),
            float(scale),
            _array(row_lse),
            _array(column_lse),
            offset,
            float(factor),
            _torch_threads(),
        )
        return torch.from_numpy(da), torch.from_numpy(db), torch.tensor(dscale, dtype=scale.dtype)


class PreparedCpu(Prepared):
    """Weights packed in float32 for one instruction set."""

    name, device = Cpu.name, "cpu"

    def __init__(self, layers: Layers, network: _C.Network, threads: int) -> None:
        self.network, self.threads, self.isa = network, threads, network.isa
        self.degrees, self.widths = layers.degrees, layers.widths

    def encode(self, lonlat: np.ndarray, out: np.ndarray | None = None, call: Call = CALL) -> np.ndarray:
        if out is None:
            out = np.empty((len(lonlat), self.embed_dim), np.float32)
        self.network.encode(lonlat, out, call.threads or self.threads, call.check)
        return out

    def encode_grid(
        self, lat: np.ndarray, lon: np.ndarray, out: np.ndarray | None = None, call: Call = CALL
    ) -> np.ndarray:
        if out is None:
            out = np.empty((len(lat), len(lon), self.embed_dim), np.float32)
        self.network.encode_grid(lat, lon, out, call.threads or self.threads, call.check)
        return out


def _array(tensor: Tensor) -> np.ndarray:
    """View an operand, read only before NumPy 2.1.

    By DLPack, since `numpy()` forbids for ever to resize the tensor's memory, which FSDP frees parameters by.
    """
    array: np.ndarray = np.from_dlpack(tensor.detach().contiguous())
    return array


def _arrays(network: Network) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [_array(weight) for weight in network.weights], [_array(bias) for bias in network.biases]


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()

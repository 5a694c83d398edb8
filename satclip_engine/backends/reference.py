"""The definition as a backend: plain PyTorch in float64, slow and exact."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from satclip_engine import reference
from satclip_engine.backends.protocols import CALL, Call, Dropout, Network, Pairs, Prepared
from satclip_engine.device import CPU, Device, cpu_only
from satclip_engine.weights import Layers

if TYPE_CHECKING:
    from torch import Tensor


class Reference:
    """Plain PyTorch in float64: the definition, slow and exact. Results are float64 unless `out` is given.

    Operators compute in the dtype and on the device of the tensors, whatever these are.
    """

    name, devices, grids_only, float32_only = "reference", ("cpu",), None, False

    def missing(self) -> str | None:
        if find_spec("torch") is None:
            return 'it needs torch: pip install "satclip-engine[torch]"'
        return None

    def unfit(self, device: Device) -> str | None:
        return cpu_only(self.name, device)

    def harmonics(self, lonlat: np.ndarray, degrees: int, threads: int = 1) -> np.ndarray:
        return reference.harmonics(lonlat, degrees)

    def prepare(
        self, layers: Layers, threads: int | None = None, *, device: Device = CPU, precision: str = "exact"
    ) -> Prepared:
        return PreparedReference(layers)

    def operators_missing(self) -> str | None:
        return None

    def unfit_tensor(self, tensor: Tensor) -> str | None:
        return None

    def embed(self, lonlat: Tensor, network: Network, precision: str) -> Tensor:
        return self.forward(lonlat, network, Dropout(), precision)[0]

    def saved_shape(self, count: int, hidden_widths: list[int]) -> tuple[int, ...]:
        return count, sum(hidden_widths)

    def forward(
        self, lonlat: Tensor, network: Network, dropout: Dropout, precision: str
    ) -> tuple[Tensor, Tensor]:
        from satclip_engine.reference import gradients

        return gradients.encode_forward(lonlat, *network, *dropout)

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

        d_lonlat, *d_network = gradients.encode_backward(
            grad, lonlat, *network, saved, *dropout, with_lonlat=with_lonlat
        )
        return d_lonlat, Network(*d_network)

    def log_sum_exps(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        from satclip_engine.reference import contrastive

        return contrastive.log_sum_exps(*pairs)

    def loss_gradients(
        self, pairs: Pairs, row_lse: Tensor, column_lse: Tensor, factor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        from satclip_engine.reference import contrastive

        a, b, scale, offset = pairs
        return contrastive.gradients(a, b, scale, row_lse, column_lse, offset, factor)


class PreparedReference(Prepared):
    """The network as it is; PyTorch decides about threads, and a call is not checked before it ends."""

    name, isa, device = Reference.name, "float64", "cpu"

    def __init__(self, layers: Layers) -> None:
        self.layers, self.degrees, self.widths = layers, layers.degrees, layers.widths

    def encode(self, lonlat: np.ndarray, out: np.ndarray | None = None, call: Call = CALL) -> np.ndarray:
        return _into(out, reference.encode(lonlat, self.layers))

    def encode_grid(
        self, lat: np.ndarray, lon: np.ndarray, out: np.ndarray | None = None, call: Call = CALL
    ) -> np.ndarray:
        return _into(out, reference.encode_grid(lat, lon, self.layers))


def _into(out: np.ndarray | None, values: np.ndarray) -> np.ndarray:
    if out is None:
        return values
    out[...] = values
    return out

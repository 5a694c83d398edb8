"""Network in the kernels' basis: exact orthonormal harmonics, float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from satclip_engine._forks import cached_property
from satclip_engine.errors import UsageError
from satclip_engine.weights.safetensors_file import tensors_sha256


@dataclass(frozen=True, eq=False)
class Layers:
    """A network on exact orthonormal harmonics: h = sin(W h + b) in every layer but the last, a linear one.

    weights: float64, (H, L²), (H, H)..., (E, H); biases: float64, (H,)..., (E,). The sine frequencies are
    multiplied in.
    """

    degrees: int
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(frozen(w, np.float64) for w in self.weights))
        object.__setattr__(self, "biases", tuple(frozen(b, np.float64) for b in self.biases))
        columns = self.degrees**2
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if weight.ndim != 2 or weight.shape[1] != columns or bias.shape != weight.shape[:1]:
                raise ValueError(
                    f"layer {index}: expected weight (rows, {columns}) and bias (rows,), "
                    f"got {weight.shape} and {bias.shape}"
                )
            columns = weight.shape[0]

    @property
    def embed_dim(self) -> int:
        """Number of outputs, E."""
        return int(self.weights[-1].shape[0])

    @property
    def widths(self) -> tuple[int, ...]:
        """Outputs of every layer, E last."""
        return tuple(len(bias) for bias in self.biases)

    @property
    def capacity(self) -> int:
        """Width of the hidden layers, H."""
        return int(self.weights[0].shape[0])

    def with_head(self, weight: np.ndarray, bias: np.ndarray | None = None) -> Layers:
        """Network whose outputs are `weight` (K, E) times these outputs plus `bias` (K,)."""
        head, offset = checked_head(weight, bias, self.embed_dim)
        return replace(
            self,
            weights=(*self.weights[:-1], head @ self.weights[-1]),
            biases=(*self.biases[:-1], head @ self.biases[-1] + offset),
        )

    def select(self, index: Sequence[int]) -> Layers:
        """Network with only these outputs."""
        return replace(
            self,
            weights=(*self.weights[:-1], self.weights[-1][index]),
            biases=(*self.biases[:-1], self.biases[-1][index]),
        )

    def astype(self, dtype: Any) -> list[np.ndarray]:
        """[W₁, b₁, W₂, b₂, ...] rounded once to `dtype`, each C-contiguous."""
        pairs = zip(self.weights, self.biases, strict=True)
        return [np.ascontiguousarray(array, dtype=dtype) for pair in pairs for array in pair]

    @cached_property
    def sha256(self) -> str:
        """Hash of the function: shapes and values of all layers."""
        return tensors_sha256({f"{index:03}": array for index, array in enumerate(self.astype("<f8"))})


def checked_head(weight: np.ndarray, bias: np.ndarray | None, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Check a head: weight (K, outputs) and bias (K,) in float64. Raises UsageError for other shapes."""
    head = np.asarray(weight, np.float64)
    if head.ndim != 2 or head.shape[1] != outputs or head.shape[0] == 0:
        raise UsageError(
            f"head: expected weight of shape (K, {outputs}), got {head.shape}", argument="weight"
        )
    offset = np.zeros(len(head)) if bias is None else np.asarray(bias, np.float64)
    if offset.shape != (len(head),):
        raise UsageError(f"head: expected bias of shape ({len(head)},), got {offset.shape}", argument="bias")
    if not (np.isfinite(head).all() and np.isfinite(offset).all()):
        raise UsageError("head: expected finite weight and bias", argument="weight")
    return head, offset


def frozen(value: Any, dtype: Any = None) -> np.ndarray:
    """Copy into a C-contiguous read-only array."""
    array = np.array(value, dtype=dtype, order="C")
    array.flags.writeable = False
    return array

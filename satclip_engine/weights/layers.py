"""Network in the kernels' basis: exact orthonormal harmonics, float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from satclip_engine._forks import cached_property
from satclip_engine.errors import UsageError, WeightsError
from satclip_engine.weights.safetensors_file import tensors_sha256

FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_LARGE_HEAD: Final = f"head: its outputs may be larger than float32 can hold ({FLOAT32_MAX:.3g})"


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
        layers = replace(
            self,
            weights=(*self.weights[:-1], head @ self.weights[-1]),
            biases=(*self.biases[:-1], head @ self.biases[-1] + offset),
        )
        if layers.beyond_float32() is not None:
            raise UsageError(_LARGE_HEAD, argument="weight")
        return layers

    def beyond_float32(self) -> int | None:
        """Number of the first layer whose outputs float32 may not hold; None when it holds all.

        Sums of absolute values bound every sum of a row, whatever its order.
        """
        largest = math.sqrt((2 * self.degrees - 1) / (4 * math.pi))  # of a harmonic
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            with np.errstate(over="ignore"):
                sums = np.abs(weight).sum(axis=1) * max(1.0, largest) + np.abs(bias)
            if not (sums <= FLOAT32_MAX).all():
                return index
            largest = 1.0  # of a sine
        return None

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
    with np.errstate(over="ignore"):
        if not (np.abs(head).sum(axis=1) + np.abs(offset) <= FLOAT32_MAX).all():
            raise UsageError(_LARGE_HEAD, argument="weight")
    return head, offset


def check_magnitude(values: np.ndarray, factor: float, key: str) -> None:
    """Raise WeightsError unless finite values times a sine frequency are float32 numbers."""
    largest = float(np.abs(values).max()) * factor
    if not largest <= FLOAT32_MAX:
        times = "" if factor == 1.0 else f" times w0 = {factor:g}"
        raise WeightsError(
            f"{key}: expected numbers that float32 can hold, found {largest / factor:.3g}{times}"
        )


def frozen(value: Any, dtype: Any = None) -> np.ndarray:
    """Copy into a C-contiguous read-only array."""
    array = np.array(value, dtype=dtype, order="C")
    array.flags.writeable = False
    return array

"""Labels along an axis of pixels that are computed, not stored, and selection by them.

Those of a global 10 m grid alone would take 48 MB; xarray's own indexes would hold them all. Shorter axes
have an ordinary pandas index, which aligns with a scene's.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray
from xarray.indexes import CoordinateTransform, CoordinateTransformIndex, PandasIndex

_STORED_LABELS = 1 << 20  # up to which they are held in memory (8 MB), as an ordinary pandas index


class AxisLabels(CoordinateTransform):
    """Labels start + step·(offset + stride·i), i = 0..size−1.

    The centres of a row or column of pixels, or of a slice of them.
    """

    def __init__(
        self, name: Hashable, dim: str, size: int, start: float, step: float, offset: int = 0, stride: int = 1
    ) -> None:
        super().__init__([name], {dim: size}, dtype=np.dtype(np.float64))
        self.start, self.step, self.offset, self.stride = start, step, offset, stride

    @property
    def size(self) -> int:
        return self.dim_size[self.dims[0]]

    def forward(self, dim_positions: dict[str, Any]) -> dict[Hashable, Any]:
        positions = np.asarray(dim_positions[self.dims[0]])
        return {self.coord_names[0]: (positions * self.stride + self.offset) * self.step + self.start}

    def reverse(self, coord_labels: dict[Hashable, Any]) -> dict[str, Any]:
        labels = np.asarray(coord_labels[self.coord_names[0]], dtype=np.float64)
        return {self.dims[0]: ((labels - self.start) / self.step - self.offset) / self.stride}

    def equals(self, other: CoordinateTransform, *, exclude: frozenset[Hashable] | None = None) -> bool:
        return isinstance(other, AxisLabels) and self._key() == other._key()

    def _key(self) -> tuple[Any, ...]:
        return self.size, self.start, self.step, self.offset, self.stride

    def sliced(self, positions: slice) -> AxisLabels:
        """The labels of a slice; the same bits, as they are still counted from the whole axis's start."""
        numbers = range(self.size)[positions]
        return AxisLabels(
            self.coord_names[0],
            self.dims[0],
            len(numbers),
            self.start,
            self.step,
            self.offset + numbers.start * self.stride,
            self.stride * numbers.step,
        )


class AxisIndex(CoordinateTransformIndex):
    """Selection by label along evenly spaced labels that are not stored.

    Where few labels are left (a slice, a list) it becomes an ordinary pandas index, which aligns with other
    arrays'.
    """

    transform: AxisLabels

    def stored(self) -> AxisIndex | PandasIndex:
        """This index, or a pandas one when it is short."""
        if self.transform.size > _STORED_LABELS:
            return self
        return self._pandas(np.arange(self.transform.size), self.transform.dims[0])

    def _pandas(self, positions: np.ndarray, dim: str) -> PandasIndex:
        name = self.transform.coord_names[0]
        labels = self.transform.forward({self.transform.dims[0]: positions})[name]
        return PandasIndex(pd.Index(labels, name=name), dim, coord_dtype=labels.dtype)

    def to_pandas_index(self) -> pd.Index:
        """All labels, which are computed and held from now on by whoever asks: `array.indexes` does."""
        return self._pandas(np.arange(self.transform.size), self.transform.dims[0]).index

    def isel(self, indexers: Mapping[Any, Any]) -> Any:
        indexer = indexers[self.transform.dims[0]]
        if isinstance(indexer, slice):
            return AxisIndex(self.transform.sliced(indexer)).stored()
        if np.ndim(indexer) != 1:
            return None
        dim = indexer.dims[0] if isinstance(indexer, xarray.Variable) else self.transform.dims[0]
        positions = np.arange(self.transform.size)[np.asarray(indexer)]
        return self._pandas(positions, str(dim))

    def sel(self, labels: dict[Any, Any], method: Any = None, tolerance: Any = None) -> Any:
        from xarray.core.indexes import IndexSelResult

        name, dim = self.transform.coord_names[0], self.transform.dims[0]
        label = labels[name]
        if isinstance(label, slice):
            if method is not None:
                raise NotImplementedError("a slice of labels takes no method")
            return IndexSelResult({dim: self._between(label)})
        if method not in (None, "nearest"):
            raise ValueError(f"method {method!r}: a computed axis knows None and 'nearest'")
        positions = self._nearest(np.asarray(getattr(label, "values", label)), method, tolerance)
        if isinstance(label, xarray.Variable):
            return IndexSelResult({dim: xarray.Variable(label.dims, positions)})
        if isinstance(label, xarray.DataArray):
            return IndexSelResult({dim: xarray.DataArray(positions, dims=label.dims, coords=label._coords)})
        return IndexSelResult({dim: positions if positions.ndim else int(positions)})

    def _nearest(self, labels: np.ndarray, method: Any, tolerance: Any) -> np.ndarray:
        name, dim = self.transform.coord_names[0], self.transform.dims[0]
        decimal = self.transform.reverse({name: labels})[dim]
        if not np.isfinite(decimal).all():
            raise KeyError(f"{name}: labels must be finite")
        positions = np.clip(np.rint(decimal), 0, self.transform.size - 1).astype(np.int64)
        distance = np.abs(self.transform.forward({dim: positions})[name] - labels)
        limit = 0.0 if method is None else np.inf if tolerance is None else np.asarray(tolerance)
        if (missing := distance > limit).any():
            raise KeyError(
                f"{name}: no label {np.atleast_1d(labels)[np.atleast_1d(missing)][0]}; try method='nearest'"
            )
        return positions

    def _between(self, labels: slice) -> slice:
        """Positions whose labels lie between two labels, both included, in the axis's own direction."""
        first = 0 if labels.start is None else self._reaching(float(labels.start), beyond=False)
        last = self.transform.size if labels.stop is None else self._reaching(float(labels.stop), beyond=True)
        return slice(first, max(first, last), labels.step)

    def _reaching(self, label: float, *, beyond: bool) -> int:
        """The first position whose label has reached `label`, or lies beyond it; the size if none does."""
        name, dim, size = self.transform.coord_names[0], self.transform.dims[0], self.transform.size
        guess = float(self.transform.reverse({name: label})[dim])
        # The guess is off by rounding; the labels themselves decide.
        near = np.arange(max(0, math.floor(guess) - 1), min(size, math.floor(guess) + 3))
        direction = np.sign(self.transform.step * self.transform.stride)
        ahead = (self.transform.forward({dim: near})[name] - label) * direction
        reached = near[ahead > 0 if beyond else ahead >= 0]
        return int(reached[0]) if reached.size else max(0, min(size, math.floor(guess) + 3))

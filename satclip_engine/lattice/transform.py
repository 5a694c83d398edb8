"""Approximating transformer: locations of a projected raster's pixels, interpolated under a checked bound.

PROJ takes a microsecond or two for a pixel there and back, longer than interpolating its embedding. A block
of pixels is a smooth piece of the projection: polynomials through 9 × 9 Chebyshev nodes, each of them checked
by PROJ there and back like any pixel, meet it within 1e-3 of a pixel at further pixels, or the block is left
to PROJ pixel by pixel. Blocks count from the raster's own corner, and a pixel's location has the same bits
whatever window it is asked for in.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np

from satclip_engine._forks import Mutex
from satclip_engine.geo.grid import Grid
from satclip_engine.geo.pixels import Index, indices

BLOCK_SIDE = 256  # pixels
MAX_ERROR = 1e-3  # of a pixel
_BLOCK_NODES = 9  # along each axis: exact to 1e-9 for 256 pixels of a kilometre
_CHECK_PIXELS = 24  # further ones of a block that are compared
_CACHE_BLOCKS = 1 << 14  # a kilobyte each


def _chebyshev() -> tuple[np.ndarray, np.ndarray]:
    """Chebyshev nodes on a block, in pixels, and their weights at each pixel, (BLOCK_SIDE, nodes)."""
    angle = (2 * np.arange(_BLOCK_NODES) + 1) * np.pi / (2 * _BLOCK_NODES)
    cosine = np.cos(angle)
    nodes = (BLOCK_SIDE - 1) / 2 * (1 - cosine)
    pixel = 1 - np.arange(BLOCK_SIDE) * 2 / (BLOCK_SIDE - 1)
    distance = pixel[:, None] - cosine
    barycentric = np.where(np.arange(_BLOCK_NODES) % 2, -1.0, 1.0) * np.sin(angle)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = barycentric / distance
        weights /= weights.sum(axis=1, keepdims=True)
    return nodes, np.where((distance == 0).any(axis=1, keepdims=True), distance == 0, weights)


_NODE_PIXELS, _WEIGHTS = _chebyshev()


class ApproximatedGrid:
    """A grid whose pixel locations are interpolated block by block; otherwise as the Grid itself.

    Threads may share it.
    """

    separable = False

    def __init__(self, grid: Grid) -> None:
        self.grid, self.shape = grid, grid.shape
        self._fits: OrderedDict[tuple[int, int], np.ndarray | None] = OrderedDict()
        self._lock = Mutex()

    def __reduce__(self) -> tuple[Any, ...]:
        return ApproximatedGrid, (self.grid,)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return ("satclip_engine.ApproximatedGrid", self.grid)

    def lat(self, rows: Index = None) -> np.ndarray:
        raise TypeError("rows of a projected grid have no latitude")

    def lon(self, cols: Index = None) -> np.ndarray:
        raise TypeError("columns of a projected grid have no longitude")

    def lonlat(self, rows: Index = None, cols: Index = None) -> np.ndarray:
        """As `Grid.lonlat`, within 1e-3 of a pixel."""
        row, col = indices(rows, self.shape[0]), indices(cols, self.shape[1])
        out = np.empty((row.size, col.size, 2))
        for r, down in block_runs(row):
            for c, across in block_runs(col):
                block_rows, block_cols = row[r.start : r.stop], col[c.start : c.stop]
                target = out[r.start : r.stop, c.start : c.stop]
                fit = self._fit(down, across)
                if fit is None:
                    target[...] = self.grid.lonlat(block_rows, block_cols)
                else:
                    _evaluate(fit, block_rows - down * BLOCK_SIDE, block_cols - across * BLOCK_SIDE, target)
        return out

    def pixel_lonlat(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """As `Grid.pixel_lonlat`, within 1e-3 of a pixel: the bits that `lonlat` gives."""
        rows, cols = np.asarray(rows, np.int64), np.asarray(cols, np.int64)
        out = np.empty((rows.size, 2))
        across = -(-self.shape[1] // BLOCK_SIDE)
        number = rows // BLOCK_SIDE * across + cols // BLOCK_SIDE
        for block in np.unique(number):
            inside = np.flatnonzero(number == block)
            fit = self._fit(*divmod(int(block), across))
            if fit is None:
                out[inside] = self.grid.pixel_lonlat(rows[inside], cols[inside])
            else:
                out[inside] = _evaluate_pixels(fit, rows[inside] % BLOCK_SIDE, cols[inside] % BLOCK_SIDE)
        return out

    def _fit(self, row: int, col: int) -> np.ndarray | None:
        """Longitude and latitude at a block's nodes, (2, nodes, nodes); None where only PROJ will do."""
        with self._lock:
            if (row, col) in self._fits:
                self._fits.move_to_end((row, col))
                return self._fits[row, col]
        fit = self._make(row, col)
        with self._lock:
            self._fits[row, col] = fit
            while len(self._fits) > _CACHE_BLOCKS:
                self._fits.popitem(last=False)
        return fit

    def _make(self, row: int, col: int) -> np.ndarray | None:
        top, left = row * BLOCK_SIDE, col * BLOCK_SIDE
        height, width = min(BLOCK_SIDE, self.shape[0] - top), min(BLOCK_SIDE, self.shape[1] - left)
        if height * width <= 4 * _BLOCK_NODES**2:
            return None
        down, across = np.repeat(top + _NODE_PIXELS, _BLOCK_NODES), np.tile(left + _NODE_PIXELS, _BLOCK_NODES)
        nodes = self.grid.pixel_lonlat(down, across)
        if not np.isfinite(nodes).all():
            return None
        # Neighbours lie less than half a turn apart, or the polynomial will not hold.
        lon = nodes[0, 0] + np.remainder(nodes[:, 0] - nodes[0, 0] + 180.0, 360.0) - 180.0
        fit = np.stack([lon, nodes[:, 1]]).reshape(2, _BLOCK_NODES, _BLOCK_NODES)
        return fit if self._holds(fit, top, left, height, width) else None

    def _holds(self, fit: np.ndarray, top: int, left: int, height: int, width: int) -> bool:
        """True where further pixels lie where PROJ puts them, and none beyond a pole."""
        random = np.random.Generator(np.random.PCG64([top, left]))
        rows = np.append(random.integers(0, height, _CHECK_PIXELS), [0, 0, height - 1, height - 1])
        cols = np.append(random.integers(0, width, _CHECK_PIXELS), [0, width - 1, 0, width - 1])
        exact, fitted = self.grid.pixel_lonlat(top + rows, left + cols), _evaluate_pixels(fit, rows, cols)
        if not np.isfinite(exact).all():
            return False
        shrink = np.cos(np.radians(exact[:, 1]))
        error = np.remainder(fitted - exact + 180.0, 360.0) - 180.0
        distance = np.hypot(error[:, 0] * shrink, error[:, 1])
        return bool((distance <= MAX_ERROR * _pixel(fit, rows, cols)).all())


def _evaluate(fit: np.ndarray, rows: np.ndarray, cols: np.ndarray, out: np.ndarray) -> None:
    """Fill (h, w, 2) with the polynomial's longitudes and latitudes of a block's `rows` × `cols`."""
    down, across = _WEIGHTS[rows], _WEIGHTS[cols]
    total, term = np.empty((rows.size, cols.size)), np.empty((rows.size, cols.size))
    for k, square in enumerate(fit):
        # Sums written out: a matrix product's bits may depend on threads.
        along = sum(down[:, j, None] * square[j] for j in range(_BLOCK_NODES))
        total[...] = 0.0
        for j in range(_BLOCK_NODES):
            total += np.multiply(along[:, j, None], across[:, j], out=term)
        out[..., k] = total
    np.clip(out[..., 1], -90.0, 90.0, out=out[..., 1])


def _evaluate_pixels(fit: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """The same bits at single pixels, (n, 2)."""
    down, across = _WEIGHTS[rows], _WEIGHTS[cols]
    out = np.empty((rows.size, 2))
    for k, square in enumerate(fit):
        along = sum(down[:, j, None] * square[j] for j in range(_BLOCK_NODES))
        total = np.zeros(rows.size)
        for j in range(_BLOCK_NODES):
            total += along[:, j] * across[:, j]
        out[:, k] = total
    np.clip(out[:, 1], -90.0, 90.0, out=out[:, 1])
    return out


def _pixel(fit: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """The shorter side of some pixels of a block, degrees of a great circle."""
    rows, cols = np.minimum(rows, BLOCK_SIDE - 2), np.minimum(cols, BLOCK_SIDE - 2)
    corner = _evaluate_pixels(fit, rows, cols)
    shrink = np.cos(np.radians(corner[:, 1]))
    sides = [_evaluate_pixels(fit, rows + down, cols + 1 - down) - corner for down in (1, 0)]
    return np.minimum(*(np.hypot(side[:, 0] * shrink, side[:, 1]) for side in sides))


def block_runs(index: np.ndarray) -> Iterator[tuple[range, int]]:
    """Runs of neighbouring rows or columns that lie in the same block, and that block's number."""
    block = index // BLOCK_SIDE
    edges = [0, *(np.flatnonzero(np.diff(block)) + 1), len(block)]
    for a, b in itertools.pairwise(edges):
        if b > a:
            yield range(int(a), int(b)), int(block[a])

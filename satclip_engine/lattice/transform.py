"""Pixels of projected and rotated rasters, placed by interpolating their transform under a checked bound.

PROJ takes a microsecond or two for a pixel there and back, longer than interpolating its embedding. A block
of pixels is a smooth piece of the projection: polynomials through 9 × 9 Chebyshev nodes, each of them checked
by PROJ there and back like any pixel, meet it within 1e-3 of a pixel at further pixels, or the block is left
to PROJ pixel by pixel. Blocks count from the raster's own corner, and a pixel's place has the same bits
whatever window it is asked for in.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np

from satclip_engine.backends.protocols import Check
from satclip_engine.errors import UsageError
from satclip_engine.geo.grid import Grid
from satclip_engine.geo.pixels import Index, indices
from satclip_engine.lattice.threads import run_parts

SIDE = 256  # pixels along a block's side
BOUND = 1e-3  # of a pixel
_NODES = 9  # along each axis: exact to 1e-9 for 256 pixels of a kilometre
_CHECKED = 24  # further pixels of a block that are compared
_KEPT = 1 << 14  # blocks, a kilobyte each


def _chebyshev() -> tuple[np.ndarray, np.ndarray]:
    """Nodes on a block, in pixels, and what their values contribute to each pixel, (SIDE, nodes)."""
    angle = (2 * np.arange(_NODES) + 1) * np.pi / (2 * _NODES)
    at = np.cos(angle)
    nodes = (SIDE - 1) / 2 * (1 - at)
    pixel = 1 - np.arange(SIDE) * 2 / (SIDE - 1)
    apart = pixel[:, None] - at
    weight = np.where(np.arange(_NODES) % 2, -1.0, 1.0) * np.sin(angle)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = weight / apart
        share /= share.sum(axis=1, keepdims=True)
    return nodes, np.where((apart == 0).any(axis=1, keepdims=True), apart == 0, share)


_AT, _SHARE = _chebyshev()


class ApproximatedGrid:
    """A grid whose pixels are placed block by block; otherwise as the Grid itself. Threads may share it."""

    separable = False

    def __init__(self, grid: Grid) -> None:
        self.grid, self.shape = grid, grid.shape
        self._fits: OrderedDict[tuple[int, int], np.ndarray | None] = OrderedDict()
        self._lock = threading.Lock()

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
        for r, down in pieces(row):
            for c, across in pieces(col):
                some_rows, some_cols = row[r.start : r.stop], col[c.start : c.stop]
                target = out[r.start : r.stop, c.start : c.stop]
                fit = self._fit(down, across)
                if fit is None:
                    target[...] = self.grid.lonlat(some_rows, some_cols)
                else:
                    _evaluate(fit, some_rows - down * SIDE, some_cols - across * SIDE, target)
        return out

    def pixel_lonlat(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """As `Grid.pixel_lonlat`, within 1e-3 of a pixel: the bits that `lonlat` gives."""
        rows, cols = np.asarray(rows, np.int64), np.asarray(cols, np.int64)
        out = np.empty((rows.size, 2))
        across = -(-self.shape[1] // SIDE)
        number = rows // SIDE * across + cols // SIDE
        for block in np.unique(number):
            some = np.flatnonzero(number == block)
            fit = self._fit(*divmod(int(block), across))
            if fit is None:
                out[some] = self.grid.pixel_lonlat(rows[some], cols[some])
            else:
                out[some] = _evaluate_pixels(fit, rows[some] % SIDE, cols[some] % SIDE)
        return out

    def evaluate(
        self,
        network: Any,
        rows: Index,
        cols: Index,
        out: np.ndarray | None,
        threads: int,
        check: Check | None,
        quantise: Any = None,
    ) -> np.ndarray:
        """The embeddings of `rows` × `cols` by a PreparedLattice, (h, w, E), several blocks at a time."""
        row, col = indices(rows, self.shape[0]), indices(cols, self.shape[1])
        shape = (row.size, col.size, network.nodes.bands)
        if out is None:
            out = np.empty(shape, np.float32)
        elif not isinstance(out, np.ndarray) or out.shape != shape:
            raise UsageError(f"out must be an array of shape {shape}", argument="out")

        def fill(tile: tuple[range, range], stop: Check | None) -> None:
            r, c = tile
            lonlat = self.lonlat(row[r.start : r.stop], col[c.start : c.stop]).reshape(-1, 2)
            target = out[r.start : r.stop, c.start : c.stop]
            # Row by row of the tile; the whole raster is one list of pixels only where it has no gaps.
            if out.flags.c_contiguous:
                index = (np.asarray(r)[:, None] * col.size + np.asarray(c)).ravel()
                flat = out.reshape(-1, shape[2])
                network.encode(lonlat, out=flat, index=index, threads=1, check=stop, quantise=quantise)
            else:
                values = np.empty((len(lonlat), shape[2]), out.dtype)
                network.encode(lonlat, out=values, threads=1, check=stop, quantise=quantise)
                target[...] = values.reshape(target.shape)

        tiles = [(r, c) for r, _ in pieces(row) for c, _ in pieces(col)]
        if threads == 1 or len(tiles) <= 1:
            for tile in tiles:
                fill(tile, None)
                if check is not None:
                    check()
            return out
        run_parts(tiles, fill, threads, check)
        return out

    def _fit(self, row: int, col: int) -> np.ndarray | None:
        """Longitude and latitude at a block's nodes, (2, nodes, nodes); None where PROJ has to be asked."""
        with self._lock:
            if (row, col) in self._fits:
                self._fits.move_to_end((row, col))
                return self._fits[row, col]
        made = self._make(row, col)
        with self._lock:
            self._fits[row, col] = made
            while len(self._fits) > _KEPT:
                self._fits.popitem(last=False)
        return made

    def _make(self, row: int, col: int) -> np.ndarray | None:
        top, left = row * SIDE, col * SIDE
        height, width = min(SIDE, self.shape[0] - top), min(SIDE, self.shape[1] - left)
        if height * width <= 4 * _NODES**2:
            return None
        down, across = np.repeat(top + _AT, _NODES), np.tile(left + _AT, _NODES)
        nodes = self.grid.pixel_lonlat(down, across)
        if not np.isfinite(nodes).all():
            return None
        # Neighbours lie less than half a turn apart, or the polynomial will not hold.
        lon = nodes[0, 0] + np.remainder(nodes[:, 0] - nodes[0, 0] + 180.0, 360.0) - 180.0
        fit = np.stack([lon, nodes[:, 1]]).reshape(2, _NODES, _NODES)
        return fit if self._holds(fit, top, left, height, width) else None

    def _holds(self, fit: np.ndarray, top: int, left: int, height: int, width: int) -> bool:
        """Whether further pixels lie where PROJ puts them, and none beyond a pole."""
        random = np.random.Generator(np.random.PCG64([top, left]))
        rows = np.append(random.integers(0, height, _CHECKED), [0, 0, height - 1, height - 1])
        cols = np.append(random.integers(0, width, _CHECKED), [0, width - 1, 0, width - 1])
        exact, found = self.grid.pixel_lonlat(top + rows, left + cols), _evaluate_pixels(fit, rows, cols)
        if not np.isfinite(exact).all():
            return False
        shrink = np.cos(np.radians(exact[:, 1]))
        off = np.remainder(found - exact + 180.0, 360.0) - 180.0
        distance = np.hypot(off[:, 0] * shrink, off[:, 1])
        return bool((distance <= BOUND * _pixel(fit, rows, cols)).all())


def _evaluate(fit: np.ndarray, rows: np.ndarray, cols: np.ndarray, out: np.ndarray) -> None:
    """The polynomial's places of a block's `rows` × `cols`, into (h, w, 2)."""
    down, across = _SHARE[rows], _SHARE[cols]
    total, term = np.empty((rows.size, cols.size)), np.empty((rows.size, cols.size))
    for k, square in enumerate(fit):
        # Sums written out: a matrix product's bits may depend on threads.
        along = sum(down[:, j, None] * square[j] for j in range(_NODES))
        total[...] = 0.0
        for j in range(_NODES):
            total += np.multiply(along[:, j, None], across[:, j], out=term)
        out[..., k] = total
    np.clip(out[..., 1], -90.0, 90.0, out=out[..., 1])


def _evaluate_pixels(fit: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """The same bits at single pixels, (n, 2)."""
    down, across = _SHARE[rows], _SHARE[cols]
    out = np.empty((rows.size, 2))
    for k, square in enumerate(fit):
        along = sum(down[:, j, None] * square[j] for j in range(_NODES))
        total = np.zeros(rows.size)
        for j in range(_NODES):
            total += along[:, j] * across[:, j]
        out[:, k] = total
    np.clip(out[:, 1], -90.0, 90.0, out=out[:, 1])
    return out


def _pixel(fit: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """The shorter side of some pixels of a block, degrees of a great circle."""
    rows, cols = np.minimum(rows, SIDE - 2), np.minimum(cols, SIDE - 2)
    here = _evaluate_pixels(fit, rows, cols)
    shrink = np.cos(np.radians(here[:, 1]))
    sides = [_evaluate_pixels(fit, rows + down, cols + 1 - down) - here for down in (1, 0)]
    return np.minimum(*(np.hypot(side[:, 0] * shrink, side[:, 1]) for side in sides))


def pieces(index: np.ndarray) -> Iterator[tuple[range, int]]:
    """Neighbouring entries that lie in the same block, and that block's number."""
    block = index // SIDE
    edges = [0, *(np.flatnonzero(np.diff(block)) + 1), len(block)]
    for a, b in itertools.pairwise(edges):
        if b > a:
            yield range(int(a), int(b)), int(block[a])

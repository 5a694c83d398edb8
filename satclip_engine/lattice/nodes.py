"""Values of a lattice's nodes, evaluated block by block where they are needed, in an LRU cache."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from satclip_engine.backends.protocols import CALL, Call, Prepared
from satclip_engine.lattice.zones import Zone

BLOCK_ROWS, BLOCK_COLUMNS = 16, 32  # kernels take 16 latitudes at once; contracting them is 6 % of 32 columns
CACHE_BYTES = 256 << 20


class Block(NamedTuple):
    """Names 16 × 32 nodes of a zone: rows from 16·row, columns of the first turn from 32·column."""

    zone: int
    row: int
    column: int


class Nodes(Protocol):
    """Source of a lattice's values. Safe to use from several threads at once."""

    @property
    def bands(self) -> int: ...

    def window(self, zone: int, rows: range, columns: range, call: Call = CALL) -> np.ndarray:
        """(h, w, E) float32 values of a zone's nodes; columns count on over whole turns."""


def empty_window(rows: int, columns: int, bands: int) -> np.ndarray:
    """Memory for (rows, columns, bands) nodes, spread so that neighbours fall into different sets of a cache.

    A power of two apart, the nodes of one interpolation would push each other out.
    """
    stride = (-(-bands // 16) | 1) * 16
    return np.empty((rows, columns, stride), np.float32)[:, :, :bands]


def wrap_columns(columns: range, around: int) -> list[tuple[range, int]]:
    """A range of columns over whole turns as ranges within [0, around), each with its offset in the range."""
    wrapped, column = [], columns.start
    while column < columns.stop:
        first = column % around
        count = min(columns.stop - column, around - first)
        wrapped.append((range(first, first + count), column - columns.start))
        column += count
    return wrapped


class BlockCache:
    """LRU cache of blocks of any lattices, bounded in bytes. The caller holds `lock`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes, self.lock = max_bytes, 0, threading.Lock()
        self._blocks: OrderedDict[tuple[int, Block], np.ndarray] = OrderedDict()

    def get(self, owner: int, block: Block) -> np.ndarray | None:
        values = self._blocks.get((owner, block))
        if values is not None:
            self._blocks.move_to_end((owner, block))
        return values

    def put(self, owner: int, block: Block, values: np.ndarray) -> None:
        if (owner, block) not in self._blocks:
            self.bytes += values.nbytes
        self._blocks[owner, block] = values
        while self.bytes > self.max_bytes and len(self._blocks) > 1:
            self.bytes -= self._blocks.popitem(last=False)[1].nbytes

    def evict(self, owner: int) -> None:
        for key in [key for key in self._blocks if key[0] == owner]:
            self.bytes -= self._blocks.pop(key).nbytes


_SHARED = BlockCache(CACHE_BYTES)
_owners = itertools.count()


def _evict(cache: BlockCache, owner: int) -> None:
    # The garbage collector may run in a thread that holds the lock: then blocks leave when others come.
    if cache.lock.acquire(blocking=False):
        try:
            cache.evict(owner)
        finally:
            cache.lock.release()


def _reset_after_fork() -> None:
    """Begin with empty caches in a child process: locks and blocks in progress of the parent are invalid."""
    global _SHARED
    _SHARED = BlockCache(CACHE_BYTES)
    for nodes in list(_ALIVE):
        nodes.reset()


_ALIVE: weakref.WeakSet[BlockNodes] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


class BlockNodes:
    """Nodes that come in blocks, the latest of which are cached; subclasses make blocks."""

    def __init__(self, zones: Sequence[Zone], bands: int, cache_bytes: int | None = None) -> None:
        """cache_bytes: of a cache for this lattice alone; else all lattices share one of CACHE_BYTES."""
        self.zones, self.bands = tuple(zones), bands
        self._cache_bytes, self._owner = cache_bytes, next(_owners)
        self.reset()
        _ALIVE.add(self)
        weakref.finalize(self, _evict, self._cache, self._owner)

    def reset(self) -> None:
        """Clear the cache and the set of blocks in progress."""
        self._cache = _SHARED if self._cache_bytes is None else BlockCache(self._cache_bytes)
        self._making: set[Block] = set()
        self._changed = threading.Condition(self._cache.lock)

    def make(self, zone: int, row: int, count: int, columns: range, call: Call) -> np.ndarray:
        """(16·count, len(columns), E) values of `count` rows of blocks from row of blocks `row` on."""
        raise NotImplementedError

    def window(self, zone: int, rows: range, columns: range, call: Call = CALL) -> np.ndarray:
        out = empty_window(len(rows), len(columns), self.bands)
        down = range(rows.start // BLOCK_ROWS, (rows.stop - 1) // BLOCK_ROWS + 1)
        for wrapped, offset in wrap_columns(columns, self.zones[zone].columns):
            across = range(wrapped.start // BLOCK_COLUMNS, (wrapped.stop - 1) // BLOCK_COLUMNS + 1)
            for (row, column), values in self._blocks(zone, down, across, call).items():
                top, first = row * BLOCK_ROWS, column * BLOCK_COLUMNS
                r = range(max(rows.start, top), min(rows.stop, top + BLOCK_ROWS))
                c = range(max(wrapped.start, first), min(wrapped.stop, first + BLOCK_COLUMNS))
                left = offset + c.start - wrapped.start
                out[r.start - rows.start : r.stop - rows.start, left : left + len(c)] = values[
                    r.start - top : r.stop - top, c.start - first : c.stop - first
                ]
        return out

    def _blocks(self, zone: int, down: range, across: range, call: Call) -> dict[tuple[int, int], np.ndarray]:
        """The blocks of a rectangle; what another thread is making is waited for, never made twice."""
        blocks: dict[tuple[int, int], np.ndarray] = {}
        missing = {(row, column) for row in down for column in across}
        while missing:
            mine: list[tuple[int, int]] = []
            evaluated: dict[tuple[int, int], np.ndarray] = {}
            try:
                with self._changed:
                    for index in list(missing):
                        if (values := self._cache.get(self._owner, Block(zone, *index))) is not None:
                            blocks[index] = values
                            missing.discard(index)
                    mine = sorted(index for index in missing if Block(zone, *index) not in self._making)
                    self._making.update(Block(zone, *index) for index in mine)
                    if missing and not mine:
                        self._changed.wait(0.05)
                for rectangle in _rectangles(mine):
                    evaluated.update(self._evaluate(zone, *rectangle, call))
            finally:  # an interruption may come anywhere
                if mine:
                    with self._changed:
                        self._making.difference_update(Block(zone, *index) for index in mine)
                        for index, values in evaluated.items():
                            self._cache.put(self._owner, Block(zone, *index), values)
                        self._changed.notify_all()
            if not mine and call.check is not None:
                call.check()
            blocks.update(evaluated)
            missing -= evaluated.keys()
        return blocks

    def _evaluate(
        self, zone: int, down: range, across: range, call: Call
    ) -> dict[tuple[int, int], np.ndarray]:
        around = self.zones[zone].columns
        columns = range(across.start * BLOCK_COLUMNS, min(across.stop * BLOCK_COLUMNS, around))
        values = self.make(zone, down.start, len(down), columns, call)
        return {
            (row, column): np.ascontiguousarray(
                values[
                    (row - down.start) * BLOCK_ROWS : (row - down.start + 1) * BLOCK_ROWS,
                    (column - across.start) * BLOCK_COLUMNS : (column - across.start + 1) * BLOCK_COLUMNS,
                ]
            )
            for row in down
            for column in across
        }


class EncodedNodes(BlockNodes):
    """Nodes evaluated by a network's product grid: the same bits in every block and on every turn."""

    def __init__(self, network: Prepared, zones: Sequence[Zone], cache_bytes: int | None = None) -> None:
        super().__init__(zones, network.embed_dim, cache_bytes)
        self.network = network

    def make(self, zone: int, row: int, count: int, columns: range, call: Call) -> np.ndarray:
        nodes, plain = self.zones[zone], replace(call, quantise=None)
        rows = np.arange(row * BLOCK_ROWS, (row + count) * BLOCK_ROWS)
        lat, beyond = nodes.node_lat(rows)
        # Rows that no stencil of the zone reaches are not worth evaluating.
        needed = nodes.row_range
        useful = (rows >= needed.start) & (rows < needed.stop)
        lon = nodes.node_lon(np.asarray(columns))
        out = np.full((rows.size, lon.size, self.bands), np.nan, np.float32)
        for chosen, longitudes in ((useful & ~beyond, lon), (useful & beyond, lon + 180.0)):
            index = np.flatnonzero(chosen)
            for run in np.split(index, np.flatnonzero(np.diff(index) != 1) + 1):
                if run.size:
                    self.network.encode_grid(lat[run], longitudes, out[run[0] : run[-1] + 1], plain)
        return out


def _rectangles(blocks: list[tuple[int, int]]) -> list[tuple[range, range]]:
    """Sorted (row, column) of blocks as few rectangles: runs along rows, joined with equal ones below."""
    runs: list[tuple[int, range]] = []
    for row, column in blocks:
        if runs and runs[-1][0] == row and runs[-1][1].stop == column:
            runs[-1] = (row, range(runs[-1][1].start, column + 1))
        else:
            runs.append((row, range(column, column + 1)))
    joined: list[tuple[range, range]] = []
    for row, columns in runs:
        above = next((k for k, (r, c) in enumerate(joined) if c == columns and r.stop == row), None)
        if above is None:
            joined.append((range(row, row + 1), columns))
        else:
            joined[above] = (range(joined[above][0].start, row + 1), columns)
    return joined

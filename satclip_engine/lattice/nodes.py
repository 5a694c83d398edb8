"""The values of a lattice's nodes: evaluated by a network block by block where they are needed, and kept."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from satclip_engine.backends.protocols import Check, Prepared
from satclip_engine.lattice.zones import Zone

BLOCK_ROWS, BLOCK_COLUMNS = 16, 32  # kernels take 16 latitudes at once; contracting them is 6 % of 32 columns
CACHE_BYTES = 256 << 20


class Block(NamedTuple):
    """Names 16 × 32 nodes of a zone: rows from 16·row, columns of the first turn from 32·column."""

    zone: int
    row: int
    column: int


class Nodes(Protocol):
    """Where a lattice's values come from. Safe to use from several threads at once."""

    @property
    def bands(self) -> int: ...

    def window(
        self, zone: int, rows: range, columns: range, threads: int | None, check: Check | None
    ) -> np.ndarray:
        """(h, w, E) float32 values of a zone's nodes; columns count on over whole turns."""


def empty_window(rows: int, columns: int, bands: int) -> np.ndarray:
    """Memory for (rows, columns, bands) nodes, spread so that neighbours fall into different sets of a cache.

    A power of two apart, the nodes of one interpolation would push each other out.
    """
    stride = (-(-bands // 16) | 1) * 16
    return np.empty((rows, columns, stride), np.float32)[:, :, :bands]


def turns(columns: range, around: int) -> list[tuple[range, int]]:
    """A range of columns over whole turns as ranges within [0, around), each with its place in the range."""
    parts, at = [], columns.start
    while at < columns.stop:
        first = at % around
        count = min(columns.stop - at, around - first)
        parts.append((range(first, first + count), at - columns.start))
        at += count
    return parts


class Kept:
    """The latest blocks of any lattices, up to a number of bytes. Whoever uses it holds its lock."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes, self.lock = most, 0, threading.Lock()
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
        while self.bytes > self.most and len(self._blocks) > 1:
            self.bytes -= self._blocks.popitem(last=False)[1].nbytes

    def forget(self, owner: int) -> None:
        for key in [key for key in self._blocks if key[0] == owner]:
            self.bytes -= self._blocks.pop(key).nbytes


_SHARED = Kept(CACHE_BYTES)
_owners = itertools.count()


def _forget(kept: Kept, owner: int) -> None:
    # The garbage collector may run in a thread that holds the lock: then blocks leave when others come.
    if kept.lock.acquire(blocking=False):
        try:
            kept.forget(owner)
        finally:
            kept.lock.release()


def _begin_anew() -> None:
    """In a child process: what threads of the parent held or were making is nobody's here."""
    global _SHARED
    _SHARED = Kept(CACHE_BYTES)
    for nodes in list(_ALIVE):
        nodes.begin_anew()


_ALIVE: weakref.WeakSet[BlockNodes] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


class BlockNodes:
    """Nodes that come in blocks, the latest of which are kept; subclasses say how blocks are made."""

    def __init__(self, zones: Sequence[Zone], bands: int, cache_bytes: int | None = None) -> None:
        """cache_bytes: of blocks kept for this lattice alone; else all lattices share CACHE_BYTES."""
        self.zones, self.bands = tuple(zones), bands
        self._cache_bytes, self._owner = cache_bytes, next(_owners)
        self.begin_anew()
        _ALIVE.add(self)
        weakref.finalize(self, _forget, self._kept, self._owner)

    def begin_anew(self) -> None:
        """Forget all blocks, and who is making any."""
        self._kept = _SHARED if self._cache_bytes is None else Kept(self._cache_bytes)
        self._making: set[Block] = set()
        self._changed = threading.Condition(self._kept.lock)

    def make(
        self, zone: int, row: int, count: int, columns: range, threads: int | None, check: Check | None
    ) -> np.ndarray:
        """(16·count, len(columns), E) values of `count` rows of blocks from row of blocks `row` on."""
        raise NotImplementedError

    def window(
        self, zone: int, rows: range, columns: range, threads: int | None = None, check: Check | None = None
    ) -> np.ndarray:
        out = empty_window(len(rows), len(columns), self.bands)
        down = range(rows.start // BLOCK_ROWS, (rows.stop - 1) // BLOCK_ROWS + 1)
        for part, left in turns(columns, self.zones[zone].columns):
            across = range(part.start // BLOCK_COLUMNS, (part.stop - 1) // BLOCK_COLUMNS + 1)
            blocks = self._blocks(zone, down, across, threads, check)
            for (row, column), values in blocks.items():
                top, first = row * BLOCK_ROWS, column * BLOCK_COLUMNS
                r = range(max(rows.start, top), min(rows.stop, top + BLOCK_ROWS))
                c = range(max(part.start, first), min(part.stop, first + BLOCK_COLUMNS))
                at = left + c.start - part.start
                out[r.start - rows.start : r.stop - rows.start, at : at + len(c)] = values[
                    r.start - top : r.stop - top, c.start - first : c.stop - first
                ]
        return out

    def _blocks(
        self, zone: int, down: range, across: range, threads: int | None, check: Check | None
    ) -> dict[tuple[int, int], np.ndarray]:
        """The blocks of a rectangle; what another thread is making is waited for, never made twice."""
        found: dict[tuple[int, int], np.ndarray] = {}
        wanted = {(row, column) for row in down for column in across}
        while wanted:
            mine: list[tuple[int, int]] = []
            made: dict[tuple[int, int], np.ndarray] = {}
            try:
                with self._changed:
                    for place in list(wanted):
                        if (values := self._kept.get(self._owner, Block(zone, *place))) is not None:
                            found[place] = values
                            wanted.discard(place)
                    mine = sorted(place for place in wanted if Block(zone, *place) not in self._making)
                    self._making.update(Block(zone, *place) for place in mine)
                    if wanted and not mine:
                        self._changed.wait(0.05)
                for group in _rectangles(mine):
                    made.update(self._made(zone, *group, threads, check))
            finally:  # an interruption may come anywhere
                if mine:
                    with self._changed:
                        self._making.difference_update(Block(zone, *place) for place in mine)
                        for place, values in made.items():
                            self._kept.put(self._owner, Block(zone, *place), values)
                        self._changed.notify_all()
            if not mine and check is not None:
                check()
            found.update(made)
            wanted -= made.keys()
        return found

    def _made(
        self, zone: int, down: range, across: range, threads: int | None, check: Check | None
    ) -> dict[tuple[int, int], np.ndarray]:
        around = self.zones[zone].columns
        columns = range(across.start * BLOCK_COLUMNS, min(across.stop * BLOCK_COLUMNS, around))
        values = self.make(zone, down.start, len(down), columns, threads, check)
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
        super().__init__(zones, network.layers.embed_dim, cache_bytes)
        self.network = network

    def make(
        self, zone: int, row: int, count: int, columns: range, threads: int | None, check: Check | None
    ) -> np.ndarray:
        here = self.zones[zone]
        rows = np.arange(row * BLOCK_ROWS, (row + count) * BLOCK_ROWS)
        lat, beyond = here.node_lat(rows)
        # Rows that no stencil of the zone reaches are not worth evaluating.
        reached = here.row_range
        useful = (rows >= reached.start) & (rows < reached.stop)
        lon = here.node_lon(np.asarray(columns))
        out = np.full((rows.size, lon.size, self.bands), np.nan, np.float32)
        for chosen, at in ((useful & ~beyond, lon), (useful & beyond, lon + 180.0)):
            index = np.flatnonzero(chosen)
            for part in np.split(index, np.flatnonzero(np.diff(index) != 1) + 1):
                if part.size:
                    target = out[part[0] : part[-1] + 1]
                    self.network.encode_grid(lat[part], at, out=target, threads=threads, check=check)
        return out


def _rectangles(places: list[tuple[int, int]]) -> list[tuple[range, range]]:
    """Sorted (row, column) places as few rectangles: runs along rows, joined with equal ones below."""
    runs: list[tuple[int, range]] = []
    for row, column in places:
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

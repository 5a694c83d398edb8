"""A network that answers from a lattice: what a backend prepares, interpolating instead of evaluating."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from satclip_engine import _C
from satclip_engine.backends.buffers import aligned
from satclip_engine.backends.protocols import CALLS, Calls, Check, Prepared
from satclip_engine.geo.lonlat import check_latitudes
from satclip_engine.lattice.nodes import BlockNodes
from satclip_engine.lattice.zones import Zone, zone_of
from satclip_engine.quantize import codes_of
from satclip_engine.weights import Layers

if TYPE_CHECKING:
    from torch import Tensor

Quantise = tuple[np.ndarray, np.ndarray]  # inverse scale and offset, (E,) float32 each

_WINDOW = 192  # nodes along the sides of a window: with 256 bands it takes 38 MB
_APART = 32  # nodes between neighbouring columns beyond which a window would hold mostly what nobody asks for
_TILE = 64  # nodes along the sides of the squares by which scattered places are sorted


class _How(NamedTuple):
    """How a call is to be done, handed on to all that take part."""

    threads: int | None
    check: Check | None
    quantise: Quantise | None


class PreparedLattice:
    """A network behind a lattice. Immutable but for the nodes it keeps; safe to use from several threads."""

    def __init__(
        self,
        network: Prepared,
        zones: Sequence[Zone],
        nodes: BlockNodes,
        *,
        token: str = "",
    ) -> None:
        """token: what decides the lattice, for `isa`."""
        self.network, self.zones, self.nodes = network, tuple(zones), nodes
        self.token = token

    @property
    def name(self) -> str:
        return self.network.name

    @property
    def isa(self) -> str:
        return self.network.isa

    @property
    def device(self) -> str:
        return self.network.device

    @property
    def layers(self) -> Layers:
        return self.network.layers

    @property
    def calls(self) -> Calls:
        return CALLS  # interpolation is the host's work, whatever evaluates nodes

    def encode_tensor(self, lonlat: Tensor) -> Tensor | None:
        return None

    # Product grids

    def encode_grid(
        self,
        lat: np.ndarray,
        lon: np.ndarray,
        out: np.ndarray | None = None,
        threads: int | None = None,
        check: Check | None = None,
        quantise: Quantise | None = None,
    ) -> np.ndarray:
        """As `Prepared.encode_grid`; `out` may be int8 or int16 with `quantise` = (inverse scale, offset)."""
        lat, lon = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
        check_latitudes(lat)
        if out is None:
            out = aligned((lat.size, lon.size, self.nodes.bands))
        how = _How(threads, check, quantise)
        zone, pole = zone_of(self.zones, lat), np.abs(lat) == 90.0
        for rows in _runs(2 * zone + pole):
            here, target, some = (
                int(zone[rows.start]),
                out[rows.start : rows.stop],
                lat[rows.start : rows.stop],
            )
            if here < 0:
                self._exactly(some, lon, target, how)
            else:
                # At a pole a place has no longitude.
                columns = np.where(np.isfinite(lon), 0.0, lon) if pole[rows.start] else lon
                self._windows(here, some, columns, target, how)
        return out

    def _exactly(self, lat: np.ndarray, lon: np.ndarray, out: np.ndarray, how: _How) -> None:
        """Rows that the network itself answers."""
        if how.quantise is None:
            self.network.encode_grid(lat, lon, out=out, threads=how.threads, check=how.check)
            return
        step = max(1, (1 << 24) // max(1, lon.size * out.shape[2]))
        for top in range(0, lat.size, step):
            some = lat[top : top + step]
            values = self.network.encode_grid(some, lon, threads=how.threads, check=how.check)
            out[top : top + step] = codes_of(values, *how.quantise, out.dtype)

    def _windows(self, zone: int, lat: np.ndarray, lon: np.ndarray, out: np.ndarray, how: _How) -> None:
        """Rows of one zone, window by window."""
        here = self.zones[zone]
        row, column = here.row_positions(lat), here.column_positions(lon)
        for columns, turned in _near(column, here.columns):
            for rows in _limited(row):
                need_rows = here.reach(row[rows.start : rows.stop].min(), row[rows.start : rows.stop].max())
                finite = turned[np.isfinite(turned)]
                need_columns = here.reach(finite.min(), finite.max()) if finite.size else range(here.order)
                window = self.nodes.window(zone, need_rows, need_columns, how.threads, how.check)
                _C.resample(
                    window,
                    row[rows.start : rows.stop] - need_rows.start,
                    turned - need_columns.start,
                    out[rows.start : rows.stop, columns.start : columns.stop],
                    order=here.order,
                    quantise=how.quantise,
                    threads=self._threads(how),
                    check=how.check,
                )

    def _threads(self, how: _How) -> int:
        return how.threads or int(getattr(self.network, "threads", 1))

    # Single places

    def encode(
        self,
        lonlat: np.ndarray,
        out: np.ndarray | None = None,
        threads: int | None = None,
        check: Check | None = None,
        index: np.ndarray | None = None,
        enough: Callable[[int, int], bool] | None = None,
        quantise: Quantise | None = None,
    ) -> np.ndarray:
        """As `Prepared.encode`; quantise as in `encode_grid`. index: (N,) rows of `out` where places go,
            instead of 0, 1, …

        enough(places, nodes): whether it pays to sample a square with so many nodes for so many places;
            elsewhere the network answers. Without it the lattice answers everywhere.
        """
        lonlat = np.asarray(lonlat, np.float64)
        check_latitudes(lonlat[:, 1])
        if out is None:
            out = np.empty((len(lonlat), self.nodes.bands), np.float32)
        if index is None:
            index = np.arange(len(lonlat))
        finite = np.isfinite(lonlat).all(axis=1)
        if not finite.all():
            out[index[~finite]] = np.nan if quantise is None else np.iinfo(out.dtype).min
            lonlat, index = lonlat[finite], index[finite]
        how = _How(threads, check, quantise)
        lat = lonlat[:, 1]
        lon = np.where(np.abs(lat) == 90.0, 0.0, lonlat[:, 0])
        zone = zone_of(self.zones, lat)
        if not zone.size:
            return out
        one = zone.min() == zone.max()  # as in most windows
        for number in zone[:1] if one else np.unique(zone):
            chosen = slice(None) if one else np.flatnonzero(zone == number)
            at = index[chosen]
            if number < 0:
                self._alone(lonlat[chosen], out, at, how)
                continue
            here = self.zones[number]
            row, column = here.row_positions(lat[chosen]), here.column_positions(lon[chosen])
            self._scattered(int(number), row, column, lonlat[chosen], out, at, enough, how)
        return out

    def _alone(self, lonlat: np.ndarray, out: np.ndarray, index: np.ndarray, how: _How) -> None:
        """Places that the network itself answers."""
        values = self.network.encode(np.ascontiguousarray(lonlat), threads=how.threads, check=how.check)
        out[index] = values if how.quantise is None else codes_of(values, *how.quantise, out.dtype)

    def _scattered(
        self,
        zone: int,
        row: np.ndarray,
        column: np.ndarray,
        lonlat: np.ndarray,
        out: np.ndarray,
        index: np.ndarray,
        enough: Callable[[int, int], bool] | None,
        how: _How,
    ) -> None:
        """Places of one zone: all at once when they lie close together, else square by square."""
        here = self.zones[zone]
        if enough is None and row.size:
            rows = here.reach(row.min(), row.max())
            turned = _turned(column, here.columns)
            columns = here.reach(turned.min(), turned.max())
            if len(rows) * len(columns) <= max(4 * _TILE**2, row.size // 4) and len(columns) <= here.columns:
                self._places(zone, rows, columns, row, turned, out, index, how)
                return
        for some in self._squares(here, row, column):
            rows = here.reach(row[some].min(), row[some].max())
            columns = here.reach(column[some].min(), column[some].max())
            if enough is not None and not enough(some.size, len(rows) * len(columns)):
                self._alone(lonlat[some], out, index[some], how)
            else:
                self._places(zone, rows, columns, row[some], column[some], out, index[some], how)

    def _squares(self, here: Zone, row: np.ndarray, column: np.ndarray) -> Iterator[np.ndarray]:
        """Places sorted by squares of nodes, and by nodes within one: neighbours share their stencils."""
        across = here.columns // _TILE + 1
        r, c = row.astype(np.int64), column.astype(np.int64)
        tile = (r // _TILE) * across + c // _TILE
        order = np.argsort((tile * _TILE + r % _TILE) * _TILE + c % _TILE)
        starts = np.flatnonzero(np.diff(tile[order])) + 1
        yield from np.split(order, starts)

    def _places(
        self,
        zone: int,
        rows: range,
        columns: range,
        row: np.ndarray,
        column: np.ndarray,
        out: np.ndarray,
        index: np.ndarray,
        how: _How,
    ) -> None:
        _C.resample_points(
            self.nodes.window(zone, rows, columns, how.threads, how.check),
            row - rows.start,
            column - columns.start,
            out,
            order=self.zones[zone].order,
            index=index,
            quantise=how.quantise,
            threads=self._threads(how),
            check=how.check,
        )


def _runs(values: np.ndarray) -> Iterator[range]:
    """Runs of equal neighbours."""
    edges = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1), len(values)]
    yield from (range(int(a), int(b)) for a, b in itertools.pairwise(edges) if b > a)


def _turned(column: np.ndarray, around: int) -> np.ndarray:
    """Positions within one turn of those that follow each other closely, moved by whole turns so that they do
    not jump at the antimeridian."""
    if not column.size:
        return column
    # By how many whole turns each lies from the first: the nearest way round.
    away = column - column[0]
    return column - around * np.rint(away / around)


def _near(column: np.ndarray, around: int) -> Iterator[tuple[range, np.ndarray]]:
    """Neighbouring columns that a window of nodes can serve: their range and positions without a jump.

    Positions that are not finite go with their neighbours.
    """
    known = np.flatnonzero(np.isfinite(column))
    if known.size == 0:
        if column.size:
            yield range(column.size), column
        return
    # Fill gaps with the last position known, so that differences mean something.
    filled = column[known[np.maximum(np.searchsorted(known, np.arange(column.size), side="right") - 1, 0)]]
    step = np.diff(filled)
    turn = np.concatenate([[0.0], np.cumsum(-np.rint(step / around))])
    turned = filled + around * turn
    first = 0
    while first < column.size:
        last = _stop(turned, first)
        part = np.where(np.isfinite(column[first:last]), turned[first:last], np.nan)
        yield range(first, last), part
        first = last


def _stop(position: np.ndarray, first: int) -> int:
    """Where a window that begins with `first` ends: before a gap, or when it has become wide enough."""
    ahead = position[first:]
    gap = np.flatnonzero(np.abs(np.diff(ahead)) > _APART)
    wide = np.flatnonzero(np.abs(ahead - ahead[0]) > _WINDOW)
    ends = [ahead.size, *(gap[:1] + 1), *wide[:1]]
    return first + max(1, int(min(ends)))


def _limited(row: np.ndarray) -> Iterator[range]:
    """Neighbouring rows that a window of nodes can serve."""
    first = 0
    while first < row.size:
        last = _stop(row, first)
        yield range(first, last)
        first = last

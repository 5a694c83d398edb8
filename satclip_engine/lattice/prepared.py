"""PreparedLattice: a prepared network that interpolates from a lattice's nodes instead of evaluating."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from satclip_engine import _C
from satclip_engine.backends.buffers import aligned
from satclip_engine.backends.protocols import CALL, Call, Check, Prepared
from satclip_engine.errors import UsageError
from satclip_engine.geo.lonlat import check_latitudes
from satclip_engine.geo.pixels import Index, PixelGrid, indices
from satclip_engine.lattice.nodes import Nodes
from satclip_engine.lattice.threads import run_items
from satclip_engine.lattice.transform import ApproximatedGrid, block_runs
from satclip_engine.lattice.zones import Zone, zone_of

_WINDOW_NODES = 192  # along the sides of a window of nodes: with 256 bands it takes 38 MB
_COLUMN_GAP = 32  # nodes between neighbouring columns beyond which a window would hold mostly unused nodes
_SQUARE_NODES = 64  # along the sides of the squares by which scattered points are sorted
_EXACT_VALUES = 1 << 24  # float32 values of exact rows that become codes at once

PaysOff = Callable[[int, int], bool]


class PreparedLattice(Prepared):
    """A network behind a lattice. Immutable but for the nodes it keeps; safe to use from several threads."""

    makes_codes = True

    def __init__(
        self,
        network: Prepared | None,
        zones: Sequence[Zone],
        nodes: Nodes,
    ) -> None:
        """network: answers outside the zones, and where a lattice does not pay; None with zones for all."""
        self.network, self.zones, self.nodes = network, tuple(zones), nodes
        if network is not None:
            self.describe_as(network)

    # Pixels

    def encode_pixels(
        self,
        pixels: PixelGrid,
        rows: Index = None,
        cols: Index = None,
        out: np.ndarray | None = None,
        call: Call = CALL,
    ) -> np.ndarray:
        """As `Prepared.encode_pixels`; blocks of an ApproximatedGrid are shared by threads."""
        if not isinstance(pixels, ApproximatedGrid):
            return super().encode_pixels(pixels, rows, cols, out, call)
        row, col = indices(rows, pixels.shape[0]), indices(cols, pixels.shape[1])
        shape = (row.size, col.size, self.embed_dim)
        if out is None:
            out = np.empty(shape, np.float32)
        elif not isinstance(out, np.ndarray) or out.shape != shape:
            raise UsageError(f"out must be an array of shape {shape}", argument="out")

        def fill(block: tuple[range, range], check: Check | None) -> None:
            r, c = block
            lonlat = pixels.lonlat(row[r.start : r.stop], col[c.start : c.stop]).reshape(-1, 2)
            alone = replace(call, threads=1, check=check)
            # Row by row of the block; the whole raster is one list of pixels only where it has no gaps.
            if out.flags.c_contiguous:
                index = (np.asarray(r)[:, None] * col.size + np.asarray(c)).ravel()
                self.encode(lonlat, out.reshape(-1, shape[2]), alone, index=index)
            else:
                values = np.empty((len(lonlat), shape[2]), out.dtype)
                self.encode(lonlat, values, alone)
                out[r.start : r.stop, c.start : c.stop] = values.reshape(len(r), len(c), shape[2])

        blocks = [(r, c) for r, _ in block_runs(row) for c, _ in block_runs(col)]
        threads = call.threads or self.threads
        if threads == 1 or len(blocks) <= 1:
            for block in blocks:
                fill(block, None)
                if call.check is not None:
                    call.check()
            return out
        run_items(blocks, fill, threads, call.check)
        return out

    # Product grids

    def encode_grid(
        self, lat: np.ndarray, lon: np.ndarray, out: np.ndarray | None = None, call: Call = CALL
    ) -> np.ndarray:
        """As `Prepared.encode_grid`; `out` may be int8 or int16 with `call.quantise`."""
        lat, lon = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
        check_latitudes(lat)
        if out is None:
            out = aligned((lat.size, lon.size, self.nodes.bands))
        zone, pole = zone_of(self.zones, lat), np.abs(lat) == 90.0
        for rows in _runs(2 * zone + pole):
            number, target = int(zone[rows.start]), out[rows.start : rows.stop]
            if number < 0:
                self._encode_rows_exactly(lat[rows.start : rows.stop], lon, target, call)
            else:
                # At a pole a point has no longitude.
                columns = np.where(np.isfinite(lon), 0.0, lon) if pole[rows.start] else lon
                self._interpolate_rows(number, lat[rows.start : rows.stop], columns, target, call)
        return out

    def _encode_rows_exactly(self, lat: np.ndarray, lon: np.ndarray, out: np.ndarray, call: Call) -> None:
        """Fill rows that the network itself answers; without one they lie beyond a pole."""
        if self.network is None:
            out[...] = _missing(out, call)
            return
        if call.quantise is None:
            self.network.encode_grid(lat, lon, out, call)
            return
        step, plain = max(1, _EXACT_VALUES // max(1, lon.size * out.shape[2])), replace(call, quantise=None)
        for top in range(0, lat.size, step):
            values = self.network.encode_grid(lat[top : top + step], lon, call=plain)
            out[top : top + step] = call.quantise.codes(values, out.dtype)

    def _interpolate_rows(
        self, number: int, lat: np.ndarray, lon: np.ndarray, out: np.ndarray, call: Call
    ) -> None:
        """Fill rows of one zone, window by window."""
        zone = self.zones[number]
        row, column = zone.row_positions(lat), zone.column_positions(lon)
        for columns, unwrapped in _column_windows(column, zone.columns):
            for rows in _row_windows(row):
                node_rows = zone.stencil_range(
                    row[rows.start : rows.stop].min(), row[rows.start : rows.stop].max()
                )
                finite = unwrapped[np.isfinite(unwrapped)]
                node_columns = (
                    zone.stencil_range(finite.min(), finite.max()) if finite.size else range(zone.order)
                )
                window = self.nodes.window(number, node_rows, node_columns, call)
                _C.resample(
                    window,
                    row[rows.start : rows.stop] - node_rows.start,
                    unwrapped - node_columns.start,
                    out[rows.start : rows.stop, columns.start : columns.stop],
                    order=zone.order,
                    quantise=call.quantise,
                    threads=call.threads or self.threads,
                    check=call.check,
                )

    # Single points

    def encode(
        self,
        lonlat: np.ndarray,
        out: np.ndarray | None = None,
        call: Call = CALL,
        index: np.ndarray | None = None,
        pays: PaysOff | None = None,
    ) -> np.ndarray:
        """As `Prepared.encode`; `out` may be int8 or int16 with `call.quantise`.

        index: (N,) rows of `out` where points go, instead of 0, 1, …
        pays(points, nodes): True where a square of the lattice is worth sampling with so many nodes for so
            many points; elsewhere the network answers. Without it the lattice answers everywhere.
        """
        lonlat = np.asarray(lonlat, np.float64)
        check_latitudes(lonlat[:, 1])
        if out is None:
            out = np.empty((len(lonlat), self.nodes.bands), np.float32)
        if index is None:
            index = np.arange(len(lonlat))
        finite = np.isfinite(lonlat).all(axis=1)
        if not finite.all():
            out[index[~finite]] = _missing(out, call)
            lonlat, index = lonlat[finite], index[finite]
        lat = lonlat[:, 1]
        lon = np.where(np.abs(lat) == 90.0, 0.0, lonlat[:, 0])
        zones = zone_of(self.zones, lat)
        if not zones.size:
            return out
        single_zone = zones.min() == zones.max()  # as in most windows
        for number in zones[:1] if single_zone else np.unique(zones):
            chosen = slice(None) if single_zone else np.flatnonzero(zones == number)
            if number < 0:
                self._encode_exactly(lonlat[chosen], out, index[chosen], call)
                continue
            zone = self.zones[number]
            row, column = zone.row_positions(lat[chosen]), zone.column_positions(lon[chosen])
            self._interpolate(int(number), row, column, lonlat[chosen], out, index[chosen], pays, call)
        return out

    def _encode_exactly(self, lonlat: np.ndarray, out: np.ndarray, index: np.ndarray, call: Call) -> None:
        """Fill points that the network itself answers."""
        assert self.network is not None
        plain = replace(call, quantise=None)
        values = self.network.encode(np.ascontiguousarray(lonlat), call=plain)
        out[index] = values if call.quantise is None else call.quantise.codes(values, out.dtype)

    def _interpolate(
        self,
        number: int,
        row: np.ndarray,
        column: np.ndarray,
        lonlat: np.ndarray,
        out: np.ndarray,
        index: np.ndarray,
        pays: PaysOff | None,
        call: Call,
    ) -> None:
        """Fill points of one zone: all at once when they lie close together, else square by square."""
        zone = self.zones[number]
        if pays is None and row.size:
            rows = zone.stencil_range(row.min(), row.max())
            unwrapped = _unwrap(column, zone.columns)
            columns = zone.stencil_range(unwrapped.min(), unwrapped.max())
            few = max(4 * _SQUARE_NODES**2, row.size // 4)
            if len(rows) * len(columns) <= few and len(columns) <= zone.columns:
                self._resample(number, rows, columns, row, unwrapped, out, index, call)
                return
        for square in _squares(zone, row, column):
            rows = zone.stencil_range(row[square].min(), row[square].max())
            columns = zone.stencil_range(column[square].min(), column[square].max())
            if pays is not None and not pays(square.size, len(rows) * len(columns)):
                self._encode_exactly(lonlat[square], out, index[square], call)
            else:
                self._resample(number, rows, columns, row[square], column[square], out, index[square], call)

    def _resample(
        self,
        number: int,
        rows: range,
        columns: range,
        row: np.ndarray,
        column: np.ndarray,
        out: np.ndarray,
        index: np.ndarray,
        call: Call,
    ) -> None:
        """Fill points at (row, column) positions of a zone from a window of its nodes."""
        _C.resample_points(
            self.nodes.window(number, rows, columns, call),
            row - rows.start,
            column - columns.start,
            out,
            order=self.zones[number].order,
            index=index,
            quantise=call.quantise,
            threads=call.threads or self.threads,
            check=call.check,
        )


def _missing(out: np.ndarray, call: Call) -> float | int:
    """Value that means no data."""
    return np.nan if call.quantise is None else int(np.iinfo(out.dtype).min)


def _squares(zone: Zone, row: np.ndarray, column: np.ndarray) -> Iterator[np.ndarray]:
    """Points sorted by squares of nodes, and by nodes within a square: neighbours share their stencils."""
    across = zone.columns // _SQUARE_NODES + 1
    r, c = row.astype(np.int64), column.astype(np.int64)
    square = (r // _SQUARE_NODES) * across + c // _SQUARE_NODES
    order = np.argsort((square * _SQUARE_NODES + r % _SQUARE_NODES) * _SQUARE_NODES + c % _SQUARE_NODES)
    starts = np.flatnonzero(np.diff(square[order])) + 1
    yield from np.split(order, starts)


def _runs(values: np.ndarray) -> Iterator[range]:
    """Runs of equal neighbours."""
    edges = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1), len(values)]
    yield from (range(int(a), int(b)) for a, b in itertools.pairwise(edges) if b > a)


def _unwrap(column: np.ndarray, around: int) -> np.ndarray:
    """Positions of points close together, moved by whole turns so that none jumps at the antimeridian."""
    if not column.size:
        return column
    # By how many whole turns each lies from the first: the nearest way round.
    difference = column - column[0]
    return column - around * np.rint(difference / around)


def _column_windows(column: np.ndarray, around: int) -> Iterator[tuple[range, np.ndarray]]:
    """Neighbouring columns that a window of nodes can serve: their range, and their unwrapped positions.

    Positions that are not finite go with their neighbours.
    """
    finite = np.flatnonzero(np.isfinite(column))
    if finite.size == 0:
        if column.size:
            yield range(column.size), column
        return
    # Fill gaps with the last finite position, so that differences mean something.
    latest = np.searchsorted(finite, np.arange(column.size), side="right") - 1
    filled = column[finite[np.maximum(latest, 0)]]
    turns = np.concatenate([[0.0], np.cumsum(-np.rint(np.diff(filled) / around))])
    unwrapped = filled + around * turns
    first = 0
    while first < column.size:
        stop = _window_stop(unwrapped, first)
        yield range(first, stop), np.where(np.isfinite(column[first:stop]), unwrapped[first:stop], np.nan)
        first = stop


def _window_stop(position: np.ndarray, first: int) -> int:
    """End of the window that begins with `first`: before a gap, or when it has become wide enough."""
    ahead = position[first:]
    gap = np.flatnonzero(np.abs(np.diff(ahead)) > _COLUMN_GAP)
    wide = np.flatnonzero(np.abs(ahead - ahead[0]) > _WINDOW_NODES)
    ends = [ahead.size, *(gap[:1] + 1), *wide[:1]]
    return first + max(1, int(min(ends)))


def _row_windows(row: np.ndarray) -> Iterator[range]:
    """Neighbouring rows that a window of nodes can serve."""
    first = 0
    while first < row.size:
        stop = _window_stop(row, first)
        yield range(first, stop)
        first = stop

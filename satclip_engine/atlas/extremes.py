"""Extremes of an atlas's bands over the globe: those of its network, as recorded, or of its own lattice."""

from __future__ import annotations

import numpy as np

from satclip_engine.atlas.file import Contents
from satclip_engine.atlas.linear import Linear, Selection
from satclip_engine.backends.extremes import Extremes, extremes
from satclip_engine.backends.protocols import CALL
from satclip_engine.lattice.prepared import PreparedLattice
from satclip_engine.lattice.zones import Zone, zone_of


def recorded_extremes(contents: Contents, linear: Linear) -> Extremes | None:
    """Extremes of the network that an atlas was made of; None where they are not known, as of a head."""
    if not isinstance(linear, Selection):
        return None
    return contents.extremes.of_bands(linear.index)


def lattice_extremes(prepared: PreparedLattice, points: np.ndarray, threads: int) -> Extremes:
    """Extremes of what a lattice answers at (n, 2) points; reads nearly all nodes."""
    return extremes(prepared, lambda chosen: _interpolated(prepared, chosen), points, threads)


def _interpolated(prepared: PreparedLattice, points: np.ndarray) -> np.ndarray:
    """(n, E) float64 values of the lattice, which nodes give in float32."""
    values = np.empty((len(points), prepared.embed_dim))
    numbers = zone_of(prepared.zones, points[:, 1])
    for i, (number, (lon, lat)) in enumerate(zip(numbers.tolist(), points, strict=True)):
        zone: Zone = prepared.zones[number]
        row, column = float(zone.row_positions(lat)), float(zone.column_positions(lon))
        rows, columns = zone.stencil_range(row, row), zone.stencil_range(column, column)
        nodes = prepared.nodes.window(number, rows, columns, CALL).astype(np.float64)
        down, across = _lagrange(row - rows.start, len(rows)), _lagrange(column - columns.start, len(columns))
        values[i] = np.einsum("i,j,ijk->k", down, across, nodes)
    return values


def _lagrange(position: float, order: int) -> np.ndarray:
    """Weights of the nodes 0, 1, … at a position among them."""
    node = np.arange(order)
    others = node[:, None] != node
    factors = (position - node) / np.where(others, node[:, None] - node, 1)
    return np.prod(np.where(others, factors, 1.0), axis=1)

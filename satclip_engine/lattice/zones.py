"""Zones of latitude that make the lattice of the whole Earth, each with its own spacing of longitudes.

A zone answers for the latitudes between its edges; its nodes go on beyond them as far as stencils reach,
beyond a pole too: the row at latitude 90° + δ is the row at 90° − δ half a turn on. Longitudes are periodic.
So no edge of a zone, no pole and no antimeridian is special to an interpolation.

Positions are counted in nodes and rounded to 2⁻²⁸ of a node (less than a millimetre), so that adding whole
turns to them is exact: a point has one position whatever window it is part of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Edges of zones on either side of the equator, degrees. Within one, circles shrink by a third to a half.
EDGES = (45.0, 60.0, 70.0, 75.5, 79.0, 82.0, 84.0, 86.0, 87.5)
_POSITION_STEPS = 2.0**28  # a node


@dataclass(frozen=True)
class Zone:
    """A latitude band [south, north) with its own lattice; the northernmost one includes its north edge."""

    south: float
    north: float
    rows: int  # intervals between the poles
    columns: int  # nodes around a circle of latitude
    order: int  # nodes of the interpolation along each axis

    @property
    def lat_step(self) -> float:
        """Degrees between rows."""
        return 180.0 / self.rows

    @property
    def lon_step(self) -> float:
        """Degrees between columns."""
        return 360.0 / self.columns

    def row_positions(self, lat: np.ndarray) -> np.ndarray:
        """Latitudes counted in nodes from the south pole."""
        return _rounded((lat + 90.0) * (self.rows / 180.0))

    def column_positions(self, lon: np.ndarray) -> np.ndarray:
        """Longitudes counted in nodes from −180° eastward, within one turn: [0, columns)."""
        with np.errstate(invalid="ignore"):
            position = _rounded(np.mod(lon + 180.0, 360.0) * (self.columns / 360.0))
            return np.where(position >= self.columns, position - self.columns, position)

    def node_lat(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latitudes of rows of nodes, and whether each lies beyond a pole, half a turn on."""
        lat = rows * 180.0 / self.rows - 90.0
        beyond = np.abs(lat) > 90.0
        return np.where(beyond, np.copysign(180.0, lat) - lat, lat), beyond

    def node_lon(self, columns: np.ndarray) -> np.ndarray:
        """Longitudes of columns of nodes, the same for the same node on any turn."""
        return np.mod(columns, self.columns) * 360.0 / self.columns - 180.0

    def stencil_range(self, low: float, high: float) -> range:
        """Nodes that stencils of positions low..high need."""
        half = self.order // 2
        return range(math.floor(low) - half + 1, math.floor(high) + half + 1)

    @property
    def row_range(self) -> range:
        """Rows of nodes that the zone's points need."""
        low, high = self.row_positions(np.array([self.south, self.north]))
        return self.stencil_range(float(low), float(high))

    def as_dict(self) -> dict[str, Any]:
        return {
            "south": self.south,
            "north": self.north,
            "rows": self.rows,
            "columns": self.columns,
            "order": self.order,
        }


def _rounded(position: np.ndarray) -> np.ndarray:
    return np.rint(position * _POSITION_STEPS) / _POSITION_STEPS


def circle_nodes(lat: np.ndarray | float, spacing: float, order: int) -> np.ndarray:
    """Nodes around a circle of the zone that holds a latitude (without its sign), before rounding.

    Near a pole, where circles are short, a field still has a few waves around them: more nodes than their
    length asks for.
    """
    edge = np.array([0.0, *EDGES])[np.searchsorted(EDGES, lat, side="right")]
    return 360.0 / spacing * np.cos(np.radians(edge)) + 4 * order


def zone_edges(spacing: float, order: int) -> list[float]:
    """Edges in the north that make zones worth having: none lower than the rows that stencils reach beyond
    it, which are evaluated for it alone."""
    edges, last = [], 0.0
    for edge in EDGES:
        if edge - last >= order * spacing and 90.0 - edge >= order * spacing / 2:
            edges.append(edge)
            last = edge
    return edges


def make_zones(spacing: float, order: int, south: float = -90.0, north: float = 90.0) -> tuple[Zone, ...]:
    """Zones between two latitudes whose nodes are at most `spacing` degrees of a great circle apart."""
    north_edges = zone_edges(spacing, order)
    edges = sorted({*(-edge for edge in north_edges), *north_edges})
    rows = max(order, math.ceil(180.0 / spacing - 1e-9))
    zones = []
    for low, high in zip([-90.0, *edges], [*edges, 90.0], strict=True):
        if high <= south < 90.0 or low > north:
            continue
        nearest = 0.0 if low < 0.0 < high else min(abs(low), abs(high))
        columns = math.ceil(float(circle_nodes(nearest, spacing, order)) - 1e-9)
        zones.append(Zone(low, high, rows, columns, order))
    return tuple(zones)


def zone_of(zones: Sequence[Zone], lat: np.ndarray) -> np.ndarray:
    """Index of the zone that answers for each latitude; −1 for NaN and what lies outside all zones."""
    edges = np.array([zone.south for zone in zones])
    number = np.searchsorted(edges, lat, side="right") - 1
    with np.errstate(invalid="ignore"):
        inside = (lat >= edges[0]) & ((lat < zones[-1].north) | ((zones[-1].north == 90.0) & (lat <= 90.0)))
    return np.where(inside, number, -1)

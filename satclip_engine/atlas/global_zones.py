"""The lattice of an atlas: zones for the whole Earth, with as few nodes as a tolerance allows."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from satclip_engine.backends.protocols import Prepared
from satclip_engine.lattice import convergence
from satclip_engine.lattice.sampling import Globe
from satclip_engine.lattice.zones import Zone, make_zones

# The convergence probe leaves a margin of 4. An atlas is written once and its failing zones are refined, so
# that it may begin where about half of them fail: an order of 8 saves a fifth of all nodes by that.
_PROBE_LENIENCE = 2.5
_TARGET_SHARE = 0.75  # of the tolerance, for which a refined zone is made
_MIN_REFINEMENT, _MAX_REFINEMENT = 1.03, 3.0  # of a zone at once


def first_zones(
    network: Prepared, tolerance: np.ndarray, threads: int | None
) -> tuple[tuple[Zone, ...], np.ndarray]:
    """A lattice that about keeps the tolerance, (E,) in the bands' units, and (k, 2) points that err most.

    No zones where the field is too rough for it at any spacing.
    """
    errors = convergence.measure(network, Globe().draw(24, 2), _PROBE_LENIENCE * tolerance, threads)
    # An interpolation of twice the order takes longer, and reaches further into chunks that must be read.
    choices = {
        order: merged(make_zones(spacing, order))
        for order, spacing in errors.spacing.items()
        if order >= 8 or max(errors.spacing) < 8
    }
    costs = {order: count_nodes(zones) * order**0.5 for order, zones in choices.items()}
    return (choices[min(costs, key=lambda order: costs[order])] if costs else ()), errors.worst


def count_nodes(zones: Sequence[Zone]) -> int:
    """Number of nodes that a file of these zones holds."""
    return sum(len(zone.row_range) * zone.columns for zone in zones)


def merged(zones: Sequence[Zone]) -> tuple[Zone, ...]:
    """The same with neighbours joined where that takes fewer nodes: between zones, `order` rows are stored
    twice; in one, short circles have as many nodes as long ones."""
    fewest = list(zones)
    while len(fewest) > 1:
        pairs = [_joined(south, north) for south, north in itertools.pairwise(fewest)]
        gains = [count_nodes(fewest[k : k + 2]) - count_nodes([both]) for k, both in enumerate(pairs)]
        best = max(range(len(pairs)), key=lambda k: gains[k])
        if gains[best] <= 0:
            break
        fewest[best : best + 2] = [pairs[best]]
    return tuple(fewest)


def _joined(south: Zone, north: Zone) -> Zone:
    rows, columns = max(south.rows, north.rows), max(south.columns, north.columns)
    return Zone(south.south, north.north, rows, columns, south.order)


def refined(zone: Zone, error: float, rounding: float, enough: float) -> Zone:
    """A finer zone where the error was larger than enough; all in tolerances. Rounding stays as it is."""
    if error <= enough:
        return zone
    stays = min(rounding, 0.5 * _TARGET_SHARE)  # a bound that is hardly ever reached
    ratio = (error - stays) / (_TARGET_SHARE - stays)
    factor = min(_MAX_REFINEMENT, max(_MIN_REFINEMENT, ratio ** (1.5 / zone.order)))
    return dataclasses.replace(
        zone, rows=math.ceil(zone.rows * factor), columns=math.ceil(zone.columns * factor)
    )


def zone_positions(zones: Sequence[Zone], per_zone: int, seed: int) -> np.ndarray:
    """Positions in every zone, uniform by area: small zones are measured as closely as large ones."""
    random = np.random.Generator(np.random.PCG64([seed, per_zone]))
    edges = np.sin(np.radians([[zone.south, zone.north] for zone in zones]))
    x = random.uniform(edges[:, :1], edges[:, 1:], (len(zones), per_zone)).ravel()
    lat = np.degrees(np.arcsin(np.clip(x, -1.0, 1.0)))
    return np.stack([random.uniform(-180.0, 180.0, lat.size), lat], axis=-1)

"""How a job is computed: place by place, as a product grid, or from a lattice; chosen by cost, and said why.

tolerance ─► pilot: spacing by order ─► cheapest lattice ─► measured at fresh positions ─► refined, or not
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from satclip_engine import _C
from satclip_engine.backends.protocols import Prepared
from satclip_engine.errors import UsageError
from satclip_engine.lattice import convergence
from satclip_engine.lattice.certificate import Certificate, certify, positions_for
from satclip_engine.lattice.cost import Rates, measured_rates, rates_of
from satclip_engine.lattice.nodes import EncodedNodes
from satclip_engine.lattice.prepared import PreparedLattice
from satclip_engine.lattice.sampling import Region, caps, near
from satclip_engine.lattice.tolerance import Tolerance
from satclip_engine.lattice.zones import Zone, make_zones, zone_of

LEAST = 100_000  # places: below, planning costs about as much as evaluating all of them
_ROUNDS = 4  # of measuring and refining
_ENOUGH = 0.5  # of the tolerance, where it is measured: elsewhere a few positions err by more
_PAYS = 0.8  # of the exact path's time at most
_SKETCH = 4096  # positions that tell where nodes are needed
_TILE = 64  # nodes along a square's side, as far as they are counted
_FURTHER = 128  # positions near the pilot's worst, and as many near the poles
_CHUNK = 256  # check positions whose stencils are evaluated at once

POINTS, GRID, LATTICE = "points", "product grid", "lattice"


# Tags of a raster whose pixels are not interpolated.
EXACT_TAGS = {"reconstruction": "none: every pixel is evaluated"}


@dataclass(frozen=True, eq=False)
class Plan:
    """What was chosen for a job, and why."""

    path: str  # points, product grid or lattice
    reason: str
    seconds: dict[str, float]  # by path as far as considered, of the cost model; see `predicted`
    tolerance: Tolerance | None = None
    zones: tuple[Zone, ...] = ()
    spacing: float = math.nan  # degrees of a great circle, the widest of any zone
    order: int = 0
    nodes: int = 0  # that are evaluated
    certificate: Certificate | None = None
    pilot: tuple[tuple[int, float, float], ...] = field(default=(), repr=False)  # order, spacing, error

    @property
    def interpolates(self) -> bool:
        return self.path == LATTICE

    @property
    def token(self) -> str:
        """Identifies the lattice: what decides the bits beside the network."""
        zones = json.dumps([zone.as_dict() for zone in self.zones])
        return hashlib.sha256(zones.encode()).hexdigest()[:16] if self.interpolates else "exact"

    def check(self, *, exact: bool, tolerance: float | None) -> None:
        """Raises UsageError where an encoder that keeps this plan cannot do as it is asked."""
        if exact and self.interpolates:
            raise UsageError(
                "exact: this encoder interpolates by a plan of its own, measured already; leave it out",
                argument="exact",
            )

    def network(self, exact: Prepared, cache_bytes: int | None = None) -> Prepared:
        """The network that computes by this plan."""
        if not self.interpolates:
            return exact
        size = {} if cache_bytes is None else {"cache_bytes": cache_bytes}
        return PreparedLattice(exact, self.zones, EncodedNodes(exact, self.zones, **size), token=self.token)

    @property
    def tags(self) -> dict[str, str]:
        """For a raster's metadata: how it was computed, and the error that was found."""
        if self.certificate is None:
            return EXACT_TAGS
        return {**self.certificate.tags(), "reconstruction_lattice": self._lattice}

    @property
    def _lattice(self) -> str:
        return f"{self.spacing:.6g} degrees, order {self.order}"

    def attributes(self) -> dict[str, Any]:
        """What an array computed by it says about itself; nothing when it is exact."""
        found = self.certificate
        if found is None:
            return {}
        return {
            "reconstruction": found.statement,
            "reconstruction_lattice": self._lattice,
            "reconstruction_max_sigma": found.max_sigma,
            "reconstruction_rms_sigma": found.rms_sigma,
            "reconstruction_min_cosine": found.min_cosine,
            "reconstruction_positions": found.positions + found.further,
            "reconstruction_fraction_beyond": found.fraction,
            "reconstruction_confidence": found.confidence,
        }

    @property
    def band_errors(self) -> dict[str, np.ndarray]:
        """Largest and root mean square error of each band in its unit, (E,); nothing when it is exact."""
        found = self.certificate
        if found is None:
            return {}
        return {
            "reconstruction_max_error": found.max_error,
            "reconstruction_rms_error": found.rms_error,
        }

    def summary(self) -> dict[str, Any]:
        """What a report says, for JSON."""
        content = self.as_dict()
        del content["zones"], content["pilot"]
        if self.tolerance is not None:
            content["tolerance"] = self.tolerance.text
        if self.certificate is not None:
            content["certificate"] = {**self.certificate.as_dict(), "statement": self.certificate.statement}
        return content

    def of_bands(self, index: np.ndarray) -> Plan:
        """The same plan for some of the bands."""
        tolerance, certificate = self.tolerance, self.certificate
        return dataclasses.replace(
            self,
            tolerance=None if tolerance is None else tolerance.of_bands(index),
            certificate=None if certificate is None else certificate.of_bands(index),
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        content["zones"] = [zone.as_dict() for zone in self.zones]
        content["certificate"] = None if self.certificate is None else self.certificate.as_dict()
        content["tolerance"] = None if self.tolerance is None else self.tolerance.as_dict()
        content["spacing"] = None if math.isnan(self.spacing) else self.spacing
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Plan:
        certificate, tolerance = content["certificate"], content["tolerance"]
        return cls(
            **{
                **content,
                "zones": tuple(Zone(**zone) for zone in content["zones"]),
                "certificate": None if certificate is None else Certificate.from_dict(certificate),
                "tolerance": None if tolerance is None else Tolerance.from_dict(tolerance),
                "spacing": math.nan if content["spacing"] is None else content["spacing"],
                "pilot": tuple(tuple(row) for row in content["pilot"]),
            }
        )


def predicted(plan: Plan, network: Prepared, region: Region, threads: int) -> dict[str, float]:
    """Seconds by path on this machine, as far as the plan considered it."""
    rates, order = measured_rates(network), plan.order or 8
    exact = POINTS if region.single else GRID
    seconds = {exact: region.count / (rates.points if region.single else rates.grid) / threads}
    if plan.nodes:
        seconds[LATTICE] = _lattice_seconds(plan.nodes, order, region, rates) / threads
    return seconds


def exact_plan(region: Region, reason: str, seconds: dict[str, float] | None = None) -> Plan:
    """A plan that never interpolates."""
    return Plan(POINTS if region.single else GRID, reason, seconds or {})


def make_plan(
    network: Prepared,
    region: Region,
    tolerance: Tolerance,
    *,
    threads: int,
    cache_bytes: int | None = None,
    positions: int | None = None,
) -> tuple[Plan, Prepared]:
    """Choose for a region, and prepare what computes by it; the nodes that measuring evaluated are kept.

    positions: where the error is measured; default by the number of places.
    """
    if region.count < LEAST:
        return exact_plan(region, f"fewer than {LEAST:,} places"), network
    rates = rates_of(network)
    exact = GRID if not region.single else POINTS
    rate = rates.points if region.single else rates.grid
    seconds = {exact: region.count / rate / threads}
    sketch = region.draw(_SKETCH, 1)
    if not len(sketch):
        return exact_plan(region, "no place on Earth among those drawn", seconds), network
    # Of a raster that is mostly no place on Earth the sketch may have found more.
    starts = np.concatenate([region.draw(20, 2), sketch[:: len(sketch) // 20 + 1]])
    decay = convergence.measure(network, starts, tolerance.bands, threads)
    choice = _cheapest(decay, region, sketch, rates)
    if choice is None:
        reason = (
            f"the field is too rough for {tolerance.text}: the pilot's errors stay above it at any spacing"
        )
        return exact_plan(region, reason, seconds), network
    spacing, order = choice
    zones, missed = make_zones(spacing, order), np.empty((0, 2))
    for attempt in range(_ROUNDS):
        nodes = count_nodes(zones, sketch, region.count)
        seconds[LATTICE] = _lattice_seconds(nodes, order, region, rates) / threads
        if seconds[LATTICE] > _PAYS * seconds[exact]:
            reason = (
                f"a lattice for {tolerance.text} would need nodes every {_spacing(zones):.3g}°, "
                f"{nodes:,} of them for {region.count:,} places, and save too little"
            )
            plan = Plan(exact, reason, seconds, tolerance, order=order, nodes=nodes, pilot=decay.seen)
            return plan, network
        plan = Plan(LATTICE, "", seconds, tolerance, zones, _spacing(zones), order, nodes, pilot=decay.seen)
        certificate, zone_errors, missed, prepared = _measured(
            plan, network, region, decay.worst, missed, threads, attempt, cache_bytes, positions
        )
        if certificate.max_tolerance <= _ENOUGH:
            reason = (
                f"the field is smooth: nodes every {plan.spacing:.3g}° "
                f"({nodes:,} for {region.count:,} places) and {order} of them along each axis "
                f"meet {tolerance.text}"
            )
            return dataclasses.replace(plan, reason=reason, certificate=certificate), prepared
        zones = tuple(_refined(zone, zone_errors.get(k, 0.0)) for k, zone in enumerate(zones))
    reason = f"{_ROUNDS} lattices, each finer, did not meet {tolerance.text} where they were measured"
    return Plan(exact, reason, seconds, tolerance, pilot=decay.seen), network


def _cheapest(
    decay: convergence.Decay, region: Region, sketch: np.ndarray, rates: Rates
) -> tuple[float, int] | None:
    """Spacing and order of the lattice that takes the least time."""
    costs = {}
    for order, spacing in decay.spacing.items():
        nodes = count_nodes(make_zones(spacing, order), sketch, region.count)
        costs[order] = _lattice_seconds(nodes, order, region, rates)
    if not costs:
        return None
    order = min(costs, key=lambda key: (costs[key], key))
    return decay.spacing[order], order


def _lattice_seconds(nodes: int, order: int, region: Region, rates: Rates) -> float:
    return nodes / rates.grid + region.count / rates.resampled(order, single=region.single)


def _spacing(zones: Sequence[Zone]) -> float:
    return max(zone.lat_step for zone in zones)


def count_nodes(zones: Sequence[Zone], places: np.ndarray, count: int) -> int:
    """About how many nodes serve a region of `count` places, of which some are given: squares of nodes that
    all of them touch, or the box around them where that is smaller."""
    total = 0
    number = zone_of(zones, places[:, 1])
    for k in np.unique(number[number >= 0]):
        zone, here = zones[k], places[number == k]
        row, column = zone.row_positions(here[:, 1]), zone.column_positions(here[:, 0])
        away = column - column[0]
        turned = away - zone.columns * np.rint(away / zone.columns)
        high = min(np.ptp(turned) + zone.order, zone.columns)
        box = (np.ptp(row) + zone.order) * high
        seen = np.unique((row // _TILE) * (1 << 32) + column // _TILE, return_counts=True)[1]
        once, twice = np.count_nonzero(seen == 1), np.count_nonzero(seen == 2)
        # Chao's estimate; where many squares were seen and none of them twice there is no telling.
        unseen = once * (once - 1) / (2 * (twice + 1)) if twice or once < 16 else math.inf
        squares = min(len(seen) + unseen, count * len(here) / len(places))
        total += int(min(box, squares * (_TILE + zone.order) ** 2))
    return total


def _measured(
    plan: Plan,
    network: Prepared,
    region: Region,
    worst: np.ndarray,
    missed: np.ndarray,
    threads: int,
    attempt: int,
    cache_bytes: int | None,
    positions: int | None,
) -> tuple[Certificate, dict[int, float], np.ndarray, Prepared]:
    """The certificate of a lattice, the largest error in each zone in tolerances, and places beyond them.

    missed: such places of the lattice before, which fresh positions alone might not find again.
    """
    assert plan.tolerance is not None
    prepared = plan.network(network, cache_bytes)
    assert isinstance(prepared, PreparedLattice)
    drawn = region.draw(positions or positions_for(region.count), 100 + attempt)
    further = np.concatenate(
        [
            caps(region, _FURTHER, 200 + attempt),
            near(worst, 2 * plan.spacing, _FURTHER // max(1, len(worst)), 300 + attempt),
            missed,
        ]
    )
    alone = (len(drawn) + len(further)) * plan.order**2 < plan.nodes

    def reconstructed(places: np.ndarray) -> np.ndarray:
        if alone:
            return reconstruct_alone(network, plan.zones, places, threads)
        return prepared.encode(places, threads=threads)

    certificate, each = certify(
        lambda places: network.encode(places, threads=threads),
        reconstructed,
        drawn,
        further,
        plan.tolerance.sigma,
        plan.tolerance.bands,
        rounds=_ROUNDS,
    )
    places = np.concatenate([drawn, further])
    number = zone_of(plan.zones, places[:, 1])
    zone_errors = {int(k): float(each[number == k].max()) for k in np.unique(number)}
    return certificate, zone_errors, places[each > 1][-_FURTHER:], prepared


def reconstruct_alone(
    network: Prepared, zones: Sequence[Zone], places: np.ndarray, threads: int
) -> np.ndarray:
    """The lattice's answer at a few places far apart, evaluating the nodes of each stencil and no others."""
    out = np.empty((len(places), network.layers.embed_dim), np.float32)
    number = zone_of(zones, places[:, 1])
    for k in np.unique(number):
        some = np.flatnonzero(number == k)
        for begin in range(0, some.size, _CHUNK):
            part = some[begin : begin + _CHUNK]
            if k < 0:
                out[part] = network.encode(np.ascontiguousarray(places[part]), threads=threads)
            else:
                out[part] = _stencils(network, zones[k], places[part], threads)
    return out


def _stencils(network: Prepared, zone: Zone, places: np.ndarray, threads: int) -> np.ndarray:
    order = zone.order
    row, column = zone.row_positions(places[:, 1]), zone.column_positions(places[:, 0])
    offsets = np.arange(order) - order // 2 + 1
    rows, columns = np.floor(row)[:, None] + offsets, np.floor(column)[:, None] + offsets
    lat, beyond = zone.node_lat(rows)
    lon = zone.node_lon(columns)[:, None, :] + 180.0 * beyond[:, :, None]
    nodes = np.stack(np.broadcast_arrays(lon, lat[:, :, None]), axis=-1).reshape(-1, 2)
    unique, inverse = np.unique(nodes, axis=0, return_inverse=True)
    values = network.encode(unique, threads=threads)[inverse.ravel()]
    lattice = values.reshape(len(places) * order, order, -1)
    out = np.empty((len(places), lattice.shape[2]), np.float32)
    # Each place has a lattice of its own, one below the other.
    at = np.arange(len(places)) * order + order // 2 - 1 + (row - np.floor(row))
    _C.resample_points(
        lattice, at, order // 2 - 1 + (column - np.floor(column)), out, order=order, threads=threads
    )
    return out


def _refined(zone: Zone, error: float) -> Zone:
    """A finer zone where the error was too large, in tolerances."""
    if error <= _ENOUGH:
        return zone
    factor = min(3.0, max(1.15, (2.0 * error) ** (2.0 / zone.order)))
    return dataclasses.replace(
        zone, rows=math.ceil(zone.rows * factor), columns=math.ceil(zone.columns * factor)
    )

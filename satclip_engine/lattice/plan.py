"""Chooses pointwise, product-grid or lattice evaluation by estimated cost and records the reason.

tolerance ─► convergence probe: spacing by order ─► cheapest lattice ─► measured at fresh positions ─► refined
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from satclip_engine import _C
from satclip_engine.backends.protocols import Call, Prepared
from satclip_engine.lattice import convergence
from satclip_engine.lattice.certificate import Certificate, certify, positions_for
from satclip_engine.lattice.cost import Rates, measured_rates, rates_of
from satclip_engine.lattice.nodes import EncodedNodes
from satclip_engine.lattice.prepared import PreparedLattice
from satclip_engine.lattice.sampling import SamplingRegion, nearby_positions, polar_positions
from satclip_engine.lattice.tolerance import Tolerance
from satclip_engine.lattice.zones import Zone, make_zones, zone_of

MIN_POINTS = 100_000  # below, planning costs about as much as evaluating all of them
_REFINEMENT_ROUNDS = 4  # of measuring and refining
_SAFETY = 0.5  # of the tolerance, where it is measured: elsewhere a few positions err by more
_MAX_COST_RATIO = 0.8  # of the exact path's time
_SKETCH_POINTS = 4096  # that tell where nodes are needed
_SQUARE_NODES = 64  # along a square's side, as far as they are counted
_EXTRA_POSITIONS = 128  # near the probe's worst, and as many near the poles
_CHUNK_POSITIONS = 256  # whose stencils are evaluated at once

POINTS, GRID, LATTICE = "points", "product grid", "lattice"
# Tags of a raster whose pixels are not interpolated.
EXACT_TAGS = {"reconstruction": "none: every pixel is evaluated"}


@dataclass(frozen=True, eq=False)
class Plan:
    """Path chosen for a job, and the reason."""

    path: str  # points, product grid or lattice
    reason: str
    seconds: dict[str, float]  # by path as far as considered, of the cost model; see `predicted`
    tolerance: Tolerance | None = None
    zones: tuple[Zone, ...] = ()
    spacing: float = math.nan  # degrees of a great circle, the widest of any zone
    order: int = 0
    nodes: int = 0  # that are evaluated
    certificate: Certificate | None = None
    probe: tuple[tuple[int, float, float], ...] = field(default=(), repr=False)  # order, spacing, error

    @property
    def interpolates(self) -> bool:
        """True for a lattice."""
        return self.path == LATTICE

    @property
    def token(self) -> str:
        """Identifies the lattice, which decides the bits beside the network."""
        zones = json.dumps([zone.as_dict() for zone in self.zones])
        return hashlib.sha256(zones.encode()).hexdigest()[:16] if self.interpolates else "exact"

    def prepare(self, network: Prepared, cache_bytes: int | None = None) -> Prepared:
        """Prepare an exact network to compute by this plan."""
        if not self.interpolates:
            return network
        return PreparedLattice(network, self.zones, EncodedNodes(network, self.zones, cache_bytes))

    @property
    def tags(self) -> dict[str, str]:
        """For a raster's metadata: the way it was computed, and the error as measured."""
        if self.certificate is None:
            return EXACT_TAGS
        return {**self.certificate.tags(), "reconstruction_lattice": self._lattice}

    @property
    def _lattice(self) -> str:
        return f"{self.spacing:.6g} degrees, order {self.order}"

    def attributes(self) -> dict[str, Any]:
        """Attributes of an array computed by it; none when it is exact."""
        certificate = self.certificate
        if certificate is None:
            return {}
        return {
            "reconstruction": certificate.statement,
            "reconstruction_lattice": self._lattice,
            "reconstruction_max_sigma": certificate.max_sigma,
            "reconstruction_rms_sigma": certificate.rms_sigma,
            "reconstruction_min_cosine": certificate.min_cosine,
            "reconstruction_positions": certificate.positions + certificate.further,
            "reconstruction_fraction_beyond": certificate.fraction,
            "reconstruction_confidence": certificate.confidence,
        }

    @property
    def band_errors(self) -> dict[str, np.ndarray]:
        """Largest and root mean square error of each band in its unit, (E,); none when it is exact."""
        certificate = self.certificate
        if certificate is None:
            return {}
        return {
            "reconstruction_max_error": certificate.max_error,
            "reconstruction_rms_error": certificate.rms_error,
        }

    def summary(self) -> dict[str, Any]:
        """Contents of a report, for JSON."""
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
        content["pilot"] = content.pop("probe")  # its name in the state of interrupted runs
        content["zones"] = [zone.as_dict() for zone in self.zones]
        content["certificate"] = None if self.certificate is None else self.certificate.as_dict()
        content["tolerance"] = None if self.tolerance is None else self.tolerance.as_dict()
        content["spacing"] = None if math.isnan(self.spacing) else self.spacing
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Plan:
        fields = {name: value for name, value in content.items() if name != "pilot"}
        certificate, tolerance = content["certificate"], content["tolerance"]
        return cls(
            **{
                **fields,
                "zones": tuple(Zone(**zone) for zone in content["zones"]),
                "certificate": None if certificate is None else Certificate.from_dict(certificate),
                "tolerance": None if tolerance is None else Tolerance.from_dict(tolerance),
                "spacing": math.nan if content["spacing"] is None else content["spacing"],
                "probe": tuple(tuple(row) for row in content["pilot"]),
            }
        )


def predicted(plan: Plan, network: Prepared, region: SamplingRegion, threads: int) -> dict[str, float]:
    """Seconds by path on this machine, as far as the plan considered it."""
    rates, order = measured_rates(network), plan.order or 8
    exact = POINTS if region.single else GRID
    seconds = {exact: region.count / (rates.points if region.single else rates.grid) / threads}
    if plan.nodes:
        seconds[LATTICE] = _lattice_seconds(plan.nodes, order, region, rates) / threads
    return seconds


def exact_plan(region: SamplingRegion, reason: str, seconds: dict[str, float] | None = None) -> Plan:
    """A plan that never interpolates."""
    return Plan(POINTS if region.single else GRID, reason, seconds or {})


def can_pay(network: Prepared, region: SamplingRegion) -> bool:
    """False where even a lattice without nodes would save too little; costs no evaluation."""
    rates = rates_of(network)
    exact = rates.points if region.single else rates.grid
    fastest = rates.resampled(min(convergence.ORDERS), single=region.single)
    return region.count >= MIN_POINTS and exact <= _MAX_COST_RATIO * fastest


Probe = Callable[[np.ndarray, np.ndarray], convergence.Convergence]


def make_plan(
    network: Prepared,
    region: SamplingRegion,
    tolerance: Tolerance,
    *,
    threads: int,
    cache_bytes: int | None = None,
    positions: int | None = None,
    probe: Probe | None = None,
) -> tuple[Plan, Prepared]:
    """Choose for a region, and prepare what computes by it; nodes evaluated for measuring stay cached.

    positions: where the error is measured; default by the number of points. probe: as `convergence.measure`
        of these points and this tolerance.
    """
    if region.count < MIN_POINTS:
        return exact_plan(region, f"fewer than {MIN_POINTS:,} points"), network
    rates = rates_of(network)
    exact = GRID if not region.single else POINTS
    rate = rates.points if region.single else rates.grid
    seconds = {exact: region.count / rate / threads}
    sketch = region.draw(_SKETCH_POINTS, 1)
    if not len(sketch):
        return exact_plan(region, "no point on Earth among those drawn", seconds), network
    # Of a raster that lies mostly outside its CRS's domain the sketch may have met more.
    starts = np.concatenate([region.draw(20, 2), sketch[:: len(sketch) // 20 + 1]])
    if probe is None:
        errors = convergence.measure(network, starts, tolerance.bands, threads)
    else:
        errors = probe(starts, tolerance.bands)
    choice = _cheapest(errors, region, sketch, rates)
    if choice is None:
        reason = (
            f"the field is too rough for {tolerance.text}: the probe's errors stay above it at any spacing"
        )
        return exact_plan(region, reason, seconds), network
    spacing, order = choice
    zones, missed = make_zones(spacing, order), np.empty((0, 2))
    for attempt in range(_REFINEMENT_ROUNDS):
        nodes = count_nodes(zones, sketch, region.count)
        seconds[LATTICE] = _lattice_seconds(nodes, order, region, rates) / threads
        if seconds[LATTICE] > _MAX_COST_RATIO * seconds[exact]:
            reason = (
                f"a lattice for {tolerance.text} would need nodes every {_spacing(zones):.3g}°, "
                f"{nodes:,} of them for {region.count:,} points, and save too little"
            )
            plan = Plan(exact, reason, seconds, tolerance, order=order, nodes=nodes, probe=errors.errors)
            return plan, network
        plan = Plan(
            LATTICE, "", seconds, tolerance, zones, _spacing(zones), order, nodes, probe=errors.errors
        )
        certificate, zone_errors, missed, prepared = _measured(
            plan, network, region, errors.worst, missed, threads, attempt, cache_bytes, positions
        )
        if certificate.max_tolerance <= _SAFETY:
            reason = (
                f"the field is smooth: nodes every {plan.spacing:.3g}° "
                f"({nodes:,} for {region.count:,} points) and {order} of them along each axis "
                f"meet {tolerance.text}"
            )
            return dataclasses.replace(plan, reason=reason, certificate=certificate), prepared
        zones = tuple(_refined(zone, zone_errors.get(k, 0.0)) for k, zone in enumerate(zones))
    reason = (
        f"{_REFINEMENT_ROUNDS} lattices, each finer, did not meet {tolerance.text} where they were measured"
    )
    return Plan(exact, reason, seconds, tolerance, probe=errors.errors), network


def _cheapest(
    errors: convergence.Convergence, region: SamplingRegion, sketch: np.ndarray, rates: Rates
) -> tuple[float, int] | None:
    """Spacing and order of the lattice that takes the least time."""
    costs = {}
    for order, spacing in errors.spacing.items():
        nodes = count_nodes(make_zones(spacing, order), sketch, region.count)
        costs[order] = _lattice_seconds(nodes, order, region, rates)
    if not costs:
        return None
    order = min(costs, key=lambda key: (costs[key], key))
    return errors.spacing[order], order


def _lattice_seconds(nodes: int, order: int, region: SamplingRegion, rates: Rates) -> float:
    return nodes / rates.grid + region.count / rates.resampled(order, single=region.single)


def _spacing(zones: Sequence[Zone]) -> float:
    return max(zone.lat_step for zone in zones)


def count_nodes(zones: Sequence[Zone], sketch: np.ndarray, count: int) -> int:
    """About how many nodes serve a region of `count` points, some of which are sketched: squares of nodes
    that all of them touch, or the box around them where that is smaller."""
    total = 0
    number = zone_of(zones, sketch[:, 1])
    for k in np.unique(number[number >= 0]):
        zone, points = zones[k], sketch[number == k]
        row, column = zone.row_positions(points[:, 1]), zone.column_positions(points[:, 0])
        difference = column - column[0]
        unwrapped = difference - zone.columns * np.rint(difference / zone.columns)
        high = min(np.ptp(unwrapped) + zone.order, zone.columns)
        box = (np.ptp(row) + zone.order) * high
        square = (row // _SQUARE_NODES) * (1 << 32) + column // _SQUARE_NODES
        hits = np.unique(square, return_counts=True)[1]
        once, twice = np.count_nonzero(hits == 1), np.count_nonzero(hits == 2)
        # Chao's estimate; where many squares were hit and none of them twice there is no telling.
        unseen = once * (once - 1) / (2 * (twice + 1)) if twice or once < 16 else math.inf
        squares = min(len(hits) + unseen, count * len(points) / len(sketch))
        total += int(min(box, squares * (_SQUARE_NODES + zone.order) ** 2))
    return total


def _measured(
    plan: Plan,
    network: Prepared,
    region: SamplingRegion,
    worst: np.ndarray,
    missed: np.ndarray,
    threads: int,
    attempt: int,
    cache_bytes: int | None,
    positions: int | None,
) -> tuple[Certificate, dict[int, float], np.ndarray, Prepared]:
    """The certificate of a lattice, the largest error in each zone in tolerances, and points beyond them.

    missed: such points of the lattice before, which fresh positions alone might not meet again.
    """
    assert plan.tolerance is not None
    prepared, call = plan.prepare(network, cache_bytes), Call(threads)
    drawn = region.draw(positions or positions_for(region.count), 100 + attempt)
    near_worst = nearby_positions(
        worst, 2 * plan.spacing, _EXTRA_POSITIONS // max(1, len(worst)), 300 + attempt
    )
    further = np.concatenate([polar_positions(region, _EXTRA_POSITIONS, 200 + attempt), near_worst, missed])
    alone = (len(drawn) + len(further)) * plan.order**2 < plan.nodes

    def reconstructed(points: np.ndarray) -> np.ndarray:
        if alone:
            return reconstruct_alone(network, plan.zones, points, threads)
        return prepared.encode(points, call=call)

    certificate, of_tolerance = certify(
        lambda points: network.encode(points, call=call),
        reconstructed,
        drawn,
        further,
        plan.tolerance.sigma,
        plan.tolerance.bands,
        rounds=_REFINEMENT_ROUNDS,
    )
    points = np.concatenate([drawn, further])
    number = zone_of(plan.zones, points[:, 1])
    zone_errors = {int(k): float(of_tolerance[number == k].max()) for k in np.unique(number)}
    return certificate, zone_errors, points[of_tolerance > 1][-_EXTRA_POSITIONS:], prepared


def reconstruct_alone(
    network: Prepared, zones: Sequence[Zone], points: np.ndarray, threads: int
) -> np.ndarray:
    """The lattice's answer at a few points far apart, evaluating the nodes of each stencil and no others."""
    out = np.empty((len(points), network.embed_dim), np.float32)
    number = zone_of(zones, points[:, 1])
    for k in np.unique(number):
        inside = np.flatnonzero(number == k)
        for begin in range(0, inside.size, _CHUNK_POSITIONS):
            chunk = inside[begin : begin + _CHUNK_POSITIONS]
            if k < 0:
                out[chunk] = network.encode(np.ascontiguousarray(points[chunk]), call=Call(threads))
            else:
                out[chunk] = _stencils(network, zones[k], points[chunk], threads)
    return out


def _stencils(network: Prepared, zone: Zone, points: np.ndarray, threads: int) -> np.ndarray:
    order = zone.order
    row, column = zone.row_positions(points[:, 1]), zone.column_positions(points[:, 0])
    offsets = np.arange(order) - order // 2 + 1
    rows, columns = np.floor(row)[:, None] + offsets, np.floor(column)[:, None] + offsets
    lat, beyond = zone.node_lat(rows)
    lon = zone.node_lon(columns)[:, None, :] + 180.0 * beyond[:, :, None]
    nodes = np.stack(np.broadcast_arrays(lon, lat[:, :, None]), axis=-1).reshape(-1, 2)
    unique, inverse = np.unique(nodes, axis=0, return_inverse=True)
    values = network.encode(unique, call=Call(threads))[inverse.ravel()]
    lattice = values.reshape(len(points) * order, order, -1)
    out = np.empty((len(points), lattice.shape[2]), np.float32)
    # Each point has a lattice of its own, one below the other.
    position = np.arange(len(points)) * order + order // 2 - 1 + (row - np.floor(row))
    _C.resample_points(
        lattice, position, order // 2 - 1 + (column - np.floor(column)), out, order=order, threads=threads
    )
    return out


def _refined(zone: Zone, error: float) -> Zone:
    """A finer zone where the error was too large, in tolerances."""
    if error <= _SAFETY:
        return zone
    factor = min(3.0, max(1.15, (2.0 * error) ** (2.0 / zone.order)))
    return dataclasses.replace(
        zone, rows=math.ceil(zone.rows * factor), columns=math.ceil(zone.columns * factor)
    )

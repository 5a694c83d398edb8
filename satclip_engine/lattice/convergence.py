"""Convergence probe: an interpolation's error against the spacing of its nodes, from lines across the field.

Lines of points run north and east from locations of the region. Their even points stand for nodes, the odd
ones between are held out: halfway between nodes, where Lagrange's interpolation errs most. One line shows
several spacings, taking every second or third point for a node. In this way errors are followed until they
pass the tolerance; the spacing where they do is read off the line through them in the logarithms.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from satclip_engine.backends.protocols import Call, Prepared
from satclip_engine.lattice.zones import circle_nodes

ORDERS = (4, 6, 8, 10, 12)
_ERROR_MARGIN = 4.0  # both axes err, and worse points will be met: at order 8 it costs a sixth of the spacing
_LINE_POINTS = 48
_FIRST_LINES, _WORST_LINES = 20, 6  # locations probed at first, and the worst of them probed again
_HELD_OUT, _STRIDES = 4, 3  # points of a line that are compared, spread over it; spacings that one shows
_PROBE_ROUNDS = 6
_START_DEGREES = 20.0  # over L: about where weights of moderate size need their nodes
_FINEST_DEGREES = 1e-4  # 10 m


@dataclass(frozen=True)
class Convergence:
    """Errors against spacings. Spacings are degrees of a great circle, errors in tolerances."""

    spacing: dict[int, float]  # the widest that should do, by order; none where nothing does
    errors: tuple[tuple[int, float, float], ...]  # order, spacing, largest error
    worst: np.ndarray  # (k, 2) longitude and latitude where it erred most


def measure(network: Prepared, points: np.ndarray, tolerance: np.ndarray, threads: int | None) -> Convergence:
    """Follow errors at up to 20 of the (n, 2) points to the tolerance, (E,) in the bands' units."""
    errors: dict[int, dict[float, float]] = {order: {} for order in ORDERS}
    points = points[:_FIRST_LINES]
    step = _START_DEGREES / network.degrees / 4
    worst = _probe(network, points, step, tolerance, threads, errors)
    for order in (8, 12, 10, 6, 4):
        for _ in range(_PROBE_ROUNDS):
            guess = _crossing(errors[order], order)
            if guess is None or guess < _FINEST_DEGREES:
                break
            spacings = sorted(errors[order])
            if spacings[0] * 0.99 <= guess <= spacings[-1] * 1.01 and _bracketed(errors[order], guess):
                break
            _probe(network, worst, guess / 3, tolerance, threads, errors)
    crossings = {order: _crossing(errors[order], order) for order in ORDERS}
    return Convergence(
        {
            order: spacing
            for order, spacing in crossings.items()
            if spacing is not None and spacing >= _FINEST_DEGREES
        },
        tuple((order, h, e) for order in ORDERS for h, e in sorted(errors[order].items())),
        worst,
    )


def _probe(
    network: Prepared,
    points: np.ndarray,
    step: float,
    tolerance: np.ndarray,
    threads: int | None,
    errors: dict[int, dict[float, float]],
) -> np.ndarray:
    """Add errors on lines of points `step` apart; the locations where they are largest."""
    step = min(step, 3.0)
    lines = np.concatenate([_line(points, step, north) for north in (True, False)])
    values = network.encode(lines.reshape(-1, 2), call=Call(threads)).reshape(*lines.shape[:2], -1)
    largest = np.zeros(len(points))
    for order in ORDERS:
        for stride in range(1, min(_STRIDES, (_LINE_POINTS // 2 - 1) // (order - 1)) + 1):
            of_lines = _errors(values, order, stride, tolerance)
            spacing = 2 * stride * step
            errors[order][spacing] = max(errors[order].get(spacing, 0.0), float(of_lines.max()))
            if order == 8:
                np.maximum(largest, of_lines.reshape(2, -1).max(axis=0), out=largest)
    return points[np.argsort(-largest)[:_WORST_LINES]]


def _line(points: np.ndarray, step: float, north: bool) -> np.ndarray:
    """Points along a meridian or circle of latitude through each, (n, _LINE_POINTS, 2); over poles too."""
    along = (np.arange(_LINE_POINTS) - _LINE_POINTS // 2) * step
    lon, lat = np.broadcast_arrays(points[:, :1], points[:, 1:])
    if not north:
        # As far apart as nodes of its zone are, which near a pole is less than a step along the circle.
        per_degree = circle_nodes(np.abs(points[:, 1:]), 2 * step, 8) / 360
        return np.stack(np.broadcast_arrays(lon + along / step / 2 / per_degree, lat), axis=-1)
    lat = lat + along
    beyond = np.abs(lat) > 90.0
    lat = np.where(beyond, np.copysign(180.0, lat) - lat, lat)
    return np.stack(np.broadcast_arrays(np.where(beyond, lon + 180.0, lon), lat), axis=-1)


@functools.lru_cache
def halfway(order: int) -> tuple[float, ...]:
    """Weights of the nodes from the middle outward, halfway between nodes."""
    nodes = np.arange(order)
    middle = (order - 1) / 2
    weights = [math.prod((middle - j) / (k - j) for j in nodes if j != k) for k in range(order // 2, order)]
    return tuple(float(w) for w in weights)


def _errors(values: np.ndarray, order: int, stride: int, tolerance: np.ndarray) -> np.ndarray:
    """Largest error of any band at the points held out of each line, in tolerances, (lines,)."""
    stencil = (order - 1) * stride
    middle = np.unique(np.linspace(stencil, _LINE_POINTS - 1 - stencil, _HELD_OUT).astype(int))
    error = values[:, middle].copy()
    for k, weight in enumerate(halfway(order)):
        distance = (2 * k + 1) * stride
        error -= np.float32(weight) * (values[:, middle - distance] + values[:, middle + distance])
    return (np.abs(error).max(axis=1) / tolerance).max(axis=1)


def _crossing(error_at: dict[float, float], order: int) -> float | None:
    """Spacing at which the error is the tolerance less its margin; None when the error never reaches it."""
    spacings = np.array(sorted(error_at))
    errors = np.maximum.accumulate(np.array([error_at[h] for h in spacings]))
    target = math.log(1 / _ERROR_MARGIN)
    log_h, log_e = np.log(spacings), np.log(np.maximum(errors, 1e-30))
    above = np.flatnonzero(log_e > target)
    if not above.size:
        k = len(spacings) - 1  # all are fine: how much wider?
        return float(spacings[k] * math.exp((target - log_e[k]) / _slope(log_h, log_e, order, k)))
    k = int(above[0])
    if k == 0:
        slope = _slope(log_h, log_e, order, 1)
        if len(spacings) > 2 and slope < 1.0:  # it does not fall any more: rounding
            return None
        return float(spacings[0] * math.exp((target - log_e[0]) / max(slope, 1.5)))
    share = (target - log_e[k - 1]) / (log_e[k] - log_e[k - 1])
    return float(math.exp(log_h[k - 1] + share * (log_h[k] - log_h[k - 1])))


def _slope(log_h: np.ndarray, log_e: np.ndarray, order: int, k: int) -> float:
    """The error's power of the spacing between neighbours k − 1 and k, clipped to a plausible range."""
    if k < 1 or k >= len(log_h):
        return order / 2
    return float(np.clip((log_e[k] - log_e[k - 1]) / (log_h[k] - log_h[k - 1]), 0.5, order + 2))


def _bracketed(error_at: dict[float, float], spacing: float) -> bool:
    """True where errors were measured on either side within a factor of two."""
    below = [h for h in error_at if h <= spacing * 1.0001]
    above = [h for h in error_at if h >= spacing * 0.9999]
    return bool(below and above) and min(above) <= 2.01 * max(below)

"""How fast an interpolation's error falls with the spacing of its nodes, from short lines across the field.

Lines of places run north and east from locations of the region. Their even places stand for nodes, the odd
ones between are held out: halfway between nodes, where Lagrange's interpolation errs most. One line shows
several spacings, taking every second or third place for a node. In this way errors are followed until they
pass the tolerance; the spacing where they do is read off the line through them in the logarithms.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from satclip_engine.backends.protocols import Prepared
from satclip_engine.lattice.zones import circle_nodes

ORDERS = (4, 6, 8, 10, 12)
MARGIN = 4.0  # both axes err, and worse places will be found: at order 8 it costs a sixth of the spacing
_LINE = 48  # places along a line
_FIRST, _LATER = 20, 6  # locations looked at first, and of those the worst ones looked at again
_HELD_OUT, _STRIDES = 4, 3  # places of a line that are compared, spread over it; spacings that one shows
_ROUNDS = 6
_START = 20.0  # degrees over L: about where weights of moderate size need their nodes
_FINEST = 1e-4  # degrees: 10 m


@dataclass(frozen=True)
class Decay:
    """What the pilot saw. Spacings are degrees of a great circle, errors in tolerances."""

    spacing: dict[int, float]  # the widest that should do, by order; none where nothing does
    seen: tuple[tuple[int, float, float], ...]  # order, spacing, largest error
    worst: np.ndarray  # (k, 2) longitude and latitude where it erred most


def measure(network: Prepared, places: np.ndarray, tolerance: np.ndarray, threads: int | None) -> Decay:
    """Follow errors at up to 20 of the (n, 2) places to the tolerance, (E,) in the bands' units."""
    seen: dict[int, dict[float, float]] = {order: {} for order in ORDERS}
    places = places[:_FIRST]
    step = _START / network.layers.degrees / 4
    worst = _look(network, places, step, tolerance, threads, seen)
    for order in (8, 12, 10, 6, 4):
        for _ in range(_ROUNDS):
            guess = _crossing(seen[order], order)
            if guess is None or guess < _FINEST:
                break
            spacings = sorted(seen[order])
            if spacings[0] * 0.99 <= guess <= spacings[-1] * 1.01 and _bracketed(seen[order], guess):
                break
            _look(network, worst, guess / 3, tolerance, threads, seen)
    found = {order: _crossing(seen[order], order) for order in ORDERS}
    return Decay(
        {order: value for order, value in found.items() if value is not None and value >= _FINEST},
        tuple((order, h, e) for order in ORDERS for h, e in sorted(seen[order].items())),
        worst,
    )


def _look(
    network: Prepared,
    places: np.ndarray,
    step: float,
    tolerance: np.ndarray,
    threads: int | None,
    seen: dict[int, dict[float, float]],
) -> np.ndarray:
    """Add errors on lines of places `step` apart; the locations where they are largest."""
    step = min(step, 3.0)
    lines = np.concatenate([_line(places, step, north) for north in (True, False)])
    values = network.encode(lines.reshape(-1, 2), threads=threads).reshape(*lines.shape[:2], -1)
    each = np.zeros(len(places))
    for order in ORDERS:
        for stride in range(1, min(_STRIDES, (_LINE // 2 - 1) // (order - 1)) + 1):
            errors = _errors(values, order, stride, tolerance)
            spacing = 2 * stride * step
            seen[order][spacing] = max(seen[order].get(spacing, 0.0), float(errors.max()))
            if order == 8:
                np.maximum(each, errors.reshape(2, -1).max(axis=0), out=each)
    return places[np.argsort(-each)[:_LATER]]


def _line(places: np.ndarray, step: float, north: bool) -> np.ndarray:
    """Places along a meridian or a circle of latitude through each, (n, _LINE, 2); over the poles too."""
    along = (np.arange(_LINE) - _LINE // 2) * step
    lon, lat = np.broadcast_arrays(places[:, :1], places[:, 1:])
    if not north:
        # As far apart as nodes of its zone are, which near a pole is less than a step along the circle.
        per_degree = circle_nodes(np.abs(places[:, 1:]), 2 * step, 8) / 360
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
    """Largest error of any band at the places held out of each line, in tolerances, (lines,)."""
    reach = (order - 1) * stride
    middle = np.unique(np.linspace(reach, _LINE - 1 - reach, _HELD_OUT).astype(int))
    off = values[:, middle].copy()
    for k, weight in enumerate(halfway(order)):
        away = (2 * k + 1) * stride
        off -= np.float32(weight) * (values[:, middle - away] + values[:, middle + away])
    return (np.abs(off).max(axis=1) / tolerance).max(axis=1)


def _crossing(seen: dict[float, float], order: int) -> float | None:
    """The spacing at which the error is the tolerance less its margin; None when it never falls so low."""
    spacings = np.array(sorted(seen))
    errors = np.maximum.accumulate(np.array([seen[h] for h in spacings]))
    target = math.log(1 / MARGIN)
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
    """The error's power of the spacing between neighbours k − 1 and k, as far as it is believable."""
    if k < 1 or k >= len(log_h):
        return order / 2
    return float(np.clip((log_e[k] - log_e[k - 1]) / (log_h[k] - log_h[k - 1]), 0.5, order + 2))


def _bracketed(seen: dict[float, float], spacing: float) -> bool:
    """Whether errors were seen on either side within a factor of two."""
    below = [h for h in seen if h <= spacing * 1.0001]
    above = [h for h in seen if h >= spacing * 0.9999]
    return bool(below and above) and min(above) <= 2.01 * max(below)

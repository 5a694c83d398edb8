"""Features of points, from which probes predict, as rows of the table.

Every row is a function of points [n, 2] (degrees, longitude first) and of a seed, which only untrained
encoders use; it can be pickled, so that processes share the rows among them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath

import numpy as np

from probing.geoclip import geoclip
from satclip_engine.encoder import load
from satclip_engine.errors import UsageError

Features = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Row:
    """A line of the table: its name and its features, (lonlat, seed) -> [n, d].

    sha256: of the weights, for rows that have some.
    """

    name: str
    features: Features
    sha256: str = ""


def lonlat_degrees(lonlat: np.ndarray, seed: int = 0) -> np.ndarray:  # [n, 2]
    """Longitude and latitude as they are; a cut at the date line and all."""
    return np.asarray(lonlat, np.float64)


def unit_vector(lonlat: np.ndarray, seed: int = 0) -> np.ndarray:  # [n, 3]
    """x towards 0° E, y towards 90° E, z towards the north pole."""
    lon, lat = np.radians(np.asarray(lonlat, np.float64)).T
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], 1)


def polynomial(lonlat: np.ndarray, seed: int = 0, *, degree: int = 3) -> np.ndarray:  # [n, 19]
    """All monomials of the unit vector of degree 1 to `degree`: x, y, z, xx, xy, xz, yy, …, zzz.

    On the sphere they span what harmonics up to that degree do; x² + y² + z² = 1 makes a few superfluous.
    """
    axes = unit_vector(lonlat)
    powers = itertools.chain.from_iterable(
        itertools.combinations_with_replacement(range(3), order) for order in range(1, degree + 1)
    )
    return np.stack([axes[:, list(factors)].prod(1) for factors in powers], 1)


def untrained(lonlat: np.ndarray, seed: int, *, degrees: int) -> np.ndarray:  # [n, 256]
    """The published network as it is initialised, another one for each seed."""
    from satclip_engine.nn import LocationEncoder

    return np.asarray(LocationEncoder(degrees=degrees, seed=seed).encoder(threads=1)(lonlat))


def trained(lonlat: np.ndarray, seed: int, *, weights: str) -> np.ndarray:  # [n, E]
    """Embeddings of weights by name or path."""
    return np.asarray(load(weights, threads=1)(lonlat))


BASELINES = {
    "lonlat": Row("lon/lat", lonlat_degrees),
    "unit": Row("unit vector", unit_vector),
    "cubic": Row("cubic polynomial of it", polynomial),
    "untrained10": Row("untrained L=10", partial(untrained, degrees=10)),
    "untrained40": Row("untrained L=40", partial(untrained, degrees=40)),
    "geoclip": Row("GeoCLIP", geoclip),
}


def make_rows(baselines: Sequence[str], weights: Sequence[str]) -> list[Row]:
    """Baselines by their keys, then weights by name or path; each is tried on one point, to fail now."""
    if unknown := [name for name in baselines if name not in BASELINES]:
        raise UsageError(f"row must be one of {', '.join(BASELINES)}, not {unknown[0]!r}")
    rows = [BASELINES[name] for name in baselines]
    titles = [PurePath(source).name if source != "default" else "default weights" for source in weights]
    for source, title in zip(weights, titles, strict=True):
        name = title if titles.count(title) == 1 else source
        rows.append(Row(name, partial(trained, weights=source), load(source).weights.sha256))
    if not rows:
        raise UsageError("no rows: name baselines or weights")
    for row in rows:
        row.features(np.zeros((1, 2)), 0)
    return rows

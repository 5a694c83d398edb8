"""Locations that lie on Earth, and rows that messages name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from satclip_engine.errors import DataError
from satclip_engine.geo.lonlat import MAX_DEGREES, ROUND_OFF_DEGREES, beyond_pole

_MAX_LISTED: Final = 5  # rows or files that a message names
_ROUNDING: Final = 0.5  # degrees beyond a pole that are no longitude in the wrong column


def check_on_earth(lonlat: np.ndarray, row: Callable[[int], str], source: str) -> None:  # (N, 2) degrees
    """Raise DataError naming rows whose longitude or latitude is not finite, or beyond a pole.

    row: says how a person finds row i.
    """
    lon, lat = lonlat[:, 0], lonlat[:, 1]
    missing = np.flatnonzero(~np.isfinite(lonlat).all(axis=1))
    if missing.size:
        rows = join_first(row(int(i)) for i in missing)
        raise DataError(f"{source}: longitude or latitude is missing or not finite in {rows}")
    invalid = np.flatnonzero(beyond_pole(lat))
    if invalid.size:
        hint = _likely_cause(lon[invalid], np.abs(lat[invalid]))
        rows = join_first(f"{row(int(i))} (lat {lat[i]:.10g})" for i in invalid)
        raise DataError(f"{source}: latitude outside [-90, 90] in {rows}{hint}")


def _likely_cause(lon: np.ndarray, lat: np.ndarray) -> str:
    """Hint for longitudes beside |latitudes| beyond a pole; "" where it is anybody's guess."""
    if lat.max() > MAX_DEGREES:
        return ": they look projected: transform them to degrees first"
    if lat.max() <= 90.0 + ROUND_OFF_DEGREES:
        return " by rounding: clip it to ±90"
    swapped = np.all(np.abs(lon) <= 90.0) and np.all(lat > 90.0 + _ROUNDING)
    return " (are lon and lat swapped?)" if swapped else ""


def join_first(items: Iterable[str], separator: str = ", ") -> str:
    """Join the first few items, and say how many more there are."""
    listed = list(items)
    rest = f"{separator}and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
    return separator.join(listed[:_MAX_LISTED]) + rest

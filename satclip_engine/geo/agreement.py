"""Check a raster's CRS and labels against longitudes and latitudes that lie beside its pixels.

Files often hold both. Where a unit or a CRS is wrong they are far apart, and nothing else would show it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from satclip_engine.errors import UsageError
from satclip_engine.geo.crs import distance_metres, to_lonlat

if TYPE_CHECKING:
    import pyproj
    from affine import Affine

_SAMPLES = 7  # rows and columns looked at
_MAX_PIXELS = 2.0  # between both; some files have the corners of pixels, not their centres
_MAX_METRES = 2000.0  # between both whatever the pixel, such as between datums and spheres
_MAX_POINT_METRES = 200_000.0  # the same of points of rasters of any pixel

Sampler = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def check_agreement(
    crs: pyproj.CRS, transform: Affine, shape: tuple[int, int], beside: Sampler, subject: str, way_out: str
) -> None:
    """Raise UsageError when half of some pixels lie far from their longitudes and latitudes.

    beside: longitudes and latitudes in degrees, (h, w), of rows and columns. subject and way_out: words of
        the message.
    """
    rows, cols = (_spread(size) for size in shape)
    lon, lat = beside(rows, cols)
    col, row = np.meshgrid(cols, rows)
    own_lon, own_lat = _lonlat(crs, transform, row, col)
    pixel = np.nan_to_num(distance_metres(own_lon, own_lat, *_lonlat(crs, transform, row + 1, col + 1)))
    limit = np.maximum(_MAX_PIXELS * pixel, _MAX_METRES)
    far = _far_apart(own_lon, own_lat, lon, lat, limit)
    if far is not None:
        where = f"the pixel in row {row.flat[far]}, column {col.flat[far]}"
        _refuse(where, (own_lon, own_lat, lon, lat), far, subject, way_out)


def check_points_agree(
    own: np.ndarray, lon: np.ndarray, lat: np.ndarray, subject: str, way_out: str
) -> None:  # (..., 2), (...), (...)
    """The same of free points, whose pixels are not known: only what lies far apart is told."""
    own_lon, own_lat = own[..., 0], own[..., 1]
    far = _far_apart(own_lon, own_lat, lon, lat, np.array(_MAX_POINT_METRES))
    if far is not None:
        _refuse(f"point {far}", (own_lon, own_lat, lon, lat), far, subject, way_out)


def _far_apart(
    own_lon: np.ndarray, own_lat: np.ndarray, lon: np.ndarray, lat: np.ndarray, limit: np.ndarray
) -> int | None:
    """The first of the points that lie apart, if half of them do; None where they agree."""
    with np.errstate(invalid="ignore"):
        valid = (np.abs(lon) <= 720) & (np.abs(lat) <= 90)
    apart = np.nan_to_num(distance_metres(own_lon, own_lat, lon, lat), nan=np.inf)
    far = valid & (apart > limit)
    return int(np.argmax(far)) if np.count_nonzero(far) * 2 > np.count_nonzero(valid) else None


def _refuse(where: str, points: tuple[np.ndarray, ...], index: int, subject: str, way_out: str) -> None:
    own_lon, own_lat, lon, lat = (values.flat[index] for values in points)
    raise UsageError(
        f"{subject} contradict each other: they put {where} at ({own_lon:.4f}, {own_lat:.4f}) and at "
        f"({lon:.4f}, {lat:.4f}); {way_out}"
    )


def _spread(size: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, min(size, _SAMPLES)).astype(np.int64))


def _lonlat(
    crs: pyproj.CRS, transform: Affine, row: np.ndarray, col: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    a, b, c, d, e, f = transform[:6]
    col, row = col + 0.5, row + 0.5
    lon, lat, _, _ = to_lonlat(crs.to_wkt(), a * col + b * row + c, d * col + e * row + f)
    finite = np.isfinite(lon) & np.isfinite(lat)
    return np.where(finite, lon, np.nan), np.where(finite, lat, np.nan)

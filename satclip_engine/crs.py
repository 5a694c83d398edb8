"""Coordinate reference systems: what a user may name, and the way from it to longitude and latitude.

All coordinates are (x, y) = (east, north) = (longitude, latitude), whatever axis order the authority defines.
pyproj is imported when it is first needed.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from satclip_engine.errors import UsageError

if TYPE_CHECKING:
    import pyproj

_FULL_TURN = 2.0 * np.pi


def parse_crs(crs: Any) -> pyproj.CRS:
    """Turn an EPSG code, PROJ string, WKT or CRS object of pyproj, rasterio or odc-geo into a pyproj CRS.

    Raises UsageError when it is unknown, or when it is neither geographic nor projected, or not of the Earth.
    """
    import pyproj

    try:
        # odc-geo's and rasterio's objects are taken through their WKT.
        parsed = crs if isinstance(crs, pyproj.CRS) else pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.CRSError as error:
        raise UsageError(
            f"unknown CRS {_short(crs)}: give an EPSG code such as EPSG:3857, a PROJ string or WKT"
        ) from error
    if not (parsed.is_geographic or parsed.is_projected):
        raise UsageError(
            f"CRS {_short(crs)} is a {parsed.type_name}; a raster needs a geographic or projected one"
        )
    try:
        transformers(parsed.to_wkt())
    except pyproj.exceptions.ProjError as error:
        raise UsageError(
            f"CRS {_short(crs)} cannot be related to longitude and latitude on Earth ({error})"
        ) from error
    return parsed


@functools.lru_cache(maxsize=64)
def transformers(wkt: str) -> tuple[pyproj.Transformer, pyproj.Transformer]:
    """The way from a CRS to EPSG:4326 and back. pyproj's transformers keep one PROJ context a thread."""
    import pyproj

    crs = pyproj.CRS.from_wkt(wkt)
    there = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    back = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    return there, back


def is_lonlat(crs: pyproj.CRS) -> bool:
    """Whether coordinates in this CRS are WGS 84 degrees from Greenwich.

    EPSG:4326, OGC:CRS84 and their spellings.
    """
    import pyproj

    horizontal = crs.sub_crs_list[0] if crs.is_compound else crs
    if not horizontal.is_geographic or horizontal.is_bound:
        return False
    return bool(horizontal.to_2d().equals(pyproj.CRS.from_epsg(4326), ignore_axis_order=True))


def full_turn(crs: pyproj.CRS) -> float:
    """The length of a circle of latitude in units of a geographic CRS (360 for degrees).

    Infinite for a projected one.
    """
    if not crs.is_geographic:
        return float("inf")
    factor = crs.axis_info[0].unit_conversion_factor  # radians per unit
    return float(round(_FULL_TURN / factor, 9)) if factor else 360.0


def unit_name(crs: pyproj.CRS) -> str:
    """What a resolution in this CRS is counted in, for messages: "degree", "metre"."""
    return crs.axis_info[0].unit_name if crs.axis_info else "unit"


def area_of_use(crs: pyproj.CRS) -> tuple[float, float, float, float]:
    """West, south, east, north edge of a projected CRS's area of use in its own units.

    The area is given in degrees; its edges are followed at 2001 points a side and its inside at 101², so that
    curved edges, poles and the antimeridian are handled alike. Places that do not come back are left out.
    Raises UsageError when the CRS has no area of use, or none that can be projected.
    """
    import pyproj

    area = crs.area_of_use
    if area is None:
        raise UsageError(f"CRS {_short(crs)} has no area of use: give bounds (west, south, east, north)")
    west, south, east, north = area.bounds
    if east <= west:  # across the antimeridian
        east += 360.0
    lon, lat = _samples(west, south, east, north)
    there, back = transformers(crs.to_wkt())
    try:
        x, y = back.transform(lon, lat)
        lon2, lat2 = there.transform(x, y)
    except pyproj.exceptions.ProjError as error:
        raise UsageError(f"the area of use of CRS {_short(crs)} cannot be projected ({error})") from error
    with np.errstate(invalid="ignore"):
        # A degree of longitude shrinks towards the poles, where it may be anything.
        off_lon = np.abs(np.remainder(lon2 - lon + 180.0, 360.0) - 180.0) * np.cos(np.radians(lat))
        valid = np.isfinite(x) & np.isfinite(y) & (off_lon < 1e-3) & (np.abs(lat2 - lat) < 1e-3)
    if not valid.any():
        raise UsageError(f"the area of use of CRS {_short(crs)} cannot be projected: give bounds")
    x, y = x[valid], y[valid]
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def _samples(west: float, south: float, east: float, north: float) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and latitudes along the edges and inside of a box."""
    lon, lat = np.linspace(west, east, 2001), np.linspace(south, north, 2001)
    inside = np.meshgrid(lon[::20], lat[::20])
    edges_lon = [lon, lon, np.full(lat.shape, west), np.full(lat.shape, east), inside[0].ravel()]
    edges_lat = [np.full(lon.shape, south), np.full(lon.shape, north), lat, lat, inside[1].ravel()]
    return np.concatenate(edges_lon), np.concatenate(edges_lat)


def _short(crs: Any) -> str:
    text = str(getattr(crs, "name", None) or crs) if not isinstance(crs, str) else crs
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else text[:57] + "...")

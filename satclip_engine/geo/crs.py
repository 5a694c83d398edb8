"""Coordinate reference systems: parsing, and transformation to longitude and latitude; distances.

All coordinates are (x, y) = (east, north) = (longitude, latitude), whatever axis order the authority defines.
pyproj is imported when it is first needed.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from satclip_engine.errors import Argument, UsageError

if TYPE_CHECKING:
    import pyproj
    from odc.geo.crs import CRS

_FULL_TURN = 2.0 * np.pi
_EDGE_SAMPLES = 2001  # points along an edge of a box that is followed into another CRS
_EARTH_RADIUS = 6371008.8  # metres, the mean
_MAX_RETURN_ERROR = 1.0  # metres, of a valid free point's way to longitude and latitude and back
_MAX_OFF_DEGREES = 1e-3  # of a point of an area on the same way
_AXIS_UNITS = {"degree": np.pi / 180, "grad": np.pi / 200, "metre": 1.0}  # some CRSs call it Degree


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
            f"unknown CRS {_short(crs)}: give an EPSG code such as EPSG:3857, a PROJ string or WKT",
            argument="crs",
        ) from error
    if not (parsed.is_geographic or parsed.is_projected):
        raise UsageError(
            f"CRS {_short(crs)} is {_article(parsed.type_name)}; it must be a geographic or projected one",
            argument="crs",
        )
    try:
        transformers(parsed.to_wkt())
    except pyproj.exceptions.ProjError as error:
        raise UsageError(
            f"CRS {_short(crs)} cannot be related to longitude and latitude on Earth ({error})",
            argument="crs",
        ) from error
    return parsed


@functools.lru_cache(maxsize=64)
def transformers(wkt: str) -> tuple[pyproj.Transformer, pyproj.Transformer]:
    """Transformers from a CRS to EPSG:4326 and back. pyproj's transformers keep one PROJ context a thread."""
    import pyproj

    crs = horizontal(pyproj.CRS.from_wkt(wkt))
    to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    from_degrees = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    return to_degrees, from_degrees


def to_lonlat(
    wkt: str, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Longitude and latitude of (x, y), and these transformed back to the CRS: four arrays like `x`.

    A point that does not come back lies outside the projection's domain. The way back is that of the
    projection alone: changes of datum are good to millimetres, or at the edges of their areas to hundreds of
    metres, and say nothing about the projection.
    """
    conversion, pole, is_wgs84 = _conversion(wkt)
    own_lon, own_lat = conversion.transform(x, y)
    back_x, back_y = conversion.transform(own_lon, own_lat, direction="INVERSE")
    with np.errstate(invalid="ignore"):
        back_y = np.where(np.abs(own_lat) <= pole * (1 + 1e-11), back_y, np.inf)
    lon, lat = (own_lon, own_lat) if is_wgs84 else transformers(wkt)[0].transform(x, y)
    return lon, lat, back_x, back_y


def degrees_of(crs: pyproj.CRS, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of free points (x, y) in a CRS; NaN outside its domain."""
    if is_lonlat(crs):
        return x, y
    lon, lat, back_x, back_y = to_lonlat(crs.to_wkt(), x, y)
    with np.errstate(invalid="ignore"):  # as in Grid.pixel_lonlat; points alone have no pixel size
        off_x, turn = back_x - x, full_turn(crs)
        if np.isfinite(turn):
            off_x = np.remainder(off_x + turn / 2, turn) - turn / 2
        error = np.hypot(off_x, back_y - y) * unit_metres(crs)
        valid = (error <= _MAX_RETURN_ERROR) & np.isfinite(lon + lat)
    return np.where(valid, lon, np.nan), np.where(valid, lat, np.nan)


def look_like_degrees(crs: pyproj.CRS, x: np.ndarray, y: np.ndarray) -> bool:
    """True where coordinates would be degrees, but in a projected CRS lie outside its area of use."""
    finite = np.isfinite(x) & np.isfinite(y)
    if crs.is_geographic or not finite.any() or not np.any((x != 0) | (y != 0)):
        return False
    x, y = x[finite], y[finite]
    if np.abs(x).max() > 360.0 or np.abs(y).max() > 90.0:
        return False
    try:
        west, south, east, north = area_of_use(crs)
    except UsageError:
        return False
    return bool(((x < west) | (x > east) | (y < south) | (y > north)).all())


@functools.lru_cache(maxsize=64)
def _conversion(wkt: str) -> tuple[pyproj.Transformer, float, bool]:
    """From a CRS to longitude and latitude on its own datum; the pole there; whether that is WGS 84."""
    import pyproj

    crs = horizontal(pyproj.CRS.from_wkt(wkt))
    crs = crs.source_crs if crs.is_bound else crs
    base = crs
    while base.is_derived:
        base = base.source_crs
    base = horizontal(base)
    return pyproj.Transformer.from_crs(crs, base, always_xy=True), full_turn(base) / 4, is_lonlat(base)


def horizontal(crs: pyproj.CRS) -> pyproj.CRS:
    """The horizontal part of a CRS, heights left out."""
    flat = crs.sub_crs_list[0] if crs.is_compound else crs
    return flat.to_2d() if len(flat.axis_info) > 2 else flat


def is_lonlat(crs: pyproj.CRS) -> bool:
    """True where coordinates in this CRS are WGS 84 degrees from Greenwich.

    EPSG:4326, OGC:CRS84 and their spellings.
    """
    import pyproj

    flat = horizontal(crs)
    if not flat.is_geographic or flat.is_bound:
        return False
    return bool(flat.equals(pyproj.CRS.from_epsg(4326), ignore_axis_order=True))


def full_turn(crs: pyproj.CRS) -> float:
    """The length of a circle of latitude in units of a geographic CRS (360 for degrees).

    Infinite for a projected one.
    """
    if not crs.is_geographic:
        return float("inf")
    factor = crs.axis_info[0].unit_conversion_factor  # radians per unit
    return float(round(_FULL_TURN / factor, 9)) if factor else 360.0


def unit_name(crs: pyproj.CRS) -> str:
    """Unit of a resolution in this CRS: "degree", "grad", "metre", or what it is called there."""
    if not crs.axis_info:
        return "unit"
    axis = crs.axis_info[0]
    for name in ("degree", "grad") if crs.is_geographic else ("metre",):
        if abs(axis.unit_conversion_factor - _AXIS_UNITS[name]) <= 1e-12:
            return name
    return axis.unit_name


def unit_metres(crs: pyproj.CRS) -> float:
    """Metres in a unit of the CRS; for a geographic one along a meridian, roughly."""
    factor = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
    return float(factor) * (_EARTH_RADIUS if crs.is_geographic else 1.0)


def distance_metres(lon: Any, lat: Any, lon2: Any, lat2: Any) -> np.ndarray:
    """Great-circle distances on a sphere between points in degrees; arrays broadcast together."""
    lon, lat, lon2, lat2 = (np.radians(degrees) for degrees in (lon, lat, lon2, lat2))
    half = np.sin((lat2 - lat) / 2) ** 2 + np.cos(lat) * np.cos(lat2) * np.sin((lon2 - lon) / 2) ** 2
    return 2 * _EARTH_RADIUS * np.arcsin(np.sqrt(np.clip(half, 0, 1)))


def odc_crs(crs: pyproj.CRS) -> CRS:
    """The same for a GeoBox. odc-geo cannot read the names of compound CRSs (EPSG:4326+5773)."""
    from odc.geo.crs import CRS

    return CRS(crs.to_wkt() if "+" in crs.srs and crs.is_compound else crs)


def crs_name(crs: CRS) -> str:
    """EPSG:4326, or the CRS's own name where it has no code; a PROJ string where it has neither."""
    if crs.epsg:
        return f"EPSG:{crs.epsg}"
    name, text = str(crs.proj.name), str(crs)
    return text.removesuffix(" +type=crs") if name == "unknown" and text.startswith("+") else name


def area_of_use(crs: pyproj.CRS) -> tuple[float, float, float, float]:
    """West, south, east, north edge of a projected CRS's area of use in its own units.

    The area is given in degrees; its edges are followed at 2001 points a side and its inside at 101², so that
    curved edges, poles and the antimeridian are handled alike. Points that do not come back are left out.
    Raises UsageError when the CRS has no area of use, or none that can be projected.
    """
    import pyproj

    area = crs.area_of_use or horizontal(crs).area_of_use or _registered_area(crs.to_wkt())
    if area is None:
        raise UsageError(
            f"CRS {_short(crs)} has no area of use: give ",
            Argument("bounds"),
            " (west, south, east, north)",
            argument="crs",
        )
    west, south, east, north = area.bounds
    if east <= west:  # across the antimeridian
        east += 360.0
    lon, lat = _samples(west, south, east, north)
    to_degrees, from_degrees = transformers(crs.to_wkt())
    try:
        x, y = from_degrees.transform(lon, lat)
        lon2, lat2 = to_degrees.transform(x, y)
    except pyproj.exceptions.ProjError as error:
        raise UsageError(
            f"the area of use of CRS {_short(crs)} cannot be projected ({error}): give ",
            Argument("bounds"),
            argument="crs",
        ) from error
    valid = np.isfinite(x) & np.isfinite(y) & _same_points(lon, lat, lon2, lat2)
    if not valid.any():
        raise UsageError(
            f"the area of use of CRS {_short(crs)} cannot be projected: give ",
            Argument("bounds"),
            argument="crs",
        )
    x, y = x[valid], y[valid]
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


@functools.lru_cache(maxsize=64)
def _registered_area(wkt: str) -> Any:
    """The area of use of a CRS by its EPSG code: WKT as GDAL writes it has none."""
    import pyproj

    crs = horizontal(pyproj.CRS.from_wkt(wkt))
    code = crs.to_epsg()
    return None if code is None else pyproj.CRS.from_epsg(code).area_of_use


def bounds_in(
    own: pyproj.CRS, edges: tuple[float, float, float, float], crs: pyproj.CRS
) -> tuple[float, float, float, float] | None:
    """Bounds in a CRS around a box in its own one, curved edges, poles and the antimeridian included.

    Longitudes run on beyond 180 where the box crosses the antimeridian. None for a box that is nowhere in the
    CRS, or on both sides of its map.
    """
    x, y = _samples(*edges)
    lon, lat = degrees_of(own, x, y)
    if crs.is_geographic:
        return _bounds_on_globe(own, edges, crs, x, lon, lat)
    to_degrees, from_degrees = transformers(crs.to_wkt())
    first, second = from_degrees.transform(lon, lat)
    lon2, lat2 = to_degrees.transform(first, second)
    valid = np.isfinite(first) & np.isfinite(second) & _same_points(lon, lat, lon2, lat2)
    if not valid.any() or _torn(first, second):
        return None
    first, second = first[valid], second[valid]
    return float(first.min()), float(second.min()), float(first.max()), float(second.max())


def _same_points(lon: np.ndarray, lat: np.ndarray, lon2: np.ndarray, lat2: np.ndarray) -> np.ndarray:
    """True where points in degrees have come back; their longitudes shrink towards the poles."""
    with np.errstate(invalid="ignore"):
        off_lon = np.abs(np.remainder(lon2 - lon + 180.0, 360.0) - 180.0) * np.cos(np.radians(lat))
        return (off_lon < _MAX_OFF_DEGREES) & (np.abs(lat2 - lat) < _MAX_OFF_DEGREES)


def _torn(x: np.ndarray, y: np.ndarray) -> bool:
    """True where neighbours along the edges of `_samples` lie far apart: on both sides of a map."""
    edges = np.stack([x, y])[:, : 4 * _EDGE_SAMPLES].reshape(2, 4, _EDGE_SAMPLES)
    with np.errstate(invalid="ignore"):
        steps = np.nanmax(np.hypot(*np.diff(edges, axis=-1)), initial=0.0)
        extent = np.hypot(*(np.nanmax(edges, axis=(1, 2)) - np.nanmin(edges, axis=(1, 2))))
    return bool(steps > extent / 4)


def _bounds_on_globe(
    own: pyproj.CRS,
    edges: tuple[float, float, float, float],
    crs: pyproj.CRS,
    x: np.ndarray,
    lon: np.ndarray,
    lat: np.ndarray,
) -> tuple[float, float, float, float] | None:
    """As `bounds_in`, in units of a geographic CRS, of samples in degrees."""
    turn, finite = full_turn(crs), np.isfinite(lon) & np.isfinite(lat)
    if not finite.any():
        return None
    along, across = transformers(crs.to_wkt())[1].transform(lon[finite], lat[finite])
    # Longitudes are followed beyond 180; others lie around one of those inside, the last of the samples.
    middle = x[finite] * (turn / full_turn(own)) if own.is_geographic else along[len(along) // 2]
    along = middle + np.remainder(along - middle + turn / 2, turn) - turn / 2
    west, east, south, north = along.min(), along.max(), across.min(), across.max()
    for pole in (-90.0, 90.0):
        if not own.is_geographic and _holds_pole(own, edges, pole):
            west, east = -turn / 2, turn / 2
            south, north = min(south, pole * turn / 360), max(north, pole * turn / 360)
    if not own.is_geographic and west < -turn / 2:  # eastward beyond 180
        west, east = west + turn, east + turn
    return float(west), float(south), float(east), float(north)


def _holds_pole(crs: pyproj.CRS, edges: tuple[float, float, float, float], pole: float) -> bool:
    """True where a pole lies inside a box, as a point of the map."""
    x, y = transformers(crs.to_wkt())[1].transform(np.array([0.0, 90.0]), np.full(2, pole))
    west, south, east, north = edges
    inside = np.isfinite(x + y) & (x > west) & (x < east) & (y > south) & (y < north)
    return bool(inside.all() and np.hypot(np.ptp(x), np.ptp(y)) * unit_metres(crs) < 1.0)


def _samples(west: float, south: float, east: float, north: float) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and latitudes along the edges and inside of a box."""
    lon, lat = np.linspace(west, east, _EDGE_SAMPLES), np.linspace(south, north, _EDGE_SAMPLES)
    inside = np.meshgrid(lon[::20], lat[::20])
    edges_lon = [lon, lon, np.full(lat.shape, west), np.full(lat.shape, east), inside[0].ravel()]
    edges_lat = [np.full(lon.shape, south), np.full(lon.shape, north), lat, lat, inside[1].ravel()]
    return np.concatenate(edges_lon), np.concatenate(edges_lat)


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].upper() in 'AEIO' else 'a'} {noun}"


def _short(crs: Any) -> str:
    text = str(getattr(crs, "name", None) or crs) if not isinstance(crs, str) else crs
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else text[:57] + "...")

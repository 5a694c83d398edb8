"""Fits bounds and resolution of a raster to whole pixels, or says which would fit."""

from __future__ import annotations

import itertools
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from satclip_engine.errors import Argument, UsageError
from satclip_engine.geo import crs as _crs
from satclip_engine.geo.units import to_crs_unit

if TYPE_CHECKING:
    import pyproj
    from odc.geo.geobox import GeoBox

DEFAULT_RESOLUTION = 0.25  # degrees
MAX_SIDE = 2**31 - 1  # pixels; GDAL counts rows and columns in 32-bit integers
_MAX_MISFIT = 1e-6  # of a pixel: by how much bounds may miss a whole number of pixels
_OR_ALIGN: list[object] = ["; or widen them to whole pixels by ", Argument("align", True)]
# A pixel's size as text: a number or a fraction, and a unit or none for that of the CRS.
SIZE = re.compile(
    r"(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)(?:/(?P<divisor>\d+(?:\.\d+)?))?"
    r"(?P<unit>\s*[^\W\d][\w\s-]*|\s*[\"'°′″])?",
    re.IGNORECASE,
)
_UNITS = {
    **dict.fromkeys(("s", "sec", "second", "seconds", '"', "″"), "arcsec"),
    **dict.fromkeys(("min", "minute", "minutes", "'", "′"), "arcmin"),
    "d": "degree",
}


def fit_geobox(
    resolution: Any, bounds: Any, crs: pyproj.CRS, *, bounds_crs: Any = None, align: bool = False
) -> GeoBox:
    """The GeoBox with these bounds and pixel size; None: the defaults of `make_grid`. Raises UsageError."""
    size = _resolution(resolution, crs)
    if bounds is None:
        if bounds_crs is not None or align:
            argument = Argument("bounds_crs") if bounds_crs is not None else Argument("align", True)
            raise UsageError(
                argument, " is about ", Argument("bounds"), ": give them too", argument=argument.name
            )
        return _fit(_default_bounds(crs, size), size, crs)
    other = None if bounds_crs is None else _bounds_crs(bounds_crs)
    if other is None or other.equals(crs, ignore_axis_order=True):
        edges = _check_bounds(bounds, crs)
    else:
        edges, align = _in_crs(_check_bounds(bounds, other, "bounds_crs"), other, crs), True
    return _fit(_widened(edges, size) if align else edges, size, crs)


def _bounds_crs(argument: Any) -> pyproj.CRS:
    try:
        return _crs.parse_crs(argument)
    except UsageError as error:
        error.argument = "bounds_crs"
        raise


def _resolution(resolution: Any, crs: pyproj.CRS) -> tuple[float, float]:
    unit = _crs.unit_name(crs)
    if resolution is None:
        if unit != "degree":
            raise UsageError(
                f"a resolution is required: CRS {crs.name!r} counts in {unit}s", argument="resolution"
            )
        return DEFAULT_RESOLUTION, DEFAULT_RESOLUTION
    values = np.array(_sizes(resolution, crs))
    if values.size not in (1, 2):
        raise UsageError(
            f"resolution must be one number or two (x, y), not {values.size} numbers", argument="resolution"
        )
    if values.size == 2:  # rows go south in GDAL's and odc-geo's order
        values[1] = abs(values[1])
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise UsageError(f"resolution must be positive and finite, not {resolution}", argument="resolution")
    return float(values[0]), float(values[-1])


def _sizes(resolution: Any, crs: pyproj.CRS) -> list[float]:
    """Sizes in units of the CRS: of numbers, of text such as 30s and 1/12, of odc-geo's Resolution."""
    if isinstance(resolution, str):
        return [_size(text, crs) for text in resolution.split(",")]
    if hasattr(resolution, "x") and hasattr(resolution, "y"):
        resolution = (resolution.x, resolution.y)
    try:
        return [_size(v, crs) if isinstance(v, str) else float(v) for v in np.ravel(resolution).tolist()]
    except (TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"resolution must be one number or two (x, y), not {resolution!r}", argument="resolution"
        ) from error


def _size(text: str, crs: pyproj.CRS) -> float:
    """The size of a pixel in units of the CRS: 0.25, 1/12, 30s (seconds of arc), 5min, 1km."""
    match = SIZE.fullmatch(text.strip())
    if match is None or (match["divisor"] and not float(match["divisor"])):
        raise UsageError(
            f"resolution must be one number or two (x, y), such as 0.25, 1/12 or 30s, not {text!r}",
            argument="resolution",
        )
    number = float(match["number"]) / float(match["divisor"] or 1)
    unit = (match["unit"] or "").strip()
    if not unit:
        return number
    factor = to_crs_unit(_UNITS.get(unit.lower(), unit), crs, axis="x")
    if factor is None:
        minutes = f"; for minutes of arc write {text.strip()}in" if crs.is_geographic and unit == "m" else ""
        raise UsageError(
            f"resolution {text.strip()!r} has another unit than CRS {crs.name!r}, which counts in "
            f"{_crs.unit_name(crs)}s{minutes}",
            argument="resolution",
        )
    return number * factor


def _check_bounds(
    bounds: Any, crs: pyproj.CRS, crs_argument: str = "crs"
) -> tuple[float, float, float, float]:
    try:
        west, south, east, north = (float(v) for v in bounds)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"bounds must be four numbers (west, south, east, north), not {bounds!r}", argument="bounds"
        ) from error
    shown = _show(west, south, east, north)
    if not all(map(math.isfinite, (west, south, east, north))):
        raise UsageError(f"bounds must be finite, not {shown}", argument="bounds")
    order = _other_order((west, south, east, north), crs)
    if south >= north:
        raise UsageError(f"bounds {shown}: south must be less than north{order}", argument="bounds")
    turn = _crs.full_turn(crs)
    if west >= east:
        advice = order or _eastward(west, south, east, north, turn)
        raise UsageError(f"bounds {shown}: west must be less than east{advice}", argument="bounds")
    if east - west > turn * (1 + 1e-12):
        their = "their " if crs_argument == "bounds_crs" else ""
        metres = [] if order else ["; if they are metres, give ", their, Argument(crs_argument)]
        raise UsageError(
            f"bounds {shown}: wider than the globe ({turn:g}){order}", *metres, argument="bounds"
        )
    pole = turn / 4
    if max(-south, north) > pole + 1e-9:
        raise UsageError(f"bounds {shown}: beyond a pole (latitude {pole:g}){order}", argument="bounds")
    if _crs.look_like_degrees(crs, np.array([west, east]), np.array([south, north])):
        raise UsageError(
            f"bounds {shown} look like degrees, and CRS {crs.name!r} counts in {_crs.unit_name(crs)}s: give ",
            Argument("bounds_crs", "EPSG:4326"),
            " too",
            argument="bounds",
        )
    return west, max(south, -pole), east, min(north, pole)  # less the rounding of a sum of steps


def _other_order(bounds: tuple[float, float, float, float], crs: pyproj.CRS) -> str:
    """Advice for bounds that would be right in another order of the four; empty where none is."""
    turn = _crs.full_turn(crs)
    _, south, _, north = bounds
    overshoot = max(-south, north) - turn / 4  # that of a pixel's half is no longitude
    if south < north and 0 < overshoot <= turn / 360:
        return ""

    def possible(west: float, south: float, east: float, north: float) -> bool:
        return west < east and east - west <= turn and south < north and max(-south, north) <= turn / 4

    if possible(*bounds):
        return ""
    for order in ("SWNE", "WNES", "WESN") if math.isfinite(turn) else ("WNES",):
        ordered = [bounds[order.index(edge)] for edge in "WSEN"]
        if possible(*ordered):
            return f"; their order is west, south, east, north: {_show(*ordered)}"
    return ""


def _in_crs(
    edges: tuple[float, float, float, float], own: pyproj.CRS, crs: pyproj.CRS
) -> tuple[float, float, float, float]:
    """Bounds in another CRS around bounds in their own. Raises UsageError where there are none."""
    around = _crs.bounds_in(own, edges, crs)
    if around is None:
        raise UsageError(
            f"bounds {_show(*edges)} of CRS {own.name!r} lie outside CRS {crs.name!r} or across its edge: "
            "give them in its own units, without ",
            Argument("bounds_crs"),
            argument="bounds",
        )
    return around


def _widened(
    edges: tuple[float, float, float, float], res: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Bounds widened to multiples of the resolution, as gdalwarp -tap does; what fits stays."""

    def outward(low: float, high: float, step: float) -> tuple[float, float]:
        first, last = math.floor(low / step + _MAX_MISFIT), math.ceil(high / step - _MAX_MISFIT)
        last = max(last, first + 1)
        return multiple(first, low, step), multiple(last, high, step)

    def multiple(count: int, edge: float, step: float) -> float:
        return edge if abs(count * step - edge) <= _MAX_MISFIT * step else count * step

    west, south, east, north = edges
    west, east = outward(west, east, res[0])
    south, north = outward(south, north, res[1])
    return west, south, east, north


def _eastward(west: float, south: float, east: float, north: float, turn: float) -> str:
    """Advice for a west edge that is not west of the east one."""
    if not math.isfinite(turn):
        return ""
    if (west - east) % turn == 0:
        first = (west + turn / 2) % turn - turn / 2 if west > east else west  # 180 … −180 is −180 … 180
        return f"; for all longitudes write {_show(first, south, first + turn, north)}"
    if west - east > turn:
        return ""
    return f"; to cross the antimeridian write {_show(west, south, east + turn, north)}"


def _default_bounds(crs: pyproj.CRS, res: tuple[float, float]) -> tuple[float, float, float, float]:
    turn = _crs.full_turn(crs)
    if math.isfinite(turn):
        return -turn / 2, -turn / 4, turn / 2, turn / 4
    return _widened(_crs.area_of_use(crs), res)


def _fit(edges: tuple[float, float, float, float], res: tuple[float, float], crs: pyproj.CRS) -> GeoBox:
    """The GeoBox with these west and north edges whose pixels fill the bounds exactly."""
    from affine import Affine
    from odc.geo.geobox import GeoBox

    west, south, east, north = edges
    extents = (east - west, north - south)
    counts = tuple(extent / step for extent, step in zip(extents, res, strict=True))
    if max(counts) > MAX_SIDE:
        raise UsageError(
            f"resolution {_pair(res)} over these bounds makes {counts[0]:.3g} × {counts[1]:.3g} pixels; "
            f"at most {MAX_SIDE} a side: give a larger one or smaller ",
            Argument("bounds"),
            argument="resolution",
        )
    width, height = (round(count) for count in counts)
    for count, size in zip(counts, (width, height), strict=True):
        if size < 1 or abs(count - size) > _MAX_MISFIT:
            raise UsageError(
                f"bounds {_show(*edges)} are {counts[0]:.8g} × {counts[1]:.8g} pixels "
                f"of {_pair(res)}, not whole ones; the nearest resolution that fits is "
                f"{_pair(_nearest(extents, res))}",
                *_or_other_bounds(edges, res, crs),
                *_or_degrees(edges, crs),
                argument="resolution",
            )
    x_step, y_step = (
        step if abs(extent / size - step) <= 1e-12 * step else extent / size
        for extent, step, size in zip(extents, res, (width, height), strict=True)
    )
    transform = Affine(x_step, 0.0, west, 0.0, -y_step, north)
    return GeoBox((height, width), transform, _crs.odc_crs(crs))


def _nearest(extents: tuple[float, float], res: tuple[float, float]) -> tuple[float, float]:
    """The resolution nearest to `res` that divides both extents.

    Square pixels stay square where that costs little.
    """
    single = tuple(
        step if _fits(extent, step) else _shortest(extent, max(1, round(extent / step)))
        for extent, step in zip(extents, res, strict=True)
    )
    if res[0] != res[1]:
        return single[0], single[1]
    for count in sorted(
        range(max(1, round(extents[0] / res[0] * 0.5)), min(round(extents[0] / res[0] * 2) + 2, 1 << 16)),
        key=lambda n: abs(extents[0] / n - res[0]),
    ):
        square = extents[0] / count
        if _fits(extents[1], square):
            short = _shortest(extents[0], count)
            square = short if _fits(extents[1], short) else square
            return square, square
    return single[0], single[1]


def _fits(extent: float, step: float) -> bool:
    """True where an extent is a whole number of pixels."""
    count = extent / step
    return round(count) >= 1 and abs(count - round(count)) <= _MAX_MISFIT


def _shortest(extent: float, count: int) -> float:
    """The number of fewest digits that divides an extent into so many pixels as nearly as `_fits` asks."""
    shortened = (float(f"{extent / count:.{digits}g}") for digits in range(1, 17))
    return next(
        (step for step in shortened if step and abs(extent / step - count) <= _MAX_MISFIT), extent / count
    )


def _or_other_bounds(
    edges: tuple[float, float, float, float], res: tuple[float, float], crs: pyproj.CRS
) -> list[object]:
    """Parts of a message: the next larger bounds that are whole pixels; none when they leave the globe."""
    west, south, east, north = edges

    def outward(low: float, high: float, step: float) -> tuple[float, float]:
        return math.floor(low / step + _MAX_MISFIT) * step, math.ceil(high / step - _MAX_MISFIT) * step

    def whole(low: float, high: float, step: float) -> float:
        return math.ceil((high - low) / step - _MAX_MISFIT) * step

    fit_x, fit_y = _fits(east - west, res[0]), _fits(north - south, res[1])
    xs = [(west, east)] if fit_x else [outward(west, east, res[0]), (west, west + whole(west, east, res[0]))]
    ys = (
        [(south, north)]
        if fit_y
        else [outward(south, north, res[1]), (north - whole(south, north, res[1]), north)]
    )
    for (left, right), (low, high) in itertools.product(xs, ys):
        grown = tuple(float(f"{edge:.12g}") + 0.0 for edge in (left, low, right, high))
        try:
            left, low, right, high = _check_bounds(grown, crs)
        except UsageError:
            continue
        if _fits(right - left, res[0]) and _fits(high - low, res[1]):
            return [f"; or keep {_pair(res)} with ", Argument("bounds"), f" {_show(*grown)}", *_OR_ALIGN]
    return _OR_ALIGN


def _or_degrees(edges: tuple[float, float, float, float], crs: pyproj.CRS) -> list[object]:
    """Parts of a message: bounds of a projected CRS that may be meant in degrees."""
    west, south, east, north = edges
    if crs.is_geographic or max(abs(west), abs(east)) > 360 or max(abs(south), abs(north)) > 90:
        return []
    return ["; if they are degrees, give ", Argument("bounds_crs", "EPSG:4326")]


def _show(*numbers: float) -> str:
    return " ".join(f"{number:.12g}" for number in numbers)


def _pair(res: tuple[float, float]) -> str:
    return f"{res[0]:.15g}" if res[0] == res[1] else f"{res[0]:.15g},{res[1]:.15g}"

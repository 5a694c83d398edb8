"""Units of coordinates, as CF, UDUNITS, PROJ and GDAL write them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from satclip_engine.errors import UsageError

if TYPE_CHECKING:
    import pyproj

STANDARD_NAMES = {  # CF's, of labels along the axes of a raster
    "x": ("projection_x_coordinate", "projection_x_angular_coordinate", "longitude", "grid_longitude"),
    "y": ("projection_y_coordinate", "projection_y_angular_coordinate", "latitude", "grid_latitude"),
}
MAX_LABEL_PIXELS = 1e-3  # error: evenly spaced labels in float32 are off by up to 2e-4
_MAX_SINGLE_PIXELS = 1e-2  # the same of float32 labels of small pixels, as geostationary satellites have them
_DEGREE = math.pi / 180  # radians
_ANGLES = {  # radians
    **dict.fromkeys(("degree", "degrees", "deg", "degs", "arc_degree", "arcdeg", "°"), _DEGREE),
    **dict.fromkeys(("decimal_degree", "decimal_degrees", "degrees_true", "dd", "degr"), _DEGREE),
    **dict.fromkeys(("dec_deg", "decimal_deg", "dec._degrees", "dec_degrees"), _DEGREE),
    **dict.fromkeys(("radian", "radians", "rad", "rads"), 1.0),
    **dict.fromkeys(("grad", "grads", "grade", "gon", "gons", "gradian", "gradians"), _DEGREE * 0.9),
    **dict.fromkeys(("arcminute", "arcminutes", "arc_minute", "arc_minutes", "arcmin", "'"), _DEGREE / 60),
    **dict.fromkeys(("arcsecond", "arcseconds", "arc_second", "arc_seconds", "arcsec"), _DEGREE / 3600),
}
_LENGTHS = {  # metres
    **dict.fromkeys(("m", "metre", "metres", "meter", "meters"), 1.0),
    **dict.fromkeys(("foot", "feet", "ft", "international_foot", "international_feet"), 0.3048),
    **dict.fromkeys(("us_survey_foot", "us_survey_feet", "survey_foot", "survey_feet"), 1200 / 3937),
    **dict.fromkeys(("us-ft", "us_ft", "ftus", "foot_us"), 1200 / 3937),
    **dict.fromkeys(("yard", "yards", "yd"), 0.9144),
    **dict.fromkeys(("mile", "miles", "mi", "statute_mile", "statute_miles"), 1609.344),
    **dict.fromkeys(("nautical_mile", "nautical_miles", "nmile", "nmi"), 1852.0),
}
_PREFIXES = {
    **{"kilo": 1e3, "hecto": 1e2, "deci": 1e-1, "centi": 1e-2, "milli": 1e-3, "micro": 1e-6},
    **{"k": 1e3, "h": 1e2, "d": 1e-1, "c": 1e-2, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "μ": 1e-6},
}
_HEMISPHERE = re.compile(
    r"(?:decimal_)?(?:deg(?:ree)?s?\.?|°)_?\(?(east|west|north|south|e|w|n|s|longitude|latitude|lon|lat)\)?"
)
_MULTIPLE = re.compile(r"(\d+\^[-+]?\d+|[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?)[ *.]*([^\d^].*)")


def to_degrees(units: str, *, axis: str) -> float | None:
    """Degrees in a unit of longitude ("x") or latitude ("y"); None when it is no angle along that axis."""
    radians = _angle(units, axis)
    return None if radians is None else _tidy(radians / _DEGREE)


def to_crs_unit(units: str, crs: pyproj.CRS, *, axis: str) -> float | None:
    """Units of a CRS in a unit of its x or y labels; None when the CRS does not count in anything like it.

    Angles of a geostationary projection are those at which the satellite looks.
    """
    own = crs.axis_info[0] if crs.axis_info else None
    if own is None or _normal(units) == _normal(own.unit_name):
        return 1.0
    factor = float(own.unit_conversion_factor)
    if crs.is_geographic:
        radians = _angle(units, axis)
        return None if radians is None else _tidy(radians / factor)
    metres = _size(_normal(units), _LENGTHS)
    if metres is None and (height := _satellite_height(crs)) is not None:
        radians = _size(_normal(units), _ANGLES)
        metres = None if radians is None else radians * height
    return None if metres is None else _tidy(metres / factor)


def label_error(labels: np.ndarray, step: float, *, single: bool) -> float:
    """The most that labels may be off even spacing: 1e-3 pixel, more of small ones in float32 (`single`)."""
    rounding = 4 * float(np.spacing(np.float32(np.abs(labels).max()))) if single else 0.0
    return max(MAX_LABEL_PIXELS * abs(step), min(rounding, _MAX_SINGLE_PIXELS * abs(step)))


def refuse_angles(name: object, crs: pyproj.CRS, labels: np.ndarray) -> None:
    """Raise UsageError for labels without a unit that are angles of a satellite by all appearance.

    In the unit of the CRS they would all lie within a metre of each other.
    """
    largest = float(np.abs(labels[np.isfinite(labels)]).max(initial=0.0))
    if 0.0 < largest < 1.0 and not crs.is_geographic and _satellite_height(crs) is not None:
        raise UsageError(
            f"coordinate {str(name)!r} has no units, and looks like angles of a satellite in radians: set "
            "its attribute units"
        )


def refuse_unit(name: object, units: str, subject: str) -> UsageError:
    """The error that a coordinate's unit is not one that is wanted."""
    return UsageError(
        f"coordinate {str(name)!r} is in {units!r}, which is no unit of {subject}: convert it, or correct "
        "its attribute units"
    )


def _satellite_height(crs: pyproj.CRS) -> float | None:
    """Metres above the ellipsoid of a geostationary projection's satellite; None for other projections."""
    mapping = crs.to_cf()
    if mapping.get("grid_mapping_name") != "geostationary":
        return None
    return float(mapping["perspective_point_height"])


def _angle(units: str, axis: str) -> float | None:
    """Radians, negative for degrees west and south."""
    text = _normal(units)
    if text not in _ANGLES and (match := _HEMISPHERE.fullmatch(text)):
        direction = match[1][:2] if match[1].startswith("l") else match[1][0]
        if direction not in (("e", "w", "lo") if axis == "x" else ("n", "s", "la")):
            return None
        return -_DEGREE if direction in ("w", "s") else _DEGREE
    return _size(text, _ANGLES)


def _size(text: str, table: dict[str, float]) -> float | None:
    """The size of a unit with a prefix and a number before it: km, 1000 m, microradian, 1e-6 rad."""
    if match := _MULTIPLE.fullmatch(text.replace("_", " ", 1) if text[:1].isdigit() else text):
        base = _size(match[2].replace(" ", "_"), table)
        power = re.fullmatch(r"(\d+)\^([-+]?\d+)", match[1])
        number = float(power[1]) ** int(power[2]) if power else float(match[1])
        return None if base is None else number * base
    if text in table:
        return table[text]
    for prefix, factor in _PREFIXES.items():
        rest = text.removeprefix(prefix)
        whole = len(prefix) > 1  # kilometre, km; not kilom
        if rest != text and rest in table and (len(rest) > 3 or rest == "rad" if whole else len(rest) <= 3):
            return factor * table[rest]
    return None


def _normal(units: str) -> str:
    """A unit in small letters, without brackets around it or a full stop behind."""
    text = re.sub(r"\s+", "_", units.strip().lower()).replace("º", "°")  # the latter an ordinal's
    bare = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
    return bare if len(bare) < 2 else bare.removesuffix(".")


def _tidy(factor: float) -> float:
    """The factor less the rounding of a quotient, and 1 for another foot than the CRS's: 2e-6 shorter."""
    nearest = round(factor, 9)
    if abs(factor - 1.0) <= 1e-5 or abs(factor - nearest) <= 1e-14 * abs(factor):
        return 1.0 if abs(factor - 1.0) <= 1e-5 else nearest
    return factor

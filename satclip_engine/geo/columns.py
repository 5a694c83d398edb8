"""Columns of a table that hold longitude and latitude, told by their names.

A name is split into words (`decimalLatitude`, `LAT_WGS84`, `Latitude (deg)`, `coords.lat`): one of them says
which coordinate it is, the others whether that is all it says. Order never decides where names speak.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from satclip_engine.errors import Argument, UsageError

_BEFORE = "(?:decimal|dec|geo|gps|rec|nav|intpt|x|c|t|u)?"
_AFTER = r"(?:dd|deg|degrees?|dec|decimal|wgs|gps|d)?\d*"
_LONGITUDE = (
    r"(?:lons?|lngs?|longs?|longitud(?:e|es|ine)?|l(?:ä|ae)ngengrad|lengtegraad|l(?:æ|ae|e)ngdegrad|"
    "pituusaste|boylam|долгота|经度|經度|経度|경도)"
)
_LATITUDE = (
    "(?:lats?|latitud(?:e|es|ine)?|breitengrad|breedtegraad|breddegrad|"
    "leveysaste|enlem|широта|纬度|緯度|위도)"
)
# Lengths and widths of anything; of locations in tables without plainer names.
_LENGTH = "länge|laenge|lengte|długość|dlugosc|délka|delka"
_WIDTH = "breite|breedte|szerokość|szerokosc|šířka|sirka"
_ROLES = {
    "longitude": re.compile(rf"{_BEFORE}{_LONGITUDE}{_AFTER}|glam[tuvf]|{_LENGTH}"),
    "latitude": re.compile(rf"{_BEFORE}{_LATITUDE}{_AFTER}|gphi[tuvf]|{_WIDTH}"),
    "easting": re.compile(r"(?:utm)?eastings?\d*|east|rechtswert"),
    "northing": re.compile(r"(?:utm)?northings?\d*|north|hochwert"),
    "x": re.compile(r"x(?:coords?|coordinates?)?"),
    "y": re.compile(r"y(?:coords?|coordinates?)?"),
}
_HINT = re.compile(r"(?:lat|lon|lng|long)\d*(?![a-z])", re.IGNORECASE)  # in words that are not understood
_DEGREES = {"degree", "degrees", "deg", "°", "dd", "decimal", "dec", "wgs", "wgs84", "84", "4326", "epsg"}
_CELL_POINTS = {"nav", "rho", "psi", "u", "v", "cell", "vertex", "edge", "node", "face"}  # of models' grids
_PLAIN = {"coord", "coords", "coordinate", "coordinates", "gps", "geo", "location", "geographic"}
_PLAIN |= _DEGREES | _CELL_POINTS
_HEMISPHERES = {"longitude": {"e", "east"}, "latitude": {"n", "north"}}
_OPPOSITE = {"longitude": {"w", "west"}, "latitude": {"s", "south"}}
_REFERENCES = {"ref", "reference", "hemisphere", "hemi", "dir", "direction"}
_SIDES = {"longitude": {"e", "w"}, "latitude": {"n", "s"}}
_UNITS = {  # words of a unit that is not the degree
    "radians": {"rad", "rads", "radian", "radians"},
    "grads": {"grad", "grads", "gon", "gons"},
    "minutes of arc": {"arcmin", "arcminute", "arcminutes", "minutes"},
    "seconds of arc": {"arcsec", "arcsecond", "arcseconds", "seconds"},
    "scaled integers": {"e7", "e6", "microdegree", "microdegrees"},
    "degrees, minutes and seconds": {"dms", "ddm", "dmm"},
}
_PROJECTED = {"m", "meter", "meters", "metre", "metres", "km", "ft", "feet", "utm", "lambert", "mercator"}
_ABOUT = {  # words of what is about a coordinate, but not it
    *("error", "err", "std", "sd", "stddev", "sigma", "uncertainty", "accuracy", "precision", "resolution"),
    *("min", "max", "mean", "bin", "range", "extent", "size", "step", "width", "height", "offset", "shift"),
    *("delta", "diff", "sin", "cos", "id", "idx", "index", "flag", "qc", "quality", "band", "zone", "class"),
    *("bounds", "bnds", "units", "unit", "name", "term", "description", "text", "label", "source", "type"),
}


@dataclass(frozen=True)
class _Spoken:
    """A column whose name speaks of a coordinate."""

    column: Any
    role: str  # a key of _ROLES
    others: frozenset[str]  # the further words of the name
    plain: bool  # they add nothing

    @property
    def unit(self) -> str | None:
        """The unit that the name speaks of; None for degrees."""
        if self.role in ("longitude", "latitude"):
            if self.others & _OPPOSITE[self.role]:
                return f"degrees {'west' if self.role == 'longitude' else 'south'}"
            return next((unit for unit, words in _UNITS.items() if words & self.others), None)
        return "a projected CRS" if self.others & _PROJECTED else None


def coordinate_columns(names: Iterable[Any], *, projected: bool = False) -> tuple[Any, Any] | None:
    """The columns of longitude and latitude, in this order, as `names` has them; None when no name speaks.

    projected: easting and northing (or x and y) are wanted, of coordinates in a projected CRS.

    Plain names win over longer ones (`lat` over `start_lat`), longitude and latitude over x and y. Raises
    UsageError for one without the other, for several, and for names that speak of other things than degrees.
    """
    columns = list(names)
    spoken = [entry for column in columns if (entry := _understand(column)) is not None]
    for roles in (("easting", "northing") if projected else ("longitude", "latitude"), ("x", "y")):
        first, second = (_one(spoken, role, columns, projected) for role in roles)
        if first is not None and second is not None:
            return first.column, second.column
        if first is not None or second is not None:
            _refuse_half(roles, first or second, columns)
    _refuse_others(spoken, columns, projected)
    return None


def plain_role(name: Any) -> str | None:
    """The coordinate that a name plainly is: "longitude", "latitude", "x", …; None for any other."""
    spoken = _understand(name)
    return spoken.role if spoken is not None and spoken.plain else None


def hemisphere_column(names: Iterable[Any], role: str) -> Any | None:
    """The column of letters that says on which side of zero a coordinate lies: E/W, GPSLatitudeRef."""
    for column in names:
        words = set(_words(column))
        if words == _SIDES[role] or (words & _REFERENCES and any(map(_ROLES[role].fullmatch, words))):
            return column
    return None


def _understand(column: Any) -> _Spoken | None:
    words = _words(column)
    if words in (["e"], ["n"]):
        return _Spoken(column, "easting" if words == ["e"] else "northing", frozenset(), plain=True)
    roles = {role: word for role, pattern in _ROLES.items() for word in words if pattern.fullmatch(word)}
    if not roles or roles.keys() >= {"longitude", "latitude"}:  # a column of both, such as lat_lon
        return None
    role, word = next(iter(roles.items()))
    others = frozenset(words) - {word}
    if role in ("easting", "northing") and others & _DEGREES:  # degrees_east
        role = "longitude" if role == "easting" else "latitude"
    numbered = word[-1].isdigit() and not word.endswith("84")  # lat1, lat2
    sure = not re.fullmatch(f"{_LENGTH}|{_WIDTH}", word)
    plain = (
        sure
        and not numbered
        and others <= _PLAIN | _HEMISPHERES.get(role, set()) | _OPPOSITE.get(role, set())
    )
    return _Spoken(column, role, others, plain)


def _words(column: Any) -> list[str]:
    text = ".".join(map(str, column)) if isinstance(column, tuple) else str(column)
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return re.findall(r"°|[^\W\d_]+\d*|\d+", text.lower())


def _one(spoken: Sequence[_Spoken], role: str, columns: Sequence[Any], projected: bool) -> _Spoken | None:
    """The column of a coordinate, None without. Raises UsageError for several alike, and for a wrong unit."""
    candidates = [entry for entry in spoken if entry.role == role and not entry.others & _ABOUT]
    if role in ("x", "y") and len(columns) > 2:  # there, corners of boxes and positions in images abound
        candidates = [entry for entry in candidates if entry.plain or entry.unit is not None]
    best = [entry for entry in candidates if entry.plain] or candidates
    if len(best) > 1:
        shown = _listed(entry.column for entry in best)
        raise UsageError(f"columns {shown} may each be the {role}: leave only one of them")
    if not best or best[0].unit is None or (projected and role not in ("longitude", "latitude")):
        return best[0] if best else None
    if role in ("x", "y"):
        raise _without_crs([best[0].column])
    raise UsageError(
        f"column {best[0].column!r} is, by its name, in {best[0].unit}: convert to degrees and call it {role}"
    )


def _refuse_half(roles: tuple[str, str], entry: _Spoken | None, columns: Sequence[Any]) -> None:
    assert entry is not None
    missing = next(role for role in roles if role != entry.role)
    raise UsageError(
        f"column {entry.column!r} is the {entry.role}, but none is the {missing}: call it {missing} "
        f"(there are {_listed(columns)})"
    )


def _refuse_others(spoken: Sequence[_Spoken], columns: Sequence[Any], projected: bool) -> None:
    """Raise UsageError where names speak, but not of the coordinates wanted."""
    degrees = [entry.column for entry in spoken if entry.role in ("longitude", "latitude")]
    if projected and degrees:
        raise UsageError(f"columns {_listed(degrees)} are degrees, and ", Argument("crs"), " is projected")
    lengths = [entry.column for entry in spoken if entry.role in ("easting", "northing")]
    if lengths and not projected:
        raise _without_crs(lengths)
    if len(columns) == 2 and (spoken or any(map(_HINT.search, map(str, columns)))):
        raise UsageError(
            f"columns {_listed(columns)}: neither is plainly a coordinate; call them lon and lat, "
            "or give an array without names (.to_numpy()), longitude first"
        )


def _without_crs(columns: Sequence[Any]) -> UsageError:
    subject = f"columns {_listed(columns)} are" if len(columns) > 1 else f"column {columns[0]!r} is"
    return UsageError(
        f"{subject} not degrees but coordinates of a projected CRS: say which by ",
        Argument("crs", "EPSG:…"),
        ", or transform to longitude and latitude first",
    )


def _listed(columns: Iterable[Any]) -> str:
    shown = [repr(column) for column in columns]
    if len(shown) > 12:
        shown = [*shown[:12], "…"]
    return " and ".join(shown) if len(shown) == 2 else ", ".join(shown)

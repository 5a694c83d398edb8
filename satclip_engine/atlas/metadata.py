"""Types, lengths and ranges of an atlas's attributes, in one table: what is read is checked by it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from satclip_engine.atlas.packing import NODE_DTYPES
from satclip_engine.errors import printable
from satclip_engine.lattice.certificate import Certificate
from satclip_engine.weights.schema import HARMONICS, MAX_DEGREES, shown

MAX_BANDS: Final = 8192
MAX_NAME_LETTERS: Final = 200  # of a band
_MAX_TEXT_LETTERS: Final = 4096
_MAX_ZONES: Final = 64
_MAX_NODES: Final = 1 << 26  # between the poles, and around a circle: half a metre
_MAX_UNITS: Final = 1 << 24  # of a layer
_MAX_LAYERS: Final = 9999
_MAX_POSITIONS: Final = 1 << 40
_MAX_VALUE: Final = 1e37  # of a band: float32 holds sums of a few such numbers
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_SUMS: Final = re.compile(r"[A-Za-z0-9+/]*={0,2}")

Check = Callable[[Any, int], None]  # of a value, in an atlas of so many bands; raises ValueError


def number(low: float, high: float, *, inside: bool = False) -> Check:
    """A finite number within limits, or between them."""

    def check(value: Any, bands: int) -> None:
        sound = isinstance(value, int | float) and not isinstance(value, bool)
        if not sound or not (low < value < high if inside else low <= value <= high):
            limits = f"between {low:g} and {high:g}" if inside else f"from {low:g} to {high:g}"
            raise ValueError(f": expected a number {limits}, found {shown(value)}")

    return check


def whole(low: int, high: int) -> Check:
    """A whole number within limits."""

    def check(value: Any, bands: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f": expected a whole number from {low} to {high}, found {shown(value)}")

    return check


def choice(*choices: object) -> Check:
    """One of a few texts or numbers."""

    def check(value: Any, bands: int) -> None:
        if not any(value == other and type(value) is type(other) for other in choices):
            raise ValueError(f": expected one of {', '.join(map(str, choices))}, found {shown(value)}")

    return check


def text(letters: int, pattern: re.Pattern[str] | None = None) -> Check:
    """Text of one line without control characters; a pattern that it must have."""

    def check(value: Any, bands: int) -> None:
        if not isinstance(value, str) or len(value) > letters or not is_plain(value):
            raise ValueError(f": expected at most {letters} printable letters, found {shown(value)}")
        if pattern is not None and not pattern.fullmatch(value):
            raise ValueError(f": expected {pattern.pattern}, found {shown(value)}")

    return check


def items(check_item: Check, *, most: int | None = None) -> Check:
    """A list: of an item a band, or of 1 to `most`."""

    def check(value: Any, bands: int) -> None:
        low, high = (bands, bands) if most is None else (1, most)
        if not isinstance(value, list) or not low <= len(value) <= high:
            expected = f"{bands} items, one a band" if most is None else f"1 to {most} items"
            raise ValueError(f": expected a list of {expected}, found {shown(value)}")
        for index, item in enumerate(value):
            _check_named(check_item, item, bands, f"[{index}]")

    return check


def record(fields: Mapping[str, Check], *, open_ended: bool = False) -> Check:
    """A dictionary of these items, and of no others unless it is open-ended."""

    def check(value: Any, bands: int) -> None:
        if not isinstance(value, dict):
            raise ValueError(f": expected a dictionary, found {shown(value)}")
        missing = [name for name in fields if name not in value]
        unknown = [] if open_ended else [name for name in value if name not in fields]
        if missing or unknown:
            raise ValueError(f".{shown((missing + unknown)[0])[1:-1]}: {'missing' if missing else 'unknown'}")
        for name, check_field in fields.items():
            _check_named(check_field, value[name], bands, f".{name}")

    return check


def _check_named(check: Check, value: Any, bands: int, name: str) -> None:
    try:
        check(value, bands)
    except ValueError as error:
        raise ValueError(f"{name}{error}") from None


def is_plain(value: str) -> bool:
    """True for text of one line that commands no terminal and can be written to a file."""
    return printable(value) == value and "\n" not in value


_POSITIVE, _NOT_NEGATIVE = number(0.0, _MAX_VALUE, inside=True), number(0.0, _MAX_VALUE)
_VALUE = number(-_MAX_VALUE, _MAX_VALUE)
_ZONE: Final = {
    "south": number(-90.0, 90.0),
    "north": number(-90.0, 90.0),
    "rows": whole(4, _MAX_NODES),
    "columns": whole(4, _MAX_NODES),
    "order": choice(4, 6, 8, 10, 12),
}
_ORIGIN: Final = {
    "source": text(_MAX_TEXT_LETTERS),
    "sha256": text(64, _HASH),
    "function_sha256": text(64, _HASH),
    "harmonics": choice(*HARMONICS),
    "degrees": whole(1, MAX_DEGREES),
    "capacity": whole(1, _MAX_UNITS),
    "hidden_layers": whole(1, _MAX_LAYERS),
    "embed_dim": whole(1, _MAX_UNITS),
}
_CERTIFICATE: Final = {
    "positions": whole(1, _MAX_POSITIONS),
    "further": whole(0, _MAX_POSITIONS),
    "fraction": number(0.0, 1.0, inside=True),
    "confidence": number(0.0, 1.0, inside=True),
    "sigma": items(_NOT_NEGATIVE),
    "max_error": items(_NOT_NEGATIVE),
    "rms_error": items(_NOT_NEGATIVE),
    "max_sigma": _NOT_NEGATIVE,
    "rms_sigma": _NOT_NEGATIVE,
    "min_cosine": number(-1.0, 1.0),
    "max_tolerance": number(0.0, 1.0),
    "scope": text(MAX_NAME_LETTERS),
}
_ATTRIBUTES: Final = {
    "format": text(MAX_NAME_LETTERS),
    "version": whole(1, 1 << 31),
    "software": text(MAX_NAME_LETTERS),
    "dtype": choice(*NODE_DTYPES),
    "scale": items(number(0.0, _MAX_VALUE / 65536, inside=True)),
    "offset": items(_VALUE),
    "zones": items(record(_ZONE), most=_MAX_ZONES),
    "band_names": items(text(MAX_NAME_LETTERS)),
    "tolerance": record(
        {"text": text(_MAX_TEXT_LETTERS), "bands": items(_POSITIVE), "sigma": items(_NOT_NEGATIVE)}
    ),
    "sigma": items(_NOT_NEGATIVE),
    "rms": items(_NOT_NEGATIVE),
    "mean": items(_VALUE),
    "low": items(_VALUE),
    "high": items(_VALUE),
    "origin": record(_ORIGIN),
    "nodes_sha256": text(64, _HASH),
    "certificate": record(_CERTIFICATE),
    "reach": _NOT_NEGATIVE,
    "chunk_crc32c": items(text(1 << 25, _SUMS), most=_MAX_ZONES),
    "statistics_crc32c": whole(0, (1 << 32) - 1),
}
_HASH_NAME: Final = "attributes_sha256"


def check_attributes(attributes: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the item, for what no atlas has."""
    names = attributes.get("band_names")
    bands = len(names) if isinstance(names, list) else 0
    if not 1 <= bands <= MAX_BANDS:
        raise ValueError(f"band_names: expected a list of 1 to {MAX_BANDS} names, found {shown(names)}")
    try:
        record(_ATTRIBUTES, open_ended=True)(dict(attributes), bands)
    except ValueError as error:
        raise ValueError(str(error).removeprefix(".")) from None
    if attributes.get(_HASH_NAME) != attributes_sha256(attributes):
        raise ValueError(f"its attributes do not have the sha256 that {_HASH_NAME} states")


def attributes_sha256(attributes: Mapping[str, Any]) -> str:
    """Hash of the attributes as JSON; those of other software do not count."""
    own = {name: attributes[name] for name in _ATTRIBUTES}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def sealed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes with their hash."""
    return {**attributes, _HASH_NAME: attributes_sha256(attributes)}


def check_certificate(certificate: Certificate, tolerances: Sequence[float]) -> None:
    """Raise ValueError for a certificate whose numbers cannot have been measured together."""
    of_sigma = [error / sigma for error, sigma in _pairs(certificate) if sigma > 0]
    of_tolerance = [
        error / tolerance for error, tolerance in zip(certificate.max_error, tolerances, strict=True)
    ]
    for name, stated, follows in (
        ("max_sigma", certificate.max_sigma, max(of_sigma, default=0.0)),
        ("max_tolerance", certificate.max_tolerance, max(of_tolerance)),
    ):
        if not math.isclose(stated, follows, rel_tol=1e-6, abs_tol=1e-30):
            raise ValueError(f"certificate.{name}: {stated:g}, but its bands' errors are up to {follows:g}")


def _pairs(certificate: Certificate) -> list[tuple[float, float]]:
    return list(zip(certificate.max_error.tolist(), certificate.sigma.tolist(), strict=True))

"""Selection of an embedding's dimensions.

"all", "1-64", "3,5,7" as GDAL counts them, or Python's own indices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from satclip_engine.errors import UsageError

_COMPONENTS = re.compile(r"pca:(\d+)", re.IGNORECASE)
_RANGE = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


def band_names(count: int) -> list[str]:
    """The names of an embedding's dimensions: e001, e002, … with as many digits as the last one needs."""
    digits = max(3, len(str(count)))
    return [f"e{number:0{digits}d}" for number in range(1, count + 1)]


def component_count(bands: Any) -> int:
    """The number of principal components that "pca:3" asks for; 0 for any other choice. Raises UsageError."""
    match = _COMPONENTS.fullmatch("".join(bands.split())) if isinstance(bands, str) else None
    if match is not None and int(match[1]) < 1:
        raise UsageError(f"bands: {bands!r} asks for no component; give pca:1 or more", argument="bands")
    return 0 if match is None else int(match[1])


def parse_bands(bands: Any, names: Sequence[str]) -> list[int]:
    """Turn a choice of bands into 0-based indices, in the order given.

    bands: None or "all"; text counting from 1 with inclusive ranges ("1-64", "3,5,7", "1-3,10"); a slice, one
        index or several, counting from 0 (negative from the end); or names out of `names`.

    Raises UsageError for an empty choice, a band that does not exist, or text that is none of these.
    """
    count = len(names)
    if bands is None or (isinstance(bands, str) and bands.strip().lower() == "all"):
        return list(range(count))
    if isinstance(bands, str):
        chosen = [names.index(bands)] if bands in names else _parse_text(bands, count)
    elif isinstance(bands, slice):
        chosen = list(range(count))[bands]
    elif isinstance(bands, Iterable):
        items = list(bands)
        if items and all(isinstance(item, (bool, np.bool_)) for item in items):
            if len(items) != count:
                raise UsageError(f"bands: {len(items)} yes/no values for {count} bands", argument="bands")
            items = [index for index, included in enumerate(items) if included]
        chosen = [_one(item, names) for item in items]
    else:
        chosen = [_one(bands, names)]
    if not chosen:
        raise UsageError(f"bands: none of the {count} bands is selected", argument="bands")
    return chosen


def _parse_text(text: str, count: int) -> list[int]:
    chosen: list[int] = []
    for item in text.split(","):
        match = _RANGE.fullmatch(item.strip())
        if match is None:
            raise UsageError(
                f"bands: {text!r} is not a choice like all, 1-64, 3,5,7 or pca:3", argument="bands"
            )
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if first > last:
            raise UsageError(f"bands: the range {item.strip()} runs backwards", argument="bands")
        if first < 1 or last > count:
            raise UsageError(f"bands: {item.strip()} is outside 1-{count}", argument="bands")
        if twice := set(chosen) & set(range(first - 1, last)):
            raise UsageError(f"bands: {text!r} names band {min(twice) + 1} twice", argument="bands")
        chosen.extend(range(first - 1, last))
    return chosen


def _one(item: Any, names: Sequence[str]) -> int:
    if isinstance(item, str):
        if item not in names:
            raise UsageError(
                f"bands: no band is named {item!r}; they are {names[0]} to {names[-1]}", argument="bands"
            )
        return list(names).index(item)
    if isinstance(item, (bool, np.bool_)) or not isinstance(item, (int, np.integer)):
        raise UsageError(f"bands: {item!r} is neither an index nor a name", argument="bands")
    if not -len(names) <= item < len(names):
        raise UsageError(f"bands: index {item} is outside 0..{len(names) - 1}", argument="bands")
    return int(item) % len(names)

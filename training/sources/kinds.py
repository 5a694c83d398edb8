"""Kinds of training data by their form on disk, and the settings that each takes.

The one table that command line, TOML files and Python follow: `refuse_unfit` names a setting that means
nothing for the data at hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from satclip_engine.errors import UsageError

_IMAGES: Final = ("bands", "divisor", "max_skipped")
VIEW_SETTINGS: Final = ("views", "flips", "blur", "image_weights", "rcf_filters", "rcf_components")


@dataclass(frozen=True)
class DataKind:
    """A form of training data in words, and the settings that it takes."""

    words: str
    settings: tuple[str, ...]


S2_100K: Final = DataKind("a folder in the S2-100K layout", (*_IMAGES, *VIEW_SETTINGS))
TABLE: Final = DataKind("a table of images", (*_IMAGES, "size", *VIEW_SETTINGS))
FOLDER: Final = DataKind("a folder of images", (*_IMAGES, "size", *VIEW_SETTINGS))
RASTER: Final = DataKind(
    "a raster",
    ("patch", "count", "seed", "bounds", "bands", "divisor", "water_kept", "memory", *VIEW_SETTINGS),
)
# Those of a folder of features are compared with what it holds.
FEATURES: Final = DataKind("a folder of features", ("views", "rcf_filters", "rcf_components"))
_KINDS: Final = (S2_100K, TABLE, FOLDER, RASTER, FEATURES)
# A run has a seed whatever its data are.
DATA_SETTINGS: Final = tuple(dict.fromkeys(n for kind in _KINDS for n in kind.settings if n != "seed"))


def refuse_unfit(kind: DataKind, name: str, asked: Iterable[str]) -> None:
    """Raise UsageError for the first of the settings asked for that data of this kind do not take."""
    for setting in asked:
        takers = [other.words for other in _KINDS if setting in other.settings]
        if takers and setting not in kind.settings:
            uses = " or ".join(filter(None, [", ".join(takers[:-1]), takers[-1]]))
            raise UsageError(
                f"{setting}: {name} is {kind.words}, and this is for {uses}: leave it out", argument=setting
            )

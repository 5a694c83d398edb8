"""What a source of training patches offers, and the rules that all of them share.

A source is a sequence of images with the place of each: `len(source)`, `source.lonlat` (N, 2) float64 degrees
with the longitude first, and `source.read(indices)`, which gives (C, H, W) float32 arrays. An image that
cannot be used comes back as `Skipped`, because whether a file is whole is only known once it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from satclip_engine.errors import DataError

_NAMED = 5  # rows or files that a message names
_ALLOWED_SHARE, _ALLOWED_AT_LEAST = 0.01, 10


@dataclass(frozen=True)
class Skipped:
    """An image that is left out, and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path} ({self.reason})"


class PatchSource(Protocol):
    """Images with their places; reading is safe from several threads at once."""

    @property
    def name(self) -> str: ...  # for people: a folder or a file

    @property
    def lonlat(self) -> np.ndarray: ...  # (N, 2) float64 degrees

    @property
    def channels(self) -> int: ...

    @property
    def size(self) -> tuple[int, int]: ...  # height and width of every image

    @property
    def fingerprint(self) -> str: ...  # sha256 over what determines the images and places

    @property
    def skipped(self) -> tuple[Skipped, ...]: ...  # what was left out before anything was read

    @property
    def max_skipped(self) -> int: ...  # how many may be left out in all

    @property
    def notes(self) -> tuple[str, ...]: ...  # what a person should know of the data

    def __len__(self) -> int: ...

    def read(self, indices: Iterable[int]) -> list[np.ndarray | Skipped]: ...


def allowed_skips(total: int, max_skipped: int | None) -> int:
    """How many of `total` images may be left out: 1 % but at least 10, unless the user says."""
    return max(_ALLOWED_AT_LEAST, int(total * _ALLOWED_SHARE)) if max_skipped is None else max_skipped


def default_readers() -> int:
    """Threads that read images and make views: one a core, though not many, because they share a disk."""
    return min(4, os.cpu_count() or 1)


def check_skipped(skipped: Sequence[Skipped], total: int, allowed: int, where: str) -> None:
    """Raise DataError when more images are left out than allowed, or all of them."""
    if len(skipped) > allowed:
        raise DataError(
            f"{where}: {len(skipped)} of {total} images cannot be used, more than the {allowed} allowed: "
            f"{first_ones([str(item) for item in skipped], '; ')}; repair them or take them out of the "
            f"index, or allow more with max_skipped ({len(skipped)} or more)"
        )
    if len(skipped) >= total:
        reasons = first_ones([str(item) for item in skipped], "; ") or "there are none"
        raise DataError(f"{where}: no image can be used: {reasons}")


def check_places(lon: np.ndarray, lat: np.ndarray, row: Callable[[int], str], where: str) -> np.ndarray:
    """(N, 2) float64 degrees with longitudes in [−180, 180].

    Longitudes up to 360 are taken for the same places further west. Raises DataError naming rows that are
    not finite or out of range; `row(i)` says how a person finds row i.
    """
    lon, lat = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
    unknown = np.flatnonzero(~(np.isfinite(lon) & np.isfinite(lat)))
    if unknown.size:
        raise DataError(
            f"{where}: longitude or latitude is missing in {first_ones(row(int(i)) for i in unknown)}"
        )
    bad = np.flatnonzero(np.abs(lat) > 90.0)
    if bad.size:
        swapped = np.all(np.abs(lon[bad]) <= 90.0)
        hint = " (are lon and lat swapped?)" if swapped else ""
        named = first_ones(f"{row(int(i))} (lat {lat[i]:g})" for i in bad)
        raise DataError(f"{where}: latitude outside [-90, 90] in {named}{hint}")
    bad = np.flatnonzero((lon < -180.0) | (lon > 360.0))
    if bad.size:
        named = first_ones(f"{row(int(i))} (lon {lon[i]:g})" for i in bad)
        raise DataError(f"{where}: longitude outside [-180, 180] in {named}")
    return np.stack([np.where(lon > 180.0, lon - 360.0, lon), lat], axis=1)


def first_ones(items: Iterable[str], separator: str = ", ") -> str:
    """The first few of many, and how many more there are."""
    listed = list(items)
    more = f"{separator}and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return separator.join(listed[:_NAMED]) + more


def fingerprint(kind: str, options: dict[str, Any], *arrays: np.ndarray | bytes) -> str:
    """sha256 over options (as sorted JSON) and arrays (type, shape and content)."""
    digest = hashlib.sha256(json.dumps([kind, options], sort_keys=True, ensure_ascii=False).encode())
    for array in arrays:
        if not isinstance(array, bytes):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            array = np.ascontiguousarray(array).tobytes()
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(array)
    return digest.hexdigest()

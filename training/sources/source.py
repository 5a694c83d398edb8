"""The interface of a source of training images, and checks that all sources share.

A source is a sequence of images with the location of each: `len(source)`, `source.lonlat` (N, 2) float64
degrees with the longitude first, and `source.read(indices)`, which gives (C, H, W) float32 arrays. An image
that cannot be used comes back as `SkippedImage`, because only reading a file shows whether it is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from satclip_engine.errors import Argument, DataError
from satclip_engine.training.locations import check_on_earth, join_first

_SKIPPED_SHARE: Final = 0.01  # of the images, that may be skipped by default
_MIN_SKIPPED: Final = 10  # that may be skipped by default, however few images there are


@dataclass(frozen=True)
class SkippedImage:
    """An image that is left out, and the reason."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path} ({self.reason})"


class PatchSource(Protocol):
    """Images with their locations; reading is safe from several threads at once."""

    @property
    def name(self) -> str: ...  # for people: a folder or a file

    @property
    def lonlat(self) -> np.ndarray: ...  # (N, 2) float64 degrees

    @property
    def channels(self) -> int: ...

    @property
    def size(self) -> tuple[int, int]: ...  # height and width of every image

    @property
    def fingerprint(self) -> str: ...  # sha256 over what determines the images and locations

    @property
    def skipped(self) -> tuple[SkippedImage, ...]: ...  # left out before anything was read

    @property
    def max_skipped(self) -> int: ...  # images that may be left out in all

    @property
    def notes(self) -> tuple[str, ...]: ...  # what a person should know of the data

    def __len__(self) -> int: ...

    def read(self, indices: Iterable[int]) -> list[np.ndarray | SkippedImage]: ...


def skip_limit(total: int, max_skipped: int | None) -> int:
    """Number of images out of `total` that may be left out: `max_skipped`, or 1 % but at least 10."""
    return max(_MIN_SKIPPED, int(total * _SKIPPED_SHARE)) if max_skipped is None else max_skipped


def check_skipped(skipped: Sequence[SkippedImage], total: int, limit: int, source: str) -> None:
    """Raise DataError when more images are left out than allowed, or all of them."""
    if len(skipped) > limit:
        raise DataError(
            f"{source}: {len(skipped)} of {total} images cannot be used, more than the {limit} allowed: "
            f"{join_first([str(image) for image in skipped], '; ')}; repair them or take them out of the "
            "index, or allow more with ",
            Argument("max_skipped", len(skipped)),
            argument="max_skipped",
        )
    if len(skipped) >= total:
        reasons = join_first([str(image) for image in skipped], "; ") or "there are none"
        raise DataError(f"{source}: no image can be used: {reasons}")


def check_locations(lon: np.ndarray, lat: np.ndarray, row: Callable[[int], str], source: str) -> np.ndarray:
    """Check longitudes and latitudes of a table and return (N, 2) float64, longitudes in [−180, 180].

    Longitudes up to 360 are taken for the same locations further west. Raises DataError naming rows that are
    not finite or out of range; `row(i)` says how a person finds row i.
    """
    lonlat = np.stack([lon, lat], axis=1).astype(np.float64)
    check_on_earth(lonlat, row, source)
    lon = lonlat[:, 0]
    invalid = np.flatnonzero((lon < -180.0) | (lon > 360.0))
    if invalid.size:
        rows = join_first(f"{row(int(i))} (lon {lon[i]:g})" for i in invalid)
        raise DataError(f"{source}: longitude outside [-180, 180] in {rows}")
    lonlat[:, 0] = np.where(lon > 180.0, lon - 360.0, lon)
    return lonlat


def fingerprint(kind: str, options: dict[str, Any], *arrays: np.ndarray | bytes) -> str:
    """Compute the sha256 over options (as sorted JSON) and arrays (type, shape and content)."""
    digest = hashlib.sha256(json.dumps([kind, options], sort_keys=True, ensure_ascii=False).encode())
    for array in arrays:
        if not isinstance(array, bytes):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            array = np.ascontiguousarray(array).tobytes()
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(array)
    return digest.hexdigest()

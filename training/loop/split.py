"""Train/validation split: whole locations, or whole blocks of latitude and longitude, are held out.

Images of one location lie on one side: held out beside its twin, an image would be scored on what was
trained on. Samples within 1e-4 degrees (11 m) of each other are of one location, beyond 4e-4 degrees they are
not, unless a chain of others connects them within 1e-3 degrees.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from satclip_engine.errors import UsageError

_LOCATION_DEGREES: Final = 1e-4  # coordinates in float32 and from GPS repeat a location within that
_CELL_BITS: Final = 21  # of an axis of the cells below: twice 180/π/1e-4 of them
# A trail of images, a few metres from one to the next, is cut after so many cells: one location everywhere
# would leave nothing to split.
_CHAIN_CELLS: Final = 10


@dataclass(frozen=True, eq=False)
class Split:
    """Indices of samples, each in ascending order. `held_out` is empty for a fraction of 0.

    locations: the number of each sample's location.
    """

    train: np.ndarray
    held_out: np.ndarray
    locations: np.ndarray

    @property
    def held_out_locations(self) -> int:
        """Number of locations held out."""
        return len(np.unique(self.locations[self.held_out]))


def split_samples(
    lonlat: np.ndarray, fraction: float, seed: int, *, block_degrees: float | None = None
) -> Split:
    """Hold out a `fraction` of the samples, as nearly as whole locations allow, drawn by `seed`.

    block_degrees: hold out whole blocks of that many degrees until they have as many samples. Samples nearby
        then lie on one side, and validation measures the encoder where it has seen nothing.

    Raises UsageError when either side would be empty, or of one location: its loss would say nothing.
    """
    count = len(lonlat)
    if count == 0:
        raise UsageError("there are no samples to train on: give data with images that can be used")
    if count > 1 and np.all(lonlat == lonlat[0]):
        raise UsageError(
            f"all {count} samples are of one location, by which no encoder is better than another: give "
            "images of more locations"
        )
    locations = number_locations(lonlat)
    needed = int(count * fraction)
    if fraction == 0:
        held_out = np.arange(0)
    else:
        generator = np.random.default_rng([seed, 0])
        if block_degrees is None:
            held_out = _whole_locations(locations, needed, generator)
        else:
            held_out = _whole_blocks(_blocks(lonlat, block_degrees, locations), needed, generator)
    is_held_out = np.zeros(count, bool)
    is_held_out[held_out] = True
    split = Split(np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out), locations)
    _check_sides(split, fraction, block_degrees)
    return split


def number_locations(lonlat: np.ndarray) -> np.ndarray:  # (N, 2) -> (N,)
    """Number the locations of samples, in the order in which they first occur."""
    cells = _cells(lonlat)
    packed = (cells << (_CELL_BITS * np.arange(3))).sum(1)
    keys, cell_of = np.unique(packed, return_inverse=True)
    chains = _connect(keys)[cell_of.ravel()]
    corner = np.full((len(keys), 3), np.iinfo(np.int64).max)
    np.minimum.at(corner, chains, cells)
    links = (cells - corner[chains]) // _CHAIN_CELLS
    _, first, numbers = np.unique(
        np.column_stack([chains, links]), axis=0, return_index=True, return_inverse=True
    )
    return np.argsort(np.argsort(first))[numbers.ravel()]


def _cells(lonlat: np.ndarray) -> np.ndarray:  # (N, 2) -> (N, 3)
    """Cells of space, a location's size wide, in which points on the unit sphere lie.

    In space neither poles nor the antimeridian are a border.
    """
    lon, lat = np.radians(lonlat).T
    points = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], 1)
    return np.floor(points / math.radians(_LOCATION_DEGREES)).astype(np.int64) + 2 ** (_CELL_BITS - 1)


def _connect(keys: np.ndarray) -> np.ndarray:  # (K,) sorted -> (K,)
    """Number, for each cell, the group of cells that touch each other: the lowest index in it."""
    neighbours = [
        sum(step << (_CELL_BITS * axis) for axis, step in enumerate(steps))
        for steps in itertools.product((-1, 0, 1), repeat=3)
    ]
    pairs = []
    for offset in neighbours[len(neighbours) // 2 + 1 :]:  # the other half are the same pairs
        position = np.minimum(np.searchsorted(keys, keys + offset), len(keys) - 1)
        touching = np.flatnonzero(keys[position] == keys + offset)
        pairs.append(np.stack([touching, position[touching]]))
    first, second = np.concatenate(pairs, axis=1)
    groups = np.arange(len(keys))
    while np.any(groups[first] != groups[second]):
        lower = np.minimum(groups[first], groups[second])
        np.minimum.at(groups, groups[first], lower)
        np.minimum.at(groups, groups[second], lower)
        while np.any(groups != groups[groups]):
            groups = groups[groups]
    return groups


def _whole_locations(locations: np.ndarray, needed: int, generator: np.random.Generator) -> np.ndarray:
    """Samples of locations in random order, of those that together have as nearly as possible `needed`."""
    sizes = np.bincount(locations)
    order = generator.permutation(len(sizes))
    is_chosen = np.zeros(len(sizes), bool)
    missing = needed
    for location in order:
        if missing == 0:
            break
        if sizes[location] <= missing:
            is_chosen[location] = True
            missing -= sizes[location]
    rest = order[~is_chosen[order]]
    if missing and len(rest):
        smallest = rest[np.argmin(sizes[rest])]  # larger than what is missing
        is_chosen[smallest] = not is_chosen.any() or sizes[smallest] - missing < missing
    return np.flatnonzero(is_chosen[locations])


def _blocks(lonlat: np.ndarray, degrees: float, locations: np.ndarray) -> np.ndarray:
    """Number the blocks of samples, without gaps; a location lies in the block of its first sample."""
    rows = np.floor((lonlat[:, 1] + 90) / degrees)
    columns = np.floor((lonlat[:, 0] + 180) % 360 / degrees)
    first = np.unique(locations, return_index=True)[1][locations]
    return np.unique(np.stack([rows, columns], 1)[first], axis=0, return_inverse=True)[1].ravel()


def _whole_blocks(blocks: np.ndarray, needed: int, generator: np.random.Generator) -> np.ndarray:
    """Samples of blocks in random order, of as many blocks as hold `needed`."""
    sizes = np.bincount(blocks)
    order = generator.permutation(len(sizes))
    count = int(np.searchsorted(np.cumsum(sizes[order]), needed)) + 1 if needed else 0
    return np.flatnonzero(np.isin(blocks, order[:count]))


def _check_sides(split: Split, fraction: float, block_degrees: float | None) -> None:
    """Raise UsageError for a side that is empty, or in which all samples are of one location."""
    unit = "" if block_degrees is None else f" in blocks of {block_degrees:g} degrees"
    share = f"{fraction:g} of {len(split.locations)} samples{unit}"
    sides = {"training": split.train} | ({"validation": split.held_out} if fraction else {})
    for side, samples in sides.items():
        if len(samples) == 0:
            advice = "images of more locations" if not split.locations.any() else "another fraction"
            raise _no_split(f"{share} leaves none for {side}; give {advice}")
    for side, samples in sides.items():
        if len(samples) == 1 and side == "training":
            continue  # refused with its batch
        if np.all(split.locations[samples] == split.locations[samples[0]]):
            count = "one" if len(samples) == 1 else f"{len(samples)} of one location"
            raise _no_split(
                f"{share} leaves {count} for {side}, by which no encoder is better than another; give "
                f"{_better_fraction(split, side, block_degrees)}"
            )


def _better_fraction(split: Split, side: str, block_degrees: float | None) -> str:
    """Advice on a fraction that leaves two locations for either side."""
    sizes = np.sort(np.bincount(split.locations))
    fewest = math.ceil(100 * float(sizes[:2].sum()) / len(split.locations)) / 100
    if len(sizes) < 4:
        return "images of more locations"
    if side == "training":
        return "a lower fraction"
    return f"{fewest:g} or more" if block_degrees is None else "a higher one, or smaller blocks"


def _no_split(message: str) -> UsageError:
    return UsageError(
        f"val_random_split_fraction: {message}, or 0 to train without validation",
        argument="val_random_split_fraction",
    )

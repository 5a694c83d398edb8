"""Splits of points into those that a probe learns from and those that it is tested on.

A split is a group number a point: points of one group are never parted. Where every point is a group of its
own the split is random; where a group is a block of the map, whole blocks are held out, and the probe has to
extrapolate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from satclip_engine.errors import UsageError

BLOCK_DEGREES = 10.0


@dataclass(frozen=True)
class Split:
    """groups: [n] whole numbers; rows with the same number stay together."""

    name: str
    groups: np.ndarray

    def hold_out(
        self, share: float, rng: np.random.Generator, rows: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers to learn from and held out, of all rows or of `rows` (ascending).

        Whole groups are held out in random order until their rows come nearest to `share`. Raises UsageError
        for fewer than two groups.
        """
        rows = np.arange(len(self.groups)) if rows is None else rows
        _, group = np.unique(self.groups[rows], return_inverse=True)
        sizes = np.bincount(group)
        if len(sizes) < 2:
            raise UsageError(
                f"split {self.name!r}: all {len(rows)} points are in one group: nothing to hold out"
            )
        order = rng.permutation(len(sizes))
        held_rows = np.cumsum(sizes[order])[:-1]  # at least one group is left to learn from
        count = 1 + int(np.argmin(np.abs(held_rows - share * len(rows))))
        held = np.zeros(len(sizes), bool)
        held[order[:count]] = True
        return rows[~held[group]], rows[held[group]]

    def folds(
        self, count: int, rng: np.random.Generator, rows: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Cut `rows` (ascending) into about equal folds of whole groups: for each, the others and the fold.

        Fewer folds where there are fewer groups. Raises UsageError for fewer than two groups.
        """
        _, group = np.unique(self.groups[rows], return_inverse=True)
        sizes = np.bincount(group)
        fold_sizes = np.zeros(min(count, len(sizes)))
        if len(fold_sizes) < 2:
            raise UsageError(
                f"split {self.name!r}: all {len(rows)} points are in one group: nothing to hold out"
            )
        fold_of = np.empty(len(sizes), int)
        shuffled = rng.permutation(len(sizes))
        for index in shuffled[
            np.argsort(-sizes[shuffled], kind="stable")
        ]:  # large ones first, to the emptiest fold
            fold_of[index] = int(np.argmin(fold_sizes))
            fold_sizes[fold_of[index]] += sizes[index]
        row_fold = fold_of[group]
        return [(rows[row_fold != index], rows[row_fold == index]) for index in range(len(fold_sizes))]


def random_split(count: int) -> Split:
    """Every point on its own."""
    return Split("random", np.arange(count))


def block_split(lonlat: np.ndarray, degrees: float = BLOCK_DEGREES) -> Split:
    """Points (n, 2), longitude first, in squares of so many degrees, counted from 180° W and 90° S."""
    lon, lat = np.mod(lonlat[:, 0] + 180, 360), lonlat[:, 1] + 90
    columns = int(np.ceil(360 / degrees))
    row = np.minimum(lat // degrees, np.ceil(180 / degrees) - 1)  # the north pole belongs to the last row
    return Split("block", (row * columns + lon // degrees).astype(np.int64))

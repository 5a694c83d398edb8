"""Train/validation split: single samples, or whole blocks of latitude and longitude, held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from satclip_engine.errors import UsageError


@dataclass(frozen=True, eq=False)
class Split:
    """Indices of samples, each in ascending order. `held_out` is empty for a fraction of 0."""

    train: np.ndarray
    held_out: np.ndarray


def split_samples(
    lonlat: np.ndarray, fraction: float, seed: int, *, block_degrees: float | None = None
) -> Split:
    """Hold out a `fraction` of the samples, drawn by `seed`.

    block_degrees: hold out whole blocks of that many degrees until they have as many samples. Samples nearby
        then lie on one side, and validation measures the encoder where it has seen nothing.

    Raises UsageError when either side would be empty.
    """
    count = len(lonlat)
    if count == 0:
        raise UsageError("there are no samples to train on: give data with images that can be used")
    if fraction == 0:
        return Split(np.arange(count), np.arange(0))
    generator = np.random.default_rng([seed, 0])
    needed = int(count * fraction)
    if block_degrees is None:
        held_out = generator.permutation(count)[:needed]
    else:
        held_out = _whole_blocks(_blocks(lonlat, block_degrees), needed, generator)
    if len(held_out) in (0, count):
        side = "validation" if len(held_out) == 0 else "training"
        unit = "" if block_degrees is None else f" in blocks of {block_degrees:g} degrees"
        raise UsageError(
            f"val_random_split_fraction: {fraction:g} of {count} samples{unit} leaves none for {side}; "
            "give another fraction, or 0 to train without validation",
            argument="val_random_split_fraction",
        )
    is_held_out = np.zeros(count, bool)
    is_held_out[held_out] = True
    return Split(np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out))


def _blocks(lonlat: np.ndarray, degrees: float) -> np.ndarray:  # (N,) numbers of blocks, without gaps
    rows = np.floor((lonlat[:, 1] + 90) / degrees)
    columns = np.floor((lonlat[:, 0] + 180) % 360 / degrees)
    return np.unique(np.stack([rows, columns], 1), axis=0, return_inverse=True)[1].ravel()


def _whole_blocks(blocks: np.ndarray, needed: int, generator: np.random.Generator) -> np.ndarray:
    """Samples of blocks in random order, of as many blocks as hold `needed`."""
    sizes = np.bincount(blocks)
    order = generator.permutation(len(sizes))
    count = int(np.searchsorted(np.cumsum(sizes[order]), needed)) + 1 if needed else 0
    return np.flatnonzero(np.isin(blocks, order[:count]))

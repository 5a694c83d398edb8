"""Samples, views and noise of each training step, as functions of the seed and the step, without a state.

A run that is resumed, or spread over several processes, therefore sees what an uninterrupted single process
would.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# Streams of random numbers, one a purpose, so that none depends on whether another is used.
_ORDER_STREAM, _VIEW_STREAM, _JITTER_STREAM, _NOISE_STREAM, _DROPOUT_STREAM = range(1, 6)


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Samples of a step for one process: `rows` of the whole batch of `total` samples."""

    step: int
    samples: np.ndarray  # (n,)
    views: np.ndarray  # (n,)
    rows: slice
    total: int


@dataclass(frozen=True, eq=False)
class BatchSchedule:
    """Batches of a run over `samples`: every epoch has a permutation of its own, cut into batches.

    A batch larger than the samples holds all of them. The last batch of an epoch is dropped when it is not
    full, because a loss over fewer negatives is another loss.
    """

    samples: np.ndarray
    batch_size: int
    views: int
    seed: int

    @property
    def size(self) -> int:
        """Samples a step."""
        return min(self.batch_size, len(self.samples))

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch."""
        return len(self.samples) // self.size

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> TrainingBatch:
        """Samples of step `step` for process `rank` of `world_size`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order, views = _draw_epoch(len(self.samples), self.views, self.seed, epoch)
        whole = slice(position * self.size, (position + 1) * self.size)
        rows = slice(rank * self.size // world_size, (rank + 1) * self.size // world_size)
        return TrainingBatch(step, self.samples[order[whole]][rows], views[whole][rows], rows, self.size)


@lru_cache(maxsize=2)  # its steps ask for the same epoch again and again
def _draw_epoch(count: int, views: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the order of the samples in an epoch, and a view for each position."""
    order = np.random.default_rng([seed, _ORDER_STREAM, epoch]).permutation(count)
    return order, np.random.default_rng([seed, _VIEW_STREAM, epoch]).integers(views, size=count)


def jitter_locations(
    lonlat: np.ndarray, batch: TrainingBatch, degrees: float, seed: int
) -> np.ndarray:  # (n, 2)
    """Move locations by up to `degrees` north and east, as in the published training; not beyond the pole."""
    if degrees == 0:
        return lonlat
    moves = np.random.default_rng([seed, _JITTER_STREAM, batch.step]).random((batch.total, 2))[batch.rows]
    moved = lonlat + degrees * moves
    moved[:, 1] = np.minimum(moved[:, 1], 90.0)
    return moved


def feature_noise(dim: int, batch: TrainingBatch, seed: int) -> Tensor:  # (n, dim) float32
    """Draw standard normal numbers for the features of a batch."""
    generator = torch.Generator().manual_seed(derive_seed(seed, _NOISE_STREAM, batch.step))
    return torch.randn(batch.total, dim, generator=generator, dtype=torch.float32, device="cpu")[batch.rows]


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Seed of torch's generator before a step; processes drop different units of their rows."""
    return derive_seed(seed, _DROPOUT_STREAM, step, rank)


def derive_seed(*key: int) -> int:
    """Derive 63 bits from `key`."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))

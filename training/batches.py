"""Which samples, views and disturbances each step sees: functions of the seed and the step, without a state.

A run that is resumed, or spread over several processes, therefore sees what an uninterrupted single process
would.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# One stream of random numbers for each purpose, so that none depends on whether another is used.
_ORDER, _VIEWS, _JITTER, _NOISE, _DROPOUT = range(1, 6)


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of a step that fall to one process: `rows` of the whole batch of `total` samples."""

    step: int
    samples: np.ndarray  # (n,)
    views: np.ndarray  # (n,)
    rows: slice
    total: int


@dataclass(frozen=True, eq=False)
class Batches:
    """Steps of a run over `samples`: every epoch a permutation of its own, cut into batches.

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

    def at(self, step: int, *, rank: int = 0, ranks: int = 1) -> Batch:
        """The part of step `step` that falls to process `rank` of `ranks`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order, views = _drawn(len(self.samples), self.views, self.seed, epoch)
        chosen = slice(position * self.size, (position + 1) * self.size)
        rows = slice(rank * self.size // ranks, (rank + 1) * self.size // ranks)
        return Batch(step, self.samples[order[chosen]][rows], views[chosen][rows], rows, self.size)


@lru_cache(maxsize=2)  # its steps ask for the same epoch again and again
def _drawn(count: int, views: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Order of the samples in an epoch, and a view for each position."""
    order = np.random.default_rng([seed, _ORDER, epoch]).permutation(count)
    return order, np.random.default_rng([seed, _VIEWS, epoch]).integers(views, size=count)


def jittered(lonlat: np.ndarray, batch: Batch, degrees: float, seed: int) -> np.ndarray:  # (n, 2)
    """Places moved by up to `degrees` north and east, as in the published training; not beyond the pole."""
    if degrees == 0:
        return lonlat
    moves = np.random.default_rng([seed, _JITTER, batch.step]).random((batch.total, 2))[batch.rows]
    moved = lonlat + degrees * moves
    moved[:, 1] = np.minimum(moved[:, 1], 90.0)
    return moved


def noise(dim: int, batch: Batch, seed: int) -> Tensor:  # (n, dim) float32
    """Standard normal numbers for the features of a batch."""
    generator = torch.Generator().manual_seed(drawn_seed(seed, _NOISE, batch.step))
    return torch.randn(batch.total, dim, generator=generator)[batch.rows]


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """What torch's generator is set to before a step; processes drop different units of their rows."""
    return drawn_seed(seed, _DROPOUT, step, rank)


def drawn_seed(*key: int) -> int:
    """63 bits that belong to `key`."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))

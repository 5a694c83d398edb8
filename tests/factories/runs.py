"""Small material: random features at random places, and settings that train on them in no time."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from satclip_engine.training.config import TrainConfig  # noqa: E402
from satclip_engine.training.samples import MemoryFeatures  # noqa: E402


def random_features(count: int = 20, *, dim: int = 32, views: int = 2, seed: int = 0) -> MemoryFeatures:
    rng = np.random.default_rng(seed)
    lonlat = np.stack([rng.uniform(-180, 180, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))], 1)
    base = rng.normal(3.0, 2.0, (count, 1, dim))
    return MemoryFeatures(lonlat, (base + rng.normal(0, 0.2, (count, views, dim))).astype(np.float32))


def small_config(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "legendre_polys": 5,
        "capacity": 32,
        "embed_dim": 16,
        "dropout": 0.0,
        "batch_size": 16,
        "max_epochs": 4,
        "learning_rate": 3e-3,
        "threads": 1,
    }
    return TrainConfig(**(settings | changes))


class Signalling(MemoryFeatures):
    """Features that send this process a signal when a batch is read for the nth time."""

    def __init__(self, features: MemoryFeatures, number: signal.Signals, reads: int) -> None:
        super().__init__(features.lonlat, features._values)
        self._signal, self._left = number, reads

    def batch(self, indices: Any, views: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._signal)
        return super().batch(indices, views)

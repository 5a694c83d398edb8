"""What the trainer eats: places, and features of the images taken there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from satclip_engine.errors import UsageError

STATISTICS = 8192  # samples that the features' mean and size are taken from


class Features(Protocol):
    """Image features by sample and view; FeatureCache is one."""

    @property
    def lonlat(self) -> np.ndarray: ...  # (N, 2) float64 degrees, longitude first

    @property
    def views(self) -> int: ...  # K

    @property
    def dim(self) -> int: ...  # F

    def batch(self, indices: Any, views: Any) -> Tensor: ...  # (n,), (n,) -> (n, F) float32


class MemoryFeatures:
    """Features that lie in memory."""

    def __init__(self, lonlat: Any, features: Any) -> None:  # (N, 2), (N, F) or (N, K, F)
        self.lonlat = np.asarray(lonlat, np.float64)
        values = torch.as_tensor(features, dtype=torch.float32)
        self._values = values[:, None] if values.ndim == 2 else values
        if self._values.ndim != 3 or self.lonlat.shape != (len(self._values), 2):
            raise UsageError(
                f"expected lonlat (N, 2) and features (N, F) or (N, K, F), "
                f"got {self.lonlat.shape} and {tuple(values.shape)}"
            )
        _, self.views, self.dim = self._values.shape

    def batch(self, indices: Any, views: Any) -> Tensor:
        """(n, F)."""
        return self._values[torch.as_tensor(indices), torch.as_tensor(views)]


def fingerprint(data: Features) -> str:
    """Tells one set of samples from another, by its places and by what it says of itself."""
    digest = hashlib.sha256(np.ascontiguousarray(data.lonlat).tobytes())
    digest.update(repr([data.views, data.dim, getattr(data, "fingerprint", None)]).encode())
    return digest.hexdigest()


def statistics(
    data: Features, samples: Sequence[int] | np.ndarray, *, most: int = STATISTICS
) -> tuple[Tensor, Tensor]:
    """Mean (F,) of the features of some samples, and the root mean square () of what departs from it.

    most: of the samples, evenly spread, that are looked at.
    """
    chosen = np.asarray(samples)
    if len(chosen) > most:
        chosen = chosen[np.linspace(0, len(chosen) - 1, most).astype(np.int64)]
    features = data.batch(chosen, np.zeros(len(chosen), np.int64)).double()
    if not torch.isfinite(features).all():
        row = int(chosen[int((~torch.isfinite(features)).any(1).nonzero()[0])])
        raise UsageError(
            f"the features of sample {row} are not finite: take its image out, and make a feature cache anew"
        )
    mean = features.mean(0)
    size = (features - mean).square().mean().sqrt()
    return mean.float(), torch.where(size > 0, size, 1.0).float()

"""Training samples: locations, and features of the images taken there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from satclip_engine.errors import Argument, DataError, UsageError
from satclip_engine.training.locations import check_on_earth

STATISTICS_SAMPLES: Final = 8192  # over which the features' mean and size are measured


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
    """Features in memory."""

    def __init__(self, lonlat: Any, features: Any) -> None:  # (N, 2), (N, F) or (N, K, F)
        self.lonlat = np.asarray(lonlat, np.float64)
        device = features.device if isinstance(features, Tensor) else "cpu"
        values = torch.as_tensor(features, dtype=torch.float32, device=device)
        self._values = values[:, None] if values.ndim == 2 else values
        if self._values.ndim != 3 or self.lonlat.shape != (len(self._values), 2):
            raise UsageError(
                f"expected lonlat (N, 2) and features (N, F) or (N, K, F), "
                f"got {self.lonlat.shape} and {tuple(values.shape)}"
            )
        check_samples(self.lonlat)
        _, self.views, self.dim = self._values.shape

    def batch(self, indices: Any, views: Any) -> Tensor:
        """Features (n, F) of samples and their views."""
        return self._values[torch.as_tensor(indices), torch.as_tensor(views)]


def check_samples(lonlat: np.ndarray) -> None:
    """Raise UsageError naming the first samples whose locations are not finite or beyond a pole."""
    try:
        check_on_earth(lonlat, "sample {}".format, "lonlat")
    except DataError as error:
        raise UsageError(str(error), argument="lonlat") from error


def samples_fingerprint(data: Features) -> str:
    """Compute the sha256 over the locations and the data's own fingerprint, if they have one."""
    digest = hashlib.sha256(np.ascontiguousarray(data.lonlat).tobytes())
    digest.update(repr([data.views, data.dim, getattr(data, "fingerprint", None)]).encode())
    return digest.hexdigest()


def feature_statistics(
    data: Features, samples: Sequence[int] | np.ndarray, *, limit: int = STATISTICS_SAMPLES
) -> tuple[Tensor, Tensor]:
    """Mean (F,) of the features of samples, and the root mean square () of their deviations from it.

    limit: number of the samples, evenly spread, that are measured.
    """
    measured = evenly_spread(np.asarray(samples), limit)
    features = data.batch(measured, np.zeros(len(measured), np.int64)).double()
    if not torch.isfinite(features).all():
        row = int(measured[int((~torch.isfinite(features)).any(1).nonzero()[0])])
        raise UsageError(
            f"the features of sample {row} are not finite: take its image out of the data, and replace the "
            "feature cache with ",
            Argument("rebuild", True),
            argument="rebuild",
        )
    mean = features.mean(0)
    size = (features - mean).square().mean().sqrt()
    return mean.float(), torch.where(size > 0, size, 1.0).float()


def evenly_spread(samples: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` of the samples, evenly spread."""
    if len(samples) <= limit:
        return samples
    return samples[np.linspace(0, len(samples) - 1, limit).astype(np.int64)]

"""What raster tests share: expected overviews, reading a file back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def halved() -> Callable[[np.ndarray], np.ndarray]:
    return _halved


@pytest.fixture
def read() -> Callable[..., np.ndarray]:
    return _read


def _halved(values: np.ndarray) -> np.ndarray:
    """Mean of the valid values of 2×2 pixels of (h, w, E) float32, at odd edges of what is there."""
    height, width, bands = values.shape
    padded = np.full((height + height % 2, width + width % 2, bands), np.nan, np.float32)
    padded[:height, :width] = values
    corners = [padded[y::2, x::2] for y in (0, 1) for x in (0, 1)]
    zero = [np.nan_to_num(corner, nan=0.0) for corner in corners]
    count = sum((~np.isnan(corner)).astype(np.float32) for corner in corners)
    with np.errstate(invalid="ignore"):
        return (((zero[0] + zero[1]) + (zero[2] + zero[3])) / count).astype(np.float32)


def _read(path: Path, level: int = 0) -> np.ndarray:
    """Stored numbers of a level, (h, w, E)."""
    import rasterio

    options: dict[str, Any] = {"overview_level": level - 1} if level else {}
    with rasterio.open(path, **options) as dataset:
        return dataset.read().transpose(1, 2, 0)

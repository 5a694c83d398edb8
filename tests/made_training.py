"""A source of patches and an image encoder that take no time, and where the four real patches are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from satclip_engine.training.source import Skipped, fingerprint

S2 = Path(__file__).parent / "data" / "s2"


class MadeSource:
    """`count` images of noise, each from its own number; some of them cannot be read."""

    name, channels, size = "made", 3, (12, 12)
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(
        self, count: int = 50, *, broken: tuple[int, ...] = (), max_skipped: int = 10, seed: int = 0
    ):
        self.broken, self.max_skipped, self.seed = broken, max_skipped, seed
        self.lonlat = np.random.default_rng(seed).uniform(-80, 80, (count, 2))
        self.fingerprint = fingerprint("made", {"count": count, "seed": seed})

    def __len__(self) -> int:
        return len(self.lonlat)

    def read(self, indices):
        return [
            Skipped(f"made-{i}", "broken")
            if i in self.broken
            else np.random.default_rng([self.seed, i]).random((3, 12, 12), np.float32)
            for i in indices
        ]


class MadeEncoder:
    """Means of the corners of an image, for (B, 3, 12, 12)."""

    name, dim, channels, size, fixed_size = "corners", 6, 3, None, False
    vision_layers, notes, device = None, (), "cpu"

    def __init__(self, factor: float = 1.0):
        self.factor = factor

    @property
    def fingerprint(self) -> str:
        return fingerprint("corners", {"factor": self.factor})

    def trunk(self, batch):
        import torch

        parts = (batch[:, :, :6, :6], batch[:, :, 6:, 6:])
        return torch.cat([part.mean(dim=(2, 3)) for part in parts], dim=1) * self.factor

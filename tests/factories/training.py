"""A source of patches and an image encoder that take no time, and where the four real patches are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from satclip_engine.training.sources.source import SkippedImage, fingerprint

S2 = Path(__file__).parents[1] / "data" / "s2"


class MadeSource:
    """`count` images of noise, each from its own number; some of them cannot be read."""

    name, channels, size = "made", 3, (12, 12)
    skipped: tuple[SkippedImage, ...] = ()
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
            SkippedImage(f"made-{i}", "broken")
            if i in self.broken
            else np.random.default_rng([self.seed, i]).random((3, 12, 12), np.float32)
            for i in indices
        ]


class MadeEncoder:
    """Means of the corners of an image, for (B, 3, 12, 12)."""

    name, dim, channels, size, fixed_size = "corners", 6, 3, None, False
    vision_layers, notes, device = None, (), "cpu"

    projection_loaded = False

    def __init__(self, factor: float = 1.0):
        import torch

        self.factor = factor
        self.projection = torch.nn.Linear(self.dim, 4)
        for parameter in self.projection.parameters():
            torch.nn.init.zeros_(parameter)

    def state_dict(self):
        return {f"projection.{name}": value for name, value in self.projection.state_dict().items()}

    @property
    def fingerprint(self) -> str:
        return fingerprint("corners", {"factor": self.factor})

    def trunk(self, batch):
        import torch

        parts = (batch[:, :, :6, :6], batch[:, :, 6:, 6:])
        return torch.cat([part.mean(dim=(2, 3)) for part in parts], dim=1) * self.factor


def made_trunk(seed: int = 0) -> Any:
    """Two convolutions, the first one normalised by statistics that are not those of the images."""
    import torch

    nn = torch.nn
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.Tanh()]
        trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        trunk[1].running_mean.normal_(std=0.1)
        trunk[1].running_var.uniform_(0.05, 0.1)
    return trunk.eval()


def made_images(
    count: int = 20, *, chunk: int = 5, seed: int = 0, source: Any = None, trunk_fingerprint: str = "a"
) -> Any:
    """Images of noise through a small trunk to train."""
    from satclip_engine.training.features.trunk_features import TrunkFeatures
    from satclip_engine.training.images.augment import Augmentation
    from satclip_engine.training.images.image_views import ImageViews, usable_rows

    source = source or MadeSource(count, seed=seed)
    rows, _, content = usable_rows(source, workers=2)
    images = ImageViews(source, rows, Augmentation(8), seed=0, workers=2, content=content)
    return TrunkFeatures(images, made_trunk(), dim=12, chunk=chunk, trunk_fingerprint=trunk_fingerprint)

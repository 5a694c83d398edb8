"""Views of an image as the published transforms make them, and the jitter of coordinates.

In order: a random crop (or one of random size, resized), flips along both axes with probability ½ each, a
Gaussian blur of 3×3 pixels with a deviation between 0.1 and 2. A view is fixed by (seed, image, view): it
depends neither on the order of batches nor on where a stopped run goes on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from satclip_engine.errors import UsageError
from satclip_engine.training.source import fingerprint

if TYPE_CHECKING:
    import torch

_BLUR = (0.1, 2.0)  # torchvision.transforms.GaussianBlur(3)
_RATIO = (3 / 4, 4 / 3)  # of width to height, as torchvision.transforms.RandomResizedCrop
_TRIES = 10
_JITTER = 0.01  # degrees, about 1 km


@dataclass(frozen=True)
class Augmentation:
    """What is done to a view.

    crop: side in pixels; None keeps the whole image.
    scale: share of the image's area that a crop covers, (least, most); it is then resized to `crop`.
    """

    crop: int | None = None
    scale: tuple[float, float] | None = None
    flips: bool = True
    blur: bool = True

    def __post_init__(self) -> None:
        if self.crop is not None and self.crop < 1:
            raise UsageError(f"crop must be at least 1 pixel, not {self.crop}")
        if self.scale is not None and not 0.0 < self.scale[0] <= self.scale[1] <= 1.0:
            raise UsageError(f"scale must be two shares of the area, 0 < least ≤ most ≤ 1, not {self.scale}")
        if self.scale is not None and self.crop is None:
            raise UsageError("scale needs crop, the side that crops are resized to")

    @property
    def fingerprint(self) -> str:
        return fingerprint("augmentation 1", asdict(self))

    def __str__(self) -> str:
        cut = "whole images" if self.crop is None else f"crops of {self.crop}"
        resized = f" resized from {self.scale[0]:g}–{self.scale[1]:g} of the area" if self.scale else ""
        return f"{cut}{resized}{', flips' if self.flips else ''}{', blur' if self.blur else ''}"

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the views of images of `size`. Raises UsageError when the crop is larger."""
        if self.crop is None:
            return size
        if self.scale is None and self.crop > min(size):
            raise UsageError(
                f"images of {size[0]}×{size[1]} pixels are smaller than the crop of {self.crop}: choose a "
                "smaller crop, or resized crops (scale)"
            )
        return self.crop, self.crop

    def views(self, image: np.ndarray, *, index: int, count: int, seed: int) -> np.ndarray:
        """(count, C, h, w) float32 views of a (C, H, W) image, the index-th of its source."""
        return np.stack([self.view(image, view_generator(seed, index, view)) for view in range(count)])

    def view(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One view."""
        if self.scale is not None:
            image = _resized_crop(image, self.crop or 0, self.scale, rng)
        elif self.crop is not None:
            image = _crop(image, self.crop, rng)
        if self.flips:
            across, down = rng.random(2) < 0.5
            image = image[:, :: -1 if down else 1, :: -1 if across else 1]
        return _blur(image, rng.uniform(*_BLUR)) if self.blur else np.ascontiguousarray(image)


def view_generator(seed: int, index: int, view: int) -> np.random.Generator:
    """The random numbers of one view: a counter-based generator, whose start costs nothing."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, view, index]))


def coordinate_jitter(
    lonlat: torch.Tensor, generator: torch.Generator | None = None, *, radius: float = _JITTER
) -> torch.Tensor:
    """Add U(0, radius) degrees to longitudes and latitudes, as the published transforms do (to one side).

    Latitudes stop at the pole. In the dtype and on the device of `lonlat`.
    """
    import torch

    noise = torch.rand(lonlat.shape, generator=generator, dtype=lonlat.dtype, device=lonlat.device)
    moved = lonlat + noise * radius
    return torch.stack([moved[..., 0], moved[..., 1].clamp(max=90.0)], dim=-1)


def _crop(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    _, height, width = image.shape
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    return image[:, top : top + side, left : left + side]


def _resized_crop(
    image: np.ndarray, side: int, scale: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """A crop of random area and ratio, resized to side×side (bilinear, antialiased)."""
    import torch

    _, height, width = image.shape
    h = w = min(height, width)
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*scale)
        ratio = np.exp(rng.uniform(*np.log(_RATIO)))
        tried_h, tried_w = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
        if 0 < tried_h <= height and 0 < tried_w <= width:
            h, w = tried_h, tried_w
            break
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    cut = torch.from_numpy(np.ascontiguousarray(image[None, :, top : top + h, left : left + w]))
    resized = torch.nn.functional.interpolate(
        cut, size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0].numpy()


def _blur(image: np.ndarray, deviation: float) -> np.ndarray:
    """Gaussian blur of 3×3 pixels, mirrored at the edges."""
    side = np.exp(-0.5 / deviation**2)
    outer, inner = np.float32(side / (1 + 2 * side)), np.float32(1 / (1 + 2 * side))
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    rows = padded[:, :-2] + padded[:, 2:]
    rows *= outer
    rows += inner * padded[:, 1:-1]
    blurred = rows[:, :, :-2] + rows[:, :, 2:]
    blurred *= outer
    blurred += inner * rows[:, :, 1:-1]
    return blurred

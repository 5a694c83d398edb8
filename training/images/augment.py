"""Image augmentation (crop, flips, blur) as the published transforms do it, and jitter of coordinates.

In order: a random crop (or one of random size, resized), flips along both axes with probability ½ each, a
Gaussian blur of 3×3 pixels with a deviation between 0.1 and 2. A view is fixed by (seed, image, view): it
depends neither on the order of batches nor on the step at which a run is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from satclip_engine._optional import need
from satclip_engine.errors import UsageError
from satclip_engine.training.sources.source import fingerprint

if TYPE_CHECKING:
    import torch

_BLUR_SIGMA = (0.1, 2.0)  # pixels, as torchvision.transforms.GaussianBlur(3)
_ASPECT_RATIO = (3 / 4, 4 / 3)  # of width to height, as torchvision.transforms.RandomResizedCrop
_CROP_ATTEMPTS = 10  # at a crop that fits
_JITTER_DEGREES = 0.01  # about 1 km
_BLUR_CHUNK_VALUES = 1 << 17  # that are blurred at once: half a megabyte stays in cache
_TOP, _LEFT, _FLIP_ROWS, _FLIP_COLUMNS, _SIGMA, _FIRST_ATTEMPT = range(6)  # uses of a view's random numbers
_DRAWS = _FIRST_ATTEMPT + 2 * _CROP_ATTEMPTS


@dataclass(frozen=True)
class Augmentation:
    """Transforms of a view.

    crop: side in pixels; None keeps the whole image.
    scale: share of the image's area that a crop covers, (least, most); it is then resized to `crop`.
    """

    crop: int | None = None
    scale: tuple[float, float] | None = None
    flips: bool = True
    blur: bool = True

    def __post_init__(self) -> None:
        if self.crop is not None and self.crop < 1:
            raise UsageError(f"crop: expected at least 1 pixel, got {self.crop}", argument="crop")
        if self.scale is not None and not 0.0 < self.scale[0] <= self.scale[1] <= 1.0:
            raise UsageError(
                f"scale: expected two shares of the area, 0 < least ≤ most ≤ 1, got {self.scale}",
                argument="scale",
            )
        if self.scale is not None and self.crop is None:
            raise UsageError("scale: needs crop, the side that crops are resized to", argument="scale")

    @property
    def fingerprint(self) -> str:
        return fingerprint("augmentation 1", asdict(self))

    def __str__(self) -> str:
        crop = "whole images" if self.crop is None else f"crops of {self.crop}"
        resized = f" resized from {self.scale[0]:g}–{self.scale[1]:g} of the area" if self.scale else ""
        return f"{crop}{resized}{', flips' if self.flips else ''}{', blur' if self.blur else ''}"

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of views of images of `size`. Raises UsageError when the crop is larger."""
        if self.crop is None:
            return size
        if self.scale is None and self.crop > min(size):
            raise UsageError(
                f"images of {size[0]}×{size[1]} pixels are smaller than the crop of {self.crop}: choose a "
                "smaller crop, or resized crops (scale)",
                argument="crop",
            )
        return self.crop, self.crop

    def views(
        self, images: Sequence[np.ndarray], indices: ArrayLike, numbers: ArrayLike, *, seed: int
    ) -> np.ndarray:
        """Make (n, k, C, h, w) float32 views of n images (C, H, W), the `indices` (n,) of their source.

        numbers: of the views; (k,) the same for all images, or (n, k) for each its own.
        """
        channels, *size = images[0].shape
        height, width = self.output_size((size[0], size[1]))
        view_numbers = np.asarray(numbers)
        views = np.empty((len(images), view_numbers.shape[-1], channels, height, width), np.float32)
        draws = uniforms(seed, np.asarray(indices)[:, None], view_numbers, _DRAWS)
        for image, own_views, own_draws in zip(images, views, draws, strict=True):
            for view, draw in zip(own_views, own_draws, strict=True):
                view[...] = self._crop_and_flip(image, draw)
        if self.blur:
            deviations = _BLUR_SIGMA[0] + (_BLUR_SIGMA[1] - _BLUR_SIGMA[0]) * draws[..., _SIGMA]
            _blur(views.reshape(-1, height, width), np.repeat(deviations.ravel(), channels))
        return views

    def _crop_and_flip(self, image: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """Crop a view and flip it."""
        if self.scale is not None:
            image = _resized_crop(image, self.crop or 0, self.scale, draw)
        elif self.crop is not None:
            image = _crop(image, self.crop, self.crop, draw)
        if self.flips:
            image = image[:, :: 1 - 2 * (draw[_FLIP_ROWS] < 0.5), :: 1 - 2 * (draw[_FLIP_COLUMNS] < 0.5)]
        return image


def uniforms(seed: int, index: np.ndarray, view: np.ndarray, count: int) -> np.ndarray:
    """Draw (..., count) numbers in [0, 1) that depend on nothing but seed, index and view.

    SplitMix64's finaliser, applied after each of the four is added: a counter-based generator that numpy
    computes for all images and views at once.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for term in (seed, index[..., None], view[..., None], np.arange(count)):
            state = (state + np.asarray(term).astype(np.uint64) + np.uint64(1)) * np.uint64(
                0x9E3779B97F4A7C15
            )
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def coordinate_jitter(
    lonlat: torch.Tensor, generator: torch.Generator | None = None, *, radius: float = _JITTER_DEGREES
) -> torch.Tensor:
    """Add U(0, radius) degrees to longitudes and latitudes, as the published transforms do (to one side).

    Latitudes stop at the pole. In the dtype and on the device of `lonlat`.
    """
    torch = need("torch", extra="train", why="training")
    noise = torch.rand(lonlat.shape, generator=generator, dtype=lonlat.dtype, device=lonlat.device)
    moved = lonlat + noise * radius
    return torch.stack([moved[..., 0], moved[..., 1].clamp(max=90.0)], dim=-1)


def _crop(image: np.ndarray, h: int, w: int, draw: np.ndarray) -> np.ndarray:
    _, height, width = image.shape
    top, left = int((height - h + 1) * draw[_TOP]), int((width - w + 1) * draw[_LEFT])
    return image[:, top : top + h, left : left + w]


def _resized_crop(image: np.ndarray, side: int, scale: tuple[float, float], draw: np.ndarray) -> np.ndarray:
    """Crop at a random area and ratio and resize to side×side (bilinear, antialiased)."""
    torch = need("torch", extra="train", why="resized crops")

    crop = torch.from_numpy(np.ascontiguousarray(_crop(image, *_crop_size(image.shape, scale, draw), draw)))
    resized = torch.nn.functional.interpolate(
        crop[None], size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0].numpy()


def _crop_size(shape: tuple[int, ...], scale: tuple[float, float], draw: np.ndarray) -> tuple[int, int]:
    """Height and width of a crop; the largest square when no attempt fits into the image."""
    _, height, width = shape
    for area, ratio in draw[_FIRST_ATTEMPT:].reshape(_CROP_ATTEMPTS, 2):
        pixels = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        ratio = _ASPECT_RATIO[0] * (_ASPECT_RATIO[1] / _ASPECT_RATIO[0]) ** ratio
        h, w = round(np.sqrt(pixels / ratio)), round(np.sqrt(pixels * ratio))
        if 0 < h <= height and 0 < w <= width:
            return h, w
    return (min(height, width),) * 2


def _blur(planes: np.ndarray, deviations: np.ndarray) -> None:
    """Blur by a Gaussian of 3×3 pixels in place, mirrored at the edges; planes (n, H, W), deviations (n,)."""
    side = np.exp(-0.5 / deviations**2)
    outer = (side / (1 + 2 * side)).astype(np.float32)[:, None, None]
    step = max(1, _BLUR_CHUNK_VALUES // planes[0].size)
    for start in range(0, len(planes), step):
        chunk, weight = planes[start : start + step], outer[start : start + step]
        _smooth(chunk, weight)
        _smooth(chunk.swapaxes(1, 2), weight)


def _smooth(planes: np.ndarray, outer: np.ndarray) -> None:
    """Smooth along axis 1: outer · both neighbours + (1 − 2 outer) · the value itself."""
    if planes.shape[1] == 1:
        return  # its mirror images are the value itself
    sides = np.empty_like(planes)
    np.add(planes[:, :-2], planes[:, 2:], out=sides[:, 1:-1])
    np.multiply(planes[:, 1], 2, out=sides[:, 0])
    np.multiply(planes[:, -2], 2, out=sides[:, -1])
    sides *= outer
    planes *= 1 - 2 * outer
    planes += sides

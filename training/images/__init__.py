"""Image encoders, their weights, and augmented views of images."""

from satclip_engine.training.images.augment import Augmentation, coordinate_jitter
from satclip_engine.training.images.encoders import (
    DEFAULT,
    ENCODERS,
    ImageEncoder,
    augmentation_for,
    load_encoder,
)

__all__ = [
    "DEFAULT",
    "ENCODERS",
    "Augmentation",
    "ImageEncoder",
    "augmentation_for",
    "coordinate_jitter",
    "load_encoder",
]

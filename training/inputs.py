"""Inputs of a training run from DATA: source → image encoder → feature cache, or → views → unfrozen trunk."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from satclip_engine.errors import Argument, DataError, UsageError, WeightsError
from satclip_engine.training.config import TrainConfig
from satclip_engine.training.features.builder import build_cache
from satclip_engine.training.features.encoder_file import (
    ImageEncoderState,
    image_encoder_state,
    read_image_encoder,
)
from satclip_engine.training.features.feature_cache import FeatureCache
from satclip_engine.training.features.shards import MANIFEST
from satclip_engine.training.features.trunk_features import TrunkFeatures
from satclip_engine.training.images.augment import Augmentation
from satclip_engine.training.images.encoders import ImageEncoder, augmentation_for, load_encoder
from satclip_engine.training.images.image_views import ImageViews, usable_rows
from satclip_engine.training.loop.distributed import ProcessContext
from satclip_engine.training.loop.split import split_samples
from satclip_engine.training.samples import Features
from satclip_engine.training.sources.random_patches import RasterPatches
from satclip_engine.training.sources.readers import open_source
from satclip_engine.training.sources.source import PatchSource, SkippedImage, join_first


@dataclass(frozen=True, eq=False)
class TrainingInputs:
    """Features, the image encoder that made them, and notes on both for the checkpoints."""

    features: Features
    image_encoder: ImageEncoderState | None
    description: str
    notes: Mapping[str, Any] = field(default_factory=dict)


def training_inputs(
    data: Path,
    is_raster: bool,
    config: TrainConfig,
    folder: Path,
    processes: ProcessContext,
    *,
    rebuild_features: bool = False,
    progress: Any = None,
) -> TrainingInputs:
    """Features of `data`: those that it is a folder of, or those that the main process makes in `folder`.

    With `unfreeze`, the images of `data` and the trunk that they pass through. rebuild_features: replace the
    cache that `folder` holds.

    Raises DataError, UsageError, WeightsError, OutputError.
    """
    holds_features = not is_raster and (data / MANIFEST).is_file()
    if config.unfreeze:
        if holds_features:
            raise UsageError(
                f"unfreeze: {data} holds features, not images, and a trunk is trained on images: give those "
                "as DATA, or leave out --unfreeze",
                argument="unfreeze",
            )
        return _unfrozen_inputs(_open_source(data, is_raster, config), config, processes, progress)
    if holds_features:
        if rebuild_features:
            raise UsageError(
                f"{data} holds features, not images: leave out ",
                Argument("rebuild_features"),
                ", or give the images as DATA and this folder as ",
                Argument("features"),
                argument="rebuild_features",
            )
        folder = data
    elif processes.is_main:
        source = _open_source(data, is_raster, config)
        _build_features(source, folder, config, processes, rebuild_features, progress)
    processes.barrier()
    cache = FeatureCache.open(folder, verify=processes.is_main)
    image_encoder = read_image_encoder(folder)
    _check_features(cache, image_encoder, config)
    name = "an unknown encoder" if image_encoder is None else image_encoder.name
    description = f"{len(cache)} samples, {cache.views} views of {cache.dim} features by {name}"
    notes = {"image_encoder": name, "samples": len(cache), "features": cache.fingerprint}
    return TrainingInputs(cache, image_encoder, description, notes)


def _unfrozen_inputs(
    source: PatchSource, config: TrainConfig, processes: ProcessContext, progress: Any
) -> TrainingInputs:
    """Images for every process to read at every step, and the trunk that they are to train."""
    _check_source(source, config)
    encoder = _load_encoder(source, config).to(processes.device)
    augmentation = _augmentation(encoder, source, config)
    augmentation.output_size(source.size)  # raises now where images are too small
    workers = config.num_workers or None
    usable: Any = None
    if processes.is_main:
        usable = usable_rows(source, workers=workers, progress=progress)
        _warn_of_skipped(usable.skipped)
    rows, _, content = processes.broadcast(usable)
    images = ImageViews(source, rows, augmentation, seed=config.seed, workers=workers, content=content)
    trunk = encoder.network()
    assert trunk is not None  # TrainConfig refuses to unfreeze the others
    features = TrunkFeatures(
        images, trunk, dim=encoder.dim, chunk=config.trunk_batch, trunk_fingerprint=encoder.fingerprint
    )
    identity = (source.fingerprint, features.fingerprint)
    if processes.broadcast(identity) != identity:
        raise DataError(
            f"{source.name}: this process finds other images, or other weights, than the main one: give all "
            "of them the same files"
        )
    millions = sum(parameter.numel() for parameter in trunk.parameters()) / 1e6
    description = f"{len(images.rows)} samples, {encoder.name} unfrozen ({millions:.1f} M parameters)"
    notes = {"image_encoder": encoder.name, "samples": len(images.rows), "images": features.fingerprint}
    return TrainingInputs(features, replace(image_encoder_state(encoder), state={}), description, notes)


def _open_source(data: Path, is_raster: bool, config: TrainConfig) -> PatchSource:
    options: dict[str, Any] = {"bands": config.bands, "divisor": config.divisor}
    if is_raster:
        options |= {"patch": config.patch, "count": config.count, "seed": config.seed}
        return RasterPatches(data, bounds=_bounds(config), water_kept=config.water_kept, **options)
    options["max_skipped"] = config.max_skipped
    return open_source(data, **{name: value for name, value in options.items() if value is not None})


def _bounds(config: TrainConfig) -> tuple[float, float, float, float] | None:
    if config.bounds is None:
        return None
    west, south, east, north = config.bounds
    return west, south, east, north


def _build_features(
    source: PatchSource,
    folder: Path,
    config: TrainConfig,
    processes: ProcessContext,
    rebuild: bool,
    progress: Any,
) -> None:
    """Compute the features that are missing; says what is left out."""
    _check_source(source, config)
    encoder = _load_encoder(source, config).to(processes.device)
    cache = build_cache(
        source,
        encoder,
        folder,
        views=config.views,
        seed=config.seed,
        augmentation=_augmentation(encoder, source, config),
        workers=config.num_workers or None,
        rebuild=rebuild,
        progress=progress,
    )
    _warn_of_skipped(cache.skipped)


def _load_encoder(source: PatchSource, config: TrainConfig) -> ImageEncoder:
    """Load the image encoder of the settings; warns of what a person should know of it and of the data."""
    options = {}
    if config.image_encoder == "rcf":
        options = {"filters": config.rcf_filters, "components": config.rcf_components}
    try:
        encoder = load_encoder(
            config.image_encoder,
            source,
            embed_dim=config.embed_dim,
            weights=config.image_weights,
            seed=config.seed,
            **options,
        )
    except WeightsError as error:
        raise WeightsError(str(error), argument="image_weights") from error
    for note in (*source.notes, *encoder.notes):
        warnings.warn(note, stacklevel=3)
    return encoder


def _augmentation(encoder: ImageEncoder, source: PatchSource, config: TrainConfig) -> Augmentation:
    return replace(augmentation_for(encoder, source), flips=config.flips, blur=config.blur)


def _warn_of_skipped(skipped: Sequence[SkippedImage]) -> None:
    if skipped:
        images = join_first(map(str, skipped), "; ")
        warnings.warn(f"{len(skipped)} images are left out: {images}", stacklevel=3)


def _check_source(source: PatchSource, config: TrainConfig) -> None:
    """Raise UsageError now for what would be found only once all features are made."""
    _check_channels(source.channels, config)
    fraction, degrees = config.val_random_split_fraction, config.val_block_degrees
    split_samples(source.lonlat, fraction, config.seed, block_degrees=degrees)


def _check_channels(channels: int, config: TrainConfig) -> None:
    if config.in_channels not in (None, channels):
        raise UsageError(
            f"in_channels: expected images of {config.in_channels} channels, they have {channels}: choose "
            "other --bands, or leave it out",
            argument="in_channels",
        )


def _check_features(
    cache: FeatureCache, image_encoder: ImageEncoderState | None, config: TrainConfig
) -> None:
    """Raise UsageError for features of another kind than the settings ask for."""
    if image_encoder is None:
        warnings.warn("the features come without their image encoder: checkpoints lack it", stacklevel=3)
        return
    _check_channels(image_encoder.channels, config)
    if config.image_encoder != image_encoder.name:
        raise UsageError(
            f"image_encoder: {config.image_encoder} is asked for, the features in {cache.folder} are of "
            f"{image_encoder.name}: give --image-encoder {image_encoder.name}, or a folder for others with "
            "--features",
            argument="image_encoder",
        )

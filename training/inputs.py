"""Inputs of a training run from DATA: source → image encoder → feature cache, or → views → unfrozen trunk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from satclip_engine.errors import Argument, DataError, UsageError, WeightsError, one_line
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
from satclip_engine.training.locations import join_first
from satclip_engine.training.loop.distributed import ProcessContext
from satclip_engine.training.loop.split import split_samples
from satclip_engine.training.samples import Features
from satclip_engine.training.sources.kinds import (
    DATA_SETTINGS,
    FEATURES,
    RASTER,
    VIEW_SETTINGS,
    DataKind,
    refuse_unfit,
)
from satclip_engine.training.sources.random_patches import RasterPatches
from satclip_engine.training.sources.readers import kind_of, open_source
from satclip_engine.training.sources.source import PatchSource, SkippedImage

_RCF_SETTINGS: Final = ("rcf_filters", "rcf_components")
_NOTED_OVERLAP: Final = 0.05  # share of the held-out patches


@dataclass(frozen=True, eq=False)
class TrainingInputs:
    """Features, the image encoder that made them, and notes on both for the checkpoints."""

    features: Features
    image_encoder: ImageEncoderState | None
    description: str
    notes: Mapping[str, Any] = field(default_factory=dict)
    config: TrainConfig | None = None  # with the values of those settings that the data take


def training_inputs(
    data: str | Path,
    is_raster: bool,
    config: TrainConfig,
    folder: Path,
    processes: ProcessContext,
    *,
    asked: Collection[str] | None = None,
    rebuild_features: bool = False,
    progress: Any = None,
) -> TrainingInputs:
    """Features of `data`: those that it is a folder of, or those that the main process makes in `folder`.

    With `unfreeze`, the images of `data` and the trunk that they pass through. is_raster: whatever its form
    seems to be. asked: settings that are refused when these data do not take them; by default all that have a
    value. rebuild_features: replace the cache that `folder` holds.

    Raises DataError, UsageError, WeightsError, OutputError.
    """
    if processes.is_main:
        kind = _kind(data, is_raster)
        config = _used_settings(config, kind, str(data), asked)
    kind, config = processes.broadcast((kind, config) if processes.is_main else None)
    if kind == FEATURES:
        _refuse_what_needs_images(data, config, rebuild_features)
        folder = Path(data)
    elif config.unfreeze:
        return _unfrozen_inputs(_open_source(data, kind, config), config, processes, progress)
    elif processes.is_main:
        source = _open_source(data, kind, config)
        _build_features(source, folder, config, processes, rebuild_features, progress)
    processes.barrier()
    cache = FeatureCache.open(folder, verify=processes.is_main)
    image_encoder = read_image_encoder(folder)
    _check_features(cache, image_encoder, config)
    config = replace(config, views=cache.views)
    name = "an unknown encoder" if image_encoder is None else image_encoder.name
    description = f"{len(cache)} samples, {cache.views} views of {cache.dim} features by {name}"
    notes = {"image_encoder": name, "samples": len(cache), "features": cache.fingerprint}
    return TrainingInputs(cache, image_encoder, description, notes, config)


def _refuse_what_needs_images(data: str | Path, config: TrainConfig, rebuild_features: bool) -> None:
    """Raise UsageError for what cannot be done with a folder of features."""
    if config.unfreeze:
        raise UsageError(
            f"unfreeze: {data} holds features, not images, and a trunk is trained on images: give those "
            "as DATA, or leave it out",
            argument="unfreeze",
        )
    if rebuild_features:
        raise UsageError(
            f"{data} holds features, not images: leave out ",
            Argument("rebuild_features"),
            ", or give the images as DATA and this folder as ",
            Argument("features"),
            argument="rebuild_features",
        )


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
    state = replace(image_encoder_state(encoder), state={})
    return TrainingInputs(features, state, description, notes, config)


def _kind(data: str | Path, is_raster: bool) -> DataKind:
    if is_raster:
        return RASTER
    return FEATURES if os.path.isfile(os.path.join(data, MANIFEST)) else kind_of(data)


def _used_settings(
    config: TrainConfig, kind: DataKind, name: str, asked: Collection[str] | None
) -> TrainConfig:
    """Settings with a value for all that data of this kind take.

    Raises UsageError for one that was asked for and decides nothing.
    """
    if asked is None:
        asked = [setting for setting in DATA_SETTINGS if getattr(config, setting, None) is not None]
    refuse_unfit(kind, name, [setting for setting in DATA_SETTINGS if setting in asked])
    if kind == FEATURES:  # compared with what the features are
        return config
    if config.unfreeze and "views" in asked:
        raise UsageError(
            "views: an image encoder that is trained sees a fresh view every time: leave it out",
            argument="views",
        )
    _refuse_rcf_settings(config, asked)
    idle = (["views"] if config.unfreeze else []) + (["rcf_filters"] if config.image_encoder != "rcf" else [])
    return config.with_defaults(setting for setting in kind.settings if setting not in idle)


def _refuse_rcf_settings(config: TrainConfig, asked: Collection[str]) -> None:
    unfit = next((setting for setting in _RCF_SETTINGS if setting in asked), None)
    if unfit is not None and config.image_encoder != "rcf":
        raise UsageError(
            f"{unfit}: the image encoder is {config.image_encoder}, and this is for rcf: leave it out",
            argument=unfit,
        )


def _open_source(data: str | Path, kind: DataKind, config: TrainConfig) -> PatchSource:
    """Open the data with those settings that their kind takes."""
    values = {name: getattr(config, name, None) for name in kind.settings if name not in VIEW_SETTINGS}
    options = {name: value for name, value in values.items() if value is not None}
    return RasterPatches(data, **options) if kind == RASTER else open_source(data, **options)


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
        views=int(config.views or 1),
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
        warnings.warn(one_line(note), stacklevel=3)
    return encoder


def _augmentation(encoder: ImageEncoder, source: PatchSource, config: TrainConfig) -> Augmentation:
    return replace(
        augmentation_for(encoder, source), flips=config.flips is not False, blur=config.blur is not False
    )


def _warn_of_skipped(skipped: Sequence[SkippedImage]) -> None:
    if skipped:
        images = join_first(map(str, skipped), "; ")
        warnings.warn(one_line(f"{len(skipped)} images are left out: {images}"), stacklevel=3)


def _check_source(source: PatchSource, config: TrainConfig) -> None:
    """Raise UsageError now for what would be found only once all features are made."""
    _check_channels(source.channels, config)
    fraction, degrees = config.val_random_split_fraction, config.val_block_degrees
    split = split_samples(source.lonlat, fraction, config.seed, block_degrees=degrees)
    if isinstance(source, RasterPatches) and len(split.held_out):
        _note_overlap(source, split.train, split.held_out)


def _note_overlap(source: RasterPatches, train: np.ndarray, held_out: np.ndarray) -> None:
    """Warn where held-out patches show what others, which are trained on, show too."""
    share = source.overlapping_share(held_out, train)
    if share >= _NOTED_OVERLAP:
        warnings.warn(
            f"{100 * share:.0f} % of the held-out patches share pixels with patches that are trained on, so "
            "their loss says little of other locations: hold out whole blocks with --val-block-degrees, "
            "or cut fewer patches with --count",
            stacklevel=3,
        )


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
    _check_same("views", config.views, cache.views, cache)
    if image_encoder is None:
        warnings.warn("the features come without their image encoder: checkpoints lack it", stacklevel=3)
        return
    _check_channels(image_encoder.channels, config)
    if config.image_encoder != image_encoder.name:
        raise UsageError(
            f"image_encoder: {config.image_encoder} is asked for, the features in {cache.folder} are of "
            f"{image_encoder.name}: give ",
            Argument("image_encoder", image_encoder.name),
            ", or another folder for others",
            argument="image_encoder",
        )
    _refuse_rcf_settings(config, [name for name in _RCF_SETTINGS if getattr(config, name) is not None])
    if image_encoder.name == "rcf":
        tensors = image_encoder.state.items()
        filters = next((len(value) for name, value in tensors if name.endswith("filters")), None)
        _check_same("rcf_filters", config.rcf_filters, filters, cache)
        _check_same("rcf_components", config.rcf_components, cache.dim, cache)


def _check_same(name: str, asked: int | None, present: int | None, cache: FeatureCache) -> None:
    """Raise UsageError where a setting is not what the features were made with."""
    if None not in (asked, present) and asked != present:
        raise UsageError(
            f"{name}: {asked} is asked for, the features in {cache.folder} have {present}: leave it out, or "
            "give the images as DATA and another folder for features",
            argument=name,
        )

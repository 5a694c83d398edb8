"""From DATA on the command line to what the trainer eats: source → image encoder → feature cache, or, where
the image encoder is trained too, source → fresh views → its trunk.

Beside the features, in encoder.pt, lies the trunk that made them, so that a later run on the cache alone can
write it into its checkpoints.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch

from satclip_engine.errors import DataError, UsageError
from satclip_engine.training.augment import Augmentation
from satclip_engine.training.config import TrainConfig
from satclip_engine.training.export import Visual
from satclip_engine.training.feature_cache import FeatureCache
from satclip_engine.training.features import build_cache
from satclip_engine.training.image_views import ImageViews, usable_rows
from satclip_engine.training.images import ImageEncoder, augmentation_for, load_encoder
from satclip_engine.training.patches import open_source
from satclip_engine.training.ranks import Ranks
from satclip_engine.training.raster_patches import RasterPatches
from satclip_engine.training.samples import Features
from satclip_engine.training.shards import MANIFEST
from satclip_engine.training.source import PatchSource, Skipped
from satclip_engine.training.split import split_samples
from satclip_engine.training.trunk_passes import TrunkFeatures
from satclip_engine.weights.files import write_whole
from satclip_engine.weights.lightning_file import load_safely

_ENCODER: Final = "encoder.pt"
_PREFIX: Final = "model.visual."  # of the names in the state of an image encoder


@dataclass(frozen=True, eq=False)
class Material:
    """Features, the image encoder that made them, and what checkpoints are to say about both."""

    features: Features
    visual: Visual | None
    about: str
    notes: Mapping[str, Any] = field(default_factory=dict)


def prepared(
    data: Path, is_raster: bool, config: TrainConfig, folder: Path, ranks: Ranks, *, progress: Any = None
) -> Material:
    """Features of `data`: those that it is a folder of, or those made in `folder` by the first process; with
    `unfreeze`, its images and the trunk that they pass through.

    Raises DataError, UsageError, WeightsError, OutputError.
    """
    if config.unfreeze:
        return _unfrozen(data, is_raster, config, ranks, progress)
    if not is_raster and (data / MANIFEST).is_file():
        folder = data
    elif ranks.first:
        _build(_source(data, is_raster, config), folder, config, ranks, progress)
    ranks.shared(None)  # the others wait until it is there
    cache = FeatureCache.open(folder, verify=ranks.first)
    visual = _stored(folder)
    _check(cache, visual, config)
    name = "an unknown encoder" if visual is None else visual.name
    about = f"{len(cache)} samples, {cache.views} views of {cache.dim} features by {name}"
    notes = {"image_encoder": name, "samples": len(cache), "features": cache.fingerprint}
    return Material(cache, visual, about, notes)


def _unfrozen(data: Path, is_raster: bool, config: TrainConfig, ranks: Ranks, progress: Any) -> Material:
    """Images for every process to read at every step, and the trunk that they are to train."""
    if not is_raster and (data / MANIFEST).is_file():
        raise UsageError(
            f"unfreeze: {data} holds features, not images, and a trunk is trained on images: give those as "
            "DATA, or leave out --unfreeze"
        )
    source = _source(data, is_raster, config)
    _check_source(source, config)
    encoder = _encoder(source, config).to(ranks.device)
    augmentation = _augmentation(encoder, source, config)
    augmentation.output_size(source.size)  # raises now where images are too small
    workers = config.num_workers or None
    rows: Any = None
    if ranks.first:
        rows, skipped = usable_rows(source, workers=workers, progress=progress)
        _warn_of(skipped)
    images = ImageViews(source, ranks.shared(rows), augmentation, seed=config.seed, workers=workers)
    trunk = encoder.network()
    assert trunk is not None  # TrainConfig refuses to unfreeze the others
    features = TrunkFeatures(
        images, trunk, dim=encoder.dim, chunk=config.trunk_batch, start=encoder.fingerprint
    )
    if ranks.shared(features.fingerprint) != features.fingerprint:
        raise DataError(f"{source.name}: this process finds other images, or other weights, than the first")
    millions = sum(parameter.numel() for parameter in trunk.parameters()) / 1e6
    about = f"{len(images.rows)} samples, {encoder.name} unfrozen ({millions:.1f} M parameters)"
    notes = {"image_encoder": encoder.name, "samples": len(images.rows), "images": features.fingerprint}
    return Material(features, replace(visual_of(encoder), state={}), about, notes)


def _source(data: Path, is_raster: bool, config: TrainConfig) -> PatchSource:
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


def _build(source: PatchSource, folder: Path, config: TrainConfig, ranks: Ranks, progress: Any) -> None:
    """Make the features that are missing, and put the encoder beside them."""
    _check_source(source, config)
    encoder = _encoder(source, config).to(ranks.device)
    cache = build_cache(
        source,
        encoder,
        folder,
        views=config.views,
        seed=config.seed,
        augmentation=_augmentation(encoder, source, config),
        workers=config.num_workers or None,
        progress=progress,
    )
    _warn_of(cache.skipped)
    visual = visual_of(encoder)
    buffer = io.BytesIO()
    torch.save({**vars(visual), "state": dict(visual.state)}, buffer)
    write_whole(folder / _ENCODER, buffer.getvalue())


def _encoder(source: PatchSource, config: TrainConfig) -> ImageEncoder:
    """The image encoder that the settings name; says what a person should know of it and of the data."""
    options = {}
    if config.image_encoder == "rcf":
        options = {"filters": config.rcf_filters, "components": config.rcf_components}
    encoder = load_encoder(
        config.image_encoder,
        source,
        embed_dim=config.embed_dim,
        weights=config.image_weights,
        seed=config.seed,
        **options,
    )
    for note in (*source.notes, *encoder.notes):
        warnings.warn(note, stacklevel=3)
    return encoder


def _augmentation(encoder: ImageEncoder, source: PatchSource, config: TrainConfig) -> Augmentation:
    return replace(augmentation_for(encoder, source), flips=config.flips, blur=config.blur)


def _warn_of(skipped: Sequence[Skipped]) -> None:
    if skipped:
        some = "; ".join(map(str, skipped[:3])) + ("; …" if len(skipped) > 3 else "")
        warnings.warn(f"{len(skipped)} images are left out: {some}", stacklevel=3)


def _check_source(source: PatchSource, config: TrainConfig) -> None:
    """Raise UsageError now for what would be found only once all features are made."""
    if config.in_channels not in (None, source.channels):
        raise UsageError(f"in_channels: {config.in_channels} are wanted, the images have {source.channels}")
    fraction, degrees = config.val_random_split_fraction, config.val_block_degrees
    split_samples(source.lonlat, fraction, config.seed, block_degrees=degrees)


def visual_of(encoder: ImageEncoder) -> Visual:
    """The encoder as checkpoints hold it, without its projection."""
    state = {name.removeprefix(_PREFIX): value.cpu() for name, value in encoder.state_dict().items()}
    named = encoder.state_dict().items()
    own = encoder.projection.weight.data_ptr()
    weight = next(name for name, value in named if value.data_ptr() == own).removeprefix(_PREFIX)
    projection = weight.removesuffix(".weight")
    trunk = {name: value for name, value in state.items() if not name.startswith(f"{projection}.")}
    return Visual(encoder.name, encoder.channels, projection, trunk)


def _stored(folder: Path) -> Visual | None:
    path = folder / _ENCODER
    return Visual(**load_safely(torch, path, str(path))) if path.exists() else None


def _check(cache: FeatureCache, visual: Visual | None, config: TrainConfig) -> None:
    """Raise UsageError for features of another kind than the settings ask for."""
    if visual is None:
        warnings.warn("the features come without their image encoder: checkpoints lack it", stacklevel=3)
    elif config.in_channels not in (None, visual.channels):
        raise UsageError(f"in_channels: {config.in_channels} are wanted, the images have {visual.channels}")
    elif config.image_encoder != visual.name:
        raise UsageError(
            f"image_encoder: {config.image_encoder} is wanted, the features in {cache.folder} are of "
            f"{visual.name}: give --image-encoder {visual.name}, or a folder for others with --features"
        )

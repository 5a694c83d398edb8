"""From DATA on the command line to what the trainer eats: source → image encoder → feature cache."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from satclip_engine.training.config import TrainConfig
from satclip_engine.training.export import Visual
from satclip_engine.training.ranks import Ranks
from satclip_engine.training.samples import Features

from satclip_engine.errors import UsageError

MANIFEST: Final = "manifest.json"  # of a feature cache
_PREFIX: Final = "model.visual."  # of the names in an image encoder's state


@dataclass(frozen=True, eq=False)
class Material:
    """Features, the image encoder that made them, and what checkpoints are to say about both."""

    features: Features
    visual: Visual | None
    about: str
    notes: Mapping[str, Any] = field(default_factory=dict)


def prepared(
    data: Path, is_raster: bool, config: TrainConfig, folder: Path, ranks: Ranks, *, quiet: bool
) -> Material:
    """Features of `data`: those that it is a folder of, or those made in `folder` by the first process.

    Raises DataError, UsageError, WeightsError, OutputError.
    """
    from satclip_engine.training.features import FeatureCache

    if not is_raster and (data / MANIFEST).is_file():
        cache = FeatureCache.open(data)
        encoder = cache.encoder()
    else:
        source = _source(data, is_raster, config)
        encoder = _encoder(source, config).to(ranks.device)
        for note in (*source.notes, *encoder.notes):
            warnings.warn(note, stacklevel=2)
        if ranks.first:
            _build(source, encoder, folder, config, quiet=quiet)
        ranks.shared(None)  # the others wait until it is there
        cache = FeatureCache.open(folder)
    _check_channels(encoder, config)
    about = f"{len(cache.lonlat)} samples, {cache.views} views of {cache.dim} features by {encoder.name}"
    return Material(
        cache, _visual(encoder), about, {"image_encoder": encoder.name, "samples": len(cache.lonlat)}
    )


def _source(data: Path, is_raster: bool, config: TrainConfig) -> Any:
    from satclip_engine.training.patches import open_source
    from satclip_engine.training.raster_patches import RasterPatches

    common = {"bands": config.bands, "divisor": config.divisor}
    if is_raster:
        return RasterPatches(
            data,
            patch=config.patch,
            count=config.count,
            seed=config.seed,
            bounds=config.bounds,
            flat_kept=config.flat_kept,
            **common,
        )
    given = {**common, "max_skipped": config.max_skipped}
    return open_source(data, **{name: value for name, value in given.items() if value is not None})


def _encoder(source: Any, config: TrainConfig) -> Any:
    from satclip_engine.training.images import load_encoder

    options = {}
    if config.image_encoder == "rcf":
        options = {"filters": config.rcf_filters, "components": config.rcf_components}
    return load_encoder(
        config.image_encoder,
        source,
        embed_dim=config.embed_dim,
        weights=config.image_weights,
        seed=config.seed,
        **options,
    )


def _build(source: Any, encoder: Any, folder: Path, config: TrainConfig, *, quiet: bool) -> None:
    from satclip_engine.training.features import build_cache

    workers = config.num_workers if config.num_workers is not None else os.cpu_count() or 1
    build_cache(source, encoder, folder, views=config.views, seed=config.seed, workers=workers, resume=True)


def _visual(encoder: Any) -> Visual:
    """The encoder as checkpoints hold it, without its projection."""
    state = {name.removeprefix(_PREFIX): value for name, value in encoder.state_dict().items()}
    own = encoder.projection.weight
    name = next(key for key, value in state.items() if value.data_ptr() == own.data_ptr())
    projection = name.removesuffix(".weight")
    trunk = {key: value for key, value in state.items() if not key.startswith(f"{projection}.")}
    return Visual(encoder.name, encoder.channels, projection, trunk)


def _check_channels(encoder: Any, config: TrainConfig) -> None:
    if config.in_channels not in (None, encoder.channels):
        raise UsageError(f"in_channels: {config.in_channels} are wanted, the images have {encoder.channels}")

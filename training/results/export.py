"""Export of trained models: checkpoints in the published Lightning layout, and `.safetensors`.

The published layout holds the location network twice (`model.location.nnet.*`, `model.nnet.*`, float64), the
image encoder with its trained projection under `model.visual.*`, and the logarithm of the logit scale. The
published code has no image encoder of ours (rcf) and insists on one: for it the checkpoint describes one of
zero layers, and the features' projection lies beside, under `image_encoder`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor

from satclip_engine.files import write_atomically
from satclip_engine.training.config import VISION_LAYERS, TrainConfig
from satclip_engine.training.features.encoder_file import ImageEncoderState
from satclip_engine.training.images.trunk_weights import VISUAL_PREFIX
from satclip_engine.training.loop.model import Model
from satclip_engine.training.loop.trainer import ModelSnapshot, RunOutcome
from satclip_engine.weights import LocationWeights, Provenance
from satclip_engine.weights.conventions import EXACT_DEGREES
from satclip_engine.weights.lightning_file import lightning_dictionary
from satclip_engine.weights.schema import Convention, Stored

_LOCATION_PREFIX: Final = "location.nnet."
_TRUNK_PREFIX: Final = "trunk."


def location_weights(
    snapshot: ModelSnapshot, config: TrainConfig, notes: Mapping[str, Any]
) -> LocationWeights:
    """Location encoder of a snapshot, orthonormal and in float32, with its provenance."""
    tensors = {
        name.removeprefix(_LOCATION_PREFIX): value.cpu().numpy()
        for name, value in snapshot.model.items()
        if name.startswith(_LOCATION_PREFIX)
    }
    parameters = {**config.as_dict(), "harmonics_calculation": "orthonormal"}
    extras = {"epoch": snapshot.epoch, "global_step": snapshot.step, **notes}
    if snapshot.scores is not None:
        extras["validation"] = dict(vars(snapshot.scores))
    provenance = Provenance("satclip-train", hyper_parameters=parameters, extras=extras)
    return LocationWeights(tensors, "orthonormal", provenance=provenance)


def published_checkpoint(
    snapshot: ModelSnapshot,
    config: TrainConfig,
    image_encoder: ImageEncoderState | None,
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """Make the dictionary that torch.save writes for the published loader."""
    weights = location_weights(snapshot, config, notes).converted(_convention(config))
    origin = weights.provenance
    content = lightning_dictionary(
        Stored(
            {name: value.astype(np.float64) for name, value in weights.tensors.items()},
            weights.convention,
            weights.harmonics,
            weights.w0,
            origin.hyper_parameters,
            origin.extras,
        )
    )
    content["epoch"], content["global_step"] = snapshot.epoch, snapshot.step
    state = content["state_dict"]
    state["model.logit_scale"] = snapshot.model["logit_scale"].detach().cpu()
    weight, bias = _projection(snapshot, config)
    if image_encoder is not None and image_encoder.name in VISION_LAYERS:
        trunk = {**image_encoder.state, **_trained_trunk(snapshot)}
        _put_image_encoder(content, image_encoder, trunk, config, weight, bias)
    else:
        name = config.image_encoder if image_encoder is None else image_encoder.name
        own_state = {} if image_encoder is None else image_encoder.state
        tensors = {key: value.cpu() for key, value in own_state.items()}
        tensors |= {"projection.weight": weight, "projection.bias": bias}
        content["image_encoder"] = {"name": name, "state_dict": tensors}
    return content


def write_checkpoints(
    outcome: RunOutcome,
    config: TrainConfig,
    image_encoder: ImageEncoderState | None,
    folder: Path,
    notes: Mapping[str, Any],
) -> list[Path]:
    """Write last.ckpt, best.ckpt and best.safetensors. Raises OutputError, leaving what was there."""
    files = {"last.ckpt": outcome.last, "best.ckpt": outcome.best}
    for name, snapshot in files.items():
        buffer = io.BytesIO()
        torch.save(published_checkpoint(snapshot, config, image_encoder, notes), buffer)
        write_atomically(folder / name, buffer.getvalue())
    location_weights(outcome.best, config, notes).save(folder / "best.safetensors")
    return [folder / name for name in (*files, "best.safetensors")]


def _convention(config: TrainConfig) -> Convention:
    if config.harmonics_calculation is not None:
        return cast(Convention, config.harmonics_calculation)
    return "analytic" if config.legendre_polys <= EXACT_DEGREES else "closed-form"


def _projection(snapshot: ModelSnapshot, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Weight and bias of the projection, for features as the trunk gives them."""
    model = Model(config, snapshot.model["feature_mean"].cpu(), snapshot.model["feature_size"].cpu())
    state = {name: value for name, value in snapshot.model.items() if not name.startswith(_TRUNK_PREFIX)}
    model.load_state_dict({name: value.cpu() for name, value in state.items()})
    return model.image_projection()


def _trained_trunk(snapshot: ModelSnapshot) -> dict[str, Tensor]:
    """Trunk of a model that trains it, by published names; empty where it was frozen."""
    return {
        name.removeprefix(_TRUNK_PREFIX): value.contiguous()
        for name, value in snapshot.model.items()
        if name.startswith(_TRUNK_PREFIX)
    }


def _put_image_encoder(
    content: dict[str, Any],
    image_encoder: ImageEncoderState,
    trunk: Mapping[str, Tensor],
    config: TrainConfig,
    weight: Tensor,
    bias: Tensor,
) -> None:
    """Replace the image encoder of zero layers by the one that was used; trunk: by published names."""
    state, released = content["state_dict"], content["hyper_parameters"]
    for name in [name for name in state if name.startswith(VISUAL_PREFIX)]:
        del state[name]
    state.update({VISUAL_PREFIX + name: value.cpu() for name, value in trunk.items()})
    state[f"{VISUAL_PREFIX}{image_encoder.projection}.weight"] = weight
    state[f"{VISUAL_PREFIX}{image_encoder.projection}.bias"] = bias
    released.update(
        vision_layers=VISION_LAYERS[image_encoder.name],
        in_channels=image_encoder.channels,
        image_resolution=config.image_resolution,
        vision_width=config.vision_width,
        vision_patch_size=config.vision_patch_size,
    )

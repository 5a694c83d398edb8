"""The image encoder beside its features, encoder.pt: later runs write it into their checkpoints."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from satclip_engine._optional import need
from satclip_engine.errors import DataError
from satclip_engine.files import write_atomically
from satclip_engine.training.images.encoders import ImageEncoder
from satclip_engine.weights.lightning_file import load_safely

if TYPE_CHECKING:
    from torch import Tensor

ENCODER_FILE: Final = "encoder.pt"


@dataclass(frozen=True, eq=False)
class ImageEncoderState:
    """An image encoder for checkpoints: `state` by published names without the trained projection.

    projection: its name ("fc", "head", or "projection" where the published code has none). The state of an
    encoder that was trained too is in the snapshots instead. loaded_projection: weight and bias that came
    with the encoder's weights and that training starts from; empty for a projection that is drawn.
    """

    name: str
    channels: int
    projection: str
    state: Mapping[str, Tensor] = field(default_factory=dict)
    loaded_projection: Mapping[str, Tensor] = field(default_factory=dict)


def image_encoder_state(encoder: ImageEncoder) -> ImageEncoderState:
    """State of an encoder as checkpoints hold it, without its projection."""
    from satclip_engine.training.images.trunk_weights import VISUAL_PREFIX

    state = {name.removeprefix(VISUAL_PREFIX): value.cpu() for name, value in encoder.state_dict().items()}
    pointer = encoder.projection.weight.data_ptr()
    weight = next(name for name, value in encoder.state_dict().items() if value.data_ptr() == pointer)
    projection = weight.removeprefix(VISUAL_PREFIX).removesuffix(".weight")
    trunk = {name: value for name, value in state.items() if not name.startswith(f"{projection}.")}
    loaded = {}
    if encoder.projection_loaded:
        loaded = {name: value.detach().cpu() for name, value in encoder.projection.named_parameters()}
    return ImageEncoderState(encoder.name, encoder.channels, projection, trunk, loaded)


def write_image_encoder(folder: Path, encoder: ImageEncoder) -> None:
    """Write an encoder beside its features. Raises OutputError."""
    fields_of = vars(image_encoder_state(encoder)).items()
    torch, buffer = _torch(), io.BytesIO()
    torch.save({name: dict(value) if isinstance(value, dict) else value for name, value in fields_of}, buffer)
    write_atomically(folder / ENCODER_FILE, buffer.getvalue())


def read_image_encoder(folder: Path) -> ImageEncoderState | None:
    """Read the encoder beside features; None without one. Raises WeightsError or DataError."""
    path = folder / ENCODER_FILE
    if not path.exists():
        return None
    content = load_safely(_torch(), path, str(path))
    if not _is_encoder(content):
        raise DataError(
            f"{path} is not an image encoder of this version: remove it, or build the cache again"
        )
    return ImageEncoderState(**content)


def _is_encoder(content: Any) -> bool:
    kinds = {"name": str, "channels": int, "projection": str, "state": dict, "loaded_projection": dict}
    names = {entry.name for entry in fields(ImageEncoderState)}
    if not isinstance(content, dict) or not {"name", "channels", "projection"} <= content.keys() <= names:
        return False
    if not all(isinstance(value, kinds[name]) for name, value in content.items()):
        return False
    tensors = {**content.get("state", {}), **content.get("loaded_projection", {})}
    return all(isinstance(key, str) and isinstance(value, _torch().Tensor) for key, value in tensors.items())


def _torch() -> ModuleType:
    return need("torch", extra="train", why="training")

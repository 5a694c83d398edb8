"""Pretrained weights of an image encoder's trunk: MoCo, timm, torchvision and SatCLIP checkpoints.

- SSL4EO-S12's full MoCo checkpoints (`module.encoder_q.*` of MoCo v2, `module.base_encoder.*` of v3) and what
  torchgeo made of them, for 13 Sentinel-2 bands;
- a plain state dictionary of timm or torchvision;
- a SatCLIP checkpoint (`model.visual.*`), whose projection is taken too when it has the same shape.

As `.pth`, `.pt`, `.ckpt`, `.tar` (never executing pickled code) or `.safetensors`. Names and shapes must fit
exactly; only the head, which MoCo trains for another purpose, may be missing or of another form.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from satclip_engine.errors import WeightsError, one_line
from satclip_engine.training.locations import join_first
from satclip_engine.weights.lightning_file import load_safely
from satclip_engine.weights.network_keys import WRAPPERS, without_wrappers

VISUAL_PREFIX: Final = "model.visual."  # of the image encoder's tensors in SatCLIP checkpoints
# Of the trunk's tensors among those of other networks; the first prefix that fits is taken.
_PREFIXES: Final = (
    "module.encoder_q.",
    "module.base_encoder.",
    "encoder_q.",
    "base_encoder.",
    VISUAL_PREFIX,
    f"module.{VISUAL_PREFIX}",
    "module.",
    "backbone.",
    "",
)
_NESTED_KEYS: Final = ("state_dict", "model")  # under which checkpoints keep their tensors
_BATCH_COUNTER: Final = "num_batches_tracked"  # of batch normalisation: absent from old files, used by nobody


def load_trunk(visual: torch.nn.Module, path: Path, *, head: str) -> tuple[str, bool]:
    """Load a file's weights into a timm model; returns in words which were loaded, and if the head was.

    head: the name of the model's last layer, "fc" or "head".
    Raises WeightsError naming missing, unknown and ill-shaped tensors.
    """
    state = _read(path)
    expected = visual.state_dict()
    prefix = _prefix(state, expected, path)
    tensors = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    own_head = {name: value for name, value in tensors.items() if name.startswith(f"{head}.")}
    trunk = {name: value for name, value in tensors.items() if name not in own_head}
    _check(trunk, {name: value for name, value in expected.items() if not name.startswith(f"{head}.")}, path)
    takes_head = prefix.endswith(VISUAL_PREFIX) and {
        name: value.shape for name, value in own_head.items()
    } == {name: value.shape for name, value in expected.items() if name.startswith(f"{head}.")}
    visual.load_state_dict({**trunk, **(own_head if takes_head else {})}, strict=False)
    named = f", named {prefix}*" if prefix else ""
    left_out = f"its head left out ({', '.join(own_head) or 'none'})"
    head_note = "training starts from its projection too" if takes_head else left_out
    return f"{path}: {len(trunk)} tensors{named}; {head_note}", takes_head


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a file by name. Raises WeightsError."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    content: Any
    if path.suffix.lower() == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            content = load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: damaged or not a safetensors file ({one_line(error)})") from error
    else:
        content = load_safely(torch, path, str(path))
    for name in _NESTED_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}")
    wrappers = WRAPPERS - {"module"}  # which is part of the names that MoCo gives
    tensors = {
        without_wrappers(str(name), wrappers): value for name, value in content.items() if _is_dense(value)
    }
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors, but {join_first(map(str, content)) or 'nothing'}")
    return tensors


def _is_dense(value: Any) -> bool:
    """True for a tensor that holds its values one by one."""
    return (
        isinstance(value, torch.Tensor)
        and not (value.is_nested or value.is_quantized)
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


def _prefix(state: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> str:
    """Prefix of the trunk's tensors. Raises WeightsError when there are none under any."""
    first = next(iter(expected))
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) and name.removeprefix(prefix) in expected for name in state):
            return prefix
    raise WeightsError(
        f"{path}: another network: expected names such as {first}, alone or behind "
        f"{' or '.join(_PREFIXES[:2])}, found {join_first(state)}"
    )


def _check(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise WeightsError unless names and shapes are the same and all values finite."""
    missing = [name for name in expected if name not in tensors and not name.endswith(_BATCH_COUNTER)]
    unknown = [name for name in tensors if name not in expected]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    problems = [
        f"{len(names)} {problem}: {join_first(names)}"
        for names, problem in ((missing, "missing"), (unknown, "unknown"), (shapes, "of another shape"))
        if names
    ]
    first = next(name for name, value in expected.items() if value.ndim == 4)  # the first convolution
    if first in tensors and tensors[first].ndim == 4 and tensors[first].shape[1] != expected[first].shape[1]:
        raise WeightsError(
            f"{path}: made for images of {tensors[first].shape[1]} channels, the data have "
            f"{expected[first].shape[1]}: choose bands that fit, other weights, or the encoder rcf"
        )
    if problems:
        raise WeightsError(f"{path}: does not fit the image encoder; {'; '.join(problems)}")
    not_finite = [  # as float32, in which the trunk computes
        name
        for name, value in tensors.items()
        if value.is_floating_point() and not value.to(expected[name].dtype).isfinite().all()
    ]
    if not_finite:
        raise WeightsError(f"{path}: not finite, or beyond float32: {join_first(not_finite)}")

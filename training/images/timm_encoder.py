"""Image encoders of the published model: timm's networks, frozen but for their last layer."""

from __future__ import annotations

import contextlib
import copy
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from satclip_engine._optional import need
from satclip_engine.errors import MissingExtra, UsageError, WeightsError
from satclip_engine.training.images.trunk_weights import VISUAL_PREFIX, load_trunk
from satclip_engine.training.sources.source import fingerprint
from satclip_engine.training.torch_defaults import float32_by_default

_SHAPED_OPERATORS = ("nms", "qnms")  # of torchvision
_SIDE_PIXELS = 224  # of the images that all three were pretrained with


class TimmEncoder:
    """A timm network whose last layer is the projection. The trunk is frozen and in evaluation mode.

    (The published code freezes parameters, but leaves batch normalisation in training mode, so its trunk
    drifts with the batches; a cache of features needs one that stands still.)
    """

    fixed_size: bool

    def __init__(
        self,
        name: str,
        architecture: str,
        channels: int,
        *,
        embed_dim: int,
        weights: Path | None,
        seed: int,
    ) -> None:
        timm = import_timm(f"the image encoder {name}")
        self.name, self.channels, self.size = name, channels, _SIDE_PIXELS
        self.fixed_size = architecture.startswith("vit")
        self.vision_layers: str | None = f"moco_{name}"
        with torch.random.fork_rng(devices=[]), float32_by_default():
            torch.manual_seed(seed)
            self.visual: Any = timm.create_model(architecture, in_chans=channels, num_classes=embed_dim)
        self._head = "head" if self.fixed_size else "fc"
        self.dim = self.visual.num_features
        self.projection_loaded = False
        if weights is None:
            self.notes: tuple[str, ...] = (f"{name} has no weights: its trunk is random (seed {seed})",)
        else:
            note, self.projection_loaded = load_trunk(self.visual, weights, head=self._head)
            self.notes = (note,)
        # On two cores with AVX-512: 1.3 (resnet18) to 2.4 times (resnet50) the rate of contiguous tensors.
        self.visual.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.projection.requires_grad_(True)

    @property
    def projection(self) -> torch.nn.Linear:
        return getattr(self.visual, self._head)

    @property
    def device(self) -> torch.device:
        return self.projection.weight.device

    @property
    def fingerprint(self) -> str:
        state = self.visual.state_dict().items()
        trunk = {key: value.cpu().numpy() for key, value in state if not key.startswith(f"{self._head}.")}
        return fingerprint(
            "timm", {"name": self.name, "channels": self.channels, "tensors": list(trunk)}, *trunk.values()
        )

    def to(self, device: str | torch.device) -> TimmEncoder:
        self.visual.to(device)
        return self

    def trunk(self, batch: torch.Tensor) -> torch.Tensor:
        """Input of the projection: (B, C, H, W) float32 → (B, dim). Raises UsageError for another shape."""
        _, channels, height, width = batch.shape
        if channels != self.channels:
            raise UsageError(f"{self.name} was made for {self.channels} channels, not {channels}")
        if self.fixed_size and (height, width) != (_SIDE_PIXELS, _SIDE_PIXELS):
            raise UsageError(
                f"{self.name} takes images of {_SIDE_PIXELS}×{_SIDE_PIXELS} pixels, not {height}×{width}"
            )
        batch = batch.contiguous(memory_format=torch.channels_last)
        return self.visual.forward_head(self.visual.forward_features(batch), pre_logits=True)

    def network(self) -> torch.nn.Module:
        """A copy of the trunk to train: without the last layer, in evaluation mode."""
        network: Any = copy.deepcopy(self.visual)
        network.reset_classifier(0)
        return network.eval().requires_grad_(True)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """State under the names of published checkpoints."""
        return {VISUAL_PREFIX + key: value.contiguous() for key, value in self.visual.state_dict().items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Load what `state_dict` returned. Raises WeightsError when it does not fit."""
        try:
            self.visual.load_state_dict(
                {key.removeprefix(VISUAL_PREFIX): value for key, value in state.items()}
            )
        except RuntimeError as error:
            raise WeightsError(
                f"the image encoder is another one ({str(error).splitlines()[-1].strip()})"
            ) from error


def import_timm(why: str) -> ModuleType:
    """Import timm, beside a torchvision that was compiled for another torch too.

    torchvision on PyPI is compiled for PyPI's torch. Beside a CPU build of torch its operators are missing,
    and its import ends at the first one whose shape function it registers. Declared, they let the import go
    on; timm's networks call none.

    Raises MissingExtra where there is no timm, or its torchvision cannot be imported even so.
    """
    try:
        return need("timm", extra="train", why=why)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise _unusable_torchvision(why, error) from error
    _declare_operators()
    try:
        return need("timm", extra="train", why=why)
    except RuntimeError as error:
        raise _unusable_torchvision(why, error) from error


def _declare_operators() -> None:
    """Declare the operators whose shape functions torchvision registers in Python."""
    for name in _SHAPED_OPERATORS:
        with contextlib.suppress(RuntimeError):  # it is there
            torch.library.define(
                f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor"
            )


def _unusable_torchvision(why: str, error: RuntimeError) -> MissingExtra:
    build = re.search(r"\+(cpu|xpu|cu\d+|rocm[\d.]+)$", torch.__version__)
    index = f" --index-url https://download.pytorch.org/whl/{build[1]}" if build else ""
    reason = str(error).strip().splitlines()[0]
    return MissingExtra(
        f"{why} needs a torchvision made for torch {torch.__version__} ({reason}): "
        f"pip install --force-reinstall --no-deps torchvision{index}, or use rcf"
    )

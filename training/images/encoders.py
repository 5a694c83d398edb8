"""Image encoders by name: the frozen trunks whose features locations are trained to match.

Each is a trunk, (B, C, H, W) → (B, dim), and one linear projection to the embedding. The projection is always
trained; the trunk is frozen unless --unfreeze asks for a copy of it to train.

| name | trunk | dim |
|---|---|---|
| rcf | random convolutional features of the data (MOSAIKS); needs no weights | 2 · filters + 2 · channels |
| resnet18, resnet50 | timm | 512, 2048 |
| vit16 | timm's vit_small_patch16_224 | 384 |

The timm three are those of the published model (`vision_layers` moco_resnet18, moco_resnet50, moco_vit16) and
keep its names in `state_dict()`, so a checkpoint with one of them loads in the published code.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from satclip_engine._optional import need
from satclip_engine.errors import UsageError
from satclip_engine.training.images.augment import Augmentation
from satclip_engine.training.sources.source import PatchSource
from satclip_engine.training.torch_defaults import cpu_by_default

if TYPE_CHECKING:
    import torch

DEFAULT: Final = "rcf"
_TIMM: Final = MappingProxyType(
    {"resnet18": "resnet18", "resnet50": "resnet50", "vit16": "vit_small_patch16_224"}
)
ENCODERS: Final = (DEFAULT, *_TIMM)


class ImageEncoder(Protocol):
    """A frozen trunk with its trained projection."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...  # of the trunk's output

    @property
    def channels(self) -> int: ...

    @property
    def size(self) -> int | None: ...  # side of the crops that it was made for; None: any

    @property
    def fixed_size(self) -> bool: ...  # takes crops of that side only

    @property
    def vision_layers(self) -> str | None: ...  # its name in the published code, if any

    @property
    def projection(self) -> torch.nn.Linear: ...  # dim → embedding

    @property
    def projection_loaded(self) -> bool: ...  # from a file, rather than drawn

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def fingerprint(self) -> str: ...  # sha256 over what determines the trunk's output

    @property
    def device(self) -> torch.device: ...

    def to(self, device: str | torch.device) -> Any: ...  # itself, moved

    def trunk(self, batch: torch.Tensor) -> torch.Tensor: ...  # (B, C, H, W) float32 → (B, dim)

    def network(self) -> torch.nn.Module | None: ...  # a copy of the trunk to train; None without weights

    def state_dict(self) -> dict[str, torch.Tensor]: ...  # trunk and projection

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None: ...


@cpu_by_default()
def load_encoder(
    name: str = DEFAULT,
    source: PatchSource | None = None,
    *,
    channels: int | None = None,
    embed_dim: int = 256,
    weights: str | os.PathLike[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> ImageEncoder:
    """Load an image encoder by name.

    source: the data, which give the number of channels; `rcf` is fitted to them.
    channels: without a source, for the timm encoders.
    weights: a file with the trunk's weights (forms: `images.trunk_weights`), for the timm encoders.
    seed: of the projection, of `rcf`, and of a trunk without weights.
    options: those of `images.rcf.fit`.

    Raises UsageError for an unknown name or options that do not go together, WeightsError for a file that
    does not fit, MissingExtra.
    """
    need("torch", extra="train", why="training")
    if name not in ENCODERS:
        raise UsageError(
            f"unknown image encoder {name!r}: expected {', '.join(ENCODERS)}", argument="image_encoder"
        )
    if name in _TIMM:
        if options:
            raise UsageError(
                f"{', '.join(options)}: options of rcf, not of {name}: leave them out",
                argument=next(iter(options)),
            )
        bands = source.channels if source is not None else channels
        if bands is None:
            raise UsageError(
                f"{name} needs a source of patches or a number of channels: give source= or channels=",
                argument="channels",
            )
        from satclip_engine.training.images.timm_encoder import TimmEncoder

        path = None if weights is None else Path(weights)
        return TimmEncoder(name, _TIMM[name], bands, embed_dim=embed_dim, weights=path, seed=seed)
    if weights is not None:
        raise UsageError(
            f"rcf has no weights, but {os.fspath(weights)} was given: choose another image encoder, or leave "
            "out the weights",
            argument="image_weights",
        )
    if source is None:
        raise UsageError("rcf needs a source of patches to be fitted to: give source=", argument="source")
    from satclip_engine.training.images.rcf import fit

    return fit(source, embed_dim=embed_dim, seed=seed, **options)


def augmentation_for(encoder: ImageEncoder, source: PatchSource) -> Augmentation:
    """Return the published augmentation at the side that an encoder was made for.

    Smaller images are kept whole, or, for an encoder that takes one side only, resized from at least half of
    their area.
    """
    if encoder.size is None or min(source.size) < encoder.size:
        if encoder.fixed_size:
            return Augmentation(encoder.size, scale=(0.5, 1.0))
        return Augmentation()
    return Augmentation(encoder.size)

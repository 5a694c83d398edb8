"""The model that is trained: location encoder, projection of image features, logit scale, unfrozen trunk."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from satclip_engine import backends
from satclip_engine.errors import MissingExtra, UsageError
from satclip_engine.nn import LocationEncoder
from satclip_engine.training.config import TrainConfig
from satclip_engine.training.loop.batches import derive_seed

_PROJECTION_STREAM = 11  # of random numbers


class Model(nn.Module):
    """Embeds locations and image features into one space.

    Features are centred and divided by their size before they are projected, both measured once on the
    training samples: features of a frozen trunk are far from centred, and a projection trained on them as
    they are spends its first epochs on finding their mean. `image_projection` undoes it for checkpoints.

    trunk: the image encoder without its last layer, where it is trained too. It stays in evaluation mode:
    with running statistics that stand still, an image's features do not depend on the others beside it, so
    that chunks of a batch, the processes of a run and its checkpoints agree on them.
    """

    feature_mean: Tensor
    feature_size: Tensor

    def __init__(
        self,
        config: TrainConfig,
        feature_mean: Tensor,
        feature_size: Tensor,
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.location = LocationEncoder(
            config.legendre_polys,
            config.capacity,
            config.num_hidden_layers,
            config.embed_dim,
            dropout=config.dropout,
            backend=config.backend,
            precision=config.location_precision,
            seed=config.seed,
            device="cpu",
            dtype=torch.float32,
        )
        shape_first_layer(
            self.location, config.first_layer_taper, config.first_layer_knee, config.first_layer_gain
        )
        self.projection = nn.utils.skip_init(
            nn.Linear, len(feature_mean), config.embed_dim, device="cpu", dtype=torch.float32
        )
        _initialise(self.projection, derive_seed(config.seed, _PROJECTION_STREAM))
        self.logit_scale = nn.Parameter(
            torch.tensor(math.log(config.logit_scale), dtype=torch.float32, device="cpu"),
            requires_grad=config.learn_logit_scale,
        )
        self.register_buffer("feature_mean", feature_mean)
        self.register_buffer("feature_size", feature_size)
        self.trunk = trunk

    def start_projection(self, weight: Tensor, bias: Tensor) -> None:  # (E, F), (E,)
        """Start from a projection for features as they come from the trunk. Raises UsageError."""
        if weight.shape != self.projection.weight.shape or bias.shape != self.projection.bias.shape:
            raise UsageError(
                f"embed_dim: the projection to start from is {tuple(weight.shape)}, that of these settings "
                f"{tuple(self.projection.weight.shape)}: give {len(weight)}",
                argument="embed_dim",
            )
        with torch.no_grad():
            self.projection.weight.copy_(weight.double() * self.feature_size.double())
            self.projection.bias.copy_(bias.double() + weight.double() @ self.feature_mean.double())

    def train(self, mode: bool = True) -> Model:
        """Set the mode of all modules but the trunk, which stays in evaluation mode."""
        super().train(mode)
        if self.trunk is not None:
            self.trunk.eval()
        return self

    def embed_locations(self, lonlat: Tensor) -> Tensor:  # (n, 2) -> (n, E)
        """Embed locations as unit vectors."""
        return nn.functional.normalize(self.location(lonlat), dim=-1)

    def embed_images(self, features: Tensor, noise: Tensor | float = 0.0) -> Tensor:  # (n, F) -> (n, E)
        """Embed images as unit vectors. noise: added to the features once they are centred and scaled."""
        scaled = (features - self.feature_mean) / self.feature_size + noise
        return nn.functional.normalize(self.projection(scaled).float(), dim=-1)

    def scale(self) -> Tensor:  # ()
        """Scale of the similarities."""
        return self.logit_scale.exp()

    def image_projection(self) -> tuple[Tensor, Tensor]:
        """Weight (E, F) and bias (E,) for features as they come from the trunk."""
        weight = self.projection.weight.detach().double() / self.feature_size.double()
        bias = self.projection.bias.detach().double() - weight @ self.feature_mean.double()
        return weight.float(), bias.float()


def check_backend(config: TrainConfig, device: torch.device) -> None:
    """Raise UsageError or MissingExtra, naming the setting, where a backend cannot compute on the device."""
    try:
        backends.resolve_for(config.backend, torch.empty(0, dtype=torch.float32, device=device))
    except (UsageError, MissingExtra) as error:
        raise type(error)(f"backend: {error}", argument="backend") from error


def shape_first_layer(location: LocationEncoder, taper: float, knee: float, gain: float) -> None:
    """Multiply the first layer's weights of degree l by gain · (1 + l/knee)^−taper: a prior over degrees."""
    degrees = torch.arange(location.degrees, dtype=torch.float64)
    column_degree = degrees.repeat_interleave(2 * degrees.long() + 1)  # l² + l + m holds degree l
    factors = gain * (1 + column_degree / knee) ** -taper
    with torch.no_grad():
        weight = location.nnet.layers[0].weight
        weight.mul_(factors.to(weight))


def gains(location: LocationEncoder) -> Tensor:  # (H,)
    """Norm of each unit's first weights, in multiples of its root mean square at the published start.

    That is U(±1/L²) in L² columns. How far the field's spectrum reaches grows with these.
    """
    with torch.no_grad():
        initial = 1 / (math.sqrt(3) * location.degrees)
        return location.nnet.layers[0].weight.norm(dim=1) / initial


def limit_gains(location: LocationEncoder, limit: float) -> None:
    """Shorten the first weights of the units whose gain exceeds `limit`."""
    with torch.no_grad():
        excess = (gains(location) / limit).clamp_(min=1)
        location.nnet.layers[0].weight.div_(excess[:, None])


def limit_logit_scale(model: Model, limit: float) -> None:
    """Keep the scale of the similarities at or below `limit`."""
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(limit))


def _initialise(layer: nn.Linear, seed: int) -> None:
    """Initialise a linear layer as torch does, by a seed of its own."""
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(layer.in_features)
    for parameter in (layer.weight, layer.bias):
        nn.init.uniform_(parameter, -bound, bound, generator=generator)

"""AdamW with the published parameter groups, and an exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from satclip_engine.training.config import TrainConfig

# Prefixes of parameters that may have a learning rate of their own; "" is all the rest.
_FIRST_BIAS, _FIRST_LAYER = "location.nnet.layers.0.bias", "location.nnet.layers.0."
_TRUNK, _REST = "trunk.", ""


def decays(name: str, parameter: Tensor) -> bool:
    """Published rule of weight decay: not on biases, norms, 1-d tensors and the logit scale."""
    return parameter.ndim >= 2 and not any(word in name for word in ("bn", "ln", "bias", "logit_scale"))


def parameter_groups(named: Iterable[tuple[str, Tensor]], config: TrainConfig) -> list[dict[str, Any]]:
    """Groups for AdamW by weight decay and learning rate.

    Each holds its full learning rate as `peak`; those of the main one come first.
    """
    own_rates = {  # the first that fits counts
        _FIRST_BIAS: config.first_layer_bias_lr,
        _FIRST_LAYER: config.first_layer_lr,
        _TRUNK: config.image_lr,
    }
    rates = {_REST: config.learning_rate} | {prefix: lr for prefix, lr in own_rates.items() if lr is not None}
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            prefix = next((prefix for prefix in rates if prefix and name.startswith(prefix)), _REST)
            groups.setdefault((prefix, decays(name, parameter)), []).append(parameter)
    return [
        {
            "params": groups[prefix, decay],
            "weight_decay": config.weight_decay if decay else 0.0,
            "lr": rates[prefix],
            "peak": rates[prefix],
        }
        for prefix, decay in sorted(groups)
    ]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Make AdamW over the parameters that are trained."""
    return torch.optim.AdamW(parameter_groups(model.named_parameters(), config), fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to `factor` of its full learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


class WeightAverage:
    """Exponential moving average of a model's state: average ← decay · average + (1 − decay) · state."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the model's current state."""
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - self.decay)
            else:  # batch normalisation counts its batches
                self.state[name].copy_(value)

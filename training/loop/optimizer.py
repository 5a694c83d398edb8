"""AdamW with the published parameter groups, and a moving average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
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


def average_decay(step: int, decay: float) -> float:
    """Decay of the average in its update after `step` ≥ 1 steps: `decay`, less in the first 9 / (1 − decay).

    A constant decay keeps decay^step of the initial weights, nearly all in a short run. (1 + t) / (10 + t)
    forgets them like t^−9 and averages over the last tenth of what was trained so far.
    """
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """Moving average of a model's state: average ← d · average + (1 − d) · state, d as in `average_decay`."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = copied_state(model.state_dict())

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Add the model's state after `step` steps."""
        decay = average_decay(step, self.decay)
        for name, value in model.state_dict().items():
            if isinstance(value, Tensor) and value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:  # batch normalisation counts its batches
                self.state[name] = copy.deepcopy(value)


def copied_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of a model's state, which further steps do not change."""
    return {name: copy.deepcopy(value) for name, value in state.items()}

"""State dictionaries of another convention, converted tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from satclip_engine._optional import need
from satclip_engine.errors import WeightsError
from satclip_engine.weights.statement import Statement, converted_columns

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = need("torch", extra="torch", why="computing with tensors")


def converted_state(
    state: Mapping[str, Tensor], stated: Statement, target: Statement, prefix: str
) -> dict[str, Tensor]:
    """Tensors of the network `prefix`nnet as `target` needs them; computed in float64, rounded once.

    Raises WeightsError for polynomials that exact harmonics cannot be turned into, and for tensors that are
    not weights and biases of the layers, or in shards.
    """
    pattern = re.compile(re.escape(prefix) + r"nnet\.(layers\.(\d+)|last_layer)\.(weight|bias)")
    converted = {}
    for key, value in state.items():
        match = pattern.fullmatch(key)
        if match is None or type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise WeightsError(
                f"{key}: the state is in another convention, {stated.convention}, and only whole weights and "
                f'biases can be converted: load it into LocationEncoder(…, convention="{stated.convention}")'
            )
        numbers = value.detach().cpu().double().numpy()
        if match[2] is not None:
            hidden = int(match[2]) > 0
            numbers = numbers * (stated.w0[hidden] / target.w0[hidden])
            if not hidden and match[3] == "weight":
                numbers = converted_columns(numbers, stated, target, key)
        converted[key] = torch.from_numpy(numbers).to(value)
    return converted

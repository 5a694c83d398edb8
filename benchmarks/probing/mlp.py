"""The MLP probe: one hidden layer of ReLU, AdamW, early stopping.

A share of the training rows, groups of the same split as the test's, is held back; the weights of the epoch
that did best there are the ones that answer. Features come standardised, numbers are standardised here.

ReLU, because GELU does worse on raw positions and alike on embeddings: R² .26 against .48 for the unit vector
and .69 against .68 for the default weights (elevation of 5,000 airports, random split, two seeds).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

HIDDEN = 384
BATCH = 256
EPOCHS = 200
PATIENCE = 20  # epochs without a better validation loss
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 1e-2


def mlp(
    x: np.ndarray,
    y: np.ndarray,
    fold: tuple[np.ndarray, np.ndarray],
    queries: np.ndarray,
    classes: int | None,
    seed: int,
) -> np.ndarray:
    """Predictions [k] at `queries` [k, d] from x [n, d], y [n]: numbers, or of so many classes.

    fold: row numbers to learn from and to stop by. The same arguments give the same answer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _mlp(x, y, fold, queries, classes)


def _mlp(
    x: np.ndarray,
    y: np.ndarray,
    fold: tuple[np.ndarray, np.ndarray],
    queries: np.ndarray,
    classes: int | None,
) -> np.ndarray:
    offset, scale = (0.0, 1.0) if classes else (y.mean(), y.std() or 1.0)
    inputs, query_inputs = _floats(x), _floats(queries)
    targets = torch.from_numpy(y.astype(np.int64)) if classes else _floats((y - offset) / scale)[:, None]
    train, stop = (torch.from_numpy(rows) for rows in fold)
    model = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes or 1))
    loss_of = nn.functional.cross_entropy if classes else nn.functional.mse_loss
    best = _trained(model, loss_of, (inputs[train], targets[train]), (inputs[stop], targets[stop]))
    with torch.no_grad():
        answer = best(query_inputs)
    return np.asarray(answer.argmax(1)) if classes else np.asarray(answer[:, 0], np.float64) * scale + offset


def _trained(
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    train: tuple[Tensor, Tensor],
    stop: tuple[Tensor, Tensor],
) -> nn.Module:
    """The model with its weights of the best epoch.

    train, stop: inputs and targets to learn from and to stop by.
    """
    inputs, targets = train
    descent = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    best, best_loss, waited = copy.deepcopy(model.state_dict()), float("inf"), 0
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(inputs)).split(BATCH):
            descent.zero_grad()
            loss_of(model(inputs[rows]), targets[rows]).backward()
            descent.step()
        with torch.no_grad():
            loss = float(loss_of(model(stop[0]), stop[1]))
        if loss < best_loss:
            best, best_loss, waited = copy.deepcopy(model.state_dict()), loss, 0
        elif (waited := waited + 1) == PATIENCE:
            break
    model.load_state_dict(best)
    return model


def _floats(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))

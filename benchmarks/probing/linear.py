"""Linear probes: ridge regression for numbers, multinomial logistic regression for classes.

The penalty is chosen by cross-validation inside the training rows, whose folds hold out groups of the same
split as the test does. Features come standardised.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

PENALTIES = np.logspace(-4, 6, 21)  # of ridge: beside sums over rows
DECAYS = (1e-1, 1e-2, 1e-3, 1e-4)  # of logistic regression: beside means over rows; each starts from the last
FOLDS = 5
CLASS_FOLDS = 3

Folds = Sequence[tuple[np.ndarray, np.ndarray]]


def ridge(x: np.ndarray, y: np.ndarray, folds: Folds, queries: np.ndarray) -> np.ndarray:
    """Predictions [k] at `queries` [k, d] from x [n, d], y [n]; folds of row numbers choose the penalty."""
    errors = np.zeros(len(PENALTIES))
    for train, test in folds:
        predicted = _ridge_path(x[train], y[train], x[test], PENALTIES)  # [penalties, held]
        errors += ((predicted - y[test]) ** 2).sum(1)
    return _ridge_path(x, y, queries, PENALTIES[[int(np.argmin(errors))]])[0]


def _ridge_path(x: np.ndarray, y: np.ndarray, queries: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    mean, offset = x.mean(0), y.mean()
    centred = x - mean
    values, vectors = np.linalg.eigh(centred.T @ centred)
    rotated = vectors.T @ (centred.T @ (y - offset))
    slopes = vectors @ (rotated / (np.maximum(values, 0) + penalties[:, None])).T  # [d, penalties]
    return ((queries - mean) @ slopes + offset).T


def logistic(x: np.ndarray, y: np.ndarray, folds: Folds, queries: np.ndarray, classes: int) -> np.ndarray:
    """Predicted classes [k] at `queries` [k, d] from x [n, d], y [n] in 0..classes−1."""
    inputs, labels, query_inputs = _floats(x), torch.from_numpy(y.astype(np.int64)), _floats(queries)
    losses = np.zeros(len(DECAYS))
    for train, test in folds:
        path = _logistic_path(inputs[train], labels[train], DECAYS, classes)
        losses += [float(_loss(weights, inputs[test], labels[test])) * len(test) for weights in path]
    best = int(np.argmin(losses))
    *_, last = _logistic_path(inputs, labels, DECAYS[: best + 1], classes)
    return np.asarray(torch.addmm(last[0], query_inputs, last[1:]).argmax(1))


def _logistic_path(
    x: Tensor, y: Tensor, decays: Sequence[float], classes: int
) -> list[Tensor]:  # [1 + d, classes] a decay, the first row the offsets
    weights = torch.zeros(x.shape[1] + 1, classes, requires_grad=True)
    path = []
    for decay in decays:
        descent = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

        def closure(descent: torch.optim.LBFGS = descent, decay: float = decay) -> Tensor:
            descent.zero_grad()
            loss = _loss(weights, x, y) + decay / 2 * (weights[1:] ** 2).sum()
            loss.backward()
            return loss

        descent.step(closure)
        path.append(weights.detach().clone())
    return path


def _loss(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(torch.addmm(weights[0], x, weights[1:]), y)


def _floats(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))

"""Score of a probe: how well it predicts a target from features, at points it has not seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from probing.linear import CLASS_FOLDS, FOLDS, logistic, ridge
from probing.mlp import mlp
from probing.splits import Split
from satclip_engine.errors import UsageError

PROBES = ("linear", "mlp")
TEST_SHARE = 0.2
STOP_SHARE = 0.15  # of the training rows, for the MLP to stop by


def score(features: np.ndarray, target: np.ndarray, split: Split, probe: str, seed: int) -> float:
    """R² of a target of numbers, or the share of right answers of a target of whole numbers (classes).

    features: [n, d]. target: [n]. split: random_split(n) or block_split(lonlat); about a fifth of the points
    is held out, chosen by `seed` alone, so all features are asked about the same points. probe: "linear"
    (ridge or logistic regression, its penalty by inner cross-validation) or "mlp". The penalty and the epoch
    are chosen on training points held out in the same manner. Features are standardised on
    the training points.

    PyTorch computes in one thread meanwhile: more make such small products slower.
    Raises UsageError for arrays that do not fit together, values that are not finite, an unknown probe.
    """
    features, target = np.asarray(features, np.float64), np.asarray(target)
    _check(features, target, split, probe)
    rng = np.random.default_rng(seed)
    train, test = split.hold_out(TEST_SHARE, rng)
    mean, deviation = features[train].mean(0), features[train].std(0)
    standard = (features - mean) / np.where(deviation > 1e-12, deviation, 1)
    classes = None
    if np.issubdtype(target.dtype, np.integer):
        labels, target = np.unique(target, return_inverse=True)
        classes = len(labels)
    with _one_thread():
        predicted = _predict(standard, target, split, probe, rng, (train, test), classes)
    expected = target[test]
    if classes:
        return float((predicted == expected).mean())
    return float(1 - ((predicted - expected) ** 2).sum() / ((expected - expected.mean()) ** 2).sum())


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _predict(
    x: np.ndarray,
    y: np.ndarray,
    split: Split,
    probe: str,
    rng: np.random.Generator,
    rows: tuple[np.ndarray, np.ndarray],
    classes: int | None,
) -> np.ndarray:
    train, test = rows

    def within(fold: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of all points as row numbers of the training points; both ascend."""
        return np.searchsorted(train, fold[0]), np.searchsorted(train, fold[1])

    if probe == "mlp":
        fold = within(split.hold_out(STOP_SHARE, rng, train))
        return mlp(x[train], y[train], fold, x[test], classes, int(rng.integers(2**31)))
    folds = [within(fold) for fold in split.folds(CLASS_FOLDS if classes else FOLDS, rng, train)]
    if classes:
        return logistic(x[train], y[train], folds, x[test], classes)
    return ridge(x[train], y[train], folds, x[test])


def _check(features: np.ndarray, target: np.ndarray, split: Split, probe: str) -> None:
    if features.ndim != 2 or target.shape != features.shape[:1] or split.groups.shape != target.shape:
        raise UsageError(
            f"features must be (n, d), target and split (n,), not {features.shape}, {target.shape} "
            f"and {split.groups.shape}"
        )
    if not (np.isfinite(features).all() and np.isfinite(target).all()):
        raise UsageError("features and target must be finite: leave out rows with NaN or infinite values")
    if probe not in PROBES:
        raise UsageError(f"probe must be one of {', '.join(PROBES)}, not {probe!r}")

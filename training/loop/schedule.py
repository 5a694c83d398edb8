"""Learning rate schedule (warmup, cosine) as a function of the step, and the length of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from satclip_engine.errors import Argument, UsageError
from satclip_engine.training.config import TrainConfig


def learning_rate_factor(step: int, total: int, config: TrainConfig) -> float:
    """Factor of the learning rates at step 0..total−1: 0 < factor ≤ 1.

    It rises linearly over the first `warmup_steps`; then it stays, or falls along half a cosine towards 0,
    which it would reach at step `total`.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def total_steps(steps_per_epoch: int, config: TrainConfig) -> int:
    """Number of steps of a whole run."""
    total = steps_per_epoch * config.max_epochs
    return total if config.max_steps is None else min(total, config.max_steps)


def check_length(state: Mapping[str, Any], config: TrainConfig, folder: Path) -> None:
    """Raise UsageError where `config` gives a run another length, and its schedule depends on it.

    What was trained already followed the former one: the result would be that of no uninterrupted run.
    """
    step, planned, total = state["step"], state["total"], total_steps(state["steps_per_epoch"], config)
    if config.schedule == "constant" or total == planned or step >= max(planned, total):
        return
    before = config.learning_rate * learning_rate_factor(min(step, planned - 1), planned, config)
    now = config.learning_rate * learning_rate_factor(min(step, total - 1), total, config)
    epochs = planned / state["steps_per_epoch"]
    raise UsageError(
        f"{folder} holds a run whose {config.schedule} schedule ends at step {planned} ({epochs:.3g} "
        f"epochs); to end at step {total}, its learning rate would go from {before:.2g} to {now:.2g} at step "
        f"{step + 1}, as in no uninterrupted run: leave out ",
        Argument("max_epochs"),
        " and ",
        Argument("max_steps"),
        " to resume it as planned, or start one of that length in another folder or with --overwrite",
    )

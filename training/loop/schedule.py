"""Learning rate schedule (warmup, cosine) as a function of the step, and the length of a run."""

from __future__ import annotations

import math

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

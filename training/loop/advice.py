"""Notes on settings that cannot do what they are for in a run of so many samples and steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from satclip_engine.training.config import TrainConfig
from satclip_engine.training.loop.optimizer import average_decay
from satclip_engine.training.loop.schedule import learning_rate_factor

_FEW_SAMPLES: Final = 20  # held out: one of them more or less is 5 % of R@1
_START_SHARE: Final = 0.01  # of the start in a constant average at the end, above which a run is short for it
_IDLE_SHARE: Final = 0.25  # of the training samples, left out of every epoch


@dataclass(frozen=True)
class RunSize:
    """Numbers of samples and steps of a run. locations: of the held-out samples."""

    training: int
    held_out: int
    locations: int
    batch: int
    steps_per_epoch: int
    total: int

    def validations(self, config: TrainConfig) -> int:
        """Number of validations: after every so many epochs, and at the end."""
        return math.ceil(math.ceil(self.total / self.steps_per_epoch) / config.check_val_every_n_epoch)


def setting_notes(config: TrainConfig, size: RunSize) -> list[str]:
    """Notes on the settings that do not fit the run, with the numbers at hand."""
    notes = (_batch_note(config, size), *_validation_notes(config, size), *_length_notes(config, size))
    return [note for note in notes if note]


def _batch_note(config: TrainConfig, size: RunSize) -> str:
    if size.batch < config.batch_size:
        return (
            f"a batch of {config.batch_size} is more than the {size.training} training samples: every step "
            "takes all of them"
        )
    idle = size.training - size.batch * size.steps_per_epoch
    if idle <= _IDLE_SHARE * size.training:
        return ""
    steps = "one step" if size.steps_per_epoch == 1 else f"{size.steps_per_epoch} steps"
    return (
        f"{size.training} training samples in batches of {size.batch}: an epoch is {steps} and leaves out "
        f"{idle} samples, other ones each time"
    )


def _validation_notes(config: TrainConfig, size: RunSize) -> list[str]:
    validations, every = size.validations(config), config.check_val_every_n_epoch
    notes = []
    if size.held_out == 0 and config.patience is not None:
        notes.append("no samples are held out: patience and best.ckpt go by the loss on training samples")
    if size.held_out and size.locations < _FEW_SAMPLES:
        number = f"{size.held_out} held-out samples"
        if size.locations < size.held_out:
            number += f" of {size.locations} locations"
        notes.append(f"{number}: the best epoch, chosen by their loss, is largely chance")
    share, asked = size.held_out / (size.held_out + size.training), config.val_random_split_fraction
    if abs(share - asked) > 0.5 * asked:
        unit = "locations" if config.val_block_degrees is None else f"blocks of {config.val_block_degrees:g}°"
        notes.append(f"whole {unit} hold out {100 * share:.0f} % of the samples, not {100 * asked:.3g} %")
    if config.patience is not None and config.patience + 1 >= validations:
        notes.append(
            f"a patience of {config.patience} validations cannot shorten a run that has {validations}"
        )
    if every > 1 and validations == 1:
        notes.append(f"validation every {every} epochs comes once in this run: best.ckpt is the last state")
    return notes


def _length_notes(config: TrainConfig, size: RunSize) -> list[str]:
    notes = []
    if config.warmup_steps >= size.total:
        reached = learning_rate_factor(size.total - 1, size.total, config)
        notes.append(
            f"a warm-up of {config.warmup_steps} steps is as long as the run of {size.total} or longer: the "
            f"learning rate reaches {100 * reached:.2g} % of {config.learning_rate:g}"
        )
    if config.ema is not None and config.ema**size.total > _START_SHARE:
        decay = average_decay(size.total, config.ema)
        notes.append(
            f"ema {config.ema:g} is an average over some {_span(config.ema)} steps, and the run has "
            f"{size.total}: its decay rises to {decay:.2g}, an average over the last {_span(decay)} or so"
        )
    return notes


def _span(decay: float) -> str:
    """Number of steps over which an average of that decay extends."""
    return f"{1 / (1 - decay):.0f}"

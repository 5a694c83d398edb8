"""The training loop: steps, epochs, validation, saved states, and the ways in which a run ends.

    trainer = Trainer(config, data, folder)
    outcome = trainer.run()

A step is batch, features, loss, backward, update. All random numbers are functions of the seed and the step,
and everything else that a step depends on is in `Trainer.state`; so a resumed run on one process repeats an
uninterrupted one bit by bit. A length that its schedule was not made for is refused.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from satclip_engine.contrast import contrastive_loss
from satclip_engine.errors import Argument, SatclipError, UsageError
from satclip_engine.training.config import TrainConfig, changed_settings, make_config, other_settings
from satclip_engine.training.features.trunk_features import GradientCache, TrunkFeatures
from satclip_engine.training.loop.advice import RunSize, setting_notes
from satclip_engine.training.loop.batches import (
    BatchSchedule,
    TrainingBatch,
    dropout_seed,
    feature_noise,
    jitter_locations,
)
from satclip_engine.training.loop.distributed import ProcessContext
from satclip_engine.training.loop.interrupts import InterruptHandler, RunStopped
from satclip_engine.training.loop.model import Model, check_backend, gains, limit_gains, limit_logit_scale
from satclip_engine.training.loop.optimizer import (
    WeightAverage,
    copied_state,
    make_optimizer,
    set_learning_rate,
)
from satclip_engine.training.loop.schedule import check_length, learning_rate_factor, total_steps
from satclip_engine.training.loop.split import Split, split_samples
from satclip_engine.training.loop.state import load_state, save_state
from satclip_engine.training.loop.validation import RetrievalScores, validate
from satclip_engine.training.samples import (
    STATISTICS_SAMPLES,
    Features,
    check_samples,
    evenly_spread,
    feature_statistics,
    samples_fingerprint,
)
from satclip_engine.training.torch_defaults import cpu_by_default

_MAX_SAVING_SHARE: Final = 0.05  # of the time, that states at the ends of epochs may take
_SCORED_SAMPLES: Final = 8192  # of the training samples, when none are held out
_TRUNK_STATISTICS_SAMPLES: Final = 1024  # for the features' mean and size, where they pass a trunk for it


class Diverged(SatclipError):
    """The loss or a weight is no longer a number."""


class TrainingCallback(Protocol):
    """Receiver of the events of a run: logs and displays."""

    def begin(self, total: int, steps_per_epoch: int, history: Sequence[dict[str, Any]]) -> None: ...

    def step(self, step: int, loss: float, rate: float, samples_per_second: float) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...

    def finish(self) -> None: ...


@dataclass(frozen=True)
class ModelSnapshot:
    """A model's state at a step, with its scores."""

    model: dict[str, Tensor]
    step: int
    epoch: int
    scores: RetrievalScores | None


@dataclass(frozen=True)
class RunOutcome:
    """Outcome of a run: its best and last state, and its history."""

    best: ModelSnapshot
    last: ModelSnapshot
    history: tuple[dict[str, Any], ...]
    batch_size: int
    seconds: float
    stopped_early: bool
    held_out: int  # samples
    steps_per_epoch: int

    @property
    def epochs(self) -> float:
        """Epochs trained, with the begun one's share."""
        return self.last.step / self.steps_per_epoch


class Trainer:
    """A run over `data`, with its state in `folder`.

    projection: weight and bias to start from, of features as they come from the trunk; drawn without.

    Raises UsageError for settings that do not fit the data, WeightsError where there is nothing to resume.
    """

    @cpu_by_default()
    def __init__(
        self,
        config: TrainConfig,
        data: Features,
        folder: Path,
        *,
        processes: ProcessContext | None = None,
        callbacks: Sequence[TrainingCallback] = (),
        projection: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.config, self.data, self.folder = config, data, folder
        self.processes = processes or ProcessContext(torch.device("cpu"))
        self.callbacks = callbacks if self.processes.is_main else ()
        check_backend(config, self.processes.device)
        check_samples(data.lonlat)
        split = split_samples(
            data.lonlat, config.val_random_split_fraction, config.seed, block_degrees=config.val_block_degrees
        )
        self.held_out = split.held_out
        self.batches = BatchSchedule(split.train, config.batch_size, data.views, config.seed)
        self.total = total_steps(self.batches.steps_per_epoch, config)
        self._check_batch()
        self._warn_of_settings(split)
        self.model = self._new_model(split.train, projection)
        self._gradient_cache = self._new_gradient_cache()
        self._apply_limits()
        self.optimizer = make_optimizer(self.model, config)
        self.average = None if config.ema is None else WeightAverage(self.model, config.ema)
        self.step = 0
        self.best: ModelSnapshot | None = None
        self.stale = 0  # validations since the best one
        self.history: list[dict[str, Any]] = []
        self._epoch_loss, self._epoch_steps = 0.0, 0  # a sum, and over how many steps, since the last row
        # Progress as a longer run has it, where this one ends in an epoch or on a validation that is not due.
        self._if_longer: dict[str, Any] | None = None
        self._seconds = 0.0  # of the run before it was resumed
        self._first_step = 0  # of this process
        self._start_time = self._save_time = self._save_seconds = 0.0
        self._data_fingerprint = samples_fingerprint(data)

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return self.step // self.batches.steps_per_epoch

    @cpu_by_default()
    def resume(self) -> None:
        """Resume from the newest whole state in the folder. Raises UsageError for that of another run."""
        state, note = load_state(self.folder)
        if note and self.processes.is_main:
            warnings.warn(note, stacklevel=2)
        self._check_same(state)
        check_length(state, self.config, self.folder)
        self._load(state)

    @cpu_by_default()
    def run(self) -> RunOutcome:
        """Train to the end. Raises Diverged, OutputError, and RunStopped after Ctrl-C or SIGTERM."""
        self._start_time = self._save_time = time.monotonic()
        self._save_seconds = 0.0
        for callback in self.callbacks:
            callback.begin(self.total, self.batches.steps_per_epoch, self.history)
        if self.step == 0:
            self.save()  # there is always a good state to return to
        no_autocast = torch.autocast(self.processes.device.type, enabled=False)  # of somebody else's
        with InterruptHandler() as interrupts, torch.random.fork_rng(devices=[]), no_autocast:
            try:
                while self.step < self.total and not self.finished_early:
                    self._after_step(self.train_step())
                    if self.processes.any_process(interrupts.signal is not None):
                        self._stop(interrupts.signal or 15)
            finally:
                if self._gradient_cache is not None:
                    self._gradient_cache.close()
        if self.step > self._first_step:
            self.save()
        return self.outcome()

    @cpu_by_default()
    @torch.enable_grad()
    def train_step(self) -> float:
        """Update once and return the loss. Raises Diverged, before a weight has changed, when it is NaN."""
        config, processes = self.config, self.processes
        batch = self.batches.batch(self.step, rank=processes.rank, world_size=processes.world_size)
        lonlat = jitter_locations(
            self.data.lonlat[batch.samples], batch, config.coordinate_jitter, config.seed
        )
        noise: Tensor | float = 0.0
        if config.feature_noise:
            drawn = feature_noise(self.data.dim, batch, config.seed)
            noise = config.feature_noise * processes.to_device(drawn)
        torch.manual_seed(dropout_seed(config.seed, self.step, processes.rank))

        with self._arithmetic():
            features = self._features(batch)
            locations = self.model.embed_locations(processes.to_device(torch.from_numpy(lonlat)))
            images = self.model.embed_images(features, noise)
        scale = self.model.scale()
        loss = contrastive_loss(locations, images, scale, group=processes.group, backend=config.backend)

        self.optimizer.zero_grad()
        loss.backward()
        if self._gradient_cache is not None:
            self._gradient_cache.backward(self._arithmetic)
        processes.average_gradients(self.model.parameters())
        value = float(loss.detach())  # waits for a GPU: late, so that it has all of the step before it
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value} at step {self.step + 1}")

        set_learning_rate(self.optimizer, learning_rate_factor(self.step, self.total, config))
        self.optimizer.step()
        self._apply_limits()
        if self.average is not None:
            self.average.update(self.model, self.step + 1)
        self.step += 1
        self._epoch_loss += value
        self._epoch_steps += 1
        return value

    @property
    def finished_early(self) -> bool:
        """True where validation has not become better for as long as the settings allow."""
        return self.config.patience is not None and self.stale >= self.config.patience

    def save(self) -> None:
        """Save the state, by the main process. Raises Diverged instead of saving what is no number."""
        if self.processes.is_main:
            start = time.monotonic()
            for name, value in self.model.state_dict().items():
                if isinstance(value, Tensor) and not torch.isfinite(value).all():
                    raise Diverged(f"{name} is no longer finite after step {self.step}")
            save_state(self.folder, self.state())
            self._save_time = time.monotonic()
            self._save_seconds = self._save_time - start

    def state(self) -> dict[str, Any]:
        """State that the next steps depend on, in plain values and tensors."""
        return {
            "config": self.config.as_dict(),
            "data": self._data_fingerprint,
            "step": self.step,
            "total": self.total,
            "steps_per_epoch": self.batches.steps_per_epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state,
            **self._progress(),
            "if_longer": self._if_longer,
            "seconds": self._elapsed(),
        }

    def _progress(self) -> dict[str, Any]:
        """Rows and validations so far."""
        return {
            "best": None if self.best is None else _snapshot_dict(self.best),
            "stale": self.stale,
            "history": list(self.history),
            "epoch_loss": [self._epoch_loss, self._epoch_steps],
        }

    def outcome(self) -> RunOutcome:
        """Outcome of the run so far."""
        scores = _scores_of(self.history[-1]) if self.history else None
        last = ModelSnapshot(self._exported_state(), self.step, self.epoch, scores)
        return RunOutcome(
            self.best or last,
            last,
            tuple(self.history),
            self.batches.size,
            self._elapsed(),
            self.finished_early,
            len(self.held_out),
            self.batches.steps_per_epoch,
        )

    def _new_model(self, samples: np.ndarray, projection: Mapping[str, Tensor] | None) -> Model:
        """Make the initial model. A trunk that is trained is a copy, so that the data keep theirs."""
        trunk = copy.deepcopy(self.data.trunk) if isinstance(self.data, TrunkFeatures) else None
        model = Model(self.config, *self._statistics(samples), trunk)
        if projection:
            model.start_projection(**projection)
        return model.to(self.processes.device)

    def _statistics(self, samples: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and size of the features of `samples`, on the CPU."""
        if not isinstance(self.data, TrunkFeatures):
            return feature_statistics(self.data, samples, limit=STATISTICS_SAMPLES)
        measured = None
        if self.processes.is_main:  # on GPUs, the others' features would differ in their last bits
            measured = feature_statistics(self.data, samples, limit=_TRUNK_STATISTICS_SAMPLES)
        mean, size = (value.cpu() for value in self.processes.broadcast(measured))
        return mean, size

    def _new_gradient_cache(self) -> GradientCache | None:
        """Make the passes of images through the model's trunk; None where features come as they are."""
        if not isinstance(self.data, TrunkFeatures) or self.model.trunk is None:
            return None
        processes = self.processes
        batch_at = partial(self.batches.batch, rank=processes.rank, world_size=processes.world_size)
        return GradientCache(self.data, self.model.trunk, batch_at, self.total)

    def _features(self, batch: TrainingBatch) -> Tensor:  # (n, F)
        if self._gradient_cache is not None:
            return self._gradient_cache.forward(batch)
        return self.processes.to_device(self.data.batch(batch.samples, batch.views))

    def _after_step(self, loss: float) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        steps = self.step - self._first_step
        speed = steps * self.batches.size / max(1e-9, time.monotonic() - self._start_time)
        for callback in self.callbacks:
            callback.step(self.step, loss, rate, speed)
        is_epoch_end = self.step % self.batches.steps_per_epoch == 0 or self.step == self.total
        if is_epoch_end:
            self._end_epoch(rate, speed)
        since_save = time.monotonic() - self._save_time
        is_cheap = self._save_seconds < _MAX_SAVING_SHARE * since_save
        if (is_epoch_end and is_cheap) or since_save >= 60 * self.config.checkpoint_minutes:
            self.save()

    def _end_epoch(self, rate: float, speed: float) -> None:
        is_cut = self.step % self.batches.steps_per_epoch != 0
        before = self._progress()
        row = self._row(rate, speed)
        self._epoch_loss, self._epoch_steps = 0.0, 0
        is_due = row["epoch"] % self.config.check_val_every_n_epoch == 0 and not is_cut
        self._if_longer = None
        if not is_due and self.step == self.total:
            without_scores = {**before, "history": [*self.history, dict(row)], "epoch_loss": [0.0, 0]}
            self._if_longer = before if is_cut else without_scores
        if is_due or self.step == self.total:
            scores = self._score()
            self._keep_best(scores, row["epoch"])
            row |= {"val_loss": scores.loss} | {k: v for k, v in asdict(scores).items() if k != "loss"}
            row |= {"val_of": "held-out" if len(self.held_out) else "training", "val_chance": scores.chance}
        self.history.append(row)
        for callback in self.callbacks:
            callback.epoch(row)

    def _row(self, rate: float, speed: float) -> dict[str, Any]:
        """Row of the epoch that ends, without scores."""
        return {
            "epoch": math.ceil(self.step / self.batches.steps_per_epoch),
            "step": self.step,
            "seconds": round(self._elapsed(), 3),
            "train_loss": self._epoch_loss / self._epoch_steps,
            "learning_rate": rate,
            "logit_scale": float(self.model.scale().detach()),
            "gain": float(gains(self.model.location).square().mean().sqrt()),
            "samples_per_second": round(speed, 1),
        }

    def _score(self) -> RetrievalScores:
        """Score the held-out samples, else training samples; with averaged weights where they are kept."""
        scores = None
        if self.processes.is_main:
            samples = self.held_out
            if not len(samples):
                samples = evenly_spread(self.batches.samples, _SCORED_SAMPLES)
            model, data = self._exported_model(), self.data
            if isinstance(data, TrunkFeatures) and model.trunk is not None:
                data = data.with_trunk(model.trunk)
            scores = validate(model, data, samples, self.processes.device)
        shared: RetrievalScores = self.processes.broadcast(scores)
        if not shared.finite:
            raise Diverged(f"the validation loss is {shared.loss} after step {self.step}")
        return shared

    def _keep_best(self, scores: RetrievalScores, epoch: int) -> None:
        if self.best is None or self.best.scores is None or scores.loss < self.best.scores.loss:
            state = copied_state(self._exported_state())
            self.best, self.stale = ModelSnapshot(state, self.step, epoch, scores), 0
        else:
            self.stale += 1

    def _exported_state(self) -> dict[str, Tensor]:
        """State that is validated and exported."""
        return self.model.state_dict() if self.average is None else self.average.state

    def _exported_model(self) -> Model:
        if self.average is None:
            return self.model
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.average.state)
        return model

    def _apply_limits(self) -> None:
        if self.config.max_gain is not None:
            limit_gains(self.model.location, self.config.max_gain)
        limit_logit_scale(self.model, self.config.max_logit_scale)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """Context of the image side's products."""
        torch.set_float32_matmul_precision("high" if self.config.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.config.precision == "tf32"  # which torch allows by itself
        is_bf16 = self.config.precision == "bf16"
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=is_bf16)

    def _stop(self, number: int) -> None:
        self.save()
        raise RunStopped(f"stopped after step {self.step} of {self.total}: resume with --resume", number)

    def _check_batch(self) -> None:
        size = self.batches.size
        if size < self.processes.world_size:
            raise UsageError(
                f"batch_size: {size} samples a step are fewer than {self.processes.world_size} processes: "
                "raise it or start fewer processes",
                argument="batch_size",
            )
        if len(self.batches.samples) < 2:
            raise UsageError(
                "one training sample has no negatives: give more data, or hold out less (",
                Argument("val_random_split_fraction"),
                ")",
            )
        if size < 2:
            raise UsageError(
                f"batch_size: a batch of one of the {len(self.batches.samples)} training samples has no "
                "negatives: give at least 2",
                argument="batch_size",
            )

    def _warn_of_settings(self, split: Split) -> None:
        """Say which settings cannot do what they are for in this run."""
        size = RunSize(
            len(split.train),
            len(split.held_out),
            split.held_out_locations,
            self.batches.size,
            self.batches.steps_per_epoch,
            self.total,
        )
        for note in setting_notes(self.config, size) if self.processes.is_main else ():
            warnings.warn(note, stacklevel=4)

    def _check_same(self, state: dict[str, Any]) -> None:
        before = make_config(state["config"], file=str(self.folder))
        if names := changed_settings(before, self.config):
            spelled = {name: name for name in names}
            raise UsageError(other_settings(self.folder, before, self.config, spelled))
        if state["data"] != self._data_fingerprint:
            raise UsageError(
                f"{self.folder} holds a run on other data, or on other features of the same data: give the "
                "same, or start over with --overwrite"
            )

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.state = {
                name: value.to(self.processes.device) if isinstance(value, Tensor) else value
                for name, value in state["average"].items()
            }
        self.step, self._if_longer = state["step"], state["if_longer"]
        progress = state
        if self._if_longer is not None and self.step < self.total:
            progress, self._if_longer = self._if_longer, None
        self.best = None if progress["best"] is None else _snapshot_of(progress["best"])
        self.stale, self.history = progress["stale"], list(progress["history"])
        self._epoch_loss, self._epoch_steps = progress["epoch_loss"]
        self._seconds = state["seconds"]
        self._first_step = self.step

    def _elapsed(self) -> float:
        return self._seconds + (time.monotonic() - self._start_time if self._start_time else 0.0)


def last_good_state(folder: Path) -> RunOutcome | None:
    """Load the last good state in a folder, as an outcome to be written; None for the initial one."""
    state, _ = load_state(folder)
    if state["step"] == 0:
        return None
    weights = state["average"] or state["model"]
    history = tuple(state["history"])
    last = ModelSnapshot(weights, state["step"], len(history), _scores_of(history[-1]) if history else None)
    best = last if state["best"] is None else _snapshot_of(state["best"])
    return RunOutcome(best, last, history, 0, state["seconds"], False, 0, 1)


def _scores_of(row: dict[str, Any]) -> RetrievalScores | None:
    if "val_loss" not in row:
        return None
    names = ("place_r1", "place_r10", "image_r1", "image_r10", "samples")
    return RetrievalScores(row["val_loss"], *(row[name] for name in names))


def _snapshot_dict(snapshot: ModelSnapshot) -> dict[str, Any]:
    return {**vars(snapshot), "scores": None if snapshot.scores is None else asdict(snapshot.scores)}


def _snapshot_of(plain: dict[str, Any]) -> ModelSnapshot:
    scores = None if plain["scores"] is None else RetrievalScores(**plain["scores"])
    return ModelSnapshot(plain["model"], plain["step"], plain["epoch"], scores)

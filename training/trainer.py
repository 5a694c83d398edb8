"""The training run: steps, epochs, checkpoints, and the ways in which it ends.

    trainer = Trainer(config, data, folder)
    outcome = trainer.run()

A step is batch, features, loss, backward, update. Everything drawn is a function of the seed and the step,
and everything else that a step depends on is in `Trainer.state`; so a resumed run on one process repeats an
uninterrupted one bit by bit.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from satclip_engine.contrast import contrastive_loss
from satclip_engine.errors import SatclipError, UsageError
from satclip_engine.training.batches import Batch, Batches, dropout_seed, jittered, noise
from satclip_engine.training.config import TrainConfig, changed, make_config
from satclip_engine.training.interrupts import Interrupts, Stopped
from satclip_engine.training.model import Model, check_backend, gains, limit_gains, limit_logit_scale
from satclip_engine.training.optimizer import Average, make_optimizer, set_learning_rate
from satclip_engine.training.ranks import Ranks
from satclip_engine.training.samples import STATISTICS, Features, fingerprint, statistics
from satclip_engine.training.schedule import learning_rate_factor, total_steps
from satclip_engine.training.split import split_samples
from satclip_engine.training.state import load_state, save_state
from satclip_engine.training.trunk_passes import TrunkFeatures, TrunkPasses
from satclip_engine.training.validate import Scores, validate

_SAVING_SHARE = 0.05  # of the time that checkpoints at the ends of epochs may take
_SCORED = 8192  # training samples that are scored when none are held out
_MEASURED = 1024  # images that the features' mean and size are taken from where they pass a trunk for it


class Diverged(SatclipError):
    """The loss or a weight is no longer a number."""


class Observer(Protocol):
    """Who wants to know how the run goes: logs and displays."""

    def begin(self, total: int, steps_per_epoch: int, history: Sequence[dict[str, Any]]) -> None: ...

    def step(self, step: int, loss: float, rate: float, samples_per_second: float) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...

    def finish(self) -> None: ...


@dataclass(frozen=True)
class Snapshot:
    """A model's state at some step, with its scores."""

    model: dict[str, Tensor]
    step: int
    epoch: int
    scores: Scores | None


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    best: Snapshot
    last: Snapshot
    history: tuple[dict[str, Any], ...]
    batch: int
    seconds: float
    early: bool
    held_out: int


class Trainer:
    """One run over `data`, with its state in `folder`.

    Raises UsageError for settings that do not fit the data, WeightsError where there is nothing to resume.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Features,
        folder: Path,
        *,
        ranks: Ranks | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.config, self.data, self.folder = config, data, folder
        self.ranks = ranks or Ranks(torch.device("cpu"))
        self.observers = observers if self.ranks.first else ()
        check_backend(config, self.ranks.device)
        split = split_samples(
            data.lonlat, config.val_random_split_fraction, config.seed, block_degrees=config.val_block_degrees
        )
        self.held_out = split.held_out
        self.batches = Batches(split.train, config.batch_size, data.views, config.seed)
        self.total = total_steps(self.batches.steps_per_epoch, config)
        self._check_batch()
        self.model = self._new_model(split.train)
        self._passes = self._new_passes()
        self._limit()
        self.optimizer = make_optimizer(self.model, config)
        self.average = None if config.ema is None else Average(self.model, config.ema)
        self.step = 0
        self.best: Snapshot | None = None
        self.stale = 0  # validations since the best one
        self.history: list[dict[str, Any]] = []
        self._epoch_loss, self._epoch_steps = 0.0, 0  # a sum, and over how many steps, since the last row
        self._seconds = 0.0  # of the run before it was resumed
        self._first_step = 0  # of this process
        self._began = self._saved = self._saving = 0.0
        self._data = fingerprint(data)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.step // self.batches.steps_per_epoch

    def resume(self) -> None:
        """Take up the newest whole state in the folder. Raises UsageError when it is that of another run."""
        state, note = load_state(self.folder)
        if note and self.ranks.first:
            warnings.warn(note, stacklevel=2)
        self._check_same(state)
        self._load(state)

    def run(self) -> Outcome:
        """Train to the end. Raises Diverged, OutputError, and Stopped after Ctrl-C or SIGTERM."""
        self._began = self._saved = time.monotonic()
        self._saving = 0.0
        for observer in self.observers:
            observer.begin(self.total, self.batches.steps_per_epoch, self.history)
        if self.step == 0:
            self.save()  # there is always a good one to go back to
        with Interrupts() as interrupts, torch.random.fork_rng(devices=[]):
            try:
                while self.step < self.total and not self.finished_early:
                    self.train_step()
                    self._after_step()
                    if self.ranks.any(interrupts.signal is not None):
                        self._stop(interrupts.signal or 15)
            finally:
                if self._passes is not None:
                    self._passes.close()
        self.save()
        return self.outcome()

    def train_step(self) -> float:
        """One update; returns the loss. Raises Diverged, before a weight has changed, when it is NaN."""
        batch = self.batches.at(self.step, rank=self.ranks.rank, ranks=self.ranks.count)
        config, ranks = self.config, self.ranks
        lonlat = jittered(self.data.lonlat[batch.samples], batch, config.coordinate_jitter, config.seed)
        disturbed: Tensor | float = 0.0
        if config.feature_noise:
            disturbed = config.feature_noise * ranks.sent(noise(self.data.dim, batch, config.seed))
        torch.manual_seed(dropout_seed(config.seed, self.step, ranks.rank))

        with self._arithmetic():
            features = self._features(batch)
            places = self.model.embed_places(ranks.sent(torch.from_numpy(lonlat)))
            images = self.model.embed_images(features, disturbed)
        loss = contrastive_loss(places, images, self.model.scale(), group=ranks.group, backend=config.backend)

        self.optimizer.zero_grad()
        loss.backward()
        if self._passes is not None:
            self._passes.backward(self._arithmetic)
        ranks.average_gradients(self.model.parameters())
        value = float(loss.detach())  # waits for a GPU: late, so that it has all of the step before it
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value} at step {self.step + 1}")

        set_learning_rate(self.optimizer, learning_rate_factor(self.step, self.total, config))
        self.optimizer.step()
        self._limit()
        if self.average is not None:
            self.average.update(self.model)
        self.step += 1
        self._epoch_loss += value
        self._epoch_steps += 1
        return value

    @property
    def finished_early(self) -> bool:
        """Whether validation has not become better for as long as the settings allow."""
        return self.config.patience is not None and self.stale >= self.config.patience

    def save(self) -> None:
        """Save the state, by the first process. Raises Diverged instead of saving what is no number."""
        if self.ranks.first:
            began = time.monotonic()
            for name, value in self.model.state_dict().items():
                if not torch.isfinite(value).all():
                    raise Diverged(f"{name} is no longer finite after step {self.step}")
            save_state(self.folder, self.state())
            self._saved = time.monotonic()
            self._saving = self._saved - began

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on, in plain values and tensors."""
        return {
            "config": self.config.as_dict(),
            "data": self._data,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state,
            "best": None if self.best is None else _plain(self.best),
            "stale": self.stale,
            "history": self.history,
            "epoch_loss": [self._epoch_loss, self._epoch_steps],
            "seconds": self._elapsed(),
        }

    def outcome(self) -> Outcome:
        """The run as it stands."""
        scores = _scores_of(self.history[-1]) if self.history else None
        last = Snapshot(self._written_state(), self.step, self.epoch, scores)
        return Outcome(
            self.best or last,
            last,
            tuple(self.history),
            self.batches.size,
            self._elapsed(),
            self.finished_early,
            len(self.held_out),
        )

    def _new_model(self, samples: np.ndarray) -> Model:
        """The model at its start. A trunk that is trained is a copy, so that the data keep theirs."""
        if not isinstance(self.data, TrunkFeatures):
            return Model(self.config, *statistics(self.data, samples, most=STATISTICS)).to(self.ranks.device)
        # One process measures: on GPUs, the others' features would differ in their last bits.
        measured = statistics(self.data, samples, most=_MEASURED) if self.ranks.first else None
        mean, size = (value.cpu() for value in self.ranks.shared(measured))
        trunk = copy.deepcopy(self.data.trunk)
        return Model(self.config, mean, size, trunk).to(self.ranks.device)

    def _new_passes(self) -> TrunkPasses | None:
        """The steps' images through the model's trunk; None where features come as they are."""
        if not isinstance(self.data, TrunkFeatures) or self.model.trunk is None:
            return None
        batch_at = partial(self.batches.at, rank=self.ranks.rank, ranks=self.ranks.count)
        return TrunkPasses(self.data, self.model.trunk, batch_at, self.total)

    def _features(self, batch: Batch) -> Tensor:  # (n, F)
        if self._passes is not None:
            return self._passes.forward(batch)
        return self.ranks.sent(self.data.batch(batch.samples, batch.views))

    def _after_step(self) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        done = self.step - self._first_step
        speed = done * self.batches.size / max(1e-9, time.monotonic() - self._began)
        loss = self._epoch_loss / self._epoch_steps
        for observer in self.observers:
            observer.step(self.step, loss, rate, speed)
        ended = self.step % self.batches.steps_per_epoch == 0 or self.step == self.total
        if ended:
            self._end_epoch(rate, speed)
        since = time.monotonic() - self._saved
        cheap = self._saving < _SAVING_SHARE * since
        if (ended and cheap) or since >= 60 * self.config.checkpoint_minutes:
            self.save()

    def _end_epoch(self, rate: float, speed: float) -> None:
        row: dict[str, Any] = {
            "epoch": math.ceil(self.step / self.batches.steps_per_epoch),
            "step": self.step,
            "seconds": round(self._elapsed(), 3),
            "train_loss": self._epoch_loss / self._epoch_steps,
            "learning_rate": rate,
            "logit_scale": float(self.model.scale().detach()),
            "gain": float(gains(self.model.location).square().mean().sqrt()),
            "samples_per_second": round(speed, 1),
        }
        self._epoch_loss, self._epoch_steps = 0.0, 0
        if row["epoch"] % self.config.check_val_every_n_epoch == 0 or self.step == self.total:
            scores = self._score()
            self._keep_best(scores, row["epoch"])
            row |= {"val_loss": scores.loss} | {k: v for k, v in asdict(scores).items() if k != "loss"}
        self.history.append(row)
        for observer in self.observers:
            observer.epoch(row)

    def _score(self) -> Scores:
        """Scores on what is held out, else on training samples; with averaged weights where they are kept."""
        scores = None
        if self.ranks.first:
            samples = self.held_out if len(self.held_out) else _some(self.batches.samples)
            model, data = self._written_model(), self.data
            if isinstance(data, TrunkFeatures) and model.trunk is not None:
                data = data.by(model.trunk)
            scores = validate(model, data, samples, self.ranks.device)
        found: Scores = self.ranks.shared(scores)
        if not found.finite:
            raise Diverged(f"the validation loss is {found.loss} after step {self.step}")
        return found

    def _keep_best(self, scores: Scores, epoch: int) -> None:
        if self.best is None or self.best.scores is None or scores.loss < self.best.scores.loss:
            state = {name: value.detach().clone() for name, value in self._written_state().items()}
            self.best, self.stale = Snapshot(state, self.step, epoch, scores), 0
        else:
            self.stale += 1

    def _written_state(self) -> dict[str, Tensor]:
        """What is validated and exported."""
        return self.model.state_dict() if self.average is None else self.average.state

    def _written_model(self) -> Model:
        if self.average is None:
            return self.model
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.average.state)
        return model

    def _limit(self) -> None:
        if self.config.max_gain is not None:
            limit_gains(self.model.location, self.config.max_gain)
        limit_logit_scale(self.model, self.config.max_logit_scale)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if self.config.precision == "bf16":
            return torch.autocast(self.ranks.device.type, torch.bfloat16)
        torch.set_float32_matmul_precision("high" if self.config.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.config.precision == "tf32"  # which torch allows by itself
        return nullcontext()

    def _stop(self, number: int) -> None:
        self.save()
        raise Stopped(f"stopped after step {self.step} of {self.total}; --resume goes on from there", number)

    def _check_batch(self) -> None:
        size, wanted = self.batches.size, self.config.batch_size
        if size < self.ranks.count:
            raise UsageError(
                f"batch_size: {size} samples a step are fewer than the {self.ranks.count} processes"
            )
        if size < 2:
            raise UsageError("one training sample has no negatives: give more data or hold out less")
        if size < wanted and self.ranks.first:
            warnings.warn(
                f"a batch of {wanted} is more than the {size} training samples: every step takes all of them",
                stacklevel=3,
            )

    def _check_same(self, state: dict[str, Any]) -> None:
        before = make_config(state["config"], file=str(self.folder))
        if names := changed(before, self.config):
            said = ", ".join(
                f"{name} ({getattr(before, name)} there, {getattr(self.config, name)} now)" for name in names
            )
            raise UsageError(
                f"{self.folder} holds a run with other settings: {said}; give the same, or begin anew with "
                "--overwrite"
            )
        if state["data"] != self._data:
            raise UsageError(
                f"{self.folder} holds a run on other data, or on other features of the same data"
            )

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.state = {k: v.to(self.ranks.device) for k, v in state["average"].items()}
        self.best = None if state["best"] is None else _snapshot(state["best"])
        self.step, self.stale, self.history = state["step"], state["stale"], list(state["history"])
        self._epoch_loss, self._epoch_steps = state["epoch_loss"]
        self._seconds = state["seconds"]
        self._first_step = self.step

    def _elapsed(self) -> float:
        return self._seconds + (time.monotonic() - self._began if self._began else 0.0)


def recovered(folder: Path) -> Outcome | None:
    """The last good state in a folder, as an outcome to be written; None when it is that of the start."""
    state, _ = load_state(folder)
    if state["step"] == 0:
        return None
    weights = state["average"] or state["model"]
    history = tuple(state["history"])
    last = Snapshot(weights, state["step"], len(history), _scores_of(history[-1]) if history else None)
    best = last if state["best"] is None else _snapshot(state["best"])
    return Outcome(best, last, history, 0, state["seconds"], False, 0)


def _some(samples: np.ndarray) -> np.ndarray:
    if len(samples) <= _SCORED:
        return samples
    return samples[np.linspace(0, len(samples) - 1, _SCORED).astype(np.int64)]


def _scores_of(row: dict[str, Any]) -> Scores | None:
    if "val_loss" not in row:
        return None
    names = ("place_r1", "place_r10", "image_r1", "image_r10", "samples")
    return Scores(row["val_loss"], *(row[name] for name in names))


def _plain(snapshot: Snapshot) -> dict[str, Any]:
    return {**vars(snapshot), "scores": None if snapshot.scores is None else asdict(snapshot.scores)}


def _snapshot(plain: dict[str, Any]) -> Snapshot:
    scores = None if plain["scores"] is None else Scores(**plain["scores"])
    return Snapshot(plain["model"], plain["step"], plain["epoch"], scores)

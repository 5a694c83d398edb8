"""A run in its folder, from settling its settings to the files that it leaves.

DIR/config.toml                       the settings
DIR/state.pt, state.previous.pt       what --resume needs
DIR/log.csv, DIR/tensorboard/         logs
DIR/last.ckpt, best.ckpt, best.safetensors, training.png       results
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from satclip_engine.encoder import load
from satclip_engine.errors import OutputError, SatclipError
from satclip_engine.training import state
from satclip_engine.training.config import TrainConfig, make_config, read_toml
from satclip_engine.training.export import Visual, location_weights, write_outcome
from satclip_engine.training.interrupts import Stopped
from satclip_engine.training.log import CsvLog, TensorBoardLog
from satclip_engine.training.picture import write_picture
from satclip_engine.training.ranks import Ranks
from satclip_engine.training.samples import Features
from satclip_engine.training.trainer import Diverged, Observer, Outcome, Trainer, recovered
from satclip_engine.weights.files import write_whole

CONFIG: Final = "config.toml"
LOG: Final = "log.csv"
PICTURE: Final = "training.png"
_RESULTS: Final = ("last.ckpt", "best.ckpt", "best.safetensors", PICTURE)
_FILES: Final = (CONFIG, state.NEWEST, state.PREVIOUS, LOG, *_RESULTS)


@dataclass(frozen=True)
class Done:
    """A finished run: how it went, what it wrote, and whether there was anything left to do."""

    outcome: Outcome
    files: tuple[Path, ...]
    was_complete: bool


def settle(
    folder: Path,
    *,
    resume: bool,
    overwrite: bool,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """The settings of a run in `folder`: defaults (or those of the run to resume), then `file`, then `flags`.

    Raises OutputError where another run lies and neither `resume` nor `overwrite` is set, UsageError for
    settings that cannot be used.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: --out wants a folder")
    taken = [name for name in _FILES if (folder / name).exists()]
    if taken and not (resume or overwrite):
        raise OutputError(
            f"{folder} holds a run already ({taken[0]}): give another folder, --resume to go on with it, or "
            "--overwrite to begin anew"
        )
    base = None
    if resume and state.has_state(folder) and (folder / CONFIG).exists():
        base = make_config(read_toml(folder / CONFIG), file=str(folder / CONFIG))
    given = {} if file is None else read_toml(file)
    return make_config(given, file="" if file is None else str(file), flags=flags, base=base)


def train(
    config: TrainConfig,
    data: Features,
    folder: Path,
    *,
    visual: Visual | None = None,
    resume: bool = False,
    ranks: Ranks | None = None,
    display: Observer | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Done:
    """Train, and write the results; what a run before left in the folder is replaced unless `resume`.

    visual: the image encoder, for checkpoints. notes: what else they are to say, in plain values.

    Raises Stopped after Ctrl-C or SIGTERM and Diverged where the loss is no number, both after the results so
    far are written; UsageError, OutputError, WeightsError.
    """
    ranks = ranks or Ranks(torch.device("cpu"))
    resume = ranks.shared(resume and state.has_state(folder))
    if ranks.first:
        _prepare(folder, config, resume)
    ranks.shared(None)  # nobody looks for the folder before it is there
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    trainer = Trainer(config, data, folder, ranks=ranks)
    if resume:
        trainer.resume()
    if ranks.first:
        write_whole(folder / CONFIG, config.as_toml().encode())
        trainer.observers = _observers(config, folder, display)
    complete = trainer.step >= trainer.total or trainer.finished_early
    try:
        outcome = _run(trainer, config, visual, notes or {})
    finally:
        for observer in trainer.observers:
            observer.finish()
    files = _write(outcome, config, visual, folder, notes or {}) if ranks.first else []
    return Done(outcome, tuple(files), complete)


def _run(trainer: Trainer, config: TrainConfig, visual: Visual | None, notes: Mapping[str, Any]) -> Outcome:
    """Train; when the run ends before its time, write what there is and raise."""
    folder, first = trainer.folder, trainer.ranks.first
    try:
        return trainer.run()
    except Stopped:
        if first:
            write_outcome(trainer.outcome(), config, visual, folder, notes)
        raise
    except Diverged as error:
        if not first:
            raise
        good = recovered(folder)
        if good is None:
            raise Diverged(f"{error}; nothing was trained before it: lower --learning-rate") from error
        write_outcome(good, config, visual, folder, notes)
        raise Diverged(
            f"{error}; {folder / 'last.ckpt'} holds step {good.last.step}, the last good checkpoint: lower "
            "--learning-rate or --max-logit-scale and begin anew"
        ) from error


def _prepare(folder: Path, config: TrainConfig, resume: bool) -> None:
    """Make the folder; remove a former run unless it is taken up."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            for name in _FILES:
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _observers(config: TrainConfig, folder: Path, display: Observer | None) -> Sequence[Observer]:
    found: list[Observer] = [CsvLog(folder / LOG)]
    if config.tensorboard:
        found.append(TensorBoardLog(folder / "tensorboard"))
    return [*found, display] if display is not None else found


def _write(
    outcome: Outcome, config: TrainConfig, visual: Visual | None, folder: Path, notes: Mapping[str, Any]
) -> list[Path]:
    """Checkpoints and the picture. A picture that cannot be drawn is no reason to fail."""
    files = write_outcome(outcome, config, visual, folder, notes)
    encoder = load(location_weights(outcome.best, config, notes), threads=config.threads)
    title = f"SatCLIP L = {config.legendre_polys}, step {outcome.best.step}"
    try:
        write_picture(
            folder / PICTURE, encoder, outcome.history, title=title, source=str(notes.get("data", ""))
        )
    except (SatclipError, MemoryError) as error:
        warnings.warn(f"no picture: {error}", stacklevel=2)
        return files
    return [*files, folder / PICTURE]

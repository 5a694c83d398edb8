"""A training run in its folder: settings, training, and the files that it writes.

DIR/config.toml                       the settings
DIR/state.pt, state.previous.pt       for --resume
DIR/log.csv, DIR/tensorboard/         logs
DIR/last.ckpt, best.ckpt, best.safetensors, training.png       results
DIR/lock                              held by the process that trains
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from satclip_engine.encoder import load
from satclip_engine.errors import OutputError, SatclipError, UsageError
from satclip_engine.files import LOCK, locked_folder, write_atomically
from satclip_engine.training.config import (
    TrainConfig,
    changed_settings,
    make_config,
    other_settings,
    read_toml,
    spelling,
)
from satclip_engine.training.features.encoder_file import ImageEncoderState
from satclip_engine.training.loop import state
from satclip_engine.training.loop.distributed import ProcessContext
from satclip_engine.training.loop.interrupts import RunStopped
from satclip_engine.training.loop.schedule import check_length
from satclip_engine.training.loop.trainer import (
    Diverged,
    RunOutcome,
    Trainer,
    TrainingCallback,
    last_good_state,
)
from satclip_engine.training.results.export import location_weights, write_checkpoints
from satclip_engine.training.results.log import CsvLog, TensorBoardLog, remove_events
from satclip_engine.training.results.picture import write_picture
from satclip_engine.training.samples import Features
from satclip_engine.training.torch_defaults import cpu_by_default

CONFIG: Final = "config.toml"
LOG: Final = "log.csv"
PICTURE: Final = "training.png"
_RESULTS: Final = ("last.ckpt", "best.ckpt", "best.safetensors", PICTURE)
_RUN_FILES: Final = (CONFIG, state.NEWEST, state.PREVIOUS, LOG, *_RESULTS)
_held_folders: ContextVar[frozenset[Path]] = ContextVar("held_folders", default=frozenset())  # by this thread


@dataclass(frozen=True)
class RunResult:
    """A finished run: its outcome and files. was_complete: nothing was left to train."""

    outcome: RunOutcome
    files: tuple[Path, ...]
    was_complete: bool


def resolve_settings(
    folder: Path,
    *,
    resume: bool,
    overwrite: bool,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Resolve the settings of a run: defaults, or those of the run to resume, then `file`, then `flags`.

    Raises OutputError where another run lies and neither `resume` nor `overwrite` is set, UsageError for
    settings that cannot be used or that the run to resume does not have, WeightsError where its state is not
    whole.
    """
    check_folder(folder, replace_run=resume or overwrite)
    base = None
    if resume and state.has_state(folder) and (folder / CONFIG).exists():
        base = make_config(read_toml(folder / CONFIG), file=str(folder / CONFIG))
    values = {} if file is None else read_toml(file)
    source = "" if file is None else str(file)
    config = make_config(values, file=source, flags=flags, base=base)
    if config.image_weights is not None:  # so that a run is resumed from any working directory
        config = replace(config, image_weights=str(Path(config.image_weights).absolute()))
    if base is not None and (names := changed_settings(base, config)):
        spelled = {name: spelling(name, source, values, flags) for name in names}
        raise UsageError(other_settings(folder, base, config, spelled))
    if base is not None:  # before hours are spent on images
        check_length(state.load_state(folder)[0], config, folder)
    return config


def check_folder(folder: Path, *, replace_run: bool) -> None:
    """Raise OutputError for a file, and for a folder with a run that is neither resumed nor replaced."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: give a folder as --out")
    former = next((name for name in _RUN_FILES if (folder / name).exists()), None)
    if former and not replace_run:
        raise OutputError(
            f"{folder} holds a run already ({former}): give another folder, --resume to resume it, or "
            "--overwrite to start over"
        )


@contextmanager
def held_run(folder: Path, *, is_main: bool = True) -> Iterator[None]:
    """Hold the folder of a run, made if need be: no other process trains in it meanwhile.

    Inside of itself it holds nothing more. is_main: False for the other processes of the same run.

    Raises OutputError when another process holds it, or it cannot be made.
    """
    path = folder.resolve()
    if not is_main or path in _held_folders.get():
        yield
        return
    is_new = not folder.exists()
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(locked_folder(folder))
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
        token = _held_folders.set(_held_folders.get() | {path})
        try:
            yield
        finally:
            _held_folders.reset(token)
            with suppress(OSError):
                if is_new and held.names() == [LOCK]:  # the run was refused before it wrote anything
                    held.dissolve(())


@cpu_by_default()
def train(
    config: TrainConfig,
    data: Features,
    folder: Path,
    *,
    image_encoder: ImageEncoderState | None = None,
    resume: bool = False,
    processes: ProcessContext | None = None,
    display: TrainingCallback | None = None,
    notes: Mapping[str, Any] | None = None,
) -> RunResult:
    """Train, and write the results; a former run in the folder is replaced unless `resume`.

    The folder is held meanwhile; other files in it stay as they are.

    image_encoder: for checkpoints. notes: for checkpoints too, in plain values.

    Raises RunStopped after Ctrl-C or SIGTERM and Diverged where the loss is no number, both after the results
    so far are written; UsageError, OutputError, WeightsError.
    """
    processes = processes or ProcessContext(torch.device("cpu"))
    with held_run(folder, is_main=processes.is_main):
        return _train(config, data, folder, image_encoder, resume, processes, display, notes or {})


def _train(
    config: TrainConfig,
    data: Features,
    folder: Path,
    image_encoder: ImageEncoderState | None,
    resume: bool,
    processes: ProcessContext,
    display: TrainingCallback | None,
    notes: Mapping[str, Any],
) -> RunResult:
    """Do what `train` does, in a folder that is held."""
    resume = processes.broadcast(resume and state.has_state(folder))
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    projection = None if image_encoder is None else image_encoder.loaded_projection
    trainer = Trainer(config, data, folder, processes=processes, projection=projection)
    if resume:
        trainer.resume()
    elif processes.is_main:
        _remove_run(folder)
    was_complete = trainer.step >= trainer.total or trainer.finished_early
    if (
        was_complete and (folder / CONFIG).exists()
    ):  # settings that train nothing more are not those of the run
        config = make_config(read_toml(folder / CONFIG), file=str(folder / CONFIG))
    if processes.is_main:
        if not was_complete:
            write_atomically(folder / CONFIG, config.as_toml().encode())
        trainer.callbacks = _callbacks(config, folder, display)
    try:
        outcome = _run(trainer, config, image_encoder, notes)
    finally:
        for callback in trainer.callbacks:
            callback.finish()
    files = _write_results(outcome, config, image_encoder, folder, notes) if processes.is_main else []
    return RunResult(outcome, tuple(files), was_complete)


def _run(
    trainer: Trainer, config: TrainConfig, image_encoder: ImageEncoderState | None, notes: Mapping[str, Any]
) -> RunOutcome:
    """Train; when the run ends before its time, write the checkpoints so far and raise."""
    folder, is_main = trainer.folder, trainer.processes.is_main
    try:
        return trainer.run()
    except RunStopped:
        if is_main:
            write_checkpoints(trainer.outcome(), config, image_encoder, folder, notes)
        raise
    except Diverged as error:
        if not is_main:
            raise
        good = last_good_state(folder)
        if good is None:
            raise Diverged(f"{error}; nothing was trained before it: lower --learning-rate") from error
        write_checkpoints(good, config, image_encoder, folder, notes)
        raise Diverged(
            f"{error}; {folder / 'last.ckpt'} holds step {good.last.step}, the last good checkpoint: lower "
            "--learning-rate or --max-logit-scale and start over with --overwrite"
        ) from error


def _remove_run(folder: Path) -> None:
    """Remove a former run's own files. Raises OutputError."""
    try:
        for name in (*_RUN_FILES, state.NEXT):
            (folder / name).unlink(missing_ok=True)
        remove_events(folder / "tensorboard")
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error


def _callbacks(
    config: TrainConfig, folder: Path, display: TrainingCallback | None
) -> Sequence[TrainingCallback]:
    callbacks: list[TrainingCallback] = [CsvLog(folder / LOG)]
    if config.tensorboard:
        callbacks.append(TensorBoardLog(folder / "tensorboard"))
    return [*callbacks, display] if display is not None else callbacks


def _write_results(
    outcome: RunOutcome,
    config: TrainConfig,
    image_encoder: ImageEncoderState | None,
    folder: Path,
    notes: Mapping[str, Any],
) -> list[Path]:
    """Write checkpoints and the picture. A picture that cannot be drawn is no reason to fail."""
    files = write_checkpoints(outcome, config, image_encoder, folder, notes)
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

"""Logs of a run: log.csv with a row an epoch, and TensorBoard event files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from satclip_engine._optional import need
from satclip_engine.errors import OutputError
from satclip_engine.files import write_atomically

COLUMNS: Final = (
    "epoch",
    "step",
    "seconds",
    "train_loss",
    "val_loss",
    "place_r1",
    "place_r10",
    "image_r1",
    "image_r10",
    "learning_rate",
    "logit_scale",
    "gain",
    "samples_per_second",
    "val_chance",
    "samples",
    "val_of",
)
_EVENTS: Final = "events.out.tfevents.*"  # TensorBoard's files


class CsvLog:
    """Log as CSV; a resumed run first cuts off the rows after the state that it resumes from."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, total: int, steps_per_epoch: int, history: Sequence[dict[str, Any]]) -> None:
        lines = [_line(COLUMNS), *(_line([row.get(name, "") for name in COLUMNS]) for row in history)]
        write_atomically(self.path, "".join(lines).encode())

    def step(self, step: int, loss: float, rate: float, samples_per_second: float) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None:
        try:
            with self.path.open("a", newline="") as file:
                file.write(_line([row.get(name, "") for name in COLUMNS]))
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error

    def finish(self) -> None: ...


class TensorBoardLog:
    """Scalars by step, for `tensorboard --logdir DIR`."""

    def __init__(self, folder: Path) -> None:
        need("tensorboard", extra="train", why="--tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def begin(self, total: int, steps_per_epoch: int, history: Sequence[dict[str, Any]]) -> None: ...

    def step(self, step: int, loss: float, rate: float, samples_per_second: float) -> None:
        self._writer.add_scalar("train_loss", loss, step)
        self._writer.add_scalar("learning_rate", rate, step)

    def epoch(self, row: dict[str, Any]) -> None:
        for name in COLUMNS[4:]:
            if isinstance(row.get(name), int | float):
                self._writer.add_scalar(name, row[name], row["step"])

    def finish(self) -> None:
        self._writer.close()


def remove_events(folder: Path) -> None:
    """Remove TensorBoard's files, and the folder if nothing else is in it. Raises OSError."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in folder.glob(_EVENTS):
        path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _line(cells: Sequence[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()

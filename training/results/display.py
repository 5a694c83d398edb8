"""Display of a run on stderr: a live table on a terminal, a line an epoch elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, Final, TextIO

from satclip_engine.progress import duration_text

_LINE_SECONDS: Final = 5.0  # between plain lines
_TABLE_EPOCHS: Final = 8
_REFRESH_SECONDS: Final = 0.2  # between two drawings
_HEADERS: Final = (
    *("epoch", "loss", "val"),
    *("location→image R@1 R@10", "image→location R@1 R@10"),
    *("rate", "samples/s"),
)


def display_for(stream: TextIO | None = None, *, quiet: bool) -> SilentDisplay | LineDisplay | LiveDisplay:
    """Display in the form that suits `stream` (stderr)."""
    stream = stream or sys.stderr
    if quiet:
        return SilentDisplay()
    return LiveDisplay(stream) if stream.isatty() else LineDisplay(stream)


class SilentDisplay:
    """No display."""

    def begin(self, total: int, steps_per_epoch: int, history: Sequence[dict[str, Any]]) -> None: ...

    def step(self, step: int, loss: float, rate: float, samples_per_second: float) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...

    def finish(self) -> None: ...


class LineDisplay:
    """Lines for logs: one an epoch, though not more than one in five seconds, and the last one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._print_time = float("-inf")
        self._pending: dict[str, Any] | None = None
        self._total = 0

    def begin(self, total: int, steps_per_epoch: int, history: Sequence[dict[str, Any]]) -> None:
        self._total = total

    def step(self, step: int, loss: float, rate: float, samples_per_second: float) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None:
        self._pending = row
        if time.monotonic() - self._print_time >= _LINE_SECONDS:
            self._print()

    def finish(self) -> None:
        self._print()

    def _print(self) -> None:
        if self._pending is None:
            return
        row, self._pending = self._pending, None
        self._print_time = time.monotonic()
        text = f"epoch {row['epoch']}, step {row['step']} of {self._total}: loss {row['train_loss']:.4f}"
        if "val_loss" in row:
            scored = "training samples" if row.get("val_of") == "training" else "validation"
            text += f", {scored} {row['val_loss']:.4f}, R@1 {100 * row['place_r1']:.1f} % "
            text += f"location→image {100 * row['image_r1']:.1f} % image→location"
        print(
            f"satclip-train: {text}, {row['samples_per_second']:.0f} samples/s", file=self._stream, flush=True
        )


class LiveDisplay:
    """Table of the last epochs and the state of the run, drawn in place; the last drawing stays."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream)
        self._live: Any = None
        self._rows: list[dict[str, Any]] = []
        self._status = ""
        self._total = 0
        self._draw_time = 0.0
        self._start_time, self._first_step = time.monotonic(), 0

    def begin(self, total: int, steps_per_epoch: int, history: Sequence[dict[str, Any]]) -> None:
        from rich.live import Live

        self._total, self._rows = total, list(history[-_TABLE_EPOCHS:])
        self._start_time, self._first_step = time.monotonic(), history[-1]["step"] if history else 0
        self._live = Live(self._table(), console=self._console, auto_refresh=False)
        self._live.start()

    def step(self, step: int, loss: float, rate: float, samples_per_second: float) -> None:
        elapsed = time.monotonic() - self._start_time
        remaining = elapsed / max(1, step - self._first_step) * (self._total - step)
        self._status = (
            f"step {step} of {self._total}  ·  loss {loss:.4f}  ·  learning rate {rate:.2e}  ·  "
            f"{samples_per_second:,.0f} samples/s  ·  {duration_text(remaining)} left"
        )
        self._draw()

    def epoch(self, row: dict[str, Any]) -> None:
        self._rows = [*self._rows, row][-_TABLE_EPOCHS:]
        self._draw()

    def finish(self) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()
            self._live = None

    def _draw(self) -> None:
        now = time.monotonic()
        if self._live is not None and now - self._draw_time >= _REFRESH_SECONDS:
            self._draw_time = now
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for header in _HEADERS:
            table.add_column(header, justify="right")
        for row in self._rows:
            table.add_row(*_cells(row))
        return Group(table, Text(self._status))


def _cells(row: dict[str, Any]) -> list[str]:
    scores = ["", "", ""]
    if "val_loss" in row:
        scores = [f"{row['val_loss']:.4f}"] + [
            f"{100 * row[f'{side}_r1']:.1f} %  {100 * row[f'{side}_r10']:.1f} %"
            for side in ("place", "image")
        ]
    return [
        str(row["epoch"]),
        f"{row['train_loss']:.4f}",
        *scores,
        f"{row['learning_rate']:.2e}",
        f"{row['samples_per_second']:,.0f}",
    ]

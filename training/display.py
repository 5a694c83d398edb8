"""How a run looks on stderr: a live table on a terminal, a line an epoch elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, Final, TextIO

_LINE_EVERY: Final = 5.0  # seconds between plain lines
_ROWS: Final = 8  # epochs that the table shows
_REFRESH: Final = 0.2  # seconds between two drawings
_HEADS: Final = ("epoch", "loss", "val", "place→image R@1 R@10", "image→place R@1 R@10", "rate", "samples/s")


def display_for(stream: TextIO | None = None, *, quiet: bool) -> Silence | Lines | LiveTable:
    """The form that suits `stream` (stderr)."""
    stream = stream or sys.stderr
    if quiet:
        return Silence()
    return LiveTable(stream) if stream.isatty() else Lines(stream)


class Silence:
    """Nothing."""

    def begin(self, total: int, steps_per_epoch: int, history: Sequence[dict[str, Any]]) -> None: ...

    def step(self, step: int, loss: float, rate: float, samples_per_second: float) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...

    def finish(self) -> None: ...


class Lines:
    """A line an epoch, though not more than one in five seconds, and the last one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._spoke = float("-inf")
        self._unsaid: dict[str, Any] | None = None
        self._total = 0

    def begin(self, total: int, steps_per_epoch: int, history: Sequence[dict[str, Any]]) -> None:
        self._total = total

    def step(self, step: int, loss: float, rate: float, samples_per_second: float) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None:
        self._unsaid = row
        if time.monotonic() - self._spoke >= _LINE_EVERY:
            self._say()

    def finish(self) -> None:
        self._say()

    def _say(self) -> None:
        if self._unsaid is None:
            return
        row, self._unsaid = self._unsaid, None
        self._spoke = time.monotonic()
        text = f"epoch {row['epoch']}, step {row['step']} of {self._total}: loss {row['train_loss']:.4f}"
        if "val_loss" in row:
            text += f", validation {row['val_loss']:.4f}, R@1 {100 * row['place_r1']:.1f} % place→image "
            text += f"{100 * row['image_r1']:.1f} % image→place"
        print(
            f"satclip-train: {text}, {row['samples_per_second']:.0f} samples/s", file=self._stream, flush=True
        )


class LiveTable:
    """The last epochs and where the run stands, drawn in place; the last drawing stays."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream)
        self._live: Any = None
        self._rows: list[dict[str, Any]] = []
        self._status = ""
        self._total = 0
        self._drawn = 0.0
        self._began, self._first = time.monotonic(), 0

    def begin(self, total: int, steps_per_epoch: int, history: Sequence[dict[str, Any]]) -> None:
        from rich.live import Live

        self._total, self._rows = total, list(history[-_ROWS:])
        self._began, self._first = time.monotonic(), history[-1]["step"] if history else 0
        self._live = Live(self._drawing(), console=self._console, auto_refresh=False)
        self._live.start()

    def step(self, step: int, loss: float, rate: float, samples_per_second: float) -> None:
        spent = time.monotonic() - self._began
        left = spent / max(1, step - self._first) * (self._total - step)
        self._status = (
            f"step {step} of {self._total}  ·  loss {loss:.4f}  ·  learning rate {rate:.2e}  ·  "
            f"{samples_per_second:,.0f} samples/s  ·  {_duration(left)} left"
        )
        self._draw()

    def epoch(self, row: dict[str, Any]) -> None:
        self._rows = [*self._rows, row][-_ROWS:]
        self._draw()

    def finish(self) -> None:
        if self._live is not None:
            self._live.update(self._drawing(), refresh=True)
            self._live.stop()
            self._live = None

    def _draw(self) -> None:
        now = time.monotonic()
        if self._live is not None and now - self._drawn >= _REFRESH:
            self._drawn = now
            self._live.update(self._drawing(), refresh=True)

    def _drawing(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for head in _HEADS:
            table.add_column(head, justify="right")
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


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

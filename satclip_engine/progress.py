"""Progress of long work on stderr, and sizes, rates and durations as text.

A live bar on a terminal, a few plain lines elsewhere, nothing when asked to be quiet. All three answer to
what long work reports: start(total), advance(count), stage(text), finish(). The raster writer counts pixels;
others say what they count.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, TextIO

from satclip_engine.errors import printable

_LINE_SECONDS = 30.0  # between plain lines


class Progress(Protocol):
    """Receiver of the progress of long work, always called from the thread that asked for the work.

    `finish` may be called more than once.
    """

    def start(self, total: int, /) -> None: ...

    def advance(self, count: int, /) -> None: ...

    def stage(self, text: str, /) -> None: ...

    def finish(self) -> None: ...


def progress_for(
    stream: TextIO | None = None, *, quiet: bool, command: str = "satclip-grid", unit: str = "px"
) -> Progress:
    """Progress in the form that suits `stream` (stderr); lines begin with the command's name."""
    stream = stream or sys.stderr
    if quiet:
        return Silence()
    return Bar(stream, command, unit) if stream.isatty() else Lines(stream, command, unit)


class Silence:
    """No progress."""

    def start(self, total: int) -> None: ...

    def advance(self, count: int) -> None: ...

    def stage(self, text: str) -> None: ...

    def finish(self) -> None: ...


class Lines:
    """Lines for logs: one a stage, and one every half minute with share, rate and time left."""

    def __init__(self, stream: TextIO, command: str = "satclip-grid", unit: str = "px") -> None:
        self._stream, self._total, self._done = stream, 0, 0
        self._command, self._unit = command, unit
        self._began = self._spoke = time.monotonic()
        self._stage = ""

    def start(self, total: int) -> None:
        self._total, self._done = total, 0
        self._began = self._spoke = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._spoke >= _LINE_SECONDS and self._total and now > self._began:
            self._spoke = now
            rate = self._done / (now - self._began)
            remaining = (self._total - self._done) / rate if rate else 0.0
            share = 100 * self._done / self._total
            self._say(f"{share:.0f} %, {rate_text(rate, self._unit)}, {duration_text(remaining)} left")

    def stage(self, text: str) -> None:
        if text != self._stage:
            self._stage = text
            self._say(text)

    def finish(self) -> None: ...

    def _say(self, text: str) -> None:
        print(f"{self._command}: {printable(text)}", file=self._stream, flush=True)


class Bar:
    """Bar for terminals: stage, bar, share, pixels a second, time left; gone when finished."""

    def __init__(self, stream: TextIO, command: str = "satclip-grid", unit: str = "px") -> None:
        from rich.console import Console

        self._command, self._unit = command, unit
        self._console = Console(file=stream)
        self._bar: Any = None
        self._task: Any = None
        self._text = "starting"

    def _show(self) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}", justify="right"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=self._console,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task(self._text, total=None, rate="")
        self._bar.start()

    def start(self, total: int) -> None:
        if self._bar is None:
            self._show()
        self._bar.reset(self._task, total=total, description=self._text, rate="")

    def advance(self, count: int) -> None:
        self._bar.advance(self._task, count)
        speed = self._bar.tasks[0].speed
        if speed:
            self._bar.update(self._task, rate=rate_text(speed, self._unit))

    def stage(self, text: str) -> None:
        self._text, _, announced = printable(text).partition("; ")
        if announced:  # too long beside a bar, and worth keeping
            self._console.print(f"{self._command}: {announced}", highlight=False, markup=False)
        if self._bar is None:
            self._show()
        task = self._bar.tasks[0]
        if task.finished:  # what comes after the pixels has no known length
            self._bar.reset(self._task, total=None, description=self._text, rate="")
        else:
            self._bar.update(self._task, description=self._text)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def rate_text(per_second: float, name: str = "px") -> str:
    """Rate as text: 123456.7 → "123 k px/s"."""
    for limit, unit in ((1e9, "G "), (1e6, "M "), (1e3, "k ")):
        if per_second >= limit:
            value = per_second / limit
            return f"{value:.3g} {unit}{name}/s" if value < 1000 else f"{value:.0f} {unit}{name}/s"
    return f"{per_second:.3g} {name}/s"


def duration_text(seconds: float) -> str:
    """Seconds as text: 3.21 → "3.2 s", 200 → "3 min 20 s", 7500 → "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size_text(size: float) -> str:
    """Bytes as text: 234567890 → "235 MB"."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= 0.9995 * limit:  # what rounds to 1000 of a unit is 1 of the next
            return f"{size / limit:.3g} {unit}"
    return f"{size:.0f} bytes"

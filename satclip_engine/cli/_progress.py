"""Progress on stderr: a live bar on a terminal, a few plain lines elsewhere, nothing when asked to be quiet.

All three answer to what the raster writer reports: start(total_pixels), advance(pixels), stage(text),
finish().
"""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, TextIO

_LINE_EVERY = 30.0  # seconds between plain lines


class Progress(Protocol):
    """What the raster writer calls; `finish` may be called more than once."""

    def start(self, total_pixels: int) -> None: ...

    def advance(self, pixels: int) -> None: ...

    def stage(self, text: str) -> None: ...

    def finish(self) -> None: ...


def progress_for(stream: TextIO | None = None, *, quiet: bool) -> Progress:
    """The form of progress that suits `stream` (stderr)."""
    stream = stream or sys.stderr
    if quiet:
        return Silence()
    return Bar(stream) if stream.isatty() else Lines(stream)


class Silence:
    """No progress."""

    def start(self, total_pixels: int) -> None: ...

    def advance(self, pixels: int) -> None: ...

    def stage(self, text: str) -> None: ...

    def finish(self) -> None: ...


class Lines:
    """For logs: a line a stage, and one every half minute with share, rate and time left."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._total, self._done = stream, 0, 0
        self._began = self._spoke = time.monotonic()
        self._stage = ""

    def start(self, total_pixels: int) -> None:
        self._total, self._done = total_pixels, 0
        self._began = self._spoke = time.monotonic()

    def advance(self, pixels: int) -> None:
        self._done += pixels
        now = time.monotonic()
        if now - self._spoke >= _LINE_EVERY and self._total and now > self._began:
            self._spoke = now
            rate = self._done / (now - self._began)
            left = (self._total - self._done) / rate if rate else 0.0
            share = 100 * self._done / self._total
            self._say(f"{share:.0f} %, {rate_text(rate)}, {duration_text(left)} left")

    def stage(self, text: str) -> None:
        if text != self._stage:
            self._stage = text
            self._say(text)

    def finish(self) -> None: ...

    def _say(self, text: str) -> None:
        print(f"satclip-grid: {text}", file=self._stream, flush=True)


class Bar:
    """For terminals: stage, bar, share, pixels a second, time left; gone when finished."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream)
        self._bar: Any = None
        self._task: Any = None
        self._text = "starting"

    def _show(self) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
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

    def start(self, total_pixels: int) -> None:
        if self._bar is None:
            self._show()
        self._bar.reset(self._task, total=total_pixels, description=self._text, rate="")

    def advance(self, pixels: int) -> None:
        self._bar.advance(self._task, pixels)
        speed = self._bar.tasks[0].speed
        if speed:
            self._bar.update(self._task, rate=rate_text(speed))

    def stage(self, text: str) -> None:
        self._text, _, announced = text.partition("; ")
        if announced:  # too long beside a bar, and worth keeping
            self._console.print(f"satclip-grid: {announced}", highlight=False)
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


def rate_text(pixels_per_second: float) -> str:
    """123456.7 → "123 k px/s"."""
    for limit, unit in ((1e9, "G "), (1e6, "M "), (1e3, "k ")):
        if pixels_per_second >= limit:
            value = pixels_per_second / limit
            return f"{value:.3g} {unit}px/s" if value < 1000 else f"{value:.0f} {unit}px/s"
    return f"{pixels_per_second:.3g} px/s"


def duration_text(seconds: float) -> str:
    """3.21 → "3.2 s", 200 → "3 min 20 s", 7500 → "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def bytes_text(size: float) -> str:
    """234567890 → "235 MB"."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:.3g} {unit}"
    return f"{size:.0f} bytes"

"""Rows of results, a line of JSON each, written at once: a step that is stopped leaves what it has."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Check:
    """An error and its bound."""

    name: str
    error: float
    bound: float
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.error <= self.bound  # NaN is not


@dataclass(frozen=True)
class Time:
    """Median and quartiles of seconds. work: units in one call. floor: seconds at the GPU's peaks.

    Fields are named as the report's keys: `case` is the workload, `contestant` the implementation.
    """

    case: str
    contestant: str
    unit: str
    work: float
    seconds: float
    q1: float
    q3: float
    rounds: int
    peak_bytes: int | None = None
    floor: float | None = None
    multiply_adds: float | None = None
    error: float | None = None
    note: str = ""

    ok = True


@dataclass(frozen=True)
class Note:
    """A finding, or the reason why there is none."""

    name: str
    text: str
    ok: bool = True


Row = Check | Time | Note
_NOTE_CHARACTERS = 300
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Check, Time, Note)}


class Rows:
    """File that a step adds its rows to."""

    def __init__(self, path: Path) -> None:
        self._path, self._start = path, time.monotonic()

    def add(self, row: Row) -> None:
        """Write a row, and show it on stderr."""
        with self._path.open("a") as file:
            file.write(json.dumps({"kind": type(row).__name__, **asdict(row)}) + "\n")
        mark = " " if row.ok else "!"
        print(f"  {time.monotonic() - self._start:6.1f} s {mark} {words(row)}", file=sys.stderr, flush=True)

    def fail(self, name: str, text: str) -> None:
        """Add a note that something failed: the first line of the text."""
        self.add(Note(name, text.splitlines()[0][:_NOTE_CHARACTERS], ok=False))

    def attempt(self, name: str, run: Callable[..., Any], *arguments: Any) -> Any:
        """Return what `run(*arguments)` returns; what it raises becomes a row that failed."""
        try:
            return run(*arguments)
        except Exception as error:  # whatever one of them breaks, the others are still to be seen
            self.fail(name, f"{type(error).__name__}: {error}")
            return None


def read(path: Path) -> list[Row]:
    """Read the rows that a step wrote."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [_KINDS[fields.pop("kind")](**fields) for fields in rows]


def words(row: Row) -> str:
    """Text of a row in one line."""
    if isinstance(row, Check):
        return f"{row.name}: {row.error:.2g} of {row.bound:.2g} {row.note}".rstrip()
    if isinstance(row, Time):
        return f"{row.case}: {row.contestant}: {row.seconds * 1e3:.3f} ms {row.note}".rstrip()
    return f"{row.name}: {row.text}"

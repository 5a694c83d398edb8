"""Results of steps, a line of JSON each, written at once: a step that is stopped leaves what it has."""

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
    """Median and quartiles of seconds. work: units in one call. floor: seconds at the GPU's peaks."""

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
    """What was found out, or why something was not."""

    name: str
    text: str
    ok: bool = True


Row = Check | Time | Note
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Check, Time, Note)}


class Rows:
    """Where a step puts its rows."""

    def __init__(self, path: Path) -> None:
        self._path, self._start = path, time.monotonic()

    def add(self, row: Row) -> None:
        """Keep a row, and say so on stderr."""
        with self._path.open("a") as file:
            file.write(json.dumps({"kind": type(row).__name__, **asdict(row)}) + "\n")
        mark = " " if row.ok else "!"
        print(f"  {time.monotonic() - self._start:6.1f} s {mark} {words(row)}", file=sys.stderr, flush=True)

    def attempt(self, name: str, run: Callable[..., Any], *arguments: Any) -> Any:
        """What `run(*arguments)` returns; what it raises becomes a row that failed."""
        try:
            return run(*arguments)
        except Exception as error:  # whatever one case breaks, the others are still to be seen
            self.add(Note(name, f"{type(error).__name__}: {error}".splitlines()[0][:300], ok=False))
            return None


def read(path: Path) -> list[Row]:
    """The rows that a step wrote."""
    if not path.exists():
        return []
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [_KINDS[fields.pop("kind")](**fields) for fields in found]


def words(row: Row) -> str:
    """A row in one line."""
    if isinstance(row, Check):
        return f"{row.name}: {row.error:.2g} of {row.bound:.2g} {row.note}".rstrip()
    if isinstance(row, Time):
        return f"{row.case}: {row.contestant}: {row.seconds * 1e3:.3f} ms {row.note}".rstrip()
    return f"{row.name}: {row.text}"

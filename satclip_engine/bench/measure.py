"""Contestants side by side: each answers first and is checked, then all are timed in turns.

A round times every contestant once, so that whatever else the machine does hits all of them; each round
begins with another one. Rates are compared within a round and the median over rounds is taken, which cancels
slow drifts that a ratio of two medians would keep.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

OK, FAILED, ABSENT = "ok", "failed", "not installed"

_TOO_LONG = 3  # budgets


def _nothing() -> None: ...


@dataclass(frozen=True, eq=False)
class Made:
    """A contestant ready to run.

    run: what is timed. check: the error of what `run` returned. before: undoes what the last call left, and
    sets thread counts; not timed. settings: what was chosen by trying, so that another process can repeat it.
    facts: what `run` found out beyond its answer.
    """

    run: Callable[[], Any]
    check: Callable[[Any], float]
    tolerance: float
    before: Callable[[], None] = _nothing
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Contestant:
    """One way to compute a case. Cheap until `make(settings)` is called.

    work: units of the case in one call. multiply_adds: of one unit. ours: this package. yardstick: a plain
    matrix product that others are measured by. remember: its peak memory is measured, in a process of its
    own. missing: why it cannot run here.
    """

    name: str
    threads: int
    work: float
    make: Callable[[Mapping[str, Any]], Made]
    multiply_adds: float = 0.0
    ours: bool = False
    yardstick: bool = False
    remember: bool = False
    dtype: str = "float32"
    note: str = ""
    missing: str | None = None


@dataclass(frozen=True, eq=False)
class Timing:
    """What one contestant did; `seconds` is empty unless its answer was right."""

    contestant: Contestant
    status: str
    note: str = ""
    error: float = math.nan
    tolerance: float = math.nan
    seconds: tuple[float, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rates(self) -> np.ndarray:
        """Units a second, round by round."""
        return self.contestant.work / np.asarray(self.seconds)

    @property
    def multiply_add_rates(self) -> np.ndarray:
        """Multiply-adds a second, round by round."""
        return self.rates * self.contestant.multiply_adds


def compete(
    contestants: Sequence[Contestant],
    *,
    repeat: int,
    budget: float,
    warm_up: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Timing]:
    """Check, then time. A contestant gets up to `repeat` rounds in about `budget` seconds of its own.

    The first call is for warming up and for the check. It counts as a round when `warm_up` is false, as
    processes of their own do not warm up, and is the only one where it takes longer than three budgets.
    """
    entries = [_Entry(contestant) for contestant in contestants]
    for entry in entries:
        progress(f"{entry.contestant.name}: checking")
        entry.prepare(repeat, budget, warm_up)
    for turn in range(repeat):
        start = turn % max(1, len(entries))
        for entry in entries[start:] + entries[:start]:
            if turn < entry.planned:
                progress(f"{entry.contestant.name}: round {turn + 1} of {entry.planned}")
                entry.seconds.append(entry.call()[0])
    return [entry.timing() for entry in entries]


class _Entry:
    """A contestant in the making."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.made: Made | None = None
        self.status, self.note = OK, contestant.note
        self.error, self.planned = math.nan, 0
        self.seconds: list[float] = []

    def prepare(self, repeat: int, budget: float, warm_up: bool) -> None:
        if self.contestant.missing is not None:
            self.status, self.note = ABSENT, self.contestant.missing
            return
        try:
            self.made = self.contestant.make({})
            seconds, answer = self.call()
            self.error = self.made.check(answer)
        except Exception as error:  # a peer that breaks is a result, not the end of the run
            self.status, self.note = FAILED, f"{type(error).__name__}: {error}"
            return
        if not self.error <= self.made.tolerance:
            self.status = FAILED
            self.note = f"wrong answer: error {self.error:.2g}, tolerance {self.made.tolerance:.2g}"
            return
        alone = seconds > _TOO_LONG * budget
        if alone or not warm_up:
            self.seconds = [seconds]
        if not alone:
            self.planned = min(repeat, max(1, math.ceil(budget / seconds))) - len(self.seconds)

    def call(self) -> tuple[float, Any]:
        assert self.made is not None
        self.made.before()
        start = time.perf_counter()
        answer = self.made.run()
        return time.perf_counter() - start, answer

    def timing(self) -> Timing:
        made = self.made
        return Timing(
            self.contestant,
            self.status,
            self.note,
            self.error,
            made.tolerance if made else math.nan,
            tuple(self.seconds),
            made.settings if made else {},
            made.facts if made else {},
        )


def ratio(rates: np.ndarray, others: np.ndarray) -> float:
    """Median over the rounds that both took part in."""
    count = min(len(rates), len(others))
    return float(np.median(rates[:count] / others[:count])) if count else math.nan


def quartiles(values: np.ndarray) -> dict[str, float]:
    """Median and quartiles of measurements."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "q1": float(low), "q3": float(high)}

"""Implementations side by side: each answers first and is checked, then all are timed in turns.

A round times every implementation once, so that whatever else the machine does hits all of them; each round
begins with another one. Rates are compared within a round and the median over rounds is taken, which cancels
slow drifts that a ratio of two medians would keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from satclip_engine.bench.clock import CallClock, WallClock

OK, FAILED, ABSENT = "ok", "failed", "not installed"

_MAX_BUDGETS = 3  # that a call may take before it is the only one


def _nothing() -> None: ...


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """An implementation ready to run.

    run: the call that is timed. check: the error of its answer. before: undoes what the last call left, and
    sets thread counts; not timed. settings: choices made by trying, so that another process can repeat them.
    details: findings of `run` beyond its answer.
    """

    run: Callable[[], Any]
    check: Callable[[Any], float]
    tolerance: float
    before: Callable[[], None] = _nothing
    settings: Mapping[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Implementation:
    """One way to compute a workload. Cheap until `prepare(settings)` is called.

    work: units of the workload in one call. multiply_adds: of one unit. ours: this package. roofline: a plain
    matrix product that others are measured by. measure_memory: its peak memory is measured, in a process of
    its own. missing: reason why it cannot run here.
    """

    name: str
    threads: int
    work: float
    prepare: Callable[[Mapping[str, Any]], PreparedRun]
    multiply_adds: float = 0.0
    ours: bool = False
    roofline: bool = False
    measure_memory: bool = False
    dtype: str = "float32"
    note: str = ""
    missing: str | None = None


@dataclass(frozen=True, eq=False)
class Timing:
    """Outcome of one implementation; `seconds` is empty unless its answer was right."""

    implementation: Implementation
    status: str
    note: str = ""
    error: float = math.nan
    tolerance: float = math.nan
    seconds: tuple[float, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rates(self) -> np.ndarray:
        """Units a second, round by round."""
        return self.implementation.work / np.asarray(self.seconds)

    @property
    def multiply_add_rates(self) -> np.ndarray:
        """Multiply-adds a second, round by round."""
        return self.rates * self.implementation.multiply_adds


@dataclass(frozen=True)
class Rounds:
    """Number of rounds: as many as fit into `budget` seconds of an implementation, `fewest` to `most`.

    warm_up: calls before the first that counts. The first of all is checked, the last of them tells how many
    rounds fit; it is the only one, and counts, where it takes longer than three budgets and `fewest` is 1.
    Without warming up, as for processes of their own, the first call counts as a round.
    """

    most: int
    budget: float
    fewest: int = 1
    warm_up: int = 1

    def planned(self, seconds: float) -> int:
        """Number of rounds for a call of so many seconds."""
        return min(self.most, max(self.fewest, math.ceil(self.budget / seconds)))

    def suffices(self, seconds: float) -> bool:
        """True where a call was so slow that it is the only one."""
        return self.fewest == 1 and seconds > _MAX_BUDGETS * self.budget


def time_all(
    implementations: Sequence[Implementation],
    rounds: Rounds,
    *,
    clock: CallClock | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Timing]:
    """Check every implementation, then time those whose answers are right. clock: by default the wall's."""
    entries = [_Entry(implementation, clock or WallClock()) for implementation in implementations]
    for entry in entries:
        progress(f"{entry.implementation.name}: checking")
        entry.prepare(rounds)
    for turn in range(rounds.most):
        start = turn % max(1, len(entries))
        for entry in entries[start:] + entries[:start]:
            if turn < entry.planned:
                progress(f"{entry.implementation.name}: round {turn + 1} of {entry.planned}")
                entry.seconds.append(entry.call()[0])
    return [entry.timing() for entry in entries]


class _Entry:
    """Implementation that is being checked and timed."""

    def __init__(self, implementation: Implementation, clock: CallClock) -> None:
        self.implementation, self.clock = implementation, clock
        self.prepared: PreparedRun | None = None
        self.status, self.note = OK, implementation.note
        self.error, self.planned = math.nan, 0
        self.seconds: list[float] = []

    def prepare(self, rounds: Rounds) -> None:
        if self.implementation.missing is not None:
            self.status, self.note = ABSENT, self.implementation.missing
            return
        try:
            self.prepared = self.implementation.prepare({})
            seconds, answer = self.call()
            self.error = self.prepared.check(answer)
        except Exception as error:  # a baseline that breaks is a result, not the end of the run
            self.status, self.note = FAILED, f"{type(error).__name__}: {error}"
            return
        if not self.error <= self.prepared.tolerance:
            self.status = FAILED
            self.note = f"wrong answer: error {self.error:.2g}, tolerance {self.prepared.tolerance:.2g}"
            return
        del answer
        for _ in range(rounds.warm_up - 1):
            seconds = self.call()[0]
        self._plan(rounds, seconds)

    def _plan(self, rounds: Rounds, seconds: float) -> None:
        alone = rounds.suffices(seconds)
        if alone or rounds.warm_up == 0:
            self.seconds = [seconds]
        if not alone:
            self.planned = rounds.planned(seconds) - len(self.seconds)

    def call(self) -> tuple[float, Any]:
        assert self.prepared is not None
        self.prepared.before()
        return self.clock.time(self.prepared.run)

    def timing(self) -> Timing:
        prepared = self.prepared
        return Timing(
            self.implementation,
            self.status,
            self.note,
            self.error,
            prepared.tolerance if prepared else math.nan,
            tuple(self.seconds),
            prepared.settings if prepared else {},
            prepared.details if prepared else {},
        )


def ratio(rates: np.ndarray, others: np.ndarray) -> float:
    """Median over the rounds that both took part in."""
    count = min(len(rates), len(others))
    return float(np.median(rates[:count] / others[:count])) if count else math.nan


def quartiles(values: np.ndarray) -> dict[str, float]:
    """Median and quartiles of measurements."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "q1": float(low), "q3": float(high)}

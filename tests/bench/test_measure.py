"""Measuring: wrong answers get no time, implementations take turns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from factories.benchmarks import SMALL, implementation

from satclip_engine.bench import results
from satclip_engine.bench.clock import CudaClock
from satclip_engine.bench.measure import ABSENT, FAILED, OK, Implementation, Rounds, Timing, ratio, time_all


def test_a_wrong_answer_gets_no_time():
    right, wrong = time_all([implementation("right"), implementation("wrong", error=0.6)], Rounds(2, 0.1))
    assert right.status == OK
    assert len(right.seconds) == 2
    assert wrong.status == FAILED
    assert wrong.seconds == ()
    assert "error 0.6, tolerance 0.5" in wrong.note


def test_an_answer_that_is_not_a_number_is_wrong():
    (timing,) = time_all([implementation(error=float("nan"))], Rounds(2, 0.1))
    assert timing.status == FAILED


def test_an_implementation_that_breaks_does_not_end_the_run():
    def broken(settings):
        raise MemoryError("too much")

    first, second = time_all([Implementation("broken", 1, 1.0, broken), implementation()], Rounds(1, 0.1))
    assert (first.status, first.note) == (FAILED, "MemoryError: too much")
    assert second.status == OK


def test_what_is_not_installed_is_named_and_left_out():
    (timing,) = time_all([implementation(missing="it is not installed")], Rounds(1, 0.1))
    assert (timing.status, timing.note, timing.seconds) == (ABSENT, "it is not installed", ())


def test_implementations_take_turns_and_each_round_begins_with_another_one():
    calls: list[str] = []
    time_all([implementation(name, 0.001, calls=calls) for name in "abc"], Rounds(3, 1.0))
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"


@pytest.fixture
def idle_time(monkeypatch) -> None:
    """A clock that nothing but sleep moves on: what else runs on the machine does not count."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    clock = SimpleNamespace(perf_counter=lambda: now[0], sleep=sleep)
    monkeypatch.setattr("satclip_engine.bench.clock.time", clock)
    monkeypatch.setattr("factories.benchmarks.time", clock)


@pytest.mark.parametrize(
    ("budget", "warm_up", "calls", "rounds"),
    [(0.01, 1, 1, 1), (0.05, 1, 2, 1), (0.05, 0, 1, 1), (0.15, 0, 2, 2), (9.0, 1, 4, 3), (9.0, 4, 7, 3)],
)
def test_slow_implementations_get_few_rounds(idle_time, budget, warm_up, calls, rounds):
    called: list[str] = []
    slow = implementation(seconds=0.125, calls=called)
    (timing,) = time_all([slow], Rounds(3, budget, warm_up=warm_up))
    assert (len(called), len(timing.seconds)) == (calls, rounds)
    assert set(timing.seconds) == {0.125}


def test_a_ratio_is_the_median_of_rounds_that_both_took_part_in():
    # The machine slows down by half in the third round: a ratio of medians would not be 2.
    assert ratio(np.array([8.0, 8.0, 4.0]), np.array([4.0, 4.0, 2.0, 0.1])) == 2.0
    assert np.isnan(ratio(np.array([]), np.array([1.0])))


def test_records_compare_implementations_of_as_many_threads():
    def timing(name, threads, seconds, **options):
        timed = Implementation(name, threads, 100.0, lambda settings: None, multiply_adds=10.0, **options)
        return Timing(timed, OK, error=0.0, tolerance=1.0, seconds=seconds)

    timings = [
        timing("satclip", 2, (1.0,) * 3, ours=True),
        timing("product", 2, (0.8,) * 3, roofline=True),
        timing("slower product", 2, (1.6,) * 3, roofline=True),
        timing("baseline", 2, (3.0,) * 3),
        timing("satclip", 1, (2.0,) * 3, ours=True),
        timing("baseline", 1, (4.0,) * 3),
    ]
    ours, _, _, baseline, alone, baseline_alone = results.records(SMALL[7], timings, [None] * 6)
    assert ours.rate == {"median": 100.0, "q1": 100.0, "q3": 100.0}
    assert ours.of_gemm == pytest.approx(0.8)
    assert baseline.faster == pytest.approx(3.0)
    assert alone.of_gemm is None
    assert baseline_alone.faster == pytest.approx(2.0)


def test_a_gpu_call_is_timed_by_events_with_nothing_else_in_flight():
    steps: list[Any] = []

    class TimingEvent:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            steps.append("record")

        def elapsed_time(self, end: Any) -> float:
            return 250.0

    class Cuda:
        Event = TimingEvent
        synchronize = staticmethod(lambda: steps.append("synchronize"))
        reset_peak_memory_stats = staticmethod(lambda: steps.append("reset"))
        memory_allocated = staticmethod(lambda: 100)
        max_memory_allocated = staticmethod(lambda: 160)

    clock = CudaClock()
    clock._cuda = Cuda
    assert clock.time(lambda: steps.append("run") or "answer") == (0.25, "answer")
    assert steps == ["synchronize", "reset", "record", "run", "record", "synchronize"]
    assert clock.peak_bytes == 60

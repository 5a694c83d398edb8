"""Times of calls: by CUDA events on a GPU, by the wall clock elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

FEWEST, MOST = 5, 100  # rounds


@dataclass(frozen=True)
class Measured:
    """seconds: median; peak_bytes: of the GPU's memory beyond what was there before."""

    seconds: float
    q1: float
    q3: float
    rounds: int
    peak_bytes: int | None


def measure(run: Callable[[], Any], *, on_gpu: bool, budget: float) -> Measured:
    """Median time of a call after warming up, from as many rounds as take about `budget` seconds.

    Without a budget: of a single call.
    """
    timed = _events if on_gpu else _wall
    if budget == 0:
        seconds = timed(run)
        return Measured(seconds, seconds, seconds, 1, None)
    for _ in range(2):
        timed(run)
    before = _memory_before() if on_gpu else 0
    first = timed(run)
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else None
    rounds = max(FEWEST, min(MOST, round(budget / first)))
    times = [timed(run) for _ in range(rounds)]
    quarters = statistics.quantiles(times, n=4)
    return Measured(statistics.median(times), quarters[0], quarters[2], rounds, peak)


def _events(run: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def _wall(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _memory_before() -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()

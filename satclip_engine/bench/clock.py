"""Clocks that time one call: the wall clock, or CUDA events, which also see the GPU's peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from satclip_engine._optional import need


class CallClock(Protocol):
    """Times calls; `peak_bytes` is GPU memory that the last one took beyond what was allocated before."""

    peak_bytes: int | None

    def time(self, run: Callable[[], Any]) -> tuple[float, Any]:
        """Call `run`; returns the seconds and its answer."""


class WallClock:
    """Seconds from call to return."""

    peak_bytes: int | None = None

    def time(self, run: Callable[[], Any]) -> tuple[float, Any]:
        start = time.perf_counter()
        answer = run()
        return time.perf_counter() - start, answer


class CudaClock:
    """Seconds between CUDA events around the call, with nothing else in flight."""

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        self._cuda: Any = need("torch", extra="torch", why="a CUDA clock").cuda

    def time(self, run: Callable[[], Any]) -> tuple[float, Any]:
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._cuda.synchronize()
        self._cuda.reset_peak_memory_stats()
        allocated = self._cuda.memory_allocated()
        start.record()
        answer = run()
        end.record()
        self._cuda.synchronize()
        self.peak_bytes = self._cuda.max_memory_allocated() - allocated
        return start.elapsed_time(end) / 1e3, answer

"""Commands run as processes of their own, with wall and processor time and peak memory.

Processor time comes from the system, peak memory from the process's own high-water mark, watched as it runs.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from satclip_engine.bench.peak_memory import status

_WATCH_SECONDS = 0.02  # between looks at a process's memory


@dataclass(frozen=True)
class ProcessUsage:
    """Resources of a process that ended."""

    wall: float
    cpu: float  # seconds, of its children too
    peak_memory: int  # bytes; 0 where that cannot be known


def run_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> ProcessUsage:
    """Run to the end. Raises RuntimeError with the last line of stderr when it fails."""
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
        watch = _MemoryWatch(process.pid)
        _, code, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(code)
        peak = watch.stop()
        if process.returncode:
            errors.seek(0)
            lines = errors.read().strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"exit status {process.returncode}")
    return ProcessUsage(wall, usage.ru_utime + usage.ru_stime, peak)


class _MemoryWatch:
    """Thread that reads a process's high-water mark until stopped; growth in the last instant is missed."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._stopped = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stopped.wait(_WATCH_SECONDS):
            self._peak = max(self._peak, status("VmHWM", self._pid) or 0)

    def stop(self) -> int:
        self._stopped.set()
        self._thread.join()
        return self._peak

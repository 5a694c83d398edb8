"""Parts of a job given to threads of Python, whose kernels compute without its lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from satclip_engine.backends.protocols import Check

_POLL = 0.05  # seconds after which the caller is asked again

Part = TypeVar("Part")


class Stopped(Exception):
    """Raised inside a worker whose result is no longer wanted: another has failed, or the caller stops."""


def run_parts(
    parts: Sequence[Part], do: Callable[[Part, Check], None], threads: int, check: Check | None = None
) -> None:
    """Have threads do(part, stop) all parts; what one of them or `check` raises is raised here.

    stop: for kernels to ask now and then; it raises Stopped once another part has failed.
    """
    stopped = threading.Event()

    def stop() -> None:
        if stopped.is_set():
            raise Stopped

    def one(part: Part) -> None:
        stop()
        do(part, stop)

    with ThreadPoolExecutor(max(1, min(threads, len(parts)))) as pool:
        waiting = {pool.submit(one, part) for part in parts}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=_POLL, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if check is not None:
                    check()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise

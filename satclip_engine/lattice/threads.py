"""Runs work items in threads of Python; kernels release the GIL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from satclip_engine.backends.protocols import Check

_POLL_SECONDS = 0.05  # after which the caller's check is called again

Item = TypeVar("Item")


class Stopped(Exception):
    """Raised inside a worker whose result is no longer wanted: another has failed, or the caller stops."""


def run_items(
    items: Sequence[Item], work: Callable[[Item, Check], None], threads: int, check: Check | None = None
) -> None:
    """Have threads call work(item, stop) for all items; what one of them or `check` raises is raised here.

    stop: for kernels to call now and then; it raises Stopped once another item has failed.
    """
    stopped = threading.Event()

    def stop() -> None:
        if stopped.is_set():
            raise Stopped

    def run(item: Item) -> None:
        stop()
        work(item, stop)

    with ThreadPoolExecutor(max(1, min(threads, len(items)))) as pool:
        waiting = {pool.submit(run, item) for item in items}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if check is not None:
                    check()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise

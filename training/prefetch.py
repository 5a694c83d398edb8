"""Read-ahead in threads: items in progress while earlier results are in use."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Submitted = TypeVar("Submitted")


def reader_threads() -> int:
    """Threads that read images and make views: one a core, though not many, because they share a disk."""
    return min(4, os.cpu_count() or 1)


def prefetch(submit: Callable[[Item], Submitted], items: Iterable[Item], depth: int) -> Iterator[Submitted]:
    """Submit items to a thread pool and yield what `submit` returns (its futures), in order.

    depth: items that are submitted before the first is yielded.
    """
    pending: deque[Submitted] = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) >= depth:
            yield pending.popleft()
    while pending:
        yield pending.popleft()

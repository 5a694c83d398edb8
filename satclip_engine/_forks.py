"""Locks and cached properties that a forked process can use, whatever other threads of its parent held."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

_Value = TypeVar("_Value")


class Mutex:
    """A lock for `with`, open in a forked child: the thread of the parent that held it is not there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _MUTEXES.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(RuntimeError):  # the thread that forked held it: the child's is open already
            self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def reopen(self) -> None:
        """Begin with an open lock."""
        self._lock = threading.Lock()


_MUTEXES: weakref.WeakSet[Mutex] = weakref.WeakSet()


def _reopen_all() -> None:
    for mutex in list(_MUTEXES):
        mutex.reopen()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reopen_all)


class cached_property(Generic[_Value]):
    """functools.cached_property as of Python 3.12, without a lock: threads may compute the value twice."""

    def __init__(self, compute: Callable[[Any], _Value]) -> None:
        self._compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> _Value: ...

    def __get__(self, instance: object | None, owner: type | None = None) -> Self | _Value:
        if instance is None:
            return self
        values: dict[str, _Value] = instance.__dict__
        if self._name not in values:
            values[self._name] = self._compute(instance)
        return values[self._name]

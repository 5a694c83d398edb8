"""Results on their way back: what overlaps, and that no buffer is overwritten before it is taken out."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from satclip_engine.backends import device_copies
from satclip_engine.backends.device_copies import SLOTS, CudaCopies, copier, pipelined


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_a_block_is_started_before_the_one_before_it_is_finished(count):
    said: list[tuple[str, int, int]] = []
    pipelined(
        range(count),
        lambda block, slot: said.append(("start", block, slot)),
        lambda block, slot: said.append(("finish", block, slot)),
    )
    finished = [block for what, block, _ in said if what == "finish"]
    assert finished == list(range(count)), "every block, in order"
    assert all(slot == block % SLOTS for _, block, slot in said)
    for block in range(count - 1):
        assert said.index(("start", block + 1, (block + 1) % SLOTS)) < said.index(
            ("finish", block, block % SLOTS)
        )
    for block in range(SLOTS, count):
        assert said.index(("finish", block - SLOTS, block % SLOTS)) < said.index(
            ("start", block, block % SLOTS)
        )


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_several_threads_copy_what_one_does(monkeypatch, threads, rows):
    monkeypatch.setattr(device_copies, "_SHARED_COPY_BYTES", 0)
    values = np.random.default_rng(0).random((rows, 50, 3), np.float32)
    out = np.zeros((rows, 60, 7), np.float32)[::-1, 5:55, 2:5]
    with copier(threads) as copy:
        copy(out, values)
    assert np.array_equal(out, values)


# A device that is late: work waits in its stream until somebody waits for it


class Late:
    """Stands for torch: streams are queues of work, done when an event after it is waited for."""

    float32 = np.float32

    def __init__(self) -> None:
        self.cuda = self
        self._current = threading.local()
        self.log: list[str] = []
        self.Stream, self.Event = lambda device: LateStream(device), LateEvent

    def device(self, device: Any) -> Any:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def stream(self, stream: LateStream) -> Any:
        before, self._current.stream = getattr(self._current, "stream", None), stream
        yield
        self._current.stream = before

    def empty(self, size: int, *, dtype: Any, device: str, pin_memory: bool = False) -> LateTensor:
        assert device == "cpu"
        return LateTensor(self, np.full(size, np.nan, dtype))

    def enqueue(self, work: Any) -> None:
        self._current.stream.queue.append(work)


class LateStream:
    def __init__(self, device: Any) -> None:
        self.device, self.queue = device, []

    def run(self, until: Any = None) -> None:
        while self.queue:
            work = self.queue.pop(0)
            work()
            if work is until:
                return

    def wait_stream(self, other: LateStream) -> None:
        marker = lambda: None  # noqa: E731
        other.queue.append(marker)
        self.queue.append(lambda: other.run(marker) if marker in other.queue else None)


class LateEvent:
    def __init__(self) -> None:
        self._stream: LateStream | None = None

    def record(self, stream: LateStream) -> None:
        self._stream, self._marker = stream, lambda: None
        stream.queue.append(self._marker)

    def synchronize(self) -> None:
        if self._stream is not None and self._marker in self._stream.queue:
            self._stream.run(self._marker)


class LateTensor:
    def __init__(self, late: Late, values: np.ndarray) -> None:
        self.late, self.values, self.shape, self.kept = late, values, values.shape, None

    def numel(self) -> int:
        return self.values.size

    def reshape(self, size: int) -> LateTensor:
        return LateTensor(self.late, self.values.reshape(size))

    def __getitem__(self, part: slice) -> LateTensor:
        return LateTensor(self.late, self.values[part])

    def copy_(self, other: LateTensor, non_blocking: bool) -> None:
        assert non_blocking
        self.late.enqueue(lambda: np.copyto(self.values, other.values))

    def record_stream(self, stream: LateStream) -> None:
        self.kept = stream

    def numpy(self) -> np.ndarray:
        return self.values


@pytest.fixture
def late(monkeypatch) -> Late:
    late = Late()
    monkeypatch.setattr(device_copies, "torch", late)
    return late


def computed(late: Late, value: float, shape: tuple[int, ...]) -> LateTensor:
    """A tensor that has its values only when its stream comes to it."""
    made = LateTensor(late, np.zeros(shape, np.float32))
    late.enqueue(lambda: made.values.fill(value))
    return made


def test_every_block_comes_back_whole_although_nothing_waits_for_the_device(late):
    copies = CudaCopies(LateStream("cuda:0"))
    shapes = [(4, 3), (2, 5, 3), (9, 3), (1, 3), (4, 3)]
    found: list[np.ndarray] = []
    pipelined(
        list(enumerate(shapes)),
        lambda block, slot: copies.start(slot, lambda: computed(late, *block)),
        lambda block, slot: found.append(copies.finish(slot).copy()),
    )
    assert [values.shape for values in found] == shapes
    assert [set(values.ravel().tolist()) for values in found] == [{float(k)} for k in range(len(shapes))]


def test_memory_of_a_result_is_kept_until_it_is_copied(late):
    copies = CudaCopies(LateStream("cuda:0"))
    made: list[LateTensor] = []

    def compute() -> LateTensor:
        made.append(computed(late, 1.0, (2, 3)))
        return made[-1]

    copies.start(0, compute)
    assert made[0].kept is copies._copying


def test_a_call_that_ended_early_does_not_reach_into_the_next(late):
    copies = CudaCopies(LateStream("cuda:0"))
    copies.start(0, lambda: computed(late, 1.0, (2, 3)))
    copies.start(1, lambda: computed(late, 2.0, (2, 3)))  # and then Ctrl-C
    copies.start(0, lambda: computed(late, 3.0, (2, 3)))
    assert (copies.finish(0) == 3).all()
    copies.start(1, lambda: computed(late, 4.0, (50, 3)))  # a larger buffer
    assert (copies.finish(1) == 4).all()

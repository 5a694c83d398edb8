"""Copies from a device to the host, overlapped with computing and with unpacking of pinned buffers.

    pipelined(blocks, copies.start, finish)

While the host takes block k out of its pinned buffer, block k+1 is computed and on its way into another. Each
calling thread has a CopyStream of its own, with two buffers.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from satclip_engine._forks import Mutex
from satclip_engine._optional import need

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = need("torch", extra="torch", why="computing on a GPU")

SLOTS = 2
_SHARED_COPY_BYTES = 4 << 20  # of a block that several threads copy: below, starting them costs as much

# Starting kernels takes a tenth of a millisecond, during which Triton's launcher (and its interpreter, which
# computes meanwhile) must not meet itself in another thread. What has been started runs on without the lock.
_starting = Mutex()

Block = TypeVar("Block")


def pipelined(
    blocks: Iterable[Block], start: Callable[[Block, int], None], finish: Callable[[Block, int], None]
) -> None:
    """start(block, slot) for every block in turn, each before the former is finished; slots take turns."""
    running: deque[tuple[Block, int]] = deque()
    for number, block in enumerate(blocks):
        if len(running) == SLOTS:
            finish(*running.popleft())
        start(block, number % SLOTS)
        running.append((block, number % SLOTS))
    while running:
        finish(*running.popleft())


class CopyStream(Protocol):
    """Copies of one thread's results to the host, through a buffer for each slot."""

    def start(self, slot: int, compute: Callable[[], Tensor]) -> None:
        """Begin to compute and to copy back."""

    def finish(self, slot: int) -> np.ndarray:
        """Wait for it: the values, until the slot is started again."""


class HostCopies:
    """On the CPU, under Triton's interpreter: nothing overlaps."""

    def __init__(self) -> None:
        self._values: list[Any] = [None] * SLOTS

    def start(self, slot: int, compute: Callable[[], Tensor]) -> None:
        with _starting:
            self._values[slot] = compute().numpy()

    def finish(self, slot: int) -> np.ndarray:
        return self._values[slot]


class CudaCopies:
    """Kernels in a stream that threads share, copies in its own; each slot has a pinned buffer and an event.

    A call that ended early leaves copies under way; later ones into the same buffer follow in the same
    stream, so they are in order.
    """

    def __init__(self, computing: Any) -> None:
        self._device = computing.device
        self._computing, self._copying = computing, torch.cuda.Stream(computing.device)
        self._buffers = [torch.empty(0, dtype=torch.float32, device="cpu")] * SLOTS
        self._copied = [torch.cuda.Event() for _ in range(SLOTS)]
        self._shapes: list[Any] = [None] * SLOTS

    def start(self, slot: int, compute: Callable[[], Tensor]) -> None:
        with torch.cuda.device(self._device):
            with _starting, torch.cuda.stream(self._computing):
                values = compute()
                self._copying.wait_stream(self._computing)
            with torch.cuda.stream(self._copying):
                self._buffer(slot, values.numel()).copy_(values.reshape(-1), non_blocking=True)
                values.record_stream(self._copying)  # its memory is not given away before
                self._copied[slot].record(self._copying)
        self._shapes[slot] = tuple(values.shape)

    def finish(self, slot: int) -> np.ndarray:
        self._copied[slot].synchronize()
        shape = self._shapes[slot]
        return self._buffers[slot][: int(np.prod(shape))].numpy().reshape(shape)

    def _buffer(self, slot: int, size: int) -> Tensor:
        if self._buffers[slot].numel() < size:
            self._copied[slot].synchronize()  # of a call that ended early
            self._buffers[slot] = torch.empty(size, dtype=torch.float32, device="cpu", pin_memory=True)
        return self._buffers[slot][:size]


def computing_stream(device: torch.device) -> Any:
    """A new stream of a CUDA device; None for the CPU, which has none."""
    return None if device.type == "cpu" else torch.cuda.Stream(device)


def make_copy_stream(computing: Any) -> CopyStream:
    """A copy stream for the calling thread alone, whose kernels run in the stream `computing`."""
    return HostCopies() if computing is None else CudaCopies(computing)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, in the order of its current stream, without waiting for what is before it."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@contextmanager
def copier(threads: int) -> Iterator[Callable[[np.ndarray, np.ndarray], None]]:
    """copy(out, values) by so many threads: one fills fresh memory at 2 GB/s, a tenth of what a GPU sends."""
    if threads == 1:
        yield np.copyto
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="satclip-copy") as pool:

        def copy(out: np.ndarray, values: np.ndarray) -> None:
            if values.nbytes < _SHARED_COPY_BYTES:
                np.copyto(out, values)
                return
            edges = np.linspace(0, len(values), threads + 1).astype(int)
            slices = [slice(*pair) for pair in itertools.pairwise(edges)]
            list(pool.map(lambda rows: np.copyto(out[rows], values[rows]), slices))

        yield copy

"""PyTorch's defaults as training expects them, whatever the process has set: on the CPU, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from satclip_engine._optional import need


@contextmanager
def cpu_by_default() -> Iterator[None]:
    """Make new tensors of this thread on the CPU; a context, or a decorator when it is called."""
    torch = need("torch", extra="train", why="training")
    if torch.get_default_device().type == "cpu":
        yield
        return
    with torch.device("cpu"):
        yield


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Make new tensors of the process float32 for as long as somebody else's code makes a network."""
    torch = need("torch", extra="train", why="training")
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)

"""Output arrays for embeddings: (H, W, E) float32, band fastest, the order in which kernels write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from satclip_engine.errors import UsageError

_CACHE_LINE_BYTES, _PAGE_BYTES = 64, 4096
SCRATCH_BYTES = 64 << 20  # of embedding held aside when the caller's memory cannot be written in place


def aligned(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """New memory that begins on a line of the cache: large rasters are written past it line by line."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _CACHE_LINE_BYTES, np.uint8)
    first = -memory.ctypes.data % _CACHE_LINE_BYTES
    return memory[first : first + size].view(dtype).reshape(shape)


def touch(out: np.ndarray) -> None:
    """Fault new pages in sequentially: first touched by several threads, they take many times as long."""
    flat = out.reshape(-1).view(np.uint8)
    flat[::_PAGE_BYTES] = 0


def check_out(out: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The caller's contiguous memory for embeddings. Raises UsageError when it is something else."""
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or out.shape != shape:
        raise UsageError(
            f"out must be a float32 array of shape {shape}, not {_describe(out)}", argument="out"
        )
    if not (out.flags.writeable and out.flags.c_contiguous):
        raise UsageError("out must be writeable and contiguous", argument="out")
    return out


def fill_rows(
    shape: tuple[int, int, int],
    out: np.ndarray | None,
    fill: Callable[[slice, np.ndarray], None],
    *,
    rows_apart: bool = False,
    dtype: Any = np.float32,
) -> np.ndarray:
    """Have fill(rows, target) write (h, w, E) `out`: at once if its strides allow, else by blocks."""
    if out is None:
        out = aligned(shape, dtype)
    elif not isinstance(out, np.ndarray) or out.dtype != dtype or out.shape != shape:
        raise UsageError(
            f"out must be a {np.dtype(dtype)} array of shape {shape}, not {_describe(out)}", argument="out"
        )
    elif not out.flags.writeable:
        raise UsageError("out is read-only", argument="out")
    if 0 in shape:
        return out
    if out.flags.c_contiguous or (rows_apart and out.strides[2] == out.itemsize):
        fill(slice(0, shape[0]), out)
        return out
    step = max(1, SCRATCH_BYTES // (4 * shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        block = slice(start, min(start + step, shape[0]))
        scratch = np.empty((block.stop - start, *shape[1:]), dtype)
        fill(block, scratch)
        out[block] = scratch
    return out


def kernel_order(out: Any, shape: tuple[int, int, int], dtype: Any = np.float32) -> np.ndarray:
    """View the caller's memory as (H, W, E), the order in which embeddings are computed.

    Raises UsageError when it is not in that order.
    """
    height, width, count = shape
    if hasattr(out, "dims") and hasattr(out, "data"):
        if set(out.dims) != {"band", "y", "x"}:
            raise UsageError(
                f"out must have dimensions band, y, x, not {', '.join(map(str, out.dims))}", argument="out"
            )
        out = out.transpose("band", "y", "x").data
    name = np.dtype(dtype).name
    article = "an" if name.startswith("i") else "a"
    if not isinstance(out, np.ndarray) or out.dtype != dtype or out.ndim != 3:
        raise UsageError(
            f"out must be {article} {name} array of shape {shape} or {(count, height, width)}, "
            f"not {_describe(out)}",
            argument="out",
        )
    views = [view for view in (out, out.transpose(1, 2, 0)) if view.shape == shape]
    fast = [view for view in views if count == 1 or view.strides[2] == view.itemsize]
    if not views:
        raise UsageError(
            f"out must have shape {shape} or {(count, height, width)}, not {out.shape}", argument="out"
        )
    if not fast:
        raise UsageError(
            "out must have the band fastest in memory: "
            f"np.empty({shape}, np.{name}), or its transpose(2, 0, 1)",
            argument="out",
        )
    return fast[0]


def _describe(out: Any) -> str:
    return f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__

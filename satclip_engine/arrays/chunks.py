"""Chunk sizes of dask arrays for embeddings (band, y, x)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from satclip_engine._optional import need
from satclip_engine.errors import UsageError

DIMS = ("band", "y", "x")
# dask spends about 1 ms and 1 kB on a task: beyond this the graph costs more than the raster.
MAX_CHUNKS = 100_000
_CHUNK_BYTES = 64 << 20  # of embedding in a chunk when dask chooses


def normal_chunks(chunks: Any, shape: tuple[int, int, int]) -> tuple[tuple[int, ...], ...]:
    """Chunk sizes along band, y and x, as dask has them; bands stay together unless they are asked for.

    chunks: "auto", one number for y and x, a mapping of dimensions, or a tuple for all three. Raises
        UsageError.
    """
    core = need("dask.array.core", extra="dask", why="chunks=")
    if isinstance(chunks, Mapping):
        if unknown := set(chunks) - set(DIMS):
            raise UsageError(
                f"chunks: dimensions are band, y and x, not {', '.join(map(str, sorted(unknown)))}",
                argument="chunks",
            )
        sizes = tuple(chunks.get(dim, -1) for dim in DIMS)
    elif isinstance(chunks, tuple) and len(chunks) == 3:
        sizes = chunks
    elif isinstance(chunks, (int, str, np.integer)) and not isinstance(chunks, bool):
        sizes = (-1, chunks, chunks)
    else:
        raise UsageError(
            f"chunks must be 'auto', a number, a mapping of band, y and x, or three of them, not {chunks!r}",
            argument="chunks",
        )
    sizes = tuple(-1 if size is None else size for size in sizes)
    if any(isinstance(size, (int, np.integer)) and size < 1 and size != -1 for size in sizes):
        raise UsageError(
            f"chunks must be positive, or -1 for a whole dimension, not {chunks!r}", argument="chunks"
        )
    _refuse_many(_estimate(sizes, shape), sizes, shape)
    try:
        chunked = core.normalize_chunks(sizes, shape=shape, dtype=np.float32, limit=_CHUNK_BYTES)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UsageError(
            f"chunks {chunks!r} do not fit the shape {shape}: {error}", argument="chunks"
        ) from error
    _refuse_many(math.prod(len(lengths) for lengths in chunked), sizes, shape)
    return tuple(tuple(int(n) for n in lengths) for lengths in chunked)


def _estimate(sizes: tuple[Any, ...], shape: tuple[int, int, int]) -> int:
    """Number of chunks that plain numbers would make, before dask lists them one by one."""
    return math.prod(
        -(-extent // int(size)) if isinstance(size, (int, np.integer)) and size > 0 else 1
        for size, extent in zip(sizes, shape, strict=True)
    )


def _refuse_many(count: int, sizes: tuple[Any, ...], shape: tuple[int, int, int]) -> None:
    if count <= MAX_CHUNKS:
        return
    bands = -(-shape[0] // sizes[0]) if isinstance(sizes[0], (int, np.integer)) and sizes[0] > 0 else 1
    side = math.ceil(math.sqrt(shape[1] * shape[2] * bands / MAX_CHUNKS))
    while -(-shape[1] // side) * -(-shape[2] // side) * bands > MAX_CHUNKS:
        side = side + max(1, side // 64)
    side = -(-side // 64) * 64
    size = 4 * -(-shape[0] // bands) * min(side, shape[1]) * min(side, shape[2])
    raise UsageError(
        f"chunks: {count:,} chunks are more than dask handles well ({MAX_CHUNKS:,}); use no chunks (the "
        f"array is lazy without them: select a window, then .chunk() it), or chunks={side} or larger "
        f"({size / 1e9:.2g} GB a chunk)",
        argument="chunks",
    )

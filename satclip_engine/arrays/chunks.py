"""How an embedding (band, y, x) is cut into dask chunks."""

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
_BLOCK = 64 << 20  # bytes of embedding that a chunk should have when dask chooses


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
        wanted = tuple(chunks.get(dim, -1) for dim in DIMS)
    elif isinstance(chunks, tuple) and len(chunks) == 3:
        wanted = chunks
    elif isinstance(chunks, (int, str, np.integer)) and not isinstance(chunks, bool):
        wanted = (-1, chunks, chunks)
    else:
        raise UsageError(
            f"chunks must be 'auto', a number, a mapping of band, y and x, or three of them, not {chunks!r}",
            argument="chunks",
        )
    wanted = tuple(-1 if part is None else part for part in wanted)
    if any(isinstance(part, (int, np.integer)) and part < 1 and part != -1 for part in wanted):
        raise UsageError(
            f"chunks must be positive, or -1 for a whole dimension, not {chunks!r}", argument="chunks"
        )
    _refuse_many(_estimate(wanted, shape), wanted, shape)
    try:
        sizes = core.normalize_chunks(wanted, shape=shape, dtype=np.float32, limit=_BLOCK)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UsageError(
            f"chunks {chunks!r} do not fit the shape {shape}: {error}", argument="chunks"
        ) from error
    _refuse_many(math.prod(len(part) for part in sizes), wanted, shape)
    return tuple(tuple(int(n) for n in part) for part in sizes)


def _estimate(wanted: tuple[Any, ...], shape: tuple[int, int, int]) -> int:
    """How many chunks plain numbers would make, before dask lists them one by one."""
    return math.prod(
        -(-size // int(part)) if isinstance(part, (int, np.integer)) and part > 0 else 1
        for part, size in zip(wanted, shape, strict=True)
    )


def _refuse_many(count: int, wanted: tuple[Any, ...], shape: tuple[int, int, int]) -> None:
    if count <= MAX_CHUNKS:
        return
    bands = -(-shape[0] // wanted[0]) if isinstance(wanted[0], (int, np.integer)) and wanted[0] > 0 else 1
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

"""Tiling of a raster: pyramid levels, metatiles, passes, strips of rows; and the memory that they take.

A *level* is the raster at half the size of the level before it (0 is full resolution), stored in square tiles
of `blocksize` pixels. A *metatile* is `span` × `span` tiles, span = 2^s: one thread computes it in strips of
rows and makes from it the tiles of its own level and of the s levels above, whose edges meet the metatile's.
What is left, the pixels of the level after those, is carried over: it goes to disk in float32, and the next
*pass* over the pyramid makes its metatiles from it.

    pass 0: levels 0..s from the encoder, pass 1: levels s+1..2s+1 from what pass 0 carried over, …

So memory depends on the metatile, never on the raster, and no value depends on how the work was cut: a pixel
of an overview is the mean of the four (at edges fewer) pixels below it, whoever computes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from satclip_engine.backends.protocols import BATCH_HINTS, BatchHints
from satclip_engine.errors import Argument, UsageError
from satclip_engine.progress import size_text

BLOCKSIZES = (64, 128, 256, 512)  # what the default chooses from
INTERLEAVED_BLOCKSIZES = (16, 32, *BLOCKSIZES)  # where a tile holds all bands
INTERLEAVED_TILE_BYTES = 1 << 16  # of a tile of all bands, before compression: it stays one short read
MAX_BLOCKSIZE = 1024
DEFAULT_ENTRIES = 2_000_000  # tiles × planes up to which the default takes the smallest blocks
# Of a tile index: 12 bytes each in the file, about 40 in memory while it is laid out.
MAX_ENTRIES = 8_000_000
SMALLEST_OVERVIEW = 256  # pixels: overviews stop when both sides are no longer than this (or than a tile)
# Span in tiles and whether mirror images are paired, best first. Large metatiles leave little to disk (a
# 4^(s+1)th of the pixels, in float32); pairs save 3 % of the computing at L = 40, and more at higher degrees.
METATILES = ((8, True), (4, True), (8, False), (4, False), (2, True), (2, False), (1, True), (1, False))
MIN_TASKS_PER_THREAD = 16  # so that threads end within a few per cent of each other
MIN_STRIP_ROWS = 16  # kernels take so many latitudes at once
# Metatiles and strips of smaller tiles are made of more of them: kernels and caches see the same pixels.
USUAL_BLOCKSIZE = 64


@dataclass(frozen=True)
class Level:
    """One resolution: pixels and tiles."""

    height: int
    width: int
    tiles_down: int
    tiles_across: int

    @property
    def tiles(self) -> int:
        return self.tiles_down * self.tiles_across


@dataclass(frozen=True)
class PyramidPass:
    """Levels first..first+count−1, made together; `carries_over` when the level after them exists."""

    number: int
    first: int
    count: int
    carries_over: bool
    rows: int  # metatiles
    columns: int


@dataclass(frozen=True)
class Task:
    """Metatiles of one row of a pass that a worker computes together."""

    pyramid_pass: PyramidPass
    row: int
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Tiling:
    """The cut of one raster; made by `make_tiling`."""

    shape: tuple[int, int]
    bands: int
    sample_bytes: int
    blocksize: int
    span: int  # tiles along a metatile's side, a power of two
    strip_rows: int  # a multiple of 2·span, but for a metatile's last strip
    mirrored: bool  # metatiles that mirror each other in longitude are computed together
    threads: int
    levels: tuple[Level, ...]
    compressed: float  # at most this part of a tile's bytes is left by compression
    hints: BatchHints = BATCH_HINTS  # how the encoder wants to be called
    interleave: str = "tile"  # order of the bands: tile, pixel or band; tile where there is one

    @property
    def interleaved(self) -> bool:
        """True where a tile holds all bands of its pixels, (side, side, E); else it has a plane for each."""
        return self.interleave == "pixel"

    @property
    def band_major(self) -> bool:
        """True where all tiles of a band come before those of the next one."""
        return self.interleave == "band"

    @property
    def planes(self) -> int:
        """Planes of a tile, which are compressed and indexed one by one."""
        return 1 if self.interleaved else self.bands

    def tile_shape(self, side: int) -> tuple[int, ...]:
        """Shape of a tile of `side` pixels in memory."""
        return (side, side, self.bands) if self.interleaved else (self.bands, side, side)

    @property
    def side(self) -> int:
        """Pixels along a metatile's side."""
        return self.span * self.blocksize

    @property
    def passes(self) -> list[PyramidPass]:
        step = self.span.bit_length()  # levels a metatile makes: s + 1
        passes = []
        for number, first in enumerate(range(0, len(self.levels), step)):
            count = min(step, len(self.levels) - first)
            level = self.levels[first]
            carries_over = first + count < len(self.levels)
            rows, columns = -(-level.height // self.side), -(-level.width // self.side)
            passes.append(PyramidPass(number, first, count, carries_over, rows, columns))
        return passes

    def tasks(self, pyramid_pass: PyramidPass) -> Iterator[Task]:
        """The work of a pass in the order in which it is taken."""
        groups = _mirror_pairs(pyramid_pass.columns, self.levels[0].width, self.side)
        if pyramid_pass.first > 0 or not self.mirrored:
            groups = [(column,) for column in range(pyramid_pass.columns)]
        for row in range(pyramid_pass.rows):
            for columns in groups:
                yield Task(pyramid_pass, row, columns)

    @property
    def memory(self) -> int:
        """Bytes of working memory of all threads together."""
        return self.threads * _thread_memory(self, 2 if self.mirrored else 1)

    @property
    def entries(self) -> int:
        """Tiles × planes at full resolution."""
        return self.levels[0].tiles * self.planes


def pyramid(shape: tuple[int, int], blocksize: int) -> tuple[Level, ...]:
    """Full resolution and its overviews, each half of the one before, rounded up."""
    height, width = shape
    levels = []
    while True:
        levels.append(Level(height, width, -(-height // blocksize), -(-width // blocksize)))
        if max(height, width) <= max(SMALLEST_OVERVIEW, blocksize):
            return tuple(levels)
        height, width = (height + 1) // 2, (width + 1) // 2


def choose_blocksize(shape: tuple[int, int], planes: int, preferred: int = BLOCKSIZES[0]) -> int:
    """The smallest tile, not below the preferred one, with which the index stays small."""
    larger = [blocksize for blocksize in INTERLEAVED_BLOCKSIZES if blocksize >= preferred]
    for blocksize in larger:
        if pyramid(shape, blocksize)[0].tiles * planes <= DEFAULT_ENTRIES:
            return blocksize
    return larger[-1]


def preferred_blocksize(pixel_bytes: int, *, interleaved: bool) -> int:
    """Side of the tiles of a raster whose index is small anyway.

    Of planes, the smallest that compresses well. Where a tile holds all bands, the largest that stays a short
    read, at `pixel_bytes` a pixel.
    """
    if not interleaved:
        return BLOCKSIZES[0]
    short = [side for side in INTERLEAVED_BLOCKSIZES if side**2 * pixel_bytes <= INTERLEAVED_TILE_BYTES]
    return max(short, default=INTERLEAVED_BLOCKSIZES[0])


def check_blocksize(blocksize: int, shape: tuple[int, int], planes: int) -> None:
    """Raise UsageError for tiles that a TIFF cannot have or whose index would not fit into memory."""
    if not isinstance(blocksize, int) or blocksize % 16 or not 16 <= blocksize <= MAX_BLOCKSIZE:
        raise UsageError(
            f"blocksize must be a multiple of 16 from 16 to {MAX_BLOCKSIZE}, not {blocksize!r}",
            argument="blocksize",
        )
    entries = pyramid(shape, blocksize)[0].tiles * planes
    if entries > MAX_ENTRIES:
        height, width = shape
        bands = f" of {planes} bands" if planes > 1 else ""
        raise UsageError(
            f"{height} × {width} pixels{bands} make {entries:.3g} tiles of {blocksize} pixels; at "
            f"most {MAX_ENTRIES:.3g} can be indexed: use a coarser ",
            Argument("resolution"),
            ", a larger ",
            Argument("blocksize"),
            f" (up to {MAX_BLOCKSIZE}), ",
            *(
                ["fewer ", Argument("bands"), ", ", Argument("interleave", "pixel"), ", "]
                if planes > 1
                else []
            ),
            "or several files",
            argument="blocksize",
        )


def make_tiling(
    shape: tuple[int, int],
    bands: int,
    sample_bytes: int,
    blocksize: int,
    *,
    threads: int,
    memory: int,
    mirrored: bool,
    compressed: float = 1.0,
    span: int | None = None,
    hints: BatchHints = BATCH_HINTS,
    interleave: str = "tile",
) -> Tiling:
    """The largest metatiles that `threads` of them fit into `memory` bytes; fewer threads before it fails.

    compressed: what part of a tile's bytes compression leaves at most.
    span: given when a run is resumed whose metatiles are on disk already.
    hints: strips have as many pixels as a batch of the encoder, if memory and tiles allow.
    Raises UsageError naming the memory needed when not even one thread with the smallest metatile fits.
    """
    levels = pyramid(shape, blocksize)
    smallest = Tiling(
        shape,
        bands,
        sample_bytes,
        blocksize,
        span or 1,
        2 * (span or 1),
        False,
        1,
        levels,
        compressed,
        hints,
        interleave if bands > 1 else "tile",
    )
    if smallest.memory > memory:
        raise UsageError(
            f"memory {size_text(memory)} is too small: blocks of {blocksize} pixels and {bands} "
            f"{'band' if bands == 1 else 'bands'} need at least {size_text(smallest.memory)}",
            argument="memory",
        )
    scale = max(1, USUAL_BLOCKSIZE // blocksize)
    metatiles = [(tiles * scale, pair) for tiles, pair in METATILES]
    metatiles += [(tiles, pair) for tiles, pair in METATILES if tiles < scale]
    most = min(threads, memory // smallest.memory)  # more would not fit, however small their metatiles are
    for count in range(most, 0, -1):
        for tiles, pair in metatiles if span is None else ((span, True), (span, False)):
            tiling = replace(smallest, span=tiles, mirrored=pair, threads=count)
            if (pair and not mirrored) or (_unbalanced(tiling) and tiles > 2 * scale and span is None):
                continue
            tiling = _with_strips(tiling, memory)
            if tiling.memory <= memory:
                return tiling
    return smallest


def _unbalanced(tiling: Tiling) -> bool:
    """True where there are so few tasks that threads would wait for the last one."""
    return sum(1 for _ in tiling.tasks(tiling.passes[0])) < MIN_TASKS_PER_THREAD * tiling.threads


def _with_strips(tiling: Tiling, memory: int) -> Tiling:
    """Strips as kernels like them, or lower ones when memory is short."""
    step = 2 * tiling.span
    tiling = replace(tiling, strip_rows=_strip_rows(tiling))
    while tiling.memory > memory and tiling.strip_rows > step:
        tiling = replace(tiling, strip_rows=max(step, tiling.strip_rows // 2 // step * step))
    return tiling


def _strip_rows(tiling: Tiling) -> int:
    """Rows of a strip: what kernels like, in whole pixels of the level that the metatile carries over."""
    step = 2 * tiling.span
    width = min(tiling.side, tiling.shape[1]) * (2 if tiling.mirrored else 1)
    rows = max(MIN_STRIP_ROWS, -(-tiling.hints.batch_size // width))
    return min(-(-rows // step) * step, -(-max(tiling.blocksize, USUAL_BLOCKSIZE) // step) * step)


def _thread_memory(tiling: Tiling, metatiles: int) -> int:
    """Bytes that a thread holds: a strip and its halves, a row of tiles a level, one tile's bands compressed.

    And the two buffers through which a strip comes from a device.
    """
    span = min(tiling.span, tiling.levels[0].tiles_across)
    tile = tiling.bands * tiling.sample_bytes * tiling.blocksize**2
    strip = 4 * tiling.bands * tiling.strip_rows * span * tiling.blocksize
    held = metatiles * (strip + strip // 3 + (2 * span - 1) * tile) + int(tile * tiling.compressed)
    return held + 2 * min(metatiles * strip, tiling.hints.pinned_bytes)


def _mirror_pairs(columns: int, width: int, side: int) -> list[tuple[int, ...]]:
    """Metatile columns in pairs whose longitudes mirror each other about the middle as far as they can."""
    unpaired = dict.fromkeys(range(columns))
    pairs: list[tuple[int, ...]] = []
    while unpaired:
        first = next(iter(unpaired))
        del unpaired[first]
        # The mirror image of `first`, in pixels.
        low, high = width - min((first + 1) * side, width), width - first * side
        shared = {
            c: min(high, (c + 1) * side) - max(low, c * side) for c in range(low // side, -(-high // side))
        }
        best = max((c for c in shared if c in unpaired), key=lambda c: shared[c], default=None)
        if best is None or shared[best] <= shared.get(first, 0):
            pairs.append((first,))
        else:
            del unpaired[best]
            pairs.append((first, best))
    return pairs

"""Making superblocks: pixels from the encoder or from the tier below, out come compressed tiles in the spool.

A worker thread takes one unit after the other. Strips of rows are packed into tiles and halved on the spot,
so that every level up to the superblock's own is finished with it; nothing waits for another thread.
"""

from __future__ import annotations

import dataclasses
import math
import queue
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from satclip_engine import _C
from satclip_engine.backends.protocols import Call, Prepared
from satclip_engine.geo.pixels import PixelGrid
from satclip_engine.quantize import Quantiser, Tally
from satclip_engine.raster.codec import Codec, compressor
from satclip_engine.raster.spool import PLACE, Record, Spool, level_file, remainder_file
from satclip_engine.raster.tiling import Plan, Tier, Unit


class Source(Protocol):
    """Where a tier's pixels come from. Safe to call from several threads."""

    def __call__(
        self, rows: slice, columns: list[slice], out: np.ndarray, check: Callable[[], object]
    ) -> None:
        """Fill (h, w, E) float32 `out` with the pixels of `rows` and of all `columns` side by side.

        `check` is called now and then; what it raises ends the call.
        """


@dataclass
class Clock:
    """CPU seconds of all workers by kind of work."""

    compute: float = 0.0
    pack: float = 0.0
    compress: float = 0.0
    write: float = 0.0

    @property
    def total(self) -> float:
        return self.compute + self.pack + self.compress + self.write

    def as_dict(self) -> dict[str, float]:
        return dataclasses.asdict(self)

    def add(self, other: Clock) -> None:
        self.compute += other.compute
        self.pack += other.pack
        self.compress += other.compress
        self.write += other.write


@dataclass(frozen=True)
class Job:
    """What workers need to know."""

    plan: Plan
    quantiser: Quantiser
    codec: Codec
    spool: Spool


class Stopped(Exception):
    """The run is to end; raised inside workers."""


class EncoderSource:
    """Tier 0: a prepared network's values for the pixels of a grid.

    On a GPU, workers share it by turns: while one's strip is computed and copied back, in a fraction of a
    millisecond a megabyte, the others quantise, halve and compress theirs, which takes tens of times as long.
    So two workers suffice to hide the GPU behind the CPU's work, many to keep it busy, and nothing has to be
    computed ahead; what overlaps within one call (staging.py) matters for strips longer than a block.
    """

    def __init__(self, network: Prepared, grid: PixelGrid) -> None:
        self.network, self.grid = network, grid

    def __call__(
        self, rows: slice, columns: list[slice], out: np.ndarray, check: Callable[[], object]
    ) -> None:
        index = (
            columns[0] if len(columns) == 1 else np.concatenate([np.arange(c.start, c.stop) for c in columns])
        )
        self.network.encode_pixels(self.grid, rows, index, out, Call(1, check))


class RemainderSource:
    """A later tier: what the tier below left, read from the spool."""

    def __init__(self, plan: Plan, tier: Tier, spool: Spool) -> None:
        self.plan, self.spool = plan, spool
        self.below, self.level = tier.number - 1, plan.levels[tier.first]
        self.side = plan.blocksize // 2  # a superblock's remainder in pixels

    def __call__(
        self, rows: slice, columns: list[slice], out: np.ndarray, check: Callable[[], object]
    ) -> None:
        left = 0
        for part in columns:
            for column in range(part.start // self.side, -(-part.stop // self.side)):
                width = min(self.side, self.level.width - column * self.side)
                self._copy(rows, column, out[:, left : left + width])
                left += width

    def _copy(self, rows: slice, column: int, out: np.ndarray) -> None:
        top = rows.start
        while top < rows.stop:
            block = top // self.side
            bottom = min(rows.stop, (block + 1) * self.side)
            record = self.spool.finished[(self.below, block, column)]
            pixels = np.empty((bottom - top, *out.shape[1:]), np.float32)
            offset = record.remainder + (top - block * self.side) * pixels[0].nbytes
            self.spool.read(remainder_file(self.below), offset, memoryview(pixels.data).cast("B"))
            out[top - rows.start : bottom - rows.start] = pixels
            top = bottom


@dataclass(eq=False)
class Canvas:
    """One superblock's row of tiles of one level, filled from the top."""

    level: int
    tile_row: int
    tile_column: int
    tiles: np.ndarray  # (tiles, E, side, side) of the stored type
    valid: np.ndarray  # (tiles,) int64 pixels with data
    filled: int = 0


@dataclass(eq=False)
class Superblock:
    """A superblock on its way."""

    key: tuple[int, int, int]
    columns: slice  # pixels of the tier's first level
    canvases: list[Canvas]
    remainder: int = 0
    remainder_crc: int = 0
    remainder_written: int = 0
    tally: Tally = field(default_factory=lambda: Tally.zero(0))
    places: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    sizes: list[np.ndarray] = field(default_factory=list)


class Worker:
    """What one thread does and owns: its compressor, its clock."""

    def __init__(
        self, job: Job, source: Source, stop: threading.Event, advance: Callable[[int], None]
    ) -> None:
        self.job, self.source, self.stop, self.advance = job, source, stop, advance
        self.clock = Clock()
        self._pixels = np.empty(0, np.float32)
        self._compress = compressor(job.codec)
        self._predictor = job.codec.predictor(job.quantiser.sample)
        integer = job.quantiser.scale is not None
        self._inverse_scale = job.quantiser.inverse_scale if integer else None
        self._offset = job.quantiser.offset.astype(np.float32) if job.quantiser.offset is not None else None

    def build(self, unit: Unit) -> None:
        """Compute the superblocks of a unit that are not finished yet, and commit them."""
        plan = self.job.plan
        level = plan.levels[unit.tier.first]
        finished = self.job.spool.finished
        columns = [c for c in unit.columns if (unit.tier.number, unit.row, c) not in finished]
        blocks = [self._superblock(unit.tier, unit.row, column) for column in columns]
        parts = [block.columns for block in blocks]
        width = sum(part.stop - part.start for part in parts)
        top, bottom = unit.row * plan.side, min(level.height, (unit.row + 1) * plan.side)
        memory = self._strip((min(plan.strip_rows, bottom - top), width, plan.bands))
        for rows in _strips(top, bottom, plan):
            self._check()
            strip = memory[: rows.stop - rows.start]
            started = time.thread_time()
            self.source(rows, parts, strip, self._check)
            self.clock.compute += time.thread_time() - started
            left = 0
            for block, part in zip(blocks, parts, strict=True):
                right = left + part.stop - part.start
                self._add(unit.tier, block, strip[:, left:right], last=rows.stop == bottom)
                left = right
            if unit.tier.number == 0:
                self.advance(strip.shape[0] * width)
        for block in blocks:
            self.job.spool.commit(self._record(block))

    def _check(self) -> None:
        """Raise Stopped when the run is to end."""
        if self.stop.is_set():
            raise Stopped

    def _strip(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Memory for pixels, kept from unit to unit: fresh pages cost as much as packing what they hold."""
        size = math.prod(shape)
        if self._pixels.size < size:
            self._pixels = np.empty(size, np.float32)
        return self._pixels[:size].reshape(shape)

    def _superblock(self, tier: Tier, row: int, column: int) -> Superblock:
        plan, spool = self.job.plan, self.job.spool
        canvases = []
        for k in range(tier.count):
            level, span = plan.levels[tier.first + k], plan.span >> k
            across = min(span, level.tiles_across - column * span)
            shape = (across, plan.bands, plan.blocksize, plan.blocksize)
            tiles = np.empty(shape, self.job.quantiser.sample.name)
            canvases.append(
                Canvas(tier.first + k, row * span, column * span, tiles, np.zeros(across, np.int64))
            )
        first = plan.levels[tier.first]
        columns = slice(column * plan.side, min(first.width, (column + 1) * plan.side))
        block = Superblock((tier.number, row, column), columns, canvases, tally=Tally.zero(plan.bands))
        if tier.remainder:
            size = remainder_bytes(plan, tier, row, column)
            block.remainder = spool.reserve(remainder_file(tier.number), size)
        return block

    def _add(self, tier: Tier, block: Superblock, pixels: np.ndarray, *, last: bool) -> None:
        """Take a strip of a superblock through all levels of the tier.

        `last`: it ends at the superblock's edge.
        """
        for k, canvas in enumerate(block.canvases):
            if k > 0:
                pixels = self._halved(pixels)
            self._pack(block, canvas, pixels, counted=tier.first + k == 0)
            if canvas.filled == self.job.plan.blocksize or last:
                self._flush(block, canvas)
        if tier.remainder:
            data = np.ascontiguousarray(self._halved(pixels))
            started = time.thread_time()
            view = memoryview(data.data).cast("B")
            offset = block.remainder + block.remainder_written
            self.job.spool.write(remainder_file(tier.number), offset, view)
            block.remainder_crc = zlib.crc32(view, block.remainder_crc)
            block.remainder_written += len(view)
            self.clock.write += time.thread_time() - started

    def _halved(self, pixels: np.ndarray) -> np.ndarray:
        started = time.thread_time()
        height, width, bands = pixels.shape
        out = np.empty(((height + 1) // 2, (width + 1) // 2, bands), np.float32)
        _C.halve(pixels, out)
        self.clock.pack += time.thread_time() - started
        return out

    def _pack(self, block: Superblock, canvas: Canvas, pixels: np.ndarray, *, counted: bool) -> None:
        started = time.thread_time()
        tally = block.tally if counted else Tally.zero(self.job.plan.bands)
        before = int(canvas.valid.sum())
        _C.pack_tiles(
            pixels,
            canvas.tiles,
            first_row=canvas.filled,
            dtype=self.job.quantiser.sample.name,
            predictor=self._predictor,
            inverse_scale=self._inverse_scale,
            offset=self._offset,
            clipped=tally.clipped,
            excess=tally.excess,
            valid=canvas.valid,
        )
        tally.valid += int(canvas.valid.sum()) - before
        tally.pixels += pixels.shape[0] * pixels.shape[1]
        canvas.filled += pixels.shape[0]
        self.clock.pack += time.thread_time() - started

    def _flush(self, block: Superblock, canvas: Canvas) -> None:
        """Compress a row of tiles and write it to the spool; the canvas is ready for the next row."""
        canvas.tiles[:, :, canvas.filled :] = 0  # below the raster
        name = level_file(canvas.level)
        for number, tile in enumerate(canvas.tiles):
            self._check()
            started = time.thread_time()
            data, sizes = self._place(tile, empty=canvas.valid[number] == 0)
            compressed = time.thread_time()
            offset = self.job.spool.reserve(name, len(data))
            self.job.spool.write(name, offset, data)
            column = canvas.tile_column + number
            block.places.append((canvas.level, canvas.tile_row, column, zlib.crc32(data), offset))
            block.sizes.append(sizes)
            self.clock.compress += compressed - started
            self.clock.write += time.thread_time() - compressed
        canvas.tile_row += 1
        canvas.filled = 0
        canvas.valid[:] = 0

    def _place(self, tile: np.ndarray, *, empty: bool) -> tuple[bytes, np.ndarray]:
        """All bands of a tile (E, side, side) as the file has them: length before, end repeated after."""
        compress = self._compress
        # A tile without data is the same in all bands.
        encoded = [compress(tile[0])] * len(tile) if empty else [compress(band) for band in tile]
        parts: list[bytes] = []
        for data in encoded:
            parts += (len(data).to_bytes(4, "little"), data, data[-4:].ljust(4, b"\0"))
        return b"".join(parts), np.fromiter(map(len, encoded), np.uint32, len(encoded))

    def _record(self, block: Superblock) -> Record:
        places = np.array(block.places, PLACE)
        return Record(
            block.key, places, np.stack(block.sizes), block.remainder, block.remainder_crc, block.tally
        )


def remainder_bytes(plan: Plan, tier: Tier, row: int, column: int) -> int:
    """Size of what a superblock leaves for the next tier."""
    level, side = plan.levels[tier.first + tier.count], plan.blocksize // 2
    height, width = min(side, level.height - row * side), min(side, level.width - column * side)
    return 4 * plan.bands * height * width


def run_units(
    units: list[Unit],
    make_worker: Callable[[threading.Event, Callable[[int], None]], Worker],
    threads: int,
    advance: Callable[[int], None],
) -> Clock:
    """Have worker threads build all units; `advance` is called in this thread with pixels computed.

    The first exception of a worker, or KeyboardInterrupt here, stops the others and is raised when they have
    ended or after a second: one may hang in a write to a disk that is gone.
    """
    stop = threading.Event()
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    pending = iter(units)
    mutex = threading.Lock()

    def take() -> Unit | None:
        with mutex:
            return next(pending, None)

    def work() -> None:
        worker = make_worker(stop, events.put)
        try:
            while not stop.is_set() and (unit := take()) is not None:
                worker.build(unit)
            events.put(worker.clock)
        except Stopped:
            events.put(worker.clock)
        except BaseException as error:
            events.put(error)

    workers = [threading.Thread(target=work, name=f"satclip-raster-{k}", daemon=True) for k in range(threads)]
    for worker in workers:
        worker.start()
    clock = Clock()
    try:
        for _ in _events(events, threads, clock, advance):
            pass
    finally:
        stop.set()
        deadline = time.monotonic() + 1.0
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
    return clock


def _events(
    events: queue.SimpleQueue[Any], threads: int, clock: Clock, advance: Callable[[int], None]
) -> Iterator[None]:
    """Pass on what workers say until all of them have ended; raise what one of them raised."""
    while threads:
        try:
            event = events.get(timeout=0.2)  # a wait without end could not be interrupted
        except queue.Empty:
            continue
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, Clock):
            clock.add(event)
            threads -= 1
        else:
            advance(event)
        yield


def _strips(top: int, bottom: int, plan: Plan) -> Iterator[slice]:
    """Strips of a superblock; none crosses a tile's edge."""
    while top < bottom:
        edge = (top // plan.blocksize + 1) * plan.blocksize
        stop = min(bottom, edge, top + plan.strip_rows)
        yield slice(top, stop)
        top = stop

"""Workers that turn pixels into metatiles: compressed tiles of several levels in the spool.

A worker thread takes one task after the other. Strips of rows are packed into tiles and halved on the spot,
so that every level up to the metatile's own is finished with it; nothing waits for another thread.
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
from satclip_engine.lattice.threads import Stopped
from satclip_engine.quantize import QuantisationStatistics, Quantiser
from satclip_engine.raster.codec import Codec, compressor
from satclip_engine.raster.spool import TILE_RECORD, MetatileRecord, Spool, carry_over_file, level_file
from satclip_engine.raster.tiling import PyramidPass, Task, Tiling


class PixelSource(Protocol):
    """Source of a pass's pixels. Safe to call from several threads."""

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
    """Everything that workers share."""

    tiling: Tiling
    quantiser: Quantiser
    codec: Codec
    spool: Spool


class EncoderSource:
    """Pixels of the first pass: a prepared network's values for those of a grid.

    On a GPU, workers share it by turns: while one's strip is computed and copied back, in a fraction of a
    millisecond a megabyte, the others quantise, halve and compress theirs, which takes tens of times as long.
    So two workers suffice to hide the GPU behind the CPU's work, many to keep it busy, and nothing has to be
    computed ahead; what overlaps within one call (device_copies.py) matters for longer strips.
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


class CarryOverSource:
    """Pixels of a later pass: what the pass before carried over, read from the spool."""

    def __init__(self, tiling: Tiling, pyramid_pass: PyramidPass, spool: Spool) -> None:
        self.tiling, self.spool = tiling, spool
        self.below, self.level = pyramid_pass.number - 1, tiling.levels[pyramid_pass.first]
        self.side = tiling.blocksize // 2  # pixels that a metatile carries over

    def __call__(
        self, rows: slice, columns: list[slice], out: np.ndarray, check: Callable[[], object]
    ) -> None:
        left = 0
        for span in columns:
            for column in range(span.start // self.side, -(-span.stop // self.side)):
                width = min(self.side, self.level.width - column * self.side)
                self._copy(rows, column, out[:, left : left + width])
                left += width

    def _copy(self, rows: slice, column: int, out: np.ndarray) -> None:
        top = rows.start
        while top < rows.stop:
            row = top // self.side
            bottom = min(rows.stop, (row + 1) * self.side)
            record = self.spool.finished[(self.below, row, column)]
            pixels = np.empty((bottom - top, *out.shape[1:]), np.float32)
            offset = record.carry_over + (top - row * self.side) * pixels[0].nbytes
            self.spool.read(carry_over_file(self.below), offset, memoryview(pixels.data).cast("B"))
            out[top - rows.start : bottom - rows.start] = pixels
            top = bottom


@dataclass(eq=False)
class TileRow:
    """A metatile's row of tiles of one level, filled from the top."""

    level: int
    row: int  # of tiles
    first_column: int
    tiles: np.ndarray  # (tiles, E, side, side) or (tiles, side, side, E) of the stored type
    valid: np.ndarray  # (tiles,) int64 pixels with data
    filled: int = 0


@dataclass(eq=False)
class Metatile:
    """A metatile in the making."""

    key: tuple[int, int, int]
    columns: slice  # pixels of the first level of its pass
    tile_rows: list[TileRow]
    carry_over: int = 0  # offset in the spool
    carry_over_crc: int = 0
    carry_over_written: int = 0
    statistics: QuantisationStatistics = field(default_factory=lambda: QuantisationStatistics.zero(0))
    tile_records: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    sizes: list[np.ndarray] = field(default_factory=list)


class Worker:
    """Work of one thread, with a compressor and a clock of its own."""

    def __init__(
        self, job: Job, source: PixelSource, stop: threading.Event, advance: Callable[[int], None]
    ) -> None:
        self.job, self.source, self.stop, self.advance = job, source, stop, advance
        self.clock = Clock()
        self._pixels = np.empty(0, np.float32)
        self._compress = compressor(job.codec)
        self._predictor = job.codec.predictor(job.quantiser.sample)
        self._inverse_scale, self._offset = job.quantiser.factors

    def build(self, task: Task) -> None:
        """Compute the metatiles of a task that are not finished yet, and commit them."""
        tiling = self.job.tiling
        level = tiling.levels[task.pyramid_pass.first]
        finished = self.job.spool.finished
        columns = [c for c in task.columns if (task.pyramid_pass.number, task.row, c) not in finished]
        metatiles = [self._metatile(task.pyramid_pass, task.row, column) for column in columns]
        spans = [metatile.columns for metatile in metatiles]
        width = sum(span.stop - span.start for span in spans)
        top, bottom = task.row * tiling.side, min(level.height, (task.row + 1) * tiling.side)
        memory = self._strip((min(tiling.strip_rows, bottom - top), width, tiling.bands))
        for rows in _strips(top, bottom, tiling):
            self._check()
            strip = memory[: rows.stop - rows.start]
            started = time.thread_time()
            self.source(rows, spans, strip, self._check)
            self.clock.compute += time.thread_time() - started
            left = 0
            for metatile, span in zip(metatiles, spans, strict=True):
                right = left + span.stop - span.start
                self._add(task.pyramid_pass, metatile, strip[:, left:right], last=rows.stop == bottom)
                left = right
            if task.pyramid_pass.number == 0:
                self.advance(strip.shape[0] * width)
        for metatile in metatiles:
            self.job.spool.commit(self._record(metatile))

    def _check(self) -> None:
        """Raise Stopped when the run is to end."""
        if self.stop.is_set():
            raise Stopped

    def _strip(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Memory for pixels, reused from task to task: fresh pages cost as much as packing what they hold."""
        size = math.prod(shape)
        if self._pixels.size < size:
            self._pixels = np.empty(size, np.float32)
        return self._pixels[:size].reshape(shape)

    def _metatile(self, pyramid_pass: PyramidPass, row: int, column: int) -> Metatile:
        tiling, spool = self.job.tiling, self.job.spool
        tile_rows = []
        for k in range(pyramid_pass.count):
            level, span = tiling.levels[pyramid_pass.first + k], tiling.span >> k
            across = min(span, level.tiles_across - column * span)
            shape = (across, *tiling.tile_shape(tiling.blocksize))
            tiles = np.empty(shape, self.job.quantiser.sample.name)
            tile_rows.append(
                TileRow(pyramid_pass.first + k, row * span, column * span, tiles, np.zeros(across, np.int64))
            )
        first = tiling.levels[pyramid_pass.first]
        columns = slice(column * tiling.side, min(first.width, (column + 1) * tiling.side))
        metatile = Metatile(
            (pyramid_pass.number, row, column),
            columns,
            tile_rows,
            statistics=QuantisationStatistics.zero(tiling.bands),
        )
        if pyramid_pass.carries_over:
            size = carry_over_bytes(tiling, pyramid_pass, row, column)
            metatile.carry_over = spool.reserve(carry_over_file(pyramid_pass.number), size)
        return metatile

    def _add(self, pyramid_pass: PyramidPass, metatile: Metatile, pixels: np.ndarray, *, last: bool) -> None:
        """Take a strip of a metatile through all levels of the pass.

        `last`: it ends at the metatile's edge.
        """
        for k, tile_row in enumerate(metatile.tile_rows):
            if k > 0:
                pixels = self._halved(pixels)
            self._fill(metatile, tile_row, pixels, last=last)
        if pyramid_pass.carries_over:
            data = np.ascontiguousarray(self._halved(pixels))
            started = time.thread_time()
            view = memoryview(data.data).cast("B")
            offset = metatile.carry_over + metatile.carry_over_written
            self.job.spool.write(carry_over_file(pyramid_pass.number), offset, view)
            metatile.carry_over_crc = zlib.crc32(view, metatile.carry_over_crc)
            metatile.carry_over_written += len(view)
            self.clock.write += time.thread_time() - started

    def _fill(self, metatile: Metatile, tile_row: TileRow, pixels: np.ndarray, *, last: bool) -> None:
        """Pack pixels of a level into its rows of tiles; full rows go to the spool."""
        side = self.job.tiling.blocksize
        while len(pixels):
            rows, pixels = np.split(pixels, [side - tile_row.filled])
            self._pack(metatile, tile_row, rows)
            if tile_row.filled == side or (last and not len(pixels)):
                self._flush(metatile, tile_row)

    def _halved(self, pixels: np.ndarray) -> np.ndarray:
        started = time.thread_time()
        height, width, bands = pixels.shape
        out = np.empty(((height + 1) // 2, (width + 1) // 2, bands), np.float32)
        _C.halve(pixels, out)
        self.clock.pack += time.thread_time() - started
        return out

    def _pack(self, metatile: Metatile, tile_row: TileRow, pixels: np.ndarray) -> None:
        started = time.thread_time()
        counted = tile_row.level == 0
        statistics = metatile.statistics if counted else QuantisationStatistics.zero(self.job.tiling.bands)
        before = int(tile_row.valid.sum())
        _C.pack_tiles(
            pixels,
            tile_row.tiles,
            first_row=tile_row.filled,
            dtype=self.job.quantiser.sample.name,
            predictor=self._predictor,
            inverse_scale=self._inverse_scale,
            offset=self._offset,
            clipped=statistics.clipped,
            overshoot=statistics.overshoot,
            valid=tile_row.valid,
            interleaved=self.job.tiling.interleaved,
        )
        statistics.valid += int(tile_row.valid.sum()) - before
        statistics.pixels += pixels.shape[0] * pixels.shape[1]
        tile_row.filled += pixels.shape[0]
        self.clock.pack += time.thread_time() - started

    def _flush(self, metatile: Metatile, tile_row: TileRow) -> None:
        """Compress a row of tiles and write it to the spool; `tile_row` is ready for the next one."""
        rows_axis = 1 if self.job.tiling.interleaved else 2
        np.moveaxis(tile_row.tiles, rows_axis, 0)[tile_row.filled :] = 0  # below the raster
        name = level_file(tile_row.level)
        for number, tile in enumerate(tile_row.tiles):
            self._check()
            started = time.thread_time()
            data, sizes = self._compressed(tile, empty=tile_row.valid[number] == 0)
            written_from = time.thread_time()
            offset = self.job.spool.reserve(name, len(data))
            self.job.spool.write(name, offset, data)
            column = tile_row.first_column + number
            metatile.tile_records.append((tile_row.level, tile_row.row, column, zlib.crc32(data), offset))
            metatile.sizes.append(sizes)
            self.clock.compress += written_from - started
            self.clock.write += time.thread_time() - written_from
        tile_row.row += 1
        tile_row.filled = 0
        tile_row.valid[:] = 0

    def _compressed(self, tile: np.ndarray, *, empty: bool) -> tuple[bytes, np.ndarray]:
        """All planes of a tile as the file has them: length before, end repeated after."""
        compress, planes = self._compress, tile[None] if self.job.tiling.interleaved else tile
        # A tile without data is the same in all bands.
        encoded = [compress(planes[0])] * len(planes) if empty else [compress(plane) for plane in planes]
        pieces: list[bytes] = []
        for data in encoded:
            pieces += (len(data).to_bytes(4, "little"), data, data[-4:].ljust(4, b"\0"))
        return b"".join(pieces), np.fromiter(map(len, encoded), np.uint32, len(encoded))

    def _record(self, metatile: Metatile) -> MetatileRecord:
        tile_records = np.array(metatile.tile_records, TILE_RECORD)
        return MetatileRecord(
            metatile.key,
            tile_records,
            np.stack(metatile.sizes),
            metatile.carry_over,
            metatile.carry_over_crc,
            metatile.statistics,
        )


def carry_over_bytes(tiling: Tiling, pyramid_pass: PyramidPass, row: int, column: int) -> int:
    """Bytes of the pixels that a metatile carries over to the next pass."""
    level, side = tiling.levels[pyramid_pass.first + pyramid_pass.count], tiling.blocksize // 2
    height, width = min(side, level.height - row * side), min(side, level.width - column * side)
    return 4 * tiling.bands * height * width


def run_tasks(
    tasks: list[Task],
    make_worker: Callable[[threading.Event, Callable[[int], None]], Worker],
    threads: int,
    advance: Callable[[int], None],
) -> Clock:
    """Have worker threads build all tasks; `advance` is called in this thread with pixels computed.

    The first exception of a worker, or KeyboardInterrupt here, stops the others and is raised when they have
    ended or after a second: one may hang in a write to a disk that is gone.
    """
    stop = threading.Event()
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    pending = iter(tasks)
    mutex = threading.Lock()

    def next_task() -> Task | None:
        with mutex:
            return next(pending, None)

    def work() -> None:
        worker = make_worker(stop, events.put)
        try:
            while not stop.is_set() and (task := next_task()) is not None:
                worker.build(task)
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
    """Handle the events of workers until all of them have ended; raise what one of them raised."""
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


def _strips(top: int, bottom: int, tiling: Tiling) -> Iterator[slice]:
    """Strips of a metatile."""
    while top < bottom:
        stop = min(bottom, top + tiling.strip_rows)
        yield slice(top, stop)
        top = stop

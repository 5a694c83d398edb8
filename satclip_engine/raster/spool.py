"""Temporary store of compressed tiles until the raster is complete; also the state of an interrupted run.

For OUTPUT `folder/name.tif` the spool is the folder `folder/.name.tif.satclip-spool`:

    lock                 held (flock) by the run that writes
    state.json           the request: grid, options, function, scales; never changes
    index                a record a finished metatile, appended when all its data is written
    level-0.tiles …      compressed tiles by level, in the order in which they were finished
    tier-0.remainder …   float32 pixels carried over, of which the next pass makes its metatiles
    output.tif           the assembled file, before it is checked and moved to its name

Nothing is forced to disk on the way. state.json carries the sha256 of itself; a record, which belongs to one
state, and every piece of data it names carry a CRC-32. All are verified when a run is resumed: after a crash,
what did not reach the disk is computed again, and a state that is not what was written is not resumed.

The folder is this user's own, and only files of these names are ever removed from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from satclip_engine.errors import Argument, OutputError, one_line
from satclip_engine.files import WorkingFolder, hidden_name, open_folder, temporary_name
from satclip_engine.quantize import QuantisationStatistics
from satclip_engine.raster.tiling import Tiling

Key = tuple[int, int, int]  # pass, row and column of a metatile

_MAGIC = b"SCSB"
_HEADER = struct.Struct("<4sII")  # magic, bytes of the body, CRC-32 of the body
_BODY = struct.Struct("<IIIQIQQII")  # key; carry-over's offset and CRC; valid, pixels; bands; tiles
READ_BYTES = 8 << 20
MAX_LEVELS = 32  # of a raster: sides of 2³² pixels
STATE, INDEX, OUTPUT = "state.json", "index", "output.tif"
_SEAL = "sha256"  # key of the state's own digest

# A finished tile: its row and column in a level, and where its bands lie, compressed: one after the other in
# the level's file, as the raster will have them.
TILE_RECORD = np.dtype(
    [("level", "<u4"), ("row", "<u4"), ("column", "<u4"), ("crc", "<u4"), ("offset", "<u8")]
)


@dataclass(eq=False)
class MetatileRecord:
    """A finished metatile."""

    key: Key
    tiles: np.ndarray  # (n,) TILE_RECORD
    sizes: np.ndarray  # (n, planes) uint32 bytes of a tile's planes, leaders and trailers not counted
    carry_over: int  # offset of the pixels that it carries over
    carry_over_crc: int
    statistics: QuantisationStatistics

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of every tile, all planes, (n,) int64: 4 before and 4 after each included."""
        return self.sizes.sum(axis=1, dtype=np.int64) + 8 * self.sizes.shape[1]

    def pack(self, seed: int) -> bytes:
        statistics = self.statistics
        head = (*self.key, self.carry_over, self.carry_over_crc, statistics.valid, statistics.pixels)
        arrays = [
            statistics.clipped.astype("<i8"),
            statistics.overshoot.astype("<f4"),
            self.tiles,
            self.sizes.astype("<u4"),
        ]
        body = _BODY.pack(*head, statistics.clipped.size, self.tiles.size) + b"".join(
            a.tobytes() for a in arrays
        )
        return _HEADER.pack(_MAGIC, len(body), zlib.crc32(body, seed)) + body

    @classmethod
    def unpack(cls, body: bytes) -> MetatileRecord:
        number, row, column, carry_over, crc, valid, pixels, bands, count = _BODY.unpack_from(body)
        offset = _BODY.size
        arrays = []
        for dtype, items in (("<i8", bands), ("<f4", bands), (TILE_RECORD, count), ("<u4", -1)):
            arrays.append(np.frombuffer(body, dtype, items, offset))
            offset += arrays[-1].nbytes
        clipped, overshoot, tiles, sizes = arrays
        statistics = QuantisationStatistics(
            clipped.astype(np.int64), overshoot.astype(np.float32), valid, pixels
        )
        return cls((number, row, column), tiles, sizes.reshape(count, -1), carry_over, crc, statistics)


class Spool:
    """An open spool. Threads may append and commit at once."""

    def __init__(self, folder: WorkingFolder, state: dict[str, Any]) -> None:
        self.folder = folder
        self.state = state
        self._seed = zlib.crc32(_digest(state).encode())  # of records' checksums
        self.finished: dict[Key, MetatileRecord] = {}
        self._files: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._mutex = threading.Condition()
        self._writing = 0
        self._closed = False

    @property
    def output(self) -> Path:
        """The path where the file is assembled."""
        return self.folder.path / OUTPUT

    def reserve(self, name: str, size: int) -> int:
        """Offset of `size` bytes at the end of a file that nobody else will write."""
        with self._mutex:
            self._descriptor(name)
            offset = self._ends[name]
            self._ends[name] = offset + size
            return offset

    def write(self, name: str, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data`; a full disk raises OSError."""
        with self._mutex:
            descriptor = self._descriptor(name)
            self._writing += 1
        try:
            write_all(descriptor, offset, data)
        finally:
            with self._mutex:
                self._writing -= 1
                self._mutex.notify_all()

    def read(self, name: str, offset: int, into: memoryview) -> None:
        """Fill `into` from a file. Raises OutputError when the file is shorter."""
        with self._mutex:
            descriptor = self._descriptor(name)
        while len(into):
            count = os.preadv(descriptor, [into], offset)
            if count == 0:
                raise OutputError(
                    f"{self.folder.path / name} is shorter than it was: run again without ",
                    Argument("resume"),
                )
            into, offset = into[count:], offset + count

    def commit(self, record: MetatileRecord) -> None:
        """Add a metatile whose data is all written to the index; nothing after the spool is closed."""
        packed = record.pack(self._seed)
        with self._mutex:
            if self._closed:
                return
            self._descriptor(INDEX)
            write_all(self._files[INDEX], self._ends[INDEX], packed)
            self._ends[INDEX] += len(packed)
            self.finished[record.key] = record

    def drop(self, name: str) -> None:
        """Remove a file that is no longer needed."""
        with self._mutex:
            if name in self._files:
                os.close(self._files.pop(name))
            self.folder.remove(name)

    @property
    def bytes(self) -> int:
        """Disk space that the spool takes."""
        return sum(map(self.folder.size, self.folder.names()))

    def close(self) -> None:
        """Close all files once nobody writes; threads that come later get an OutputError."""
        with self._mutex:
            self._closed = True
            while self._writing:
                self._mutex.wait()
            for descriptor in self._files.values():
                with contextlib.suppress(OSError):  # whoever resumes verifies what is there
                    os.close(descriptor)
            self._files.clear()

    def descriptor(self, name: str) -> int:
        with self._mutex:
            return self._descriptor(name)

    def _descriptor(self, name: str) -> int:
        if self._closed:
            raise OutputError(f"{self.folder.path} is closed")
        if name not in self._files:
            self._files[name] = self.folder.open(name)
            self._ends.setdefault(name, os.fstat(self._files[name]).st_size)
        return self._files[name]

    def recover(self, tiling: Tiling) -> None:
        """Read the index, keep metatiles whose data is intact, cut the files behind the last of them."""
        records = _records(self.folder.read(INDEX) or b"", self._seed)
        intact = [record for record in records if _fits(record, tiling) and self._intact(record)]
        packed = b"".join(record.pack(self._seed) for record in intact)
        self.folder.write(INDEX, packed)
        self.finished = {record.key: record for record in intact}
        ends = {name: 0 for level in range(MAX_LEVELS) if self.folder.has(name := level_file(level))}
        for record in intact:
            for tile, length in zip(record.tiles, record.lengths, strict=True):
                name = level_file(tile["level"])
                ends[name] = max(ends[name], int(tile["offset"]) + int(length))
        for name, end in ends.items():
            os.truncate(self.descriptor(name), end)
        self._ends.update(ends, index=len(packed))

    def _intact(self, record: MetatileRecord) -> bool:
        return all(
            self._crc(level_file(tile["level"]), int(tile["offset"]), int(length)) == tile["crc"]
            for tile, length in zip(record.tiles, record.lengths, strict=True)
        )

    def _crc(self, name: str, offset: int, length: int) -> int | None:
        """CRC-32 of a part of a file, None when it is not there."""
        if offset + length > self.folder.size(name) or not length:
            return None
        crc = 0
        descriptor = self.descriptor(name)
        while length:
            chunk = os.pread(descriptor, min(length, READ_BYTES), offset)
            if not chunk:
                return None
            crc = zlib.crc32(chunk, crc)
            offset, length = offset + len(chunk), length - len(chunk)
        return crc

    def carry_over_intact(self, record: MetatileRecord, length: int) -> bool:
        """True where the pixels that the next pass needs of this metatile are on disk."""
        return self._crc(carry_over_file(record.key[0]), record.carry_over, length) == record.carry_over_crc


def level_file(level: int) -> str:
    return f"level-{level}.tiles"


def carry_over_file(number: int) -> str:
    return f"tier-{number}.remainder"


def spool_folder(path: Path) -> Path:
    """The spool of an output."""
    return path.parent / hidden_name(path.name, ".satclip-spool", path.parent)


def own_names() -> list[str]:
    """Names of all files that a spool may hold, but the lock."""
    levels = range(MAX_LEVELS)
    names = [STATE, INDEX, OUTPUT, *map(level_file, levels), *map(carry_over_file, levels)]
    return [*names, *(temporary_name(name, Path()) for name in (STATE, INDEX))]


def read_state(path: Path) -> dict[str, Any] | None:
    """The state that an interrupted run left in a folder; None when there is none that can be used."""
    try:
        with open_folder(path, private=True) as folder:
            return state_of(folder)
    except OSError:
        return None


def state_of(folder: WorkingFolder) -> dict[str, Any] | None:
    """The state that an interrupted run left in an open folder, to the letter as it was written, or None."""
    try:
        state = json.loads(folder.read(STATE) or b"null")
        whole = isinstance(state, dict) and state.pop(_SEAL, None) == _digest(state)
    except (ValueError, RecursionError):
        return None
    return state if whole else None


def write_state(folder: WorkingFolder, state: dict[str, Any]) -> None:
    """Write state.json whole or not at all, with its digest."""
    folder.write(STATE, json.dumps({_SEAL: _digest(state), **state}).encode())


def _digest(state: dict[str, Any]) -> str:
    """Digest of a state, which JSON does not change: of floats it keeps every bit."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def empty_folder(folder: WorkingFolder) -> None:
    """Remove what an earlier run left, but the lock. Raises OutputError for what is not ours."""
    folder.remove(*own_names())


def remove_folder(folder: WorkingFolder) -> None:
    """Remove a spool; what is not ours in it stays, and a note says so."""
    if foreign := folder.dissolve(own_names()):
        warnings.warn(
            one_line(f"{folder.path} is left, because it holds {foreign[0]}, which is not ours"), stacklevel=2
        )


def write_all(descriptor: int, offset: int, data: bytes | memoryview) -> None:
    """os.pwrite until everything is written; the last bytes before a full disk come as a short count."""
    view = memoryview(data).cast("B")
    while len(view):
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _records(data: bytes, seed: int) -> Iterator[MetatileRecord]:
    """Records of an index up to the first that is incomplete, damaged or of another state."""
    start = 0
    while start + _HEADER.size <= len(data):
        magic, length, crc = _HEADER.unpack_from(data, start)
        packed = data[start : start + _HEADER.size + length]
        body = packed[_HEADER.size :]
        if magic != _MAGIC or len(body) != length or zlib.crc32(body, seed) != crc:
            return
        try:
            record = MetatileRecord.unpack(body)
            if record.pack(seed) != packed:
                return
        except (struct.error, ValueError):  # shorter than its own counts
            return
        yield record
        start += len(packed)


def _fits(record: MetatileRecord, tiling: Tiling) -> bool:
    """True for a record of a metatile and of tiles that the raster has."""
    number, row, column = record.key
    tiles, passes = record.tiles, tiling.passes
    if number >= len(passes) or row >= passes[number].rows or column >= passes[number].columns:
        return False
    if not tiles.size or tiles["level"].max() >= len(tiling.levels):
        return False
    down, across = np.array([(level.tiles_down, level.tiles_across) for level in tiling.levels]).T
    inside = (tiles["row"] < down[tiles["level"]]) & (tiles["column"] < across[tiles["level"]])
    planes = record.sizes.shape[1]  # one where a tile holds all bands
    return (
        bool(inside.all()) and planes in (1, tiling.bands) and record.statistics.clipped.size == tiling.bands
    )

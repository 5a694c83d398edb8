"""Where finished work waits until the raster is complete: compressed tiles, and what a run can go on from.

For OUTPUT `folder/name.tif` the spool is the folder `folder/.name.tif.satclip-spool`:

    lock                 held (flock) by the run that writes
    state.json           what is being made: grid, options, function, scales; never changes
    index                a record a finished superblock, appended when all its data is written
    level-0.tiles …      compressed tiles by level, in the order in which they were finished
    tier-0.remainder …   float32 pixels that the next tier of superblocks is made from
    output.tif           the assembled file, before it is checked and moved to its name

Nothing is forced to disk on the way. A record and every piece of data it names carry a CRC-32, which is
verified when a run goes on: after a crash, what did not reach the disk is computed again.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from satclip_engine.errors import OutputError
from satclip_engine.files import replace_file
from satclip_engine.quantize import Tally

Key = tuple[int, int, int]  # tier, row and column of a superblock

_MAGIC = b"SCSB"
_HEADER = struct.Struct("<4sII")  # magic, bytes of the body, CRC-32 of the body
_BODY = struct.Struct("<IIIQIQQII")  # key; remainder's offset and CRC; valid, pixels; bands; places
_READ = 8 << 20

# A tile's place in a level, and where the compressed tiles of all its bands lie: one after the other in the
# level's file, as the raster will have them.
PLACE = np.dtype([("level", "<u4"), ("row", "<u4"), ("column", "<u4"), ("crc", "<u4"), ("offset", "<u8")])


@dataclass(eq=False)
class Record:
    """A finished superblock."""

    key: Key
    places: np.ndarray  # (n,) PLACE
    sizes: np.ndarray  # (n, E) uint32 bytes of every band's tile, leader and trailer not counted
    remainder: int  # offset of its remainder
    remainder_crc: int
    tally: Tally

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of every place, (n,) int64: 4 before and 4 after each tile included."""
        return self.sizes.sum(axis=1, dtype=np.int64) + 8 * self.sizes.shape[1]

    def pack(self) -> bytes:
        tally = self.tally
        head = (*self.key, self.remainder, self.remainder_crc, tally.valid, tally.pixels)
        arrays = [
            tally.clipped.astype("<i8"),
            tally.excess.astype("<f4"),
            self.places,
            self.sizes.astype("<u4"),
        ]
        body = _BODY.pack(*head, tally.clipped.size, self.places.size) + b"".join(a.tobytes() for a in arrays)
        return _HEADER.pack(_MAGIC, len(body), zlib.crc32(body)) + body

    @classmethod
    def unpack(cls, body: bytes) -> Record:
        tier, row, column, remainder, crc, valid, pixels, bands, count = _BODY.unpack_from(body)
        at = _BODY.size
        arrays = []
        for dtype, items in (("<i8", bands), ("<f4", bands), (PLACE, count), ("<u4", count * bands)):
            arrays.append(np.frombuffer(body, dtype, items, at))
            at += arrays[-1].nbytes
        clipped, excess, places, sizes = arrays
        tally = Tally(clipped.astype(np.int64), excess.astype(np.float32), valid, pixels)
        return cls((tier, row, column), places, sizes.reshape(count, bands), remainder, crc, tally)


class Spool:
    """An open spool; made by `open_spool`. Threads may append and commit at once."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder = folder
        self.state = state
        self.finished: dict[Key, Record] = {}
        self._files: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._mutex = threading.Condition()
        self._writing = 0
        self._closed = False

    @property
    def output(self) -> Path:
        """Where the file is assembled."""
        return self.folder / "output.tif"

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
                raise OutputError(f"{self.folder / name} is shorter than it was: start afresh")
            into, offset = into[count:], offset + count

    def commit(self, record: Record) -> None:
        """Add a superblock whose data is all written to the index; nothing after the spool is closed."""
        packed = record.pack()
        with self._mutex:
            if self._closed:
                return
            self._descriptor("index")
            write_all(self._files["index"], self._ends["index"], packed)
            self._ends["index"] += len(packed)
            self.finished[record.key] = record

    def drop(self, name: str) -> None:
        """Remove a file that is no longer needed."""
        with self._mutex:
            if name in self._files:
                os.close(self._files.pop(name))
            (self.folder / name).unlink(missing_ok=True)

    @property
    def bytes(self) -> int:
        """Disk space that the spool takes."""
        return sum(entry.stat().st_size for entry in self.folder.iterdir())

    def close(self) -> None:
        """Close all files once nobody writes; threads that come later get an OutputError."""
        with self._mutex:
            self._closed = True
            while self._writing:
                self._mutex.wait()
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()

    def descriptor(self, name: str) -> int:
        with self._mutex:
            return self._descriptor(name)

    def _descriptor(self, name: str) -> int:
        if self._closed:
            raise OutputError(f"{self.folder} is closed")
        if name not in self._files:
            self._files[name] = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._ends.setdefault(name, os.fstat(self._files[name]).st_size)
        return self._files[name]

    def recover(self) -> None:
        """Read the index, keep superblocks whose data is intact, cut the files behind the last of them."""
        path = self.folder / "index"
        kept = [r for r in _records(path.read_bytes() if path.exists() else b"") if self._intact(r)]
        packed = b"".join(record.pack() for record in kept)
        replace_file(path, packed)
        self.finished = {record.key: record for record in kept}
        ends: dict[str, int] = {"index": len(packed)}
        for file in self.folder.glob("level-*.tiles"):
            ends[file.name] = 0
        for record in kept:
            for place, length in zip(record.places, record.lengths, strict=True):
                name = level_file(place["level"])
                ends[name] = max(ends[name], int(place["offset"]) + int(length))
        for name, end in ends.items():
            if name != "index":
                os.truncate(self.folder / name, end)
        self._ends.update(ends)

    def _intact(self, record: Record) -> bool:
        return all(
            self._crc(level_file(place["level"]), int(place["offset"]), int(length)) == place["crc"]
            for place, length in zip(record.places, record.lengths, strict=True)
        )

    def _crc(self, name: str, offset: int, length: int) -> int | None:
        """CRC-32 of a part of a file, None when it is not there."""
        if not (self.folder / name).exists():
            return None
        crc = 0
        descriptor = self.descriptor(name)
        while length:
            chunk = os.pread(descriptor, min(length, _READ), offset)
            if not chunk:
                return None
            crc = zlib.crc32(chunk, crc)
            offset, length = offset + len(chunk), length - len(chunk)
        return crc

    def remainder_intact(self, record: Record, length: int) -> bool:
        """Whether the pixels that the next tier needs of this superblock are on disk."""
        return self._crc(remainder_file(record.key[0]), record.remainder, length) == record.remainder_crc


def level_file(level: int) -> str:
    return f"level-{level}.tiles"


def remainder_file(tier: int) -> str:
    return f"tier-{tier}.remainder"


def spool_folder(path: Path) -> Path:
    """The spool of an output."""
    return path.parent / f".{path.name}.satclip-spool"


def read_state(folder: Path) -> dict[str, Any] | None:
    """What an interrupted run left as its state; None when there is none that can be used."""
    try:
        state = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(state, dict) and {"request", "quantiser", "span", "overwrite"} <= state.keys()
    return state if whole else None


def empty_folder(folder: Path) -> None:
    """Remove what an earlier run left, but the lock."""
    for entry in folder.iterdir():
        if entry.name != "lock":
            entry.unlink()


def remove_folder(folder: Path) -> None:
    """Remove a spool; the lock goes last, so that no other run takes a folder that is about to go."""
    empty_folder(folder)
    shutil.rmtree(folder, ignore_errors=True)


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write state.json whole or not at all."""
    replace_file(folder / "state.json", json.dumps(state).encode())


def write_all(descriptor: int, offset: int, data: bytes | memoryview) -> None:
    """os.pwrite until everything is written; the last bytes before a full disk come as a short count."""
    view = memoryview(data).cast("B")
    while len(view):
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _records(data: bytes) -> Iterator[Record]:
    """Records of an index up to the first that is incomplete or damaged."""
    at = 0
    while at + _HEADER.size <= len(data):
        magic, length, crc = _HEADER.unpack_from(data, at)
        body = data[at + _HEADER.size : at + _HEADER.size + length]
        if magic != _MAGIC or len(body) != length or zlib.crc32(body) != crc:
            return
        yield Record.unpack(body)
        at += _HEADER.size + length

"""Arrays of an atlas as they lie in its file: shapes, codecs, and chunks, checked before they unpack."""

from __future__ import annotations

import base64
import binascii
import functools
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from satclip_engine._optional import need
from satclip_engine.errors import WeightsError
from satclip_engine.lattice.nodes import BLOCK_COLUMNS, BLOCK_ROWS
from satclip_engine.lattice.zones import Zone

STATISTICS: Final = "statistics"
METADATA: Final = "zarr.json"
_ZSTD_LEVEL = 5  # of zstd: 9 takes ten times as long for 2 % less
_MAX_METADATA_BYTES: Final = 64 << 20  # 256 bands and 20,000 chunks take 0.2 MB
_READ_BYTES: Final = 1 << 16  # of a web server's answer at once
_SUM_BYTES, _BLOSC_HEADER_BYTES = 4, 16


@dataclass(frozen=True)
class Layout:
    """Layout of an array: shape, chunks, numbers, and the order of a chunk's axes if it is another."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    shuffle: str
    order: tuple[int, ...]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk, unpacked."""
        return math.prod(self.chunks) * np.dtype(self.dtype).itemsize

    @property
    def largest_chunk(self) -> int:
        """Bytes of a chunk in the file, at most."""
        return self.chunk_bytes + _BLOSC_HEADER_BYTES + _SUM_BYTES

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks along each axis."""
        return tuple(-(-n // k) for n, k in zip(self.shape, self.chunks, strict=True))

    def created(self) -> dict[str, Any]:
        """Arguments of Zarr's create_array."""
        codecs = zarr().codecs
        itemsize = np.dtype(self.dtype).itemsize
        return {
            "shape": self.shape,
            "chunks": self.chunks,
            "dtype": self.dtype,
            "filters": [codecs.TransposeCodec(order=self.order)] if self.order else [],
            "compressors": [
                codecs.BloscCodec(cname="zstd", clevel=_ZSTD_LEVEL, shuffle=self.shuffle, typesize=itemsize),
                codecs.Crc32cCodec(),
            ],
            "config": {"write_empty_chunks": True},
            "overwrite": True,
        }

    def is_of(self, array: Any) -> bool:
        """True for an array that was created so."""
        if not hasattr(array, "chunks"):  # a group, or nothing
            return False
        content = array.metadata.to_dict()
        codecs = [(codec["name"], dict(codec.get("configuration", {}))) for codec in content["codecs"]]
        blosc = {"cname": "zstd", "shuffle": self.shuffle, "typesize": np.dtype(self.dtype).itemsize}
        return (
            tuple(content["shape"]) == self.shape
            and np.dtype(array.dtype) == np.dtype(self.dtype)
            and tuple(array.chunks) == self.chunks
            and content["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and [name for name, _ in codecs]
            == ["transpose"] * bool(self.order) + ["bytes", "blosc", "crc32c"]
            and (not self.order or tuple(codecs[0][1]["order"]) == self.order)
            and codecs[-3][1] == {"endian": "little"}
            and {name: codecs[-2][1].get(name) for name in blosc} == blosc
        )


def zone_layout(zone: Zone, dtype: str, bands: int) -> Layout:
    """Layout of a zone's array. Neighbouring nodes of a band are alike, neighbouring bands are not."""
    shuffle = "bitshuffle" if dtype == "int16" else "shuffle"
    shape = (len(array_rows(zone)), zone.columns, bands)
    return Layout(shape, (BLOCK_ROWS, BLOCK_COLUMNS, bands), dtype, shuffle, (2, 0, 1))


def statistics_layout(bands: int) -> Layout:
    shape = (2, bands * (bands + 1) // 2)
    return Layout(shape, shape, "float32", "shuffle", ())


@dataclass(frozen=True)
class ChunkSums:
    """CRC-32C of every chunk, as it ends in it: of zones by row and column, and of the statistics."""

    zones: tuple[np.ndarray, ...]  # uint32
    statistics: int

    @property
    def counts(self) -> list[int]:
        return [sums.size for sums in self.zones]

    def as_dict(self) -> dict[str, Any]:
        """For the attributes."""
        texts = [base64.b64encode(sums.astype("<u4").tobytes()).decode() for sums in self.zones]
        return {"chunk_crc32c": texts, "statistics_crc32c": self.statistics}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ChunkSums:
        """Raises ValueError for what is no such text."""
        try:
            contents = [base64.b64decode(text, validate=True) for text in content["chunk_crc32c"]]
        except binascii.Error as error:
            raise ValueError(f"chunk_crc32c: {error}") from error
        if any(len(sums) % _SUM_BYTES for sums in contents):
            raise ValueError("chunk_crc32c: not a sum for each chunk")
        zones = tuple(np.frombuffer(sums, "<u4") for sums in contents)
        return cls(zones, content["statistics_crc32c"])

    @classmethod
    def of_files(cls, folder: Path, layouts: Sequence[Layout]) -> ChunkSums:
        """The sums of an atlas's files, of zones of these layouts. Raises OSError."""
        zones = tuple(
            np.array(
                [
                    _last_sum(folder / array_name(k) / "c" / str(row) / str(column) / "0")
                    for row in range(layout.grid[0])
                    for column in range(layout.grid[1])
                ],
                np.uint32,
            )
            for k, layout in enumerate(layouts)
        )
        return cls(zones, _last_sum(folder / STATISTICS / "c" / "0" / "0"))


def _last_sum(path: Path) -> int:
    with path.open("rb") as file:
        file.seek(-_SUM_BYTES, os.SEEK_END)
        return int.from_bytes(file.read(_SUM_BYTES), "little")


def bounded_options(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a URL's file system with which answers of any length are not read to their end.

    Other protocols than HTTP give no more than the bytes that are asked for; a web server may.
    """
    if not url.startswith(("http://", "https://")):
        return options
    client = {"response_class": _bounded_response_class(), **options.get("client_kwargs", {})}
    return {**options, "client_kwargs": client}


@functools.cache
def _bounded_response_class() -> Any:
    base: Any = need("aiohttp", extra="atlas", why="an atlas at a URL").ClientResponse

    class BoundedResponse(base):
        async def read(self) -> bytes:
            content = bytearray()
            async for piece in self.content.iter_chunked(_READ_BYTES):
                content += piece
                if max(len(content), self.content_length or 0) > _MAX_METADATA_BYTES:
                    self.close()
                    raise WeightsError(
                        f"{self.url}: more than the {_MAX_METADATA_BYTES} bytes that an atlas's file can have"
                    )
            return bytes(content)

    return BoundedResponse


def checked_store(store: Any, source: str) -> Any:
    """A Zarr store of `store` whose metadata and chunks are checked as they are read; raises WeightsError.

    `expect` names the arrays and the sums of their chunks.
    """
    return _checked_store_class()(store, source)


@functools.cache
def _checked_store_class() -> Any:
    library = zarr()

    base: Any = library.storage.WrapperStore  # Zarr is optional

    class CheckedStore(base):
        def __init__(self, store: Any, source: str) -> None:
            super().__init__(store)
            self._checks = _Checks(source)

        @property
        def layouts(self) -> Mapping[str, Layout]:
            return self._checks.layouts

        def _with_store(self, store: Any) -> Any:
            return type(self)(store, self._checks.source)

        def expect(self, layouts: Mapping[str, Layout], sums: ChunkSums | None) -> None:
            self._checks.layouts, self._checks.sums = layouts, sums

        async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
            root = getattr(self._store, "root", None)
            if root is not None:
                self._checks.check_file(Path(root) / key, key)
            limit = self._checks.most_bytes(key)
            bounded = byte_range or library.abc.store.RangeByteRequest(0, limit + 1)
            content = await self._store.get(key, prototype, bounded)
            self._checks.check_content(content, key)
            return content

    return CheckedStore


class _Checks:
    """Checks of files and chunks against what the metadata say of them. Raises WeightsError."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sums: ChunkSums | None = None
        self.layouts: Mapping[str, Layout] = {}

    def most_bytes(self, key: str) -> int:
        """Bytes that a chunk, or the metadata, can have."""
        layout = self._layout(key)
        return _MAX_METADATA_BYTES if layout is None else layout.largest_chunk

    def check_file(self, path: Path, key: str) -> None:
        """Refuse what is waited for without end, such as a pipe or device, and what is too large."""
        try:
            status = os.stat(path)
        except OSError:
            return  # Zarr says what is wrong with it
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise self._damaged(f"{key} is no file")
        if stat.S_ISREG(status.st_mode):
            self._check_size(status.st_size, key)

    def check_content(self, content: Any, key: str) -> None:
        """Refuse a chunk that is missing, of another size or of another position; content: Zarr's buffer."""
        layout = self._layout(key)
        if layout is not None and content is None:
            raise WeightsError(f"{self.source}: the atlas is incomplete: chunk {key} is missing")
        if content is not None:
            self._check_size(len(content), key)
        if layout is not None:
            self._check_chunk(content.to_bytes(), layout, key)

    def _layout(self, key: str) -> Layout | None:
        return None if key.endswith(METADATA) else self.layouts.get(key.partition("/")[0])

    def _check_size(self, size: int, key: str) -> None:
        limit = self.most_bytes(key)
        if size > limit:
            raise self._damaged(f"{key} has more than the {limit} bytes that it can have")

    def _check_chunk(self, content: bytes, layout: Layout, key: str) -> None:
        unpacked, packed = (int.from_bytes(content[k : k + 4], "little") for k in (4, 12))
        if unpacked != layout.chunk_bytes or packed != len(content) - _SUM_BYTES:
            raise self._damaged(f"{key} is no chunk of its array")
        if self.sums is not None and content[-_SUM_BYTES:] != self._sum(layout, key, self.sums):
            raise self._damaged(f"{key} is a chunk of another place or atlas")

    def _sum(self, layout: Layout, key: str, sums: ChunkSums) -> bytes:
        name, _, position = key.partition("/c/")
        if name == STATISTICS:
            return int(sums.statistics).to_bytes(_SUM_BYTES, "little")
        row, column, _ = map(int, position.split("/"))
        zone = list(self.layouts).index(name)
        return int(sums.zones[zone][row * layout.grid[1] + column]).to_bytes(_SUM_BYTES, "little")

    def _damaged(self, reason: str) -> WeightsError:
        return WeightsError(f"{self.source}: the atlas is damaged: {reason}")


def array_name(zone: int) -> str:
    return f"zone{zone:02}"


def array_rows(zone: Zone) -> range:
    """The rows of nodes that a zone's array holds: those stored, and on to whole chunks."""
    rows = zone.row_range
    first, last = rows.start // BLOCK_ROWS, (rows.stop - 1) // BLOCK_ROWS
    return range(first * BLOCK_ROWS, (last + 1) * BLOCK_ROWS)


def chunks_of(zone: Zone) -> tuple[int, int]:
    """Rows and columns of chunks of a zone's array."""
    return len(array_rows(zone)) // BLOCK_ROWS, -(-zone.columns // BLOCK_COLUMNS)


def zarr() -> Any:
    """The library. Raises MissingExtra."""
    return need("zarr", extra="atlas", why="an atlas file")

"""Reading over HTTP, counted: a server of byte ranges on loopback, and stand-ins for large rasters."""

from __future__ import annotations

import contextlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from satclip_engine.raster.cog import TileIndex, lay_out, plane_starts
from satclip_engine.raster.spool import write_all
from satclip_engine.raster.tiff import (
    GDAL_METADATA,
    GEO_TAGS,
    TILE_BYTE_COUNTS,
    TILE_OFFSETS,
    Ifd,
    Tag,
    read_ifds,
)
from satclip_engine.raster.tiling import Tiling

PIECE_BYTES = 1 << 20  # read and sent at once
_SIZE_TAGS = (254, 256, 257)  # NewSubfileType, ImageWidth, ImageLength
_FULL_RESOLUTION_TAGS = (305, GDAL_METADATA, *GEO_TAGS)  # Software, bands' tags, where the raster lies


class RangeServer:
    """A server of a folder's files on loopback that remembers which bytes were asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # First byte and number of bytes of every answer; 0 bytes of one without content (HEAD, 404).
        self.ranges: list[tuple[int, int]] = []
        handler = type("Handler", (_RangeHandler,), {"server_state": self})
        self._server = _Server(("127.0.0.1", 0), handler)

    def __enter__(self) -> RangeServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{name}"

    @property
    def cost(self) -> tuple[int, int]:
        """Requests and bytes since the last call of `reset`."""
        return len(self.ranges), sum(size for _, size in self.ranges)

    def reset(self) -> None:
        self.ranges.clear()


class _Server(ThreadingHTTPServer):
    request_queue_size, daemon_threads = 1024, True  # readers open a connection for each of many ranges


class _RangeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept, as by every store of objects
    wbufsize, disable_nagle_algorithm = 1 << 16, True  # one packet a small answer
    server_state: RangeServer

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def _answer(self, *, with_content: bool) -> None:
        path = self.server_state.folder / Path(self.path).name
        if not path.is_file():
            self.server_state.ranges.append((0, 0))
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        asked = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        first = int(asked[0] or 0)
        last = min(int(asked[2] or size - 1), size - 1)
        self.send_response(206 if asked[1] else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if asked[1]:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        self.server_state.ranges.append((first, last - first + 1 if with_content else 0))
        if with_content:
            self._send(path, first, last + 1)

    def _send(self, path: Path, first: int, end: int) -> None:
        with path.open("rb") as file, contextlib.suppress(ConnectionError):  # a reader may have enough
            file.seek(first)
            while (position := file.tell()) < end:
                self.wfile.write(file.read(min(PIECE_BYTES, end - position)))

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def write_stand_in(source: Path, target: Path, tiling: Tiling, tiles: list[tuple[int, int, int]]) -> int:
    """Write a raster as large as `tiling` says, of which only some tiles are there; its size in bytes.

    Its header, tags and index are those that a whole raster would have whose tiles all compress as the first
    one of `source` does, a raster of the same bands, type, blocks and order. The rest of the file is a hole
    that takes no disk. tiles: level, row and column of those that hold `source`'s first tile.
    """
    with source.open("rb") as file:
        ifd = read_ifds(lambda offset, size: os.pread(file.fileno(), size, offset))[0]
        offsets, sizes = (
            ifd.tags[code].values.astype(np.int64).reshape(tiling.planes, -1)[:, 0]
            for code in (TILE_OFFSETS, TILE_BYTE_COUNTS)
        )
        planes = [
            os.pread(file.fileno(), size + 8, offset - 4)
            for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True)
        ]
    indexes = [
        TileIndex(np.zeros(level.tiles, np.int64), np.tile(sizes.astype(np.uint32), (level.tiles, 1)))
        for level in tiling.levels
    ]
    layout = lay_out(_level_tags(ifd, tiling), indexes, tiling)
    starts = [plane_starts(index, band_major=tiling.band_major) for index in indexes]
    with target.open("wb") as file:
        file.write(layout.head)
        file.truncate(layout.size)
        for level, row, column in tiles:
            positions = starts[level][row * tiling.levels[level].tiles_across + column]
            for position, plane in zip(positions.tolist(), planes, strict=True):
                write_all(file.fileno(), layout.starts[level] + position, plane)
    return layout.size


def _level_tags(ifd: Ifd, tiling: Tiling) -> list[list[Tag]]:
    """The tags of every level of a larger raster."""
    common = [
        tag for code, tag in ifd.tags.items() if code not in (*_SIZE_TAGS, TILE_OFFSETS, TILE_BYTE_COUNTS)
    ]
    levels = []
    for number, level in enumerate(tiling.levels):
        own = [tag for tag in common if number == 0 or tag.code not in _FULL_RESOLUTION_TAGS]
        numbers = zip(_SIZE_TAGS, (1 if number else 0, level.width, level.height), strict=True)
        levels.append([*own, *(Tag.of(code, 4, value) for code, value in numbers)])
    return levels

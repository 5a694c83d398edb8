"""The TIFF container: tags to bytes and bytes to tags, classic and BigTIFF, little-endian.

Only what a cloud-optimised raster needs: image file directories (IFDs) whose values follow them, tile indexes
after all of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

ASCII, SHORT, LONG, DOUBLE, LONG8 = 2, 3, 4, 12, 16
_FIELD_DTYPES = {1: "<u1", ASCII: "S1", SHORT: "<u2", LONG: "<u4", DOUBLE: "<f8", LONG8: "<u8"}

TILE_OFFSETS, TILE_BYTE_COUNTS = 324, 325
GDAL_METADATA = 42112  # XML
GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)  # ModelPixelScale … GeoAsciiParams


@dataclass(frozen=True, eq=False)
class Tag:
    """One entry of an IFD."""

    code: int
    type: int
    values: np.ndarray

    @classmethod
    def of(cls, code: int, kind: int, values: Any) -> Tag:
        """From a number, a sequence, or text for ASCII (stored as UTF-8, as GDAL does)."""
        if kind == ASCII:
            return cls(code, kind, np.frombuffer(values.encode() + b"\0", "S1"))
        return cls(code, kind, np.atleast_1d(np.asarray(values, _FIELD_DTYPES[kind])))

    @property
    def data(self) -> bytes:
        return self.values.tobytes()


@dataclass(frozen=True)
class TiffVariant:
    """Classic TIFF (offsets of 4 bytes) or BigTIFF (8)."""

    big: bool

    @property
    def offset_type(self) -> int:
        return LONG8 if self.big else LONG

    @property
    def _entry(self) -> str:
        return "<HHQ" if self.big else "<HHI"

    @property
    def _word(self) -> int:
        return 8 if self.big else 4

    def header(self, first: int) -> bytes:
        """The file's first 16 or 8 bytes; `first`: offset of the first IFD."""
        if self.big:
            return struct.pack("<2sHHHQ", b"II", 43, 8, 0, first)
        return struct.pack("<2sHI", b"II", 42, first)

    def ifd_bytes(self, tags: list[Tag]) -> int:
        """Length of an IFD without the values that do not fit into its entries."""
        return (8 if self.big else 2) + len(tags) * (20 if self.big else 12) + self._word

    def is_inline(self, tag: Tag) -> bool:
        return tag.values.nbytes <= self._word

    def ifd(self, tags: list[Tag], offsets: dict[int, int], following: int) -> bytes:
        """An IFD in order of tag codes; `offsets`: of values that are not inline, by code."""
        word = "<Q" if self.big else "<I"
        pieces = [struct.pack("<Q" if self.big else "<H", len(tags))]
        for tag in sorted(tags, key=lambda tag: tag.code):
            pieces.append(struct.pack(self._entry, tag.code, tag.type, tag.values.size))
            inline = self.is_inline(tag)
            pieces.append(
                tag.data.ljust(self._word, b"\0") if inline else struct.pack(word, offsets[tag.code])
            )
        pieces.append(struct.pack(word, following))
        return b"".join(pieces)


@dataclass(frozen=True, eq=False)
class Ifd:
    """An image file directory that was read: its offset, and its tags by code."""

    offset: int
    tags: dict[int, Tag]
    offsets: dict[int, int]  # of every tag's values

    def value(self, code: int, default: Any = None) -> Any:
        """The first value of a tag."""
        return self.tags[code].values[0].item() if code in self.tags else default


def read_ifds(read: Callable[[int, int], bytes]) -> list[Ifd]:
    """All IFDs of a TIFF; read(offset, size) gives bytes. Raises ValueError when it is not one."""
    start = read(0, 16)
    if start[:4] == b"II*\0":
        word, count_size, entry_size, (position,) = 4, 2, 12, struct.unpack_from("<I", start, 4)
    elif start[:4] == b"II+\0":
        word, count_size, entry_size, (position,) = 8, 8, 20, struct.unpack_from("<Q", start, 8)
    else:
        raise ValueError("not a little-endian TIFF")
    ifds: list[Ifd] = []
    while position:
        count = int.from_bytes(read(position, count_size), "little")
        entries = read(position + count_size, count * entry_size + word)
        tags, offsets = {}, {}
        for k in range(count):
            code, kind = struct.unpack_from("<HH", entries, k * entry_size)
            size = int.from_bytes(entries[k * entry_size + 4 : k * entry_size + 4 + word], "little")
            if kind not in _FIELD_DTYPES:
                continue
            value = k * entry_size + 4 + word
            length = size * np.dtype(_FIELD_DTYPES[kind]).itemsize
            inline = length <= word
            offset = int.from_bytes(entries[value : value + word], "little")
            data = entries[value : value + length] if inline else read(offset, length)
            tags[code] = Tag(code, kind, np.frombuffer(data, _FIELD_DTYPES[kind]))
            offsets[code] = position + count_size + value if inline else offset
        ifds.append(Ifd(position, tags, offsets))
        position = int.from_bytes(entries[count * entry_size :], "little")
    return ifds

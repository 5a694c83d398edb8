"""Layout, assembly and check of a Cloud-Optimized GeoTIFF.

    header · GDAL's note about the layout · IFDs with their values, full resolution first · GDAL's metadata ·
    tile indexes · tiles of the smallest overview · … · tiles of full resolution

The metadata of hundreds of bands are long: behind all IFDs they come with one read, and nothing after them.

Bands are interleaved in one of three ways. *tile*: they are separate planes (PlanarConfiguration 2), so three
of 256 bands are cheap to read, but tiles are ordered by row and column, then band, so all bands of a pixel
are one contiguous range (GDAL ≥ 3.11: INTERLEAVE=TILE). *band*: planes too, all tiles of a band together.
*pixel*: a tile holds all bands (PlanarConfiguration 1), so the index has one entry for all of them. Each
plane of a tile is preceded by its length and followed by a repetition of its last four bytes, as GDAL's COG
driver does it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from satclip_engine.errors import Argument, OutputError
from satclip_engine.quantize import Quantiser
from satclip_engine.raster.codec import Codec
from satclip_engine.raster.spool import OUTPUT, MetatileRecord, Spool, level_file, write_all
from satclip_engine.raster.tiff import (
    ASCII,
    GDAL_METADATA,
    LONG,
    SHORT,
    TILE_BYTE_COUNTS,
    TILE_OFFSETS,
    Ifd,
    Tag,
    TiffVariant,
    read_ifds,
)
from satclip_engine.raster.tiling import Level, Tiling

CLASSIC_TIFF_BYTES = 2**32 - 2**16  # a larger file is a BigTIFF
COPY_BYTES = 8 << 20  # bytes copied at once where the kernel cannot do it
TRANSPOSED_BYTES = 64 << 20  # tiles read at once to be ordered by band: a run is 250 kB of 256 bands
INDEX_TAGS = (TILE_OFFSETS, TILE_BYTE_COUNTS)
MAX_CHECKED_TILES = 4096  # of a level, whose leader and trailer are compared


@dataclass(frozen=True, eq=False)
class TileIndex:
    """Tiles of one level in row-major order, all planes of each together: offsets in the spool, lengths."""

    offsets: np.ndarray  # (n,) int64 in the level's file
    sizes: np.ndarray  # (n, planes) uint32

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each tile, all planes, leaders and trailers included."""
        return self.sizes.sum(axis=1, dtype=np.int64) + 8 * self.sizes.shape[1]


@dataclass(frozen=True, eq=False)
class CogLayout:
    """Layout of a file: everything before the tiles, and where each level's tiles begin."""

    head: bytes
    starts: list[int]  # by level
    size: int


def collect(records: Iterable[MetatileRecord], levels: tuple[Level, ...], planes: int) -> list[TileIndex]:
    """The tile index of every level. Raises OutputError when a tile is missing."""
    indexes = [
        TileIndex(np.full(v.tiles, -1, np.int64), np.zeros((v.tiles, planes), np.uint32)) for v in levels
    ]
    for record in records:
        for number in np.unique(record.tiles["level"]):
            chosen = record.tiles["level"] == number
            tiles = record.tiles[chosen]
            positions = tiles["row"].astype(np.int64) * levels[number].tiles_across + tiles["column"]
            indexes[number].offsets[positions] = tiles["offset"]
            indexes[number].sizes[positions] = record.sizes[chosen]
    for number, index in enumerate(indexes):
        if missing := int((index.offsets < 0).sum()):
            raise OutputError(
                f"level {number} misses {missing} tiles: run again without ", Argument("resume")
            )
    return indexes


def head_bytes(ifds: list[list[Tag]]) -> int:
    """Length of the IFDs and their values, tile indexes not counted; at most a few bytes too much."""
    variant = TiffVariant(big=True)
    return sum(variant.ifd_bytes(tags) + sum(tag.values.nbytes + 8 for tag in tags) for tags in ifds)


def lay_out(ifds: list[list[Tag]], indexes: list[TileIndex], tiling: Tiling) -> CogLayout:
    """Decide every offset: as a classic TIFF if it stays below 4 GB, else as a BigTIFF."""
    for big in (False, True):
        layout = _lay_out(TiffVariant(big), ifds, indexes, tiling)
        if big or layout.size < CLASSIC_TIFF_BYTES:
            return layout
    raise AssertionError


def _lay_out(
    variant: TiffVariant, ifds: list[list[Tag]], indexes: list[TileIndex], tiling: Tiling
) -> CogLayout:
    note = _structural_note(tiling)
    first = _even(len(variant.header(0)) + len(note))
    indexed = [_with_index(variant, tags, index) for tags, index in zip(ifds, indexes, strict=True)]
    end, positions = first, []
    offsets: dict[tuple[int, int], int] = {}  # of values, by level and tag
    for number, tags in enumerate(indexed):
        positions.append(end)
        end += variant.ifd_bytes(tags)
        short = [tag for tag in tags if tag.code not in (GDAL_METADATA, *INDEX_TAGS)]
        end = _reserve(variant, number, short, end, offsets)
    for codes in ((GDAL_METADATA,), INDEX_TAGS):
        for number, tags in enumerate(indexed):
            end = _reserve(variant, number, [tag for tag in tags if tag.code in codes], end, offsets)
    starts = [0] * len(indexes)
    for number in reversed(range(len(indexes))):
        starts[number] = end
        end += int(indexes[number].lengths.sum())
    if not variant.big and end >= CLASSIC_TIFF_BYTES:
        return CogLayout(b"", starts, end)
    head = bytearray(starts[-1])

    def put(offset: int, data: bytes) -> None:
        head[offset : offset + len(data)] = data

    put(0, variant.header(first) + note)
    for number, tags in enumerate(indexed):
        _fill_offsets(tags, indexes[number], starts[number], band_major=tiling.band_major)
        outside = {tag.code: offsets.get((number, tag.code), 0) for tag in tags}
        put(positions[number], variant.ifd(tags, outside, [*positions, 0][number + 1]))
        for tag in tags:
            if outside[tag.code]:
                put(outside[tag.code], tag.data)
    return CogLayout(bytes(head), starts, end)


def _reserve(
    variant: TiffVariant, level: int, tags: list[Tag], end: int, offsets: dict[tuple[int, int], int]
) -> int:
    """Reserve room from `end` on for values that do not fit into their entries; the new end is returned."""
    for tag in tags:
        if not variant.is_inline(tag):
            offsets[level, tag.code] = end = _even(end, 8)
            end += tag.values.nbytes
    return _even(end)


def _with_index(variant: TiffVariant, tags: list[Tag], index: TileIndex) -> list[Tag]:
    """An IFD with its tile index, offsets still zero. The index is by band, then row and column."""
    counts = np.ascontiguousarray(index.sizes.T).ravel()
    zeros = np.zeros(counts.size, "<u8" if variant.big else "<u4")
    further = [Tag(TILE_OFFSETS, variant.offset_type, zeros), Tag.of(TILE_BYTE_COUNTS, LONG, counts)]
    return sorted([*tags, *further], key=lambda tag: tag.code)


def _fill_offsets(tags: list[Tag], index: TileIndex, start: int, *, band_major: bool) -> None:
    target = next(tag for tag in tags if tag.code == TILE_OFFSETS)
    target.values[:] = start + plane_starts(index, band_major=band_major).T.ravel() + 4  # behind the leader


def plane_starts(index: TileIndex, *, band_major: bool) -> np.ndarray:
    """Offsets of the planes of every tile from the level's first one, (n, planes) int64."""
    lengths = index.sizes.astype(np.int64) + 8
    order = lengths.T if band_major else lengths
    starts = (np.cumsum(order.ravel()) - order.ravel()).reshape(order.shape)
    return starts.T if band_major else starts


def _structural_note(tiling: Tiling) -> bytes:
    """The text that GDAL's COG driver writes between header and first IFD, to the letter."""
    lines = [
        "LAYOUT=IFDS_BEFORE_DATA",
        "BLOCK_ORDER=ROW_MAJOR",
        "BLOCK_LEADER=SIZE_AS_UINT4",
        "BLOCK_TRAILER=LAST_4_BYTES_REPEATED",
        *([f"INTERLEAVE={tiling.interleave.upper()}"] if tiling.planes > 1 else []),
        "KNOWN_INCOMPATIBLE_EDITION=NO",
    ]
    body = "\n".join(lines) + "\n "  # the space leaves room for YES
    return f"GDAL_STRUCTURAL_METADATA_SIZE={len(body):06d} bytes\n{body}".encode()


def _even(offset: int, step: int = 2) -> int:
    return -(-offset // step) * step


def ifd_tags(
    tiling: Tiling,
    quantiser: Quantiser,
    codec: Codec,
    *,
    names: list[str],
    geo: list[Tag],
    metadata: dict[str, dict[str, str]],
    software: str,
    band_numbers: dict[str, np.ndarray] | None = None,
) -> list[list[Tag]]:
    """The tags of every level, tile indexes left out.

    metadata: by GDAL's domains, "" the default one. band_numbers: further tags, a number for every band.
    """
    sample = quantiser.sample
    common = [
        Tag.of(258, SHORT, [8 * sample.bytes] * tiling.bands),  # BitsPerSample
        Tag.of(259, SHORT, codec.tag),  # Compression
        Tag.of(262, SHORT, 1),  # PhotometricInterpretation: black is zero
        Tag.of(277, SHORT, tiling.bands),  # SamplesPerPixel
        Tag.of(284, SHORT, 2 if tiling.planes > 1 else 1),  # PlanarConfiguration
        Tag.of(322, SHORT, tiling.blocksize),  # TileWidth
        Tag.of(323, SHORT, tiling.blocksize),  # TileLength
        Tag.of(339, SHORT, [sample.sample_format] * tiling.bands),  # SampleFormat
        Tag.of(42113, ASCII, sample.nodata),  # GDAL_NODATA
    ]
    if tiling.bands > 1:
        common.append(Tag.of(338, SHORT, [0] * (tiling.bands - 1)))  # ExtraSamples: unspecified
    if codec.predictor(sample) > 1:
        common.append(Tag.of(317, SHORT, codec.predictor(sample)))  # Predictor
    if codec.name == "lerc":
        common.append(Tag.of(50674, LONG, [4, 0]))  # LercParameters: version 2.4, nothing on top
    levels = []
    for number, level in enumerate(tiling.levels):
        own = [
            Tag.of(254, LONG, 1 if number else 0),  # NewSubfileType: reduced resolution
            Tag.of(256, LONG, level.width),
            Tag.of(257, LONG, level.height),
        ]
        if number == 0:
            structure = {"INTERLEAVE": "TILE"} if tiling.planes > 1 and tiling.interleave == "tile" else {}
            domains = {**metadata, "IMAGE_STRUCTURE": structure}
            gdal = _metadata(quantiser, names, domains, band_numbers or {})
            own += [Tag.of(305, ASCII, software), Tag.of(GDAL_METADATA, ASCII, gdal), *geo]
        levels.append([*own, *common])
    return levels


def _metadata(
    quantiser: Quantiser,
    names: list[str],
    metadata: dict[str, dict[str, str]],
    band_numbers: dict[str, np.ndarray],
) -> str:
    """GDAL's XML: the dataset's tags, and name, scale, offset and further numbers of every band."""
    items = []
    for domain, tags in metadata.items():
        where = f" domain={_attribute(domain)}" if domain else ""
        items += [
            f"<Item name={_attribute(key)}{where}>{_escaped(value)}</Item>" for key, value in tags.items()
        ]
    for band, name in enumerate(names):
        values = {"DESCRIPTION": _escaped(name)}
        if quantiser.scale is not None and quantiser.offset is not None:
            values["OFFSET"] = f"{quantiser.offset[band]:.17g}"
            values["SCALE"] = f"{quantiser.scale[band]:.17g}"
        for key, value in values.items():
            items.append(f'<Item name="{key}" sample="{band}" role="{key.lower()}">{value}</Item>')
        items += [
            f'<Item name="{key}" sample="{band}">{numbers[band]:.6g}</Item>'
            for key, numbers in band_numbers.items()
        ]
    return "<GDALMetadata>\n" + "".join(f"  {item}\n" for item in items) + "</GDALMetadata>\n"


def _escaped(text: str) -> str:
    """Text of an XML element, escaped twice: GDAL has always written and read it so."""
    return _escaped_once(_escaped_once(text))


def _escaped_once(text: str) -> str:
    # The three characters here, because xml.sax takes 25 ms to import.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _attribute(text: str) -> str:
    """Value of an XML attribute with its quotes; single ones where the text holds a double one."""
    text = _escaped_once(text).replace("\n", "&#10;").replace("\r", "&#13;").replace("\t", "&#9;")
    if '"' not in text:
        return f'"{text}"'
    return f"'{text}'" if "'" not in text else '"' + text.replace('"', "&quot;") + '"'


def assemble(layout: CogLayout, indexes: list[TileIndex], spool: Spool, tiling: Tiling) -> None:
    """Write the file into the spool's output: the head, then every level's tiles, copied as they are."""
    target = spool.folder.create(OUTPUT)
    try:
        _write(target, layout.head)
        for number in reversed(range(len(indexes))):
            if tiling.band_major:
                memory = min(TRANSPOSED_BYTES, tiling.memory)
                _copy_by_band(spool, number, indexes[number], target, layout.starts[number], memory)
            else:
                source = spool.descriptor(level_file(number))
                for offset, length in _runs(indexes[number]):
                    _copy(source, offset, target, length)
        if os.fstat(target).st_size != layout.size:
            raise OutputError(f"{spool.output} has {os.fstat(target).st_size} bytes instead of {layout.size}")
        os.fsync(target)
    finally:
        os.close(target)


def _runs(index: TileIndex) -> Iterator[tuple[int, int]]:
    """(offset, length) of what can be copied at once: tiles next to each other in file and spool."""
    ends = index.offsets + index.lengths
    breaks = np.flatnonzero(index.offsets[1:] != ends[:-1])
    firsts = np.concatenate([[0], breaks + 1])
    lasts = np.concatenate([breaks, [index.offsets.size - 1]])
    for first, last in zip(firsts, lasts, strict=True):
        yield int(index.offsets[first]), int(ends[last] - index.offsets[first])


def _copy_by_band(spool: Spool, level: int, index: TileIndex, target: int, start: int, memory: int) -> None:
    """Copy a level's tiles by band, in groups of tiles that are read once and written in a run a band."""
    starts = start + plane_starts(index, band_major=True)
    groups = np.cumsum(index.lengths) // memory
    edges = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), index.offsets.size]
    for first, last in itertools.pairwise(edges):
        tiles = [bytearray(length) for length in index.lengths[first:last].tolist()]
        for tile, offset in zip(tiles, index.offsets[first:last].tolist(), strict=True):
            spool.read(level_file(level), offset, memoryview(tile))
        ends = np.cumsum(index.sizes[first:last].astype(np.int64) + 8, axis=1)
        begins = np.concatenate([np.zeros((last - first, 1), np.int64), ends[:, :-1]], axis=1)
        for plane in range(ends.shape[1]):
            ranges = zip(tiles, begins[:, plane].tolist(), ends[:, plane].tolist(), strict=True)
            data = b"".join(tile[begin:end] for tile, begin, end in ranges)
            write_all(target, int(starts[first, plane]), data)


def _copy(source: int, offset: int, target: int, length: int) -> None:
    while length:
        try:
            count = os.copy_file_range(source, target, length, offset)
        except (AttributeError, OSError) as error:
            if not _is_unsupported(error):
                raise
            count = _write(target, os.pread(source, min(length, COPY_BYTES), offset))
        if count == 0:
            raise OutputError("the spool is shorter than it was: run again without ", Argument("resume"))
        offset, length = offset + count, length - count


def _is_unsupported(error: Exception) -> bool:
    import errno

    unsupported = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
    return isinstance(error, AttributeError) or (isinstance(error, OSError) and error.errno in unsupported)


def _write(target: int, data: bytes) -> int:
    view = memoryview(data)
    while len(view):
        view = view[os.write(target, view) :]
    return len(data)


def check(path: os.PathLike[str], tiling: Tiling) -> None:
    """Read a finished file's structure back and raise OutputError unless it is laid out as described above.

    IFDs come before tiles, overviews before what they show, tiles in the order of their bands without gaps;
    leaders and trailers are compared for all tiles of small levels and for a sample of large ones.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:

        def read(offset: int, size: int) -> bytes:
            return os.pread(descriptor, size, offset)

        ifds = read_ifds(read)
        if len(ifds) != len(tiling.levels):
            raise OutputError(f"{path} has {len(ifds)} levels instead of {len(tiling.levels)}")
        end = 0
        for number in reversed(range(len(ifds))):
            end = _check_level(ifds[number], tiling.levels[number], tiling, end, read)
        if max(ifd.offset for ifd in ifds) > int(ifds[-1].tags[TILE_OFFSETS].values.min()):
            raise OutputError("an IFD lies behind tiles")
        if end != os.fstat(descriptor).st_size:
            raise OutputError(f"{path} does not end with its last tile")
    except (ValueError, KeyError, IndexError) as error:
        raise OutputError(f"{path} is not a valid TIFF: {error}") from error
    finally:
        os.close(descriptor)


def _check_level(ifd: Ifd, level: Level, tiling: Tiling, start: int, read: Any) -> int:
    """Check one level's tiles, which begin at `start` (0: anywhere); their end is returned."""
    size = ifd.value(257), ifd.value(256)
    if size != (level.height, level.width):
        raise OutputError(f"a level has {size} pixels instead of {(level.height, level.width)}")
    offsets, counts = (_in_order(ifd.tags[code].values, tiling) for code in INDEX_TAGS)
    if offsets.size != level.tiles * tiling.planes:
        raise OutputError(f"a level has {offsets.size} tiles instead of {level.tiles * tiling.planes}")
    if (
        (start and offsets[0] != start + 4)
        or (np.diff(offsets) != counts[:-1] + 8).any()
        or (counts <= 0).any()
    ):
        raise OutputError("tiles are not one after the other in their order")
    chosen = np.unique(
        np.linspace(0, offsets.size - 1, min(offsets.size, MAX_CHECKED_TILES)).astype(np.int64)
    )
    for offset, count in zip(offsets[chosen].tolist(), counts[chosen].tolist(), strict=True):
        tail = read(offset + max(0, count - 4), min(4, count) + 4)
        if int.from_bytes(read(offset - 4, 4), "little") != count or tail[:-4].ljust(4, b"\0") != tail[-4:]:
            raise OutputError(f"the tile at {offset} has a wrong leader or trailer")
    return int(offsets[-1] + counts[-1] + 4)


def _in_order(values: np.ndarray, tiling: Tiling) -> np.ndarray:
    """Entries of a tile index, which is by plane, in the order of the tiles in the file."""
    planes = values.astype(np.int64).reshape(tiling.planes, -1)
    return (planes if tiling.band_major else planes.T).ravel()

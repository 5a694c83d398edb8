"""The Cloud-Optimized GeoTIFF: what is written where, and the check that it is.

    header · GDAL's note about the layout · directories with their values, full resolution first · tile
    indexes · tiles of the smallest overview · … · tiles of full resolution

Bands are separate planes (PlanarConfiguration 2), so three of 256 bands are cheap to read, but tiles are
ordered by place, then band, so all bands of one place are one contiguous range (GDAL ≥ 3.11:
INTERLEAVE=TILE). Each tile is preceded by its length and followed by a repetition of its last four bytes, as
GDAL's COG driver does it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from satclip_engine.errors import OutputError
from satclip_engine.quantize import Quantiser
from satclip_engine.raster.codec import Codec
from satclip_engine.raster.spool import Record, Spool, level_file
from satclip_engine.raster.tiff import (
    ASCII,
    LONG,
    SHORT,
    TILE_BYTE_COUNTS,
    TILE_OFFSETS,
    Directory,
    Form,
    Tag,
    read_directories,
)
from satclip_engine.raster.tiling import Level, Plan

_CLASSIC_END = 2**32 - 2**16  # a larger file is a BigTIFF
_COPY = 8 << 20  # bytes copied at once where the kernel cannot do it
_CHECKED_TILES = 4096  # tiles of a level whose leader and trailer are looked at


@dataclass(frozen=True, eq=False)
class Places:
    """The tiles of one level in row-major order: where the spool has them, and how long they are."""

    offsets: np.ndarray  # (n,) int64 in the level's file
    sizes: np.ndarray  # (n, E) uint32

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each place, leaders and trailers included."""
        return self.sizes.sum(axis=1, dtype=np.int64) + 8 * self.sizes.shape[1]


@dataclass(frozen=True, eq=False)
class Layout:
    """A file: everything before the tiles, and where each level's tiles begin."""

    head: bytes
    starts: list[int]  # by level
    size: int


def collect(records: Iterable[Record], levels: tuple[Level, ...], bands: int) -> list[Places]:
    """The places of every level. Raises OutputError when one is missing."""
    found = [Places(np.full(v.tiles, -1, np.int64), np.zeros((v.tiles, bands), np.uint32)) for v in levels]
    for record in records:
        for number in np.unique(record.places["level"]):
            chosen = record.places["level"] == number
            places = record.places[chosen]
            index = places["row"].astype(np.int64) * levels[number].tiles_across + places["column"]
            found[number].offsets[index] = places["offset"]
            found[number].sizes[index] = record.sizes[chosen]
    for number, level in enumerate(found):
        if (level.offsets < 0).any():
            raise OutputError(f"level {number} misses {int((level.offsets < 0).sum())} tiles: start afresh")
    return found


def lay_out(directories: list[list[Tag]], places: list[Places], bands: int) -> Layout:
    """Decide every offset: as a classic TIFF if it stays below 4 GB, else as a BigTIFF."""
    for big in (False, True):
        layout = _lay_out(Form(big), directories, places, bands)
        if big or layout.size < _CLASSIC_END:
            return layout
    raise AssertionError


def _lay_out(form: Form, directories: list[list[Tag]], places: list[Places], bands: int) -> Layout:
    note = _structural_note(bands)
    first = _even(len(form.header(0)) + len(note))
    indexed = [_with_index(form, tags, level) for tags, level in zip(directories, places, strict=True)]
    index = (TILE_OFFSETS, TILE_BYTE_COUNTS)
    at, positions = first, []
    offsets: dict[tuple[int, int], int] = {}  # of values, by level and tag
    for number, tags in enumerate(indexed):
        positions.append(at)
        at += form.directory_bytes(tags)
        at = _reserve(form, number, [tag for tag in tags if tag.code not in index], at, offsets)
    for number, tags in enumerate(indexed):
        at = _reserve(form, number, [tag for tag in tags if tag.code in index], at, offsets)
    starts = [0] * len(places)
    for number in reversed(range(len(places))):
        starts[number] = at
        at += int(places[number].lengths.sum())
    if not form.big and at >= _CLASSIC_END:
        return Layout(b"", starts, at)
    head = bytearray(starts[-1])

    def put(offset: int, data: bytes) -> None:
        head[offset : offset + len(data)] = data

    put(0, form.header(first) + note)
    for number, tags in enumerate(indexed):
        _fill_offsets(tags, places[number], starts[number])
        where = {tag.code: offsets.get((number, tag.code), 0) for tag in tags}
        put(positions[number], form.directory(tags, where, [*positions, 0][number + 1]))
        for tag in tags:
            if where[tag.code]:
                put(where[tag.code], tag.data)
    return Layout(bytes(head), starts, at)


def _reserve(form: Form, level: int, tags: list[Tag], at: int, offsets: dict[tuple[int, int], int]) -> int:
    """Give values that do not fit into their entries a place from `at` on; where they end is returned."""
    for tag in tags:
        if not form.is_inline(tag):
            offsets[level, tag.code] = at = _even(at, 8)
            at += tag.values.nbytes
    return _even(at)


def _with_index(form: Form, tags: list[Tag], places: Places) -> list[Tag]:
    """A directory with its tile index, offsets still zero. The index is by band, then place."""
    counts = np.ascontiguousarray(places.sizes.T).ravel()
    zeros = np.zeros(counts.size, "<u8" if form.big else "<u4")
    index = [Tag(TILE_OFFSETS, form.offset_type, zeros), Tag.of(TILE_BYTE_COUNTS, LONG, counts)]
    return sorted([*tags, *index], key=lambda tag: tag.code)


def _fill_offsets(tags: list[Tag], places: Places, start: int) -> None:
    lengths = places.sizes.astype(np.int64) + 8
    ends = np.cumsum(lengths.ravel()).reshape(lengths.shape)
    offsets = start + ends - lengths + 4  # behind the leader
    target = next(tag for tag in tags if tag.code == TILE_OFFSETS)
    target.values[:] = offsets.T.ravel()


def _structural_note(bands: int) -> bytes:
    """What GDAL's COG driver writes between header and first directory, to the letter."""
    lines = [
        "LAYOUT=IFDS_BEFORE_DATA",
        "BLOCK_ORDER=ROW_MAJOR",
        "BLOCK_LEADER=SIZE_AS_UINT4",
        "BLOCK_TRAILER=LAST_4_BYTES_REPEATED",
        *(["INTERLEAVE=TILE"] if bands > 1 else []),
        "KNOWN_INCOMPATIBLE_EDITION=NO",
    ]
    body = "\n".join(lines) + "\n "  # the space leaves room for YES
    return f"GDAL_STRUCTURAL_METADATA_SIZE={len(body):06d} bytes\n{body}".encode()


def _even(offset: int, step: int = 2) -> int:
    return -(-offset // step) * step


def directories(
    plan: Plan,
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
        Tag.of(258, SHORT, [8 * sample.bytes] * plan.bands),  # BitsPerSample
        Tag.of(259, SHORT, codec.tag),  # Compression
        Tag.of(262, SHORT, 1),  # PhotometricInterpretation: black is zero
        Tag.of(277, SHORT, plan.bands),  # SamplesPerPixel
        Tag.of(284, SHORT, 2 if plan.bands > 1 else 1),  # PlanarConfiguration
        Tag.of(322, SHORT, plan.blocksize),  # TileWidth
        Tag.of(323, SHORT, plan.blocksize),  # TileLength
        Tag.of(339, SHORT, [sample.sample_format] * plan.bands),  # SampleFormat
        Tag.of(42113, ASCII, sample.nodata),  # GDAL_NODATA
    ]
    if plan.bands > 1:
        common.append(Tag.of(338, SHORT, [0] * (plan.bands - 1)))  # ExtraSamples: unspecified
    if codec.predictor(sample) > 1:
        common.append(Tag.of(317, SHORT, codec.predictor(sample)))  # Predictor
    if codec.name == "lerc":
        common.append(Tag.of(50674, LONG, [4, 0]))  # LercParameters: version 2.4, nothing on top
    found = []
    for number, level in enumerate(plan.levels):
        own = [
            Tag.of(254, LONG, 1 if number else 0),  # NewSubfileType: reduced resolution
            Tag.of(256, LONG, level.width),
            Tag.of(257, LONG, level.height),
        ]
        if number == 0:
            gdal = _metadata(quantiser, names, metadata, band_numbers or {})
            own += [Tag.of(305, ASCII, software), Tag.of(42112, ASCII, gdal), *geo]  # GDAL_METADATA
        found.append([*own, *common])
    return found


def _metadata(
    quantiser: Quantiser,
    names: list[str],
    metadata: dict[str, dict[str, str]],
    band_numbers: dict[str, np.ndarray],
) -> str:
    """GDAL's XML: the dataset's tags, and name, scale, offset and further numbers of every band."""
    structure = {"INTERLEAVE": "TILE"} if len(names) > 1 else {}
    items = []
    for domain, tags in {**metadata, "IMAGE_STRUCTURE": structure}.items():
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


def assemble(layout: Layout, places: list[Places], spool: Spool) -> None:
    """Write the file into the spool's output: the head, then every level's tiles, copied as they are."""
    target = os.open(spool.output, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        _write(target, layout.head)
        for number in reversed(range(len(places))):
            source = spool.descriptor(level_file(number))
            for offset, length in _runs(places[number]):
                _copy(source, offset, target, length)
        if os.fstat(target).st_size != layout.size:
            raise OutputError(f"{spool.output} has {os.fstat(target).st_size} bytes instead of {layout.size}")
        os.fsync(target)
    finally:
        os.close(target)


def _runs(places: Places) -> Iterator[tuple[int, int]]:
    """(offset, length) of what can be copied at once: places next to each other in file and spool."""
    ends = places.offsets + places.lengths
    breaks = np.flatnonzero(places.offsets[1:] != ends[:-1])
    firsts = np.concatenate([[0], breaks + 1])
    lasts = np.concatenate([breaks, [places.offsets.size - 1]])
    for first, last in zip(firsts, lasts, strict=True):
        yield int(places.offsets[first]), int(ends[last] - places.offsets[first])


def _copy(source: int, offset: int, target: int, length: int) -> None:
    while length:
        try:
            count = os.copy_file_range(source, target, length, offset)
        except (AttributeError, OSError) as error:
            if not _is_unsupported(error):
                raise
            count = _write(target, os.pread(source, min(length, _COPY), offset))
        if count == 0:
            raise OutputError("the spool is shorter than it was: start afresh")
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


def check(path: os.PathLike[str], plan: Plan) -> None:
    """Read a finished file's structure back and raise OutputError unless it is laid out as described above.

    Directories come before tiles, overviews before what they show, tiles by place and band without gaps;
    leaders and trailers are compared for all tiles of small levels and for a sample of large ones.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:

        def read(offset: int, size: int) -> bytes:
            return os.pread(descriptor, size, offset)

        found = read_directories(read)
        if len(found) != len(plan.levels):
            raise OutputError(f"{path} has {len(found)} levels instead of {len(plan.levels)}")
        at = 0
        for number in reversed(range(len(found))):
            at = _check_level(found[number], plan.levels[number], plan.bands, at, read)
        if max(d.offset for d in found) > int(found[-1].tags[TILE_OFFSETS].values.min()):
            raise OutputError("a directory lies behind tiles")
        if at != os.fstat(descriptor).st_size:
            raise OutputError(f"{path} does not end with its last tile")
    except (ValueError, KeyError, IndexError) as error:
        raise OutputError(f"{path} is not a valid TIFF: {error}") from error
    finally:
        os.close(descriptor)


def _check_level(directory: Directory, level: Level, bands: int, at: int, read: Any) -> int:
    """Check one level's tiles, which begin at `at` (0: anywhere); where they end is returned."""
    size = directory.value(257), directory.value(256)
    if size != (level.height, level.width):
        raise OutputError(f"a level has {size} pixels instead of {(level.height, level.width)}")
    offsets = directory.tags[TILE_OFFSETS].values.reshape(bands, -1).T.astype(np.int64).ravel()
    counts = directory.tags[TILE_BYTE_COUNTS].values.reshape(bands, -1).T.astype(np.int64).ravel()
    if offsets.size != level.tiles * bands:
        raise OutputError(f"a level has {offsets.size} tiles instead of {level.tiles * bands}")
    if (at and offsets[0] != at + 4) or (np.diff(offsets) != counts[:-1] + 8).any() or (counts <= 0).any():
        raise OutputError("tiles are not one after the other by place and band")
    chosen = np.unique(np.linspace(0, offsets.size - 1, min(offsets.size, _CHECKED_TILES)).astype(np.int64))
    for offset, count in zip(offsets[chosen].tolist(), counts[chosen].tolist(), strict=True):
        tail = read(offset + max(0, count - 4), min(4, count) + 4)
        if int.from_bytes(read(offset - 4, 4), "little") != count or tail[:-4].ljust(4, b"\0") != tail[-4:]:
            raise OutputError(f"the tile at {offset} has a wrong leader or trailer")
    return int(offsets[-1] + counts[-1] + 4)

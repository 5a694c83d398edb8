"""Readers of training images by their form on disk: the S2-100K layout, tables, folders, rasters.

    read_index("s2-100k")                   S2-100K as published: index.csv and images/patch_N.tif
    read_table("patches.csv")               a CSV or (Geo)Parquet that lists images, any bands
    read_folder("orthophotos")              georeferenced images
    open_source(path)                       one of these, or a raster cut into patches

Channels of S2-100K are B01, B02, B03, B04, B05, B06, B07, B08, B8A, B09, B10, B11, B12: files lack B10, which
comes as zeros, because that is how the published model and its image encoders were trained.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from satclip_engine.errors import DataError, UsageError
from satclip_engine.geo.crs import distance_metres, parse_crs, transformers
from satclip_engine.training.locations import join_first
from satclip_engine.training.sources.bands import check_bands, choose_divisor
from satclip_engine.training.sources.gdal_files import (
    file_identity,
    georeference,
    is_gdal_name,
    open_raster,
    read_errors,
    read_failure,
)
from satclip_engine.training.sources.image_files import ImageFiles, ImageLayout, probe_layout
from satclip_engine.training.sources.image_tables import SUFFIXES, ImageTable, read_image_table
from satclip_engine.training.sources.kinds import (
    FOLDER,
    RASTER,
    S2_100K,
    TABLE,
    DataKind,
    refuse_unfit,
)
from satclip_engine.training.sources.random_patches import RasterPatches
from satclip_engine.training.sources.source import PatchSource, SkippedImage, check_locations

_S2_LAYOUT: Final = ImageLayout(
    bands=tuple(range(1, 13)),
    stored_bands=12,
    size=(256, 256),
    divisor=10000.0,
    dtype="uint16",
    zero_channel=10,
)
_S2_MIN_BYTES: Final = 10_000  # the published code's own limit: smaller files hold nodata
_IMAGE_SUFFIXES: Final = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".vrt")
_ZARR_ENTRIES: Final = ("zarr.json", ".zarray", ".zgroup")
_OPENING_THREADS: Final = 8  # that open files; they mostly wait
_COMPARED_IMAGES: Final = 32  # whose own georeference is compared with the table's locations
_RADII: Final = 2.0  # of an image, from its centre, within which its location may lie
_MARGIN_METRES: Final = 1000.0  # and so much further
_MIN_CONTRADICTIONS: Final = 3  # and half of those compared: the table is wrong; fewer are noted
_CENTRE_AND_CORNERS: Final = ((0.5, 0.5), (0, 0), (1, 0), (0, 1), (1, 1))


def open_source(path: str | os.PathLike[str], **options: Any) -> PatchSource:
    """Open a folder with index.csv, a table, a folder of images, or a raster, which may have a GDAL name.

    An index.csv whose images are not those of S2-100K is read as a table. `options` are those of the reader
    that is chosen. Raises DataError when `path` is none of them, UsageError for options of another reader.
    """
    name, kind = os.fspath(path), kind_of(path)
    asked = {option: value for option, value in options.items() if value is not None}
    refuse_unfit(kind, name, asked)
    if kind == TABLE and os.path.isdir(name):
        return read_table(Path(name) / "index.csv", **asked)
    return _READERS[kind](name, **asked)


def kind_of(path: str | os.PathLike[str]) -> DataKind:
    """Kind of what lies at a path or has a GDAL name. Raises DataError when that is nothing."""
    name, file = os.fspath(path), Path(path)
    if file.is_dir():
        if any((file / entry).exists() for entry in _ZARR_ENTRIES):
            return RASTER
        if not (file / "index.csv").exists():
            return FOLDER
        return S2_100K if _is_s2_100k(file / "index.csv") else TABLE
    if not file.exists() and not is_gdal_name(name):
        raise DataError(f"{name}: no such file or folder")
    return TABLE if file.suffix.lower() in SUFFIXES and file.exists() else RASTER


def read_index(
    folder: str | os.PathLike[str],
    *,
    bands: Sequence[int] | None = None,
    divisor: float | None = None,
    max_skipped: int | None = None,
) -> ImageFiles:
    """Read the S2-100K layout: 13 channels of 256×256, values divided by 10,000.

    bands: of the files' 12, which lack B10 (11 is B11, 12 is B12); by default all, and B10 as zeros.
    divisor: of the values, instead of 10,000.

    Files that are missing or too small are skipped at once; those that are corrupt or of another shape when
    they are read. More than `max_skipped` (1 %, at least 10) is a DataError, and so are coordinates out of
    range; rows that repeat an earlier row's file are left out with a note.
    """
    folder = Path(folder)
    table = read_image_table(folder / "index.csv")
    missing = [name for name in ("lat", "lon") if name not in table.columns]
    if missing:
        raise DataError(
            f"{table.path} has no column {' or '.join(missing)}, found {', '.join(table.columns)}"
        )
    if not (folder / "images").is_dir():
        raise DataError(f"{folder} holds an index.csv but no folder images/ as in S2-100K")
    files = [os.fspath(folder / "images" / name) for name in table.files(names=("fn",))]
    layout = _s2_layout(bands, divisor, str(folder))
    return _image_files(table, files, layout, min_bytes=_S2_MIN_BYTES, max_skipped=max_skipped)


def _s2_layout(bands: Sequence[int] | None, divisor: float | None, name: str) -> ImageLayout:
    layout = replace(_S2_LAYOUT, divisor=choose_divisor("uint16", divisor, name))
    if bands is None:
        return layout
    return replace(layout, bands=check_bands(bands, _S2_LAYOUT.bands, f"a file of {name}"), zero_channel=None)


def read_table(
    path: str | os.PathLike[str],
    *,
    bands: Sequence[int] | None = None,
    size: int | tuple[int, int] | None = None,
    divisor: float | None = None,
    max_skipped: int | None = None,
) -> ImageFiles:
    """Read images that a CSV or (Geo)Parquet lists, relative to its folder or to images/ beside it.

    Locations are columns lon and lat, a geometry's centre, or else the centre of each image.
    bands: numbers from 1; by default all but transparency.
    size: larger images are cut to it at their centre; without it, all must be like most of them.
    divisor: of the stored values; by default their own scale and offset, or 255 for uint8, 10,000 for 16
        bits, 1 for floats.
    """
    table = read_image_table(Path(path))
    files = [_resolve(table.path.parent, name) for name in table.files()]
    layout = probe_layout(files, bands=bands, size=size, divisor=divisor)
    return _image_files(table, files, layout, max_skipped=max_skipped)


def read_folder(
    folder: str | os.PathLike[str],
    *,
    bands: Sequence[int] | None = None,
    size: int | tuple[int, int] | None = None,
    divisor: float | None = None,
    max_skipped: int | None = None,
) -> ImageFiles:
    """Read all georeferenced images in a folder and below, by name; options as `read_table`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    files = [
        os.fspath(file)
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in _IMAGE_SUFFIXES and file.is_file()
    ]
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(_IMAGE_SUFFIXES)}) and no index.csv")
    layout = probe_layout(files, bands=bands, size=size, divisor=divisor)
    locations = _own_locations(files)
    located = {index: own for index, own in enumerate(locations) if not isinstance(own, SkippedImage)}
    usable = list(located)
    lonlat = _centres(located.values())
    return ImageFiles(
        str(folder),
        [files[index] for index in usable],
        lonlat,
        layout,
        stats=[file_identity(files[index]) or (0, 0) for index in usable],
        skipped=[own for own in locations if isinstance(own, SkippedImage)],
        notes=_shared_locations(lonlat),
        max_skipped=max_skipped,
    )


def _image_files(
    table: ImageTable, files: list[str], layout: ImageLayout, *, min_bytes: int = 1, max_skipped: int | None
) -> ImageFiles:
    """Make the source of a table: check locations, leave out repeated rows, skip missing and small files."""
    columns = table.locations()
    lonlat = None if columns is None else check_locations(*columns, table.row, str(table.path))
    unique, repeated = _split_repeated(files)
    stats = {index: file_identity(files[index]) for index in unique}
    small = {index: _too_small(stats[index], files[index], min_bytes) for index in unique}
    skipped = [SkippedImage(files[index], reason) for index, reason in small.items() if reason]
    usable = [index for index, reason in small.items() if not reason]
    notes = []
    if lonlat is None:
        own = dict(zip(usable, _own_locations([files[index] for index in usable]), strict=True))
        skipped += [image for image in own.values() if isinstance(image, SkippedImage)]
        located = {index: image for index, image in own.items() if not isinstance(image, SkippedImage)}
        usable, usable_lonlat = list(located), _centres(located.values())
    else:
        usable_lonlat = lonlat[usable]
        notes = _contradictions(table, files, usable, lonlat)
    if repeated:
        rows = join_first(map(table.row, repeated))
        notes.insert(0, f"{len(repeated)} rows name an earlier row's file again and are left out: {rows}")
    return ImageFiles(
        str(table.path),
        [files[index] for index in usable],
        usable_lonlat,
        layout,
        stats=[stats[index] or (0, 0) for index in usable],
        skipped=skipped,
        notes=[*notes, *_shared_locations(usable_lonlat)],
        max_skipped=max_skipped,
    )


def _too_small(stat: tuple[int, int] | None, file: str, min_bytes: int) -> str:
    """Reason why a file is left out before it is read; empty for the others."""
    if stat is None:
        return "missing"
    return f"only {stat[0]} bytes" if stat[0] < min_bytes and not is_gdal_name(file) else ""


def _contradictions(table: ImageTable, files: list[str], usable: list[int], lonlat: np.ndarray) -> list[str]:
    """A note on locations that lie far outside of where the images' own georeference puts them.

    A sample is compared. Raises DataError when half of it or more contradicts.
    """
    spread = np.linspace(0, len(usable) - 1, min(len(usable), _COMPARED_IMAGES)).astype(int)
    sample = [usable[index] for index in spread]
    own = zip(sample, _own_locations([files[index] for index in sample]), strict=True)
    located = {index: centre for index, centre in own if isinstance(centre, _OwnLocation)}
    far = {
        index: metres
        for index, centre in located.items()
        if (metres := centre.metres_to(*lonlat[index])) > _RADII * centre.radius + _MARGIN_METRES
    }
    if not far:
        return []
    first = (f"{table.row(index)} by {metres / 1000:,.0f} km" for index, metres in far.items())
    message = (
        f"{table.path}: {len(far)} of {len(located)} images that were compared do not lie where their own "
        f"georeference puts them: {join_first(first)}"
    )
    swapped = sum(
        located[index].metres_to(*lonlat[index][::-1]) <= _RADII * located[index].radius + _MARGIN_METRES
        for index in far
    )
    if len(far) < max(_MIN_CONTRADICTIONS, len(located) / 2):
        return [message]
    hint = "longitude and latitude are swapped" if swapped == len(far) else "correct the table"
    raise DataError(f"{message}: {hint}, or leave out its coordinates to take the images' own")


def _split_repeated(files: list[str]) -> tuple[list[int], list[int]]:
    """Rows that name a file first, and rows that name one again."""
    names: set[str] = set()
    unique: list[int] = []
    repeated: list[int] = []
    for index, file in enumerate(files):
        (repeated if file in names else unique).append(index)
        names.add(file)
    return unique, repeated


def _shared_locations(lonlat: np.ndarray) -> list[str]:
    """A note when several images have the very same location: the loss takes them for different ones."""
    shared = len(lonlat) - len(np.unique(lonlat, axis=0))
    return [f"{shared} images share their exact location with another one"] if shared else []


class _OwnLocation(NamedTuple):
    """Centre of an image by its own georeference, and half its diagonal."""

    lon: float
    lat: float
    radius: float  # metres

    def metres_to(self, lon: float, lat: float) -> float:
        """Distance on a sphere."""
        return float(distance_metres(self.lon, self.lat, lon, lat))


def _centres(locations: Iterable[_OwnLocation]) -> np.ndarray:
    return np.array([(centre.lon, centre.lat) for centre in locations], np.float64).reshape(-1, 2)


def _own_locations(files: Sequence[str]) -> list[_OwnLocation | SkippedImage]:
    """Location of each image by its own georeference."""
    with ThreadPoolExecutor(_OPENING_THREADS) as pool:
        return list(pool.map(_own_location, files))


def _own_location(file: str) -> _OwnLocation | SkippedImage:
    try:
        with open_raster(file) as dataset:
            reference = georeference(dataset)
            if reference is None:
                return SkippedImage(file, "no georeference, and the index gives no lon and lat")
            crs, transform = reference
            a, b, c, d, e, f = tuple(transform)[:6]
            pixels = [(x * dataset.width, y * dataset.height) for x, y in _CENTRE_AND_CORNERS]
            corners = [(a * x + b * y + c, d * x + e * y + f) for x, y in pixels]
            lon, lat = transformers(parse_crs(crs).to_wkt())[0].transform(*zip(*corners, strict=True))
    except read_errors(UsageError) as error:
        return SkippedImage(file, read_failure(file, error))
    if not (np.isfinite(lon[0]) and abs(lat[0]) <= 90.0):
        return SkippedImage(file, "its centre lies outside the domain of its CRS")
    centre = _OwnLocation((lon[0] + 180.0) % 360.0 - 180.0, lat[0], 0.0)
    reach = [centre.metres_to(*corner) for corner in zip(lon[1:], lat[1:], strict=True)]
    return centre._replace(radius=max(reach) if np.isfinite(reach).all() else np.inf)


def _resolve(folder: Path, name: str) -> str:
    """Path of a file by its name in a table: relative to it, or in images/ beside it; or a GDAL name."""
    direct, inside = os.path.join(folder, name), os.path.join(folder, "images", name)
    if os.path.exists(direct) or not os.path.exists(inside):
        return name if is_gdal_name(name) and not os.path.exists(direct) else direct
    return inside


def _is_s2_100k(index: Path) -> bool:
    """True where most images of an index that can be opened are those of S2-100K."""
    table = read_image_table(index)
    try:
        files = [_resolve(index.parent, name) for name in table.files()]
        layout = probe_layout(files, bands=None, size=None, divisor=1.0)
    except DataError:
        return True  # its reader says what is wrong
    return (
        layout.stored_bands == _S2_LAYOUT.stored_bands
        and layout.dtype == _S2_LAYOUT.dtype
        and layout.size == _S2_LAYOUT.size
    )


_READERS: Final[Mapping[DataKind, Callable[..., PatchSource]]] = {
    S2_100K: read_index,
    TABLE: read_table,
    FOLDER: read_folder,
    RASTER: RasterPatches,
}

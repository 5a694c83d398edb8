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
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from satclip_engine._optional import need
from satclip_engine.errors import DataError, UsageError
from satclip_engine.geo.crs import parse_crs, transformers
from satclip_engine.training.sources.image_files import ImageFiles, ImageLayout, probe_layout, read_failure
from satclip_engine.training.sources.image_tables import SUFFIXES, ImageTable, read_image_table
from satclip_engine.training.sources.random_patches import RasterPatches
from satclip_engine.training.sources.source import PatchSource, SkippedImage, check_locations, join_first

_S2_100K = ImageLayout(
    bands=tuple(range(1, 13)),
    stored_bands=12,
    size=(256, 256),
    divisor=10000.0,
    dtype="uint16",
    zero_channel=10,
)
_S2_MIN_BYTES = 10_000  # the published code's own limit: smaller files hold nodata
_IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".vrt")
_OPENING_THREADS = 8  # that open files; they mostly wait


def open_source(path: str | os.PathLike[str], **options: Any) -> PatchSource:
    """Open a folder with index.csv, a table, a folder of images, or a raster.

    An index.csv whose images are not those of S2-100K is read as a table. `options` are those of the reader
    that is chosen. Raises DataError when `path` is none of them.
    """
    path = Path(path)
    if path.is_dir():
        index = path / "index.csv"
        if not index.exists():
            return read_folder(path, **options)
        if not _is_s2_100k(index):
            return read_table(index, **options)
        _refuse(
            options,
            ("bands", "size", "divisor"),
            f"{path} is in the S2-100K layout, which fixes it: leave it out, or give {index} as a table",
        )
        return read_index(path, **options)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.suffix.lower() in SUFFIXES:
        return read_table(path, **options)
    _refuse(
        options, ("size", "max_skipped"), f"{path} is a raster, and this is for files of images: leave it out"
    )
    return RasterPatches(path, **options)


def _refuse(options: Mapping[str, Any], names: Sequence[str], reason: str) -> None:
    """Raise UsageError for the first of `names` that is among the options."""
    for name in names:
        if options.get(name) is not None:
            raise UsageError(f"{name}: {reason}", argument=name)


def read_index(folder: str | os.PathLike[str], *, max_skipped: int | None = None) -> ImageFiles:
    """Read the S2-100K layout: 13 channels of 256×256, values divided by 10,000.

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
    files = [folder / "images" / name for name in table.files(names=("fn",))]
    return _image_files(table, files, _S2_100K, min_bytes=_S2_MIN_BYTES, max_skipped=max_skipped)


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
    size: larger images are cut to it at their centre; without it, all must be like the first.
    divisor: of the values; by default 255 for uint8, 10,000 for 16 bits, 1 for floats.
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
    files = sorted(
        file for file in folder.rglob("*") if file.suffix.lower() in _IMAGE_SUFFIXES and file.is_file()
    )
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(_IMAGE_SUFFIXES)}) and no index.csv")
    layout = probe_layout(files, bands=bands, size=size, divisor=divisor)
    locations = _own_locations(files)
    usable = [i for i, location in enumerate(locations) if not isinstance(location, SkippedImage)]
    lonlat = np.array([locations[index] for index in usable], np.float64).reshape(-1, 2)
    return ImageFiles(
        str(folder),
        [files[index] for index in usable],
        lonlat,
        layout,
        stats=[_stat(files[index]) or (0, 0) for index in usable],
        skipped=[location for location in locations if isinstance(location, SkippedImage)],
        notes=_shared_locations(lonlat),
        max_skipped=max_skipped,
    )


def _image_files(
    table: ImageTable, files: list[Path], layout: ImageLayout, *, min_bytes: int = 1, max_skipped: int | None
) -> ImageFiles:
    """Make the source of a table: check locations, leave out repeated rows, skip missing and small files."""
    columns = table.locations()
    lonlat = None if columns is None else check_locations(*columns, table.row, str(table.path))
    unique, repeated = _split_repeated(files)
    stats = {index: _stat(files[index]) for index in unique}
    skipped = [
        SkippedImage(str(files[index]), "missing" if stat is None else f"only {stat[0]} bytes")
        for index, stat in stats.items()
        if stat is None or stat[0] < min_bytes
    ]
    usable = [index for index, stat in stats.items() if stat is not None and stat[0] >= min_bytes]
    if lonlat is None:
        own = dict(zip(usable, _own_locations([files[index] for index in usable]), strict=True))
        skipped += [location for location in own.values() if isinstance(location, SkippedImage)]
        located = {i: location for i, location in own.items() if not isinstance(location, SkippedImage)}
        usable, usable_lonlat = list(located), np.array(list(located.values())).reshape(-1, 2)
    else:
        usable_lonlat = lonlat[usable]
    notes = (
        [
            f"{len(repeated)} rows name an earlier row's file again and are left out: "
            f"{join_first(map(table.row, repeated))}"
        ]
        if repeated
        else []
    )
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


def _split_repeated(files: list[Path]) -> tuple[list[int], list[int]]:
    """Rows that name a file first, and rows that name one again."""
    names: set[Path] = set()
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


def _stat(file: Path) -> tuple[int, int] | None:
    """Bytes and time of change of a file; None when there is none."""
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _own_locations(files: Sequence[Path]) -> list[tuple[float, float] | SkippedImage]:
    """Longitude and latitude of each image's centre by its own georeference."""
    with ThreadPoolExecutor(_OPENING_THREADS) as pool:
        return list(pool.map(_own_location, files))


def _own_location(file: Path) -> tuple[float, float] | SkippedImage:
    rasterio = need("rasterio", extra="train", why="reading images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(file) as dataset:
                if dataset.crs is None:
                    return SkippedImage(str(file), "no georeference, and the index gives no lon and lat")
                x, y = dataset.xy(dataset.height / 2, dataset.width / 2, offset="ul")
                lon, lat = transformers(parse_crs(dataset.crs).to_wkt())[0].transform(x, y)
    except (rasterio.errors.RasterioError, OSError) as error:
        return SkippedImage(str(file), read_failure(file, error))
    except UsageError as error:
        return SkippedImage(str(file), str(error))
    if not (np.isfinite(lon) and abs(lat) <= 90.0):
        return SkippedImage(str(file), "its centre lies outside the domain of its CRS")
    return (lon + 180.0) % 360.0 - 180.0, lat


def _resolve(folder: Path, name: str) -> Path:
    """Path of a file by its name in a table: relative to the table, or in images/ beside it."""
    direct = folder / name
    inside = folder / "images" / name
    return inside if not direct.exists() and inside.exists() else direct


def _is_s2_100k(index: Path) -> bool:
    """True where the first image of an index that can be opened is one of S2-100K."""
    table = read_image_table(index)
    try:
        files = [_resolve(index.parent, name) for name in table.files()]
        layout = probe_layout(files, bands=None, size=None, divisor=1.0)
    except DataError:
        return True  # its reader says what is wrong
    return (
        layout.stored_bands == _S2_100K.stored_bands
        and layout.dtype == _S2_100K.dtype
        and layout.size == _S2_100K.size
    )

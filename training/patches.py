"""What is trained on, by its form on disk: the S2-100K layout, tables and folders of images, rasters.

    read_index("s2-100k")                   S2-100K as published: index.csv and images/patch_N.tif
    read_table("patches.csv")               a CSV or (Geo)Parquet that lists images, any bands
    read_folder("orthophotos")              images that say themselves where they lie
    open_source(path)                       whichever of these, or a raster cut into patches

Channels of S2-100K are B01, B02, B03, B04, B05, B06, B07, B08, B8A, B09, B10, B11, B12: files lack B10, which
comes as zeros, because that is how the published model and its image encoders were trained.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from satclip_engine._optional import need
from satclip_engine.errors import DataError, UsageError
from satclip_engine.geo.crs import parse_crs, transformers
from satclip_engine.training.image_files import ImageFiles, Layout, probe_layout, unreadable
from satclip_engine.training.raster_patches import RasterPatches
from satclip_engine.training.source import PatchSource, Skipped, check_places, first_ones
from satclip_engine.training.tables import SUFFIXES, Table, read_table_file

_S2_100K = Layout(
    bands=tuple(range(1, 13)),
    stored_bands=12,
    size=(256, 256),
    divisor=10000.0,
    dtype="uint16",
    zero_channel=10,
)
_S2_MIN_BYTES = 10_000  # the published code's own limit: smaller files hold nodata
_IMAGES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".vrt")
_THREADS = 8  # that open files; they mostly wait


def open_source(path: str | os.PathLike[str], **options: Any) -> PatchSource:
    """Open what `path` is: a folder with index.csv, a table, a folder of images, or a raster.

    An index.csv whose images are not those of S2-100K is read as a table. `options` are those of the reader
    chosen. Raises DataError when it is none of them.
    """
    path = Path(path)
    if path.is_dir():
        index = path / "index.csv"
        if not index.exists():
            return read_folder(path, **options)
        return read_index(path, **options) if _is_s2_100k(index) else read_table(index, **options)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    return read_table(path, **options) if path.suffix.lower() in SUFFIXES else RasterPatches(path, **options)


def read_index(folder: str | os.PathLike[str], *, max_skipped: int | None = None) -> ImageFiles:
    """The S2-100K layout: 13 channels of 256×256, values divided by 10,000.

    Files that are missing or too small are skipped at once; those that are corrupt or of another shape when
    they are read. More than `max_skipped` (1 %, at least 10) is a DataError, and so are coordinates out of
    range; rows that repeat an earlier row's file are left out with a note.
    """
    folder = Path(folder)
    table = read_table_file(folder / "index.csv")
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
    """Images that a CSV or (Geo)Parquet lists, relative to its folder or to images/ beside it.

    Places are columns lon and lat, a geometry's centre, or else the centre of each image.
    bands: numbers from 1; all but transparency without.
    size: larger images are cut to it at their centre; without it, all must be like the first.
    divisor: of the values; 255 for uint8, 10,000 for 16 bits, 1 for floats without.
    """
    table = read_table_file(Path(path))
    files = [_beside(table.path.parent, name) for name in table.files()]
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
    """All georeferenced images in a folder and below, by name; options as `read_table`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _IMAGES and file.is_file())
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(_IMAGES)}) and no index.csv")
    layout = probe_layout(files, bands=bands, size=size, divisor=divisor)
    places = _own_places(files)
    kept = [index for index, place in enumerate(places) if not isinstance(place, Skipped)]
    lonlat = np.array([places[index] for index in kept], np.float64).reshape(-1, 2)
    return ImageFiles(
        str(folder),
        [files[index] for index in kept],
        lonlat,
        layout,
        stats=[_stat(files[index]) or (0, 0) for index in kept],
        skipped=[place for place in places if isinstance(place, Skipped)],
        notes=_shared_places(lonlat),
        max_skipped=max_skipped,
    )


def _image_files(
    table: Table, files: list[Path], layout: Layout, *, min_bytes: int = 1, max_skipped: int | None
) -> ImageFiles:
    """The source of a table: places checked, repeated rows left out, missing and small files skipped."""
    given = table.places()
    lonlat = None if given is None else check_places(*given, table.row, str(table.path))
    fresh, repeated = _first_mentions(files)
    stats = {index: _stat(files[index]) for index in fresh}
    skipped = [
        Skipped(str(files[index]), "missing" if stat is None else f"only {stat[0]} bytes")
        for index, stat in stats.items()
        if stat is None or stat[0] < min_bytes
    ]
    kept = [index for index, stat in stats.items() if stat is not None and stat[0] >= min_bytes]
    if lonlat is None:
        places = _own_places([files[index] for index in kept])
        skipped += [place for place in places if isinstance(place, Skipped)]
        kept = [index for index, place in zip(kept, places, strict=True) if not isinstance(place, Skipped)]
        chosen = np.array([place for place in places if not isinstance(place, Skipped)]).reshape(-1, 2)
    else:
        chosen = lonlat[kept]
    notes = (
        [
            f"{len(repeated)} rows name an earlier row's file again and are left out: "
            f"{first_ones(map(table.row, repeated))}"
        ]
        if repeated
        else []
    )
    return ImageFiles(
        str(table.path),
        [files[index] for index in kept],
        chosen,
        layout,
        stats=[stats[index] or (0, 0) for index in kept],
        skipped=skipped,
        notes=[*notes, *_shared_places(chosen)],
        max_skipped=max_skipped,
    )


def _first_mentions(files: list[Path]) -> tuple[list[int], list[int]]:
    """Rows that name a file first, and rows that name one again."""
    seen: set[Path] = set()
    fresh: list[int] = []
    repeated: list[int] = []
    for index, file in enumerate(files):
        (repeated if file in seen else fresh).append(index)
        seen.add(file)
    return fresh, repeated


def _shared_places(lonlat: np.ndarray) -> list[str]:
    """A note when several images have the very same place: the loss takes them for different ones."""
    shared = len(lonlat) - len(np.unique(lonlat, axis=0))
    return [f"{shared} images share their exact place with another one"] if shared else []


def _stat(file: Path) -> tuple[int, int] | None:
    """Bytes and time of change; None for what is no file."""
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _own_places(files: Sequence[Path]) -> list[tuple[float, float] | Skipped]:
    """Where each image's centre lies by its own georeference."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_own_place, files))


def _own_place(file: Path) -> tuple[float, float] | Skipped:
    rasterio = need("rasterio", extra="train", why="reading images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(file) as dataset:
                if dataset.crs is None:
                    return Skipped(str(file), "no georeference, and the index gives no lon and lat")
                x, y = dataset.xy(dataset.height / 2, dataset.width / 2, offset="ul")
                lon, lat = transformers(parse_crs(dataset.crs).to_wkt())[0].transform(x, y)
    except (rasterio.errors.RasterioError, OSError) as error:
        return Skipped(str(file), unreadable(file, error))
    except UsageError as error:
        return Skipped(str(file), str(error))
    if not (np.isfinite(lon) and abs(lat) <= 90.0):
        return Skipped(str(file), "its georeference leads nowhere on Earth")
    return (lon + 180.0) % 360.0 - 180.0, lat


def _beside(folder: Path, name: str) -> Path:
    """A file by its name in a table: relative to the table, or in images/ beside it."""
    direct = folder / name
    inside = folder / "images" / name
    return inside if not direct.exists() and inside.exists() else direct


def _is_s2_100k(index: Path) -> bool:
    """Whether the first image of an index that can be opened is one of S2-100K."""
    table = read_table_file(index)
    try:
        files = [_beside(index.parent, name) for name in table.files()]
        layout = probe_layout(files, bands=None, size=None, divisor=1.0)
    except DataError:
        return True  # whose reader says what is wrong
    return (
        layout.stored_bands == _S2_100K.stored_bands
        and layout.dtype == _S2_100K.dtype
        and layout.size == _S2_100K.size
    )

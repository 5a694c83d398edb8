"""Rasters by path or by GDAL name (netcdf:FILE:variable, /vsizip/…, /vsicurl/…): opening, files, failures."""

from __future__ import annotations

import os
import re
import shlex
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from satclip_engine._forks import Mutex
from satclip_engine._optional import need
from satclip_engine.errors import DataError
from satclip_engine.files import check_readable
from satclip_engine.geo.raster_file import geobox_of_dataset

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+.-]+:")
_VIRTUAL: Final = re.compile(r"^(/vsi[a-z0-9_]+/)+")
_MAX_SUBDATASETS: Final = 20  # that a message names
_ELSEWHERE: Final = (0, 0)  # stands for bytes and time of change of what is not on this disk


def is_gdal_name(name: str) -> bool:
    """True for a name that GDAL resolves, such as netcdf:FILE:variable or /vsizip/…, and no path has."""
    return not os.path.lexists(name) and (name.startswith("/vsi") or _SCHEME.match(name) is not None)


def open_raster(name: str | os.PathLike[str]) -> Any:
    """Open a raster by path or GDAL name; images without georeference are no reason for a warning."""
    rasterio = need("rasterio", extra="train", why="reading images")
    check_readable(name)
    with _hush:
        return rasterio.open(os.fspath(name))


def read_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """Exceptions by which rasterio says that a file is damaged, and more; some of GDAL's come as they are."""
    rasterio = need("rasterio", extra="train", why="reading images")
    from rasterio._err import CPLE_BaseError

    return (rasterio.errors.RasterioError, OSError, CPLE_BaseError, UnicodeError, *more)


def read_failure(name: str | os.PathLike[str], error: Exception) -> str:
    """Reason why a raster cannot be read, in few words."""
    if isinstance(error, DataError):
        return str(error).removeprefix(f"{os.fspath(name)}: ")
    file = local_file(name)
    if file is None and not is_gdal_name(os.fspath(name)):
        return "missing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    if file is not None and ("Read failed" in message or "not recognized" in message):
        return "corrupt or truncated" if file.is_dir() or file.stat().st_size else "empty"
    return message


def local_file(name: str | os.PathLike[str]) -> Path | None:
    """The file or folder on this disk that a path or a GDAL name is of; None where there is none."""
    text = os.fspath(name)
    if os.path.exists(text):  # False, not an error, for names that no file can have
        return Path(text)
    if match := _VIRTUAL.match(text):
        inner = Path(text[match.end() :].lstrip("{").replace("}", ""))
        return next((path for path in (inner, *inner.parents) if path.is_file()), None)
    if not _SCHEME.match(text):
        return None
    return next((Path(piece) for piece in re.split(r'[:"]', text)[1:] if os.path.exists(piece)), None)


def file_identity(name: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Bytes and time of change (ns) of a raster's file; None when it is missing, zeros for what is remote."""
    file = local_file(name)
    if file is None:
        return _ELSEWHERE if is_gdal_name(os.fspath(name)) else None
    try:
        stats = [entry.stat() for entry in ([file] if file.is_file() else sorted(file.rglob("*")))]
    except OSError:
        return None
    return sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)


def name_within(name: str | os.PathLike[str]) -> str:
    """The name of a raster within its file: `:t2m` of netcdf:FILE:t2m, the whole name of what is remote."""
    text, file = os.fspath(name), local_file(name)
    return text if file is None else text.rpartition(os.fspath(file))[2].replace(chr(34), "")


def check_has_bands(dataset: Any, name: str | os.PathLike[str]) -> None:
    """Raise DataError for a container (NetCDF, HDF, Zarr), naming the rasters in it as they can be given."""
    if dataset.count:
        return
    names = dataset.subdatasets
    if not names:
        raise DataError(f"{os.fspath(name)}: holds no raster")
    more = f" and {len(names) - _MAX_SUBDATASETS} more" if len(names) > _MAX_SUBDATASETS else ""
    listed = ", ".join(shlex.quote(inner) for inner in names[:_MAX_SUBDATASETS])
    rasters = "1 raster" if len(names) == 1 else f"{len(names)} rasters"
    raise DataError(f"{os.fspath(name)}: a container of {rasters}: give one by its own name: {listed}{more}")


def georeference(dataset: Any) -> tuple[Any, Any] | None:
    """CRS and transform of a raster; None without. Degrees of a NetCDF without CRS are on WGS 84.

    Raises UsageError for labels of a NetCDF or Zarr whose unit is not understood, or that contradict its
    longitudes and latitudes.
    """
    if dataset.transform.is_identity:  # as without any
        return None
    if dataset.crs is None and not _is_in_degrees(dataset):
        return None
    if dataset.driver not in ("netCDF", "Zarr"):
        return dataset.crs, dataset.transform
    geobox = geobox_of_dataset(dataset, None if dataset.crs is not None else "EPSG:4326")
    return geobox.crs.proj, geobox.transform


def _is_in_degrees(dataset: Any) -> bool:
    units = [value for key, value in dataset.tags().items() if key.endswith("#units")]
    return all(any(re.match(f"degrees?_({side})", unit) for unit in units) for side in ("north|N", "east|E"))


class _Hush:
    """Silence about missing georeferences while any thread opens a file.

    `warnings.catch_warnings` saves and restores all filters, so that threads undo each other's.
    """

    def __init__(self) -> None:
        self._lock, self._threads, self._own = Mutex(), 0, False

    def __enter__(self) -> None:
        from rasterio.errors import NotGeoreferencedWarning

        with self._lock:
            self._rule = ("ignore", None, NotGeoreferencedWarning, None, 0)
            if self._threads == 0:
                self._own = self._rule not in warnings.filters
            if self._rule not in warnings.filters[:1]:
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self._threads += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads == 0 and self._own and self._rule in warnings.filters:
                warnings.filters.remove(self._rule)  # type: ignore[attr-defined]


_hush: Final = _Hush()

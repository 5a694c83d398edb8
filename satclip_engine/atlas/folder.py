"""An atlas being written: a Zarr group that gets its name when it is complete."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from satclip_engine.atlas.file import (
    FORMAT,
    STATISTICS,
    AtlasFile,
    Contents,
    array_name,
    array_rows,
    zarr,
)
from satclip_engine.atlas.packing import Packing
from satclip_engine.errors import Argument, OutputError, SatclipError
from satclip_engine.files import sync_file, sync_folder
from satclip_engine.lattice.nodes import BLOCK_COLUMNS, BLOCK_ROWS
from satclip_engine.lattice.zones import Zone

_ZSTD_LEVEL = 5  # of zstd: 9 takes ten times as long for 2 % less
_METADATA = "zarr.json"
_Result = TypeVar("_Result")


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raises OutputError for a name that an atlas cannot have."""
    if not path.absolute().parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: the folder {path.parent} is not writable")
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise OutputError(
            f"{path} exists already: remove it, choose another name, or use ", Argument("overwrite", True)
        )
    if not _holds_atlas(path):
        raise OutputError(
            f"{path} is no atlas, so that it is not overwritten: remove it, or choose another name"
        )


def _holds_atlas(path: Path) -> bool:
    try:
        content = json.loads((path / _METADATA).read_text())
    except (OSError, ValueError):
        return False
    attributes = content.get("attributes") if isinstance(content, dict) else None
    return isinstance(attributes, dict) and attributes.get("format") == FORMAT


class Folder:
    """The folder of an atlas that is not complete, removed when the `with` block ends unless published.

    Errors of the disk become an OutputError.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self.path, self.overwrite = path, overwrite
        self.temporary = path.absolute().with_name(f".{path.name}.{os.getpid()}.partial")

    def __enter__(self) -> Folder:
        library = zarr()
        try:
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir()
            self._group = library.open_group(
                library.storage.LocalStore(self.temporary), mode="w", zarr_format=3
            )
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, SatclipError):
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error

    def check_space(self, size: int) -> None:
        """Raises OutputError when the disk has no room for so many bytes before compression."""
        free = shutil.disk_usage(self.temporary).free
        if free < size:
            need = f"up to {size / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
            raise OutputError(f"cannot write {self.path}: {need}")

    def array(self, number: int, zone: Zone, packing: Packing, bands: int) -> ZoneArray:
        """Begin a zone's array; what was there is gone."""
        return ZoneArray(self._group, number, zone, packing, bands)

    def statistics(self, triangles: np.ndarray) -> None:
        """The two rows of `AtlasFile.statistics`."""
        how = {"chunks": triangles.shape, "fill_value": float("nan"), "overwrite": True}
        _whole(lambda: self._group.create_array(STATISTICS, data=triangles, **how))

    def reader(self, contents: Contents) -> AtlasFile:
        """Open the arrays written so far, as any reader does."""
        library = zarr()
        store = library.storage.LocalStore(self.temporary, read_only=True)
        return AtlasFile(
            str(self.temporary), {}, library.open_group(store, mode="r", zarr_format=3), contents
        )

    def publish(self, contents: Contents) -> tuple[int, int]:
        """Complete the atlas and give it its name; bytes on disk, and how many chunks it has."""
        _whole(lambda: self._group.update_attributes(contents.as_attributes()))
        _whole(lambda: _consolidate(self._group.store))
        files = [Path(folder) / name for folder, _, names in os.walk(self.temporary) for name in names]
        for file in files:
            sync_file(file)
        for folder, _, _ in os.walk(self.temporary):
            sync_folder(Path(folder))
        counts = sum(file.stat().st_size for file in files), sum(file.name != _METADATA for file in files)
        self._rename()
        sync_folder(self.temporary.parent)
        return counts

    def _rename(self) -> None:
        target = self.path.absolute()
        if not os.path.lexists(target):
            self.temporary.rename(target)
            return
        if not self.overwrite:
            raise OutputError(f"{self.path} has appeared while it was being computed: it is left as it is")
        aside = target.with_name(f".{target.name}.{os.getpid()}.old")
        target.rename(aside)
        try:
            self.temporary.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)


class ZoneArray:
    """One zone's array, written a row of chunks at a time."""

    def __init__(self, group: Any, number: int, zone: Zone, packing: Packing, bands: int) -> None:
        codecs = zarr().codecs
        rows = array_rows(zone)
        self.tops = range(rows.start, rows.stop, BLOCK_ROWS)  # the first row of each row of chunks
        self._first, self._hash = rows.start, hashlib.sha256()
        size = np.dtype(packing.dtype).itemsize
        shuffle = "bitshuffle" if packing.dtype == "int16" else "shuffle"
        self._array = _whole(
            lambda: group.create_array(
                array_name(number),
                shape=(len(rows), zone.columns, bands),
                chunks=(BLOCK_ROWS, BLOCK_COLUMNS, bands),
                dtype=packing.dtype,
                # Neighbouring nodes of a band are alike, neighbouring bands of a node are not.
                filters=[codecs.TransposeCodec(order=(2, 0, 1))],
                compressors=[
                    codecs.BloscCodec(cname="zstd", clevel=_ZSTD_LEVEL, shuffle=shuffle, typesize=size),
                    codecs.Crc32cCodec(),
                ],
                fill_value=packing.fill,
                dimension_names=("row", "column", "band"),
                attributes={"first_row": rows.start, **zone.as_dict()},
                config={"write_empty_chunks": True},
                overwrite=True,
            )
        )

    def write(self, top: int, stored: np.ndarray) -> None:
        """One of `tops`: (16, columns, E) as they are stored."""
        first = top - self._first
        _whole(lambda: self._array.__setitem__(slice(first, first + BLOCK_ROWS), stored))
        self._hash.update(np.ascontiguousarray(stored).tobytes())

    @property
    def digest(self) -> str:
        """Of what was written."""
        return self._hash.hexdigest()


def _whole(job: Callable[[], _Result]) -> _Result:
    """Run a job that an interrupt must not leave half done: Zarr's own threads would go on writing."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(job).result()


def _consolidate(store: Any) -> None:
    with warnings.catch_warnings():  # that they are not in format 3's text yet; readers may ignore them
        warnings.simplefilter("ignore")
        zarr().consolidate_metadata(store, zarr_format=3)

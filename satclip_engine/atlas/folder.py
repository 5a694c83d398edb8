"""An atlas being written: a Zarr group that gets its name when it is complete."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import numpy as np

from satclip_engine.atlas.file import FORMAT, AtlasFile, Contents
from satclip_engine.atlas.layout import (
    METADATA,
    STATISTICS,
    ChunkSums,
    array_name,
    array_rows,
    checked_store,
    statistics_layout,
    zarr,
    zone_layout,
)
from satclip_engine.atlas.metadata import check_attributes
from satclip_engine.atlas.packing import Packing
from satclip_engine.errors import Argument, OutputError, WeightsError, one_line
from satclip_engine.files import hidden_name, sync_file, sync_folder, try_lock
from satclip_engine.lattice.nodes import BLOCK_ROWS
from satclip_engine.lattice.zones import Zone

_ARRAY = rf"(?:{STATISTICS}|zone\d\d+)"
_OWN_FOLDERS = re.compile(rf"{_ARRAY}(?:/c(?:/\d+)*)?")
# What Zarr is writing has a name of its own, and what is in use on NFS.
_OWN_FILES = re.compile(
    rf"(?:{_ARRAY}/(?:c/(?:\d+/)*)?)?(?:zarr\.json|\d+|(?:zarr|\d+)\.[0-9a-f]{{32}}\.partial|\.nfs.*)"
)
_PARTIAL, _ASIDE = ".partial", ".old"  # of the hidden names of an atlas in the making and of a former one
_REMOVAL_PAUSE_SECONDS = (0.02, 0.1, 0.5)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux
_Result = TypeVar("_Result")


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raises OutputError for a name that an atlas cannot have.

    What a run that was killed while it overwrote an atlas had put aside gets its name back.
    """
    if not path.absolute().parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: the folder {path.parent} is not writable")
    try:
        _check_existing(path, overwrite=overwrite)
    except OSError as error:
        raise _not_written(path, error) from error


def _check_existing(path: Path, *, overwrite: bool) -> None:
    """Raises OutputError for what lies under a name and may not be replaced, OSError."""
    aside = _beside(path, _ASIDE)
    if os.path.lexists(aside) and not os.path.lexists(path):
        with _held(aside):
            aside.rename(path)
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise OutputError(
            f"{path} exists already: remove it, choose another name, or use ", Argument("overwrite", True)
        )
    if path.is_symlink():
        raise OutputError(f"{path} is a link, which is not overwritten: give the folder it leads to")
    if not _holds_atlas(path):
        raise OutputError(
            f"{path} is no atlas, so that it is not overwritten: remove it, or choose another name"
        )
    if foreign := _foreign_names(path):
        raise OutputError(
            f"{path} is not overwritten: beside the atlas it holds {one_line(foreign[0])}: move that away"
        )


def _beside(path: Path, suffix: str) -> Path:
    """Name of a hidden folder beside an atlas."""
    folder = path.absolute().parent
    return folder / hidden_name(path.name, suffix, folder)


def _holds_atlas(path: Path) -> bool:
    try:
        content = json.loads((path / METADATA).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    attributes = content.get("attributes") if isinstance(content, dict) else None
    return isinstance(attributes, dict) and attributes.get("format") == FORMAT


def _foreign_names(path: Path) -> list[str]:
    """Names of what no atlas has, anywhere in a folder, relative to it. Raises OSError."""

    def fail(error: OSError) -> NoReturn:
        raise error

    foreign = []
    for folder, folders, files in os.walk(path, onerror=fail):
        relative = "" if Path(folder) == path else f"{Path(folder).relative_to(path)}/"
        for names, own in ((folders, _OWN_FOLDERS), (files, _OWN_FILES)):
            foreign += [relative + name for name in names if not own.fullmatch(relative + name)]
        folders[:] = [name for name in folders if relative + name not in foreign]
    return sorted(foreign)


@contextlib.contextmanager
def _held(folder: Path, *, anyones: bool = False) -> Iterator[None]:
    """Hold a folder that this software made, for this process alone; anyone's, or this user's.

    Raises OutputError for a link, somebody else's folder, one with other contents, or one in use.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise _in_the_way(folder) from error
        raise
    try:
        status = os.fstat(descriptor)
        if not (anyones or status.st_uid == os.geteuid()) or _foreign_names(folder):
            raise _in_the_way(folder)
        if try_lock(descriptor) is False or not os.path.samestat(status, os.lstat(folder)):
            raise OutputError(f"another run is writing to {folder}")
        yield
    finally:
        os.close(descriptor)


def _not_written(path: Path, error: Exception) -> OutputError:
    """The error for one of the disk, or of reading back what was written; an OutputError is itself."""
    if isinstance(error, OutputError):
        return error
    reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return OutputError(f"cannot write {path}: {reason}")


def _in_the_way(folder: Path) -> OutputError:
    return OutputError(f"{folder} is in the way and was not made by satclip-engine: move it away")


def _remove_quietly(folder: Path) -> None:
    """Remove what nobody needs any more; what stays is removed by the next run.

    Threads of Zarr that had begun to write when something failed may add a file meanwhile.
    """
    for pause in _REMOVAL_PAUSE_SECONDS:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        time.sleep(pause)


class Folder:
    """The folder of an atlas that is not complete, removed when the `with` block ends unless published.

    Its name follows from the atlas's and it is held while it is written, so that the next run of the same
    atlas removes what a killed one left. Errors of the disk become an OutputError.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self.path, self.overwrite = path, overwrite
        self.temporary, self._aside = _beside(path, _PARTIAL), _beside(path, _ASIDE)
        self._made = False  # true while the temporary name is of something to be removed
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Folder:
        library = zarr()
        try:
            for leftover in (self.temporary, self._aside):
                self._remove(leftover)
            self.temporary.mkdir()
            self._made = True
            self._open.enter_context(_held(self.temporary))
            self._group = library.open_group(
                library.storage.LocalStore(self.temporary),
                mode="a",  # "w" makes the folder anew, which is held
                zarr_format=3,
            )
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._made:
            _remove_quietly(self.temporary)
        self._open.close()  # what was held while it was removed
        if isinstance(error, OSError | WeightsError) and not isinstance(error, OutputError):
            raise _not_written(self.path, error) from error

    def _remove(self, leftover: Path) -> None:
        """Remove what a run that was killed has left."""
        if os.path.lexists(leftover):
            with _held(leftover):
                shutil.rmtree(leftover)

    def check_space(self, size: int) -> None:
        """Raises OutputError when the disk has no room for so many bytes before compression."""
        free = shutil.disk_usage(self.temporary).free
        if free < size:
            need = f"up to {size / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
            raise OutputError(f"cannot write {self.path}: {need}")

    def array(self, number: int, zone: Zone, packing: Packing, bands: int) -> ZoneArray:
        """Begin a zone's array; what was there is gone."""
        return ZoneArray(self._group, number, zone, packing, bands)

    def statistics(self, triangles: np.ndarray, bands: int) -> None:
        """The two rows of `AtlasFile.statistics`."""
        layout = statistics_layout(bands)

        def create() -> None:
            self._group.create_array(STATISTICS, fill_value=float("nan"), **layout.created())[...] = triangles

        _whole(create)

    def reader(self, contents: Contents) -> AtlasFile:
        """Open the arrays written so far, as any reader does."""
        library = zarr()
        store = checked_store(library.storage.LocalStore(self.temporary, read_only=True), str(self.path))
        return AtlasFile(
            str(self.temporary), {}, library.open_group(store, mode="r", zarr_format=3), contents
        )

    def publish(self, contents: Contents) -> tuple[int, int]:
        """Complete the atlas and give it its name; bytes on disk, and how many chunks it has."""
        layouts = [zone_layout(zone, contents.packing.dtype, contents.bands) for zone in contents.zones]
        complete = dataclasses.replace(contents, sums=ChunkSums.of_files(self.temporary, layouts))
        attributes = complete.as_attributes()
        check_attributes(attributes)
        _whole(lambda: self._group.update_attributes(attributes))
        _whole(lambda: _consolidate(self._group.store))
        files = [Path(folder) / name for folder, _, names in os.walk(self.temporary) for name in names]
        for file in files:
            sync_file(file)
        for folder, _, _ in os.walk(self.temporary):
            sync_folder(Path(folder))
        counts = sum(file.stat().st_size for file in files), sum(file.name != METADATA for file in files)
        self._rename()
        try:
            sync_folder(self.temporary.parent)
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(
                f"{self.path} is complete, but its name is not forced to disk: {reason}"
            ) from error
        return counts

    def _rename(self) -> None:
        target = self.path.absolute()
        if not os.path.lexists(target):
            self.temporary.rename(target)
            self._made = False
            return
        if not self.overwrite:
            raise OutputError(f"{self.path} has appeared while it was being computed: it is left as it is")
        check_target(self.path, overwrite=True)  # once more: hours may have passed
        self._open.enter_context(_held(target, anyones=True))  # until what was there is gone
        if not _exchange(self.temporary, target):
            self._replace(target)

    def _replace(self, target: Path) -> None:
        """Replace an atlas where names cannot be exchanged: a run killed in between leaves it aside."""
        target.rename(self._aside)
        try:
            self.temporary.rename(target)
        except BaseException:
            self._aside.rename(target)
            raise
        self._made = False
        _remove_quietly(self._aside)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names at once, by Linux's renameat2; False where that cannot be done. Raises OSError."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number))


class ZoneArray:
    """One zone's array, written a row of chunks at a time."""

    def __init__(self, group: Any, number: int, zone: Zone, packing: Packing, bands: int) -> None:
        rows, layout = array_rows(zone), zone_layout(zone, packing.dtype, bands)
        self.tops = range(rows.start, rows.stop, BLOCK_ROWS)  # the first row of each row of chunks
        self._first, self._hash = rows.start, hashlib.sha256()
        self._array = _whole(
            lambda: group.create_array(
                array_name(number),
                fill_value=packing.fill,
                dimension_names=("row", "column", "band"),
                attributes={"first_row": rows.start, **zone.as_dict()},
                **layout.created(),
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

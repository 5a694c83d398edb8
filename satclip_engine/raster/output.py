"""Output path: checks, publication of the complete file, and disk errors in words."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from satclip_engine.errors import Argument, OutputError, UsageError
from satclip_engine.files import WorkingFolder, check_name, existing, open_folder

# GDAL's metadata domain and name of a finished file's record of what it is, by which resuming can tell.
STATE_DOMAIN, STATE_NAME = "SATCLIP", "STATE"
DIGEST = "sha256:"  # begins values that say nothing to people
SUFFIXES = (".tif", ".tiff")
SIDE_SUFFIXES = (".ovr", ".msk", ".msk.ovr", ".ovr.msk", ".aux.xml", ".aux", ".vat.dbf")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_path(path: Path, *, replaceable: bool) -> None:
    """Raise UsageError for a name that is no GeoTIFF's, OutputError for one that cannot be written."""
    check_name(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{path}: expected a GeoTIFF's name, ending in {' or '.join(SUFFIXES)}", argument="path"
        )
    if not replaceable and (status := existing(path)):
        raise OutputError(
            f"{path} {status}: remove it, choose another name, or use ", Argument("overwrite", True)
        )
    with disk_errors(path):
        beside = [] if replaceable else side_files(path)
    if beside:
        raise OutputError(
            f"{beside[0]} of a former {path.name} would be read as the new one's: remove it, choose another "
            "name, or use ",
            Argument("overwrite", True),
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: the folder {path.parent} is not writable")


def side_files(path: Path) -> list[Path]:
    """Files beside a GeoTIFF from which GDAL takes its overviews, masks, georeference and statistics.

    GDAL takes their names in any case; those of a GeoTIFF whose name differs in case alone are its own.
    """
    beside = []
    for entry in path.parent.iterdir():
        name = entry.name.lower()
        stem = entry.name[: len(path.name)]
        if not name.startswith(path.stem.lower()) or not _is_removable(entry):
            continue
        own = stem == path.name or (stem.lower() == path.name.lower() and not path.with_name(stem).exists())
        is_suffixed = name[len(path.name) :] in SIDE_SUFFIXES
        if (own and is_suffixed) or (name == f"{path.stem}.aux".lower() and _is_erdas_of(entry, path.name)):
            beside.append(entry)
    return sorted(beside)


def _is_removable(path: Path) -> bool:
    """True for a file or a link, also one that leads nowhere."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def _is_erdas_of(path: Path, name: str) -> bool:
    """True for an Erdas file of overviews that names `name` as its own; LaTeX's files end in .aux, too."""
    try:
        if not path.is_file() or not path.stat().st_size:
            return False
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            return content[:15] == b"EHFA_HEADER_TAG" and content.find(os.fsencode(name)) >= 0
    except OSError:
        return False


def recorded_state(path: Path) -> dict[str, Any] | None:
    """The state in a file's tags, None when it has none."""
    import rasterio

    try:
        with path.open("rb") as file, rasterio.open(_utf8_name(path, file.fileno())) as dataset:
            state = json.loads(dataset.tags(ns=STATE_DOMAIN).get(STATE_NAME, "null"))
    except (rasterio.errors.RasterioError, ValueError, RecursionError):
        return None
    return state if isinstance(state, dict) else None


def _utf8_name(path: Path, descriptor: int) -> str:
    """A name that rasterio takes for an open file: it knows none of other bytes than UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return f"/dev/fd/{descriptor}"
    return str(path)


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Differences of two states in words; empty when there are none."""
    differing = []
    for key, value in now.items():
        if before.get(key) != value:
            plain = isinstance(value, (str, int)) and not str(value).startswith(DIGEST)
            differing.append(f"{key} was {before.get(key)}, is now {value}" if plain else f"another {key}")
    return "; ".join(differing)


def publish(spool: WorkingFolder, complete: str, path: Path, *, replace: bool) -> None:
    """Give a complete file in the spool its name.

    With `replace` the side files of the former one go before it does, so that they are never read as the new
    one's. Without, a file that has appeared there is left alone (OutputError).
    """
    with open_folder(path.parent) as folder:
        if replace:
            for beside in side_files(path):
                beside.unlink(missing_ok=True)
        try:
            spool.give_name(complete, folder, path.name, replace=replace)
        except FileExistsError:
            raise OutputError(
                f"{path} has appeared while it was being computed: it is left as it is"
            ) from None
        folder.confirm(path.name)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about the disk into one line; what is whole is kept."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        hint = ["; what is finished is kept: make room and run again with ", Argument("resume", True)]
        reason = error.strerror or error
        raise OutputError(
            f"cannot write {path}: {reason}", *(hint if error.errno in _FULL else [])
        ) from error

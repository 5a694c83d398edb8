"""Output path: checks, publication of the complete file, and disk errors in words."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from satclip_engine.errors import Argument, OutputError
from satclip_engine.files import sync_folder

# GDAL's metadata domain and name of a finished file's record of what it is, by which resuming can tell.
STATE_DOMAIN, STATE_NAME = "SATCLIP", "STATE"
DIGEST = "sha256:"  # begins values that say nothing to people
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_path(path: Path, *, replaceable: bool) -> None:
    """Raise OutputError for a name under which no file can be written."""
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")
    if path.exists() and not replaceable:
        raise OutputError(
            f"{path} exists already: remove it, choose another name, or use ", Argument("overwrite", True)
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: the folder {path.parent} is not writable")


def recorded_state(path: Path) -> dict[str, Any] | None:
    """The state in a file's tags, None when it has none."""
    import rasterio

    try:
        with rasterio.open(path) as dataset:
            state = json.loads(dataset.tags(ns=STATE_DOMAIN).get(STATE_NAME, "null"))
    except (rasterio.errors.RasterioError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Differences of two states in words; empty when there are none."""
    differing = []
    for key, value in now.items():
        if before.get(key) != value:
            plain = isinstance(value, (str, int)) and not str(value).startswith(DIGEST)
            differing.append(f"{key} was {before.get(key)}, is now {value}" if plain else f"another {key}")
    return "; ".join(differing)


def publish(complete: Path, path: Path, *, replace: bool) -> None:
    """Give a complete file its name.

    Without `replace` a file that has appeared there is left alone (OutputError).
    """
    if replace:
        os.replace(complete, path)
        path.with_name(f"{path.name}.aux.xml").unlink(missing_ok=True)  # GDAL's statistics of the old file
    else:
        try:
            os.link(complete, path)
        except FileExistsError:
            raise OutputError(
                f"{path} has appeared while it was being computed: it is left as it is"
            ) from None
        except OSError:  # a file system without hard links
            os.rename(complete, path)
    sync_folder(path.parent)


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

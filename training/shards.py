"""The files of a feature cache: numbered arrays and a manifest, each whole or not there.

    manifest.json           what the features are of, and which shards are finished
    features-00000.npy …    (rows, views, dim) float16
    lonlat.npy, rows.npy    places, and rows of the source, of all features; written last
    lock                    held by the run that writes

A file is written under another name, forced to disk and renamed; the manifest names a shard once it is there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from satclip_engine.errors import DataError
from satclip_engine.raster.output import disk_errors

MANIFEST = "manifest.json"
FORMAT = 1
_PART = ".part"  # ends the names of files that are being written


def shard_name(number: int) -> str:
    return f"features-{number:05d}.npy"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a folder's manifest says; None without one. Raises DataError for a damaged or newer one."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); {afresh(folder)}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path} is not the manifest of a feature cache of this version; {afresh(folder)}")
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())


def write_array(path: Path, array: np.ndarray) -> int:
    """Write an array as .npy and return the CRC-32 of the file. Raises OutputError."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    content = buffer.getbuffer()
    write_whole(path, content)
    return zlib.crc32(content)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all. Raises OutputError naming it, for a full disk with the way out."""
    part = path.with_name(path.name + _PART)
    with disk_errors(path):
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def open_array(
    path: Path, shape: tuple[int, ...], dtype: type[np.generic], *, crc: int | None = None
) -> np.ndarray:
    """Map a .npy file. Raises DataError naming it when it is not what was written.

    crc: of the whole file; without it only length and header are looked at.
    """
    try:
        if crc is not None and file_crc(path) != crc:
            raise DataError(f"{path} is damaged: its checksum is another one; {again(path)}")
        empty = 0 in shape  # which cannot be mapped
        array = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {again(path)}") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}); {again(path)}") from error
    if array.shape != shape or array.dtype != dtype:
        raise DataError(
            f"{path} holds {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}; {again(path)}"
        )
    return array


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def file_crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            crc = zlib.crc32(chunk, crc)
    return crc


def remove_cache(folder: Path) -> None:
    """Remove a cache's own files; the manifest goes first, so that nothing half removed looks whole."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for pattern in ("features-*.npy", "lonlat.npy", "rows.npy", f"*{_PART}"):
        for path in folder.glob(pattern):
            path.unlink()


def again(path: Path) -> str:
    """The way out of a damaged file."""
    return f"build the cache in {path.parent} again: only what is damaged is computed"


def afresh(folder: Path) -> str:
    """The way out of a cache of something else."""
    return f"choose another folder, or start afresh with resume=False, which replaces the cache in {folder}"

"""Files of a feature cache: numbered arrays and a manifest, each written whole or not at all.

    manifest.json           what the features are of, and the shards that are finished
    features-00000.npy …    (rows, views, dim) float16
    encoder.pt              the image encoder, for checkpoints
    lonlat.npy, rows.npy    locations, and rows of the source, of all features; written last
    lock                    held by the run that writes

The manifest names a shard once it is on disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np

from satclip_engine.errors import Argument, DataError, OutputError, one_line
from satclip_engine.files import TEMPORARY_SUFFIX, WorkingFolder, write_atomically

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
REBUILD: Final = Argument("rebuild", True)  # of build_cache: replaces a cache
_KEYS: Final = {
    "complete": bool,
    "made_of": dict,
    "in_words": dict,
    "dim": int,
    "shards": dict,
    "skipped": list,
}
_FILES: Final = re.compile(r"features-\d{5,}\.npy|encoder\.pt|lonlat\.npy|rows\.npy")
_CHUNK_BYTES: Final = 1 << 22  # of a file that are read at once


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"features-{number:05d}.npy"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read a folder's manifest; None without one. Raises DataError for a damaged or newer one."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({one_line(error)}); ", *rebuild_advice(folder), argument=REBUILD.name
        ) from error
    if not _is_manifest(manifest):
        raise DataError(
            f"{path} is not the manifest of a feature cache of this version; ",
            *rebuild_advice(folder),
            argument=REBUILD.name,
        )
    return manifest


def _is_manifest(content: Any) -> bool:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return False
    if not all(isinstance(content.get(key), kind) for key, kind in _KEYS.items()):
        return False
    shards = content["shards"].values()
    return all(isinstance(shard, dict) and {"rows", "crc", "skipped"} <= shard.keys() for shard in shards)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest. Raises OutputError."""
    _write(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())


def write_array(path: Path, array: np.ndarray) -> int:
    """Write an array as .npy and return the CRC-32 of the file. Raises OutputError."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    content = buffer.getvalue()
    _write(path, content)
    return zlib.crc32(content)


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OutputError as error:
        raise OutputError(
            f"{error}; what is finished is kept: make room and run the same again to resume"
        ) from error


def open_array(
    path: Path, shape: tuple[int, ...], dtype: type[np.generic], *, crc: int | None = None
) -> np.ndarray:
    """Map a .npy file. Raises DataError naming it when it is not what was written.

    crc: of the whole file; without it only length and header are compared.
    """
    advice = completion_advice(path.parent)
    try:
        if crc is not None and file_crc(path) != crc:
            raise ValueError("its checksum differs")
        empty = 0 in shape  # which cannot be mapped
        array = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {advice}") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged ({one_line(error)}); {advice}") from error
    if array.shape != shape or array.dtype != dtype:
        raise DataError(
            f"{path} holds {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}; {advice}"
        )
    return array


def sha256(array: np.ndarray) -> str:
    """Compute the sha256 of an array's values."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def file_crc(path: Path) -> int:
    """Compute the CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def remove_cache(folder: WorkingFolder) -> None:
    """Remove a cache's own files; the manifest goes first, so that nothing half removed looks whole."""
    folder.remove(MANIFEST, *(name for name in folder.names() if _FILES.fullmatch(name)))


def remove_temporary(folder: WorkingFolder) -> None:
    """Remove files of a cache that a killed run was writing."""
    folder.remove(*(name for name in folder.names() if is_temporary(name)))


def is_temporary(name: str) -> bool:
    """True for the temporary file of a cache's file."""
    own = name.removeprefix(".").removesuffix(TEMPORARY_SUFFIX)
    return name == f".{own}{TEMPORARY_SUFFIX}" and (own == MANIFEST or bool(_FILES.fullmatch(own)))


def completion_advice(folder: Path) -> str:
    """Advice on a cache that is unfinished or damaged."""
    return (
        f"build the cache in {folder} again, by build_cache or by satclip-train with the images as DATA and "
        "this folder as --features: only what is missing is computed"
    )


def rebuild_advice(folder: Path) -> tuple[str | Argument, ...]:
    """Advice on a cache of something else: pieces of a message whose `argument` is REBUILD."""
    return "choose another ", Argument("folder"), f", or replace the cache in {folder} with ", REBUILD

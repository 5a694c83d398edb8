"""Checkpoint files (.ckpt, .safetensors): reading by suffix, atomic writing, and refusal of other files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from satclip_engine.errors import UsageError, WeightsError
from satclip_engine.files import write_atomically
from satclip_engine.weights.lightning_file import encode_ckpt, read_ckpt
from satclip_engine.weights.safetensors_file import encode_safetensors, read_safetensors
from satclip_engine.weights.schema import Stored

_READERS: Final[Mapping[str, Callable[[Path, str], Stored]]] = MappingProxyType(
    {".ckpt": read_ckpt, ".safetensors": read_safetensors}
)
_ENCODERS: Final[Mapping[str, Callable[[Stored], bytes]]] = MappingProxyType(
    {".ckpt": encode_ckpt, ".safetensors": encode_safetensors}
)
SUFFIXES: Final = tuple(_READERS)


def read_checkpoint(path: Path, source: str) -> tuple[Stored, str]:
    """Read content and sha256 of the file at `path`; messages name `source`. Raises WeightsError."""
    suffix = path.suffix.lower()
    try:
        _check_file(path, source, suffix)
        return _READERS[suffix](path, source), _file_sha256(path)
    except OSError as error:
        raise WeightsError(f"{source}: cannot be read ({error.strerror or error})") from error


def write_checkpoint(path: Path, stored: Stored) -> None:
    """Write `stored` in the format of the suffix. Raises UsageError for other suffixes, OutputError."""
    suffix = path.suffix.lower()
    if suffix not in _ENCODERS:
        raise UsageError(f"{path}: expected a name ending in {' or '.join(SUFFIXES)}")
    write_atomically(path, _ENCODERS[suffix](stored))


def _check_file(path: Path, source: str, suffix: str) -> None:
    """Raise WeightsError for a `path` that is no checkpoint, saying what it is instead."""
    if path.is_dir():
        raise WeightsError(f"{source}: expected a file, found a directory")
    if not path.exists():
        remote = ": download it, or give hf://org/name" if "://" in source else ""
        raise WeightsError(f"{source}: no such file{remote}")
    if suffix not in _READERS:
        raise WeightsError(
            f"{source}: expected a name ending in {' or '.join(SUFFIXES)}, found {suffix or 'no suffix'!r}"
        )
    if not path.is_file():
        raise WeightsError(f"{source}: expected a file, found a device or pipe")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise WeightsError(f"{source}: the file is empty")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{source}: a Git LFS pointer, not the weights: fetch them with `git lfs pull`")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise WeightsError(f"{source}: a web page, not the weights: download the file itself")
    zipped = head.startswith(b"PK\x03\x04")
    if suffix == ".safetensors" and zipped:
        raise WeightsError(
            f"{source}: named .safetensors, but its content is a torch checkpoint: rename it to .ckpt"
        )
    if suffix == ".ckpt" and head[8:9] == b"{" and not zipped:
        raise WeightsError(
            f"{source}: named .ckpt, but its content is safetensors: rename it to .safetensors"
        )


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

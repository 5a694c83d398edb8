"""Files on disk: atomic writes, fsync of files and folders, and an exclusive lock on a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from satclip_engine.errors import OutputError

TEMPORARY_SUFFIX: Final = ".part"  # of files that are being written, or were when their process was killed
_NO_FOLDER_SYNC: Final = (errno.EINVAL, errno.ENOTSUP)  # of file systems that keep no folders to force


def write_atomically(path: Path, write: Callable[[BinaryIO], object] | bytes) -> None:
    """Write a file whole or not at all: a temporary file beside it, fsync, rename, fsync of the folder.

    write: the content, or a function that writes it to an open file.

    Raises OutputError naming the file; the temporary file is removed then, and a file that was there is left.
    """
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
    try:
        replace_file(path, write)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def replace_file(path: Path, write: Callable[[BinaryIO], object] | bytes) -> None:
    """Do what `write_atomically` does, for callers that explain a failure themselves. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            if callable(write):
                write(file)
            else:
                file.write(write)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Force a file's content to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk, so that renames in it survive a crash. Raises OSError."""
    try:
        sync_file(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """Hold a folder, made if need be, for this process alone, by an flock on its file `lock`.

    Raises OutputError when another process holds it, OSError when it cannot be made.
    """
    while True:
        folder.mkdir(exist_ok=True)
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue  # another run removed the folder between the two calls
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise OutputError(f"another run (process {owner}) is writing to {folder}") from None
        if _is_same_file(lock, folder / "lock"):
            break
        os.close(lock)
    try:
        os.ftruncate(lock, 0)
        with contextlib.suppress(OSError):  # a full disk must not keep a run from going on
            os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield folder
    finally:
        os.close(lock)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False

"""Files are written whole or not at all, and folders are held by one process."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

import pytest

from satclip_engine.errors import OutputError
from satclip_engine.files import locked_folder, replace_file, sync_folder, write_atomically


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_content_or_a_function_that_writes_it_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"before")
    write_atomically(path, lambda file: file.write(b"after"))
    assert path.read_bytes() == b"after"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_file_is_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.bin", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o640


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, function, full_disk)
    with pytest.raises(OutputError, match=r"cannot write .*a\.bin: No space left on device"):
        write_atomically(path, b"after")
    with pytest.raises(OSError, match="No space left on device") as raised:
        replace_file(path, b"after")
    assert raised.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_an_interrupt_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.bin", interrupted)
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_and_a_folder_in_the_way_are_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"there is no folder .*missing"):
        write_atomically(tmp_path / "missing" / "a.bin", b"")
    with pytest.raises(OutputError, match="it is a folder"):
        write_atomically(tmp_path, b"")


def test_a_file_system_that_cannot_force_folders_to_disk_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", unsupported)
    sync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        sync_folder(tmp_path)


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    with (
        locked_folder(folder),
        pytest.raises(OutputError, match=f"another run .process {os.getpid()}. is writing"),
        locked_folder(folder),
    ):
        pass
    with locked_folder(folder):
        pass

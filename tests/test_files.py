"""Files are written whole or not at all, and folders are held by one process."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from satclip_engine.errors import OutputError
from satclip_engine.files import (
    MAX_TEMPORARIES,
    hidden_name,
    locked_folder,
    sync_folder,
    temporary_name,
    write_atomically,
)


def full_disk(*_: object, **__: object) -> None:
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


def link_to_a_folder(path: Path, target: Path) -> None:
    path.symlink_to(target)


def link_that_leads_nowhere(path: Path, target: Path) -> None:
    path.symlink_to(target / "missing")


def link_to_itself(path: Path, target: Path) -> None:
    path.symlink_to(path)


def plain_file(path: Path, target: Path) -> None:
    path.write_text("precious")


def pipe(path: Path, target: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    "obstacle", [link_to_a_folder, link_that_leads_nowhere, link_to_itself, plain_file, pipe]
)
def test_what_is_not_ours_under_the_name_of_a_folder_is_refused_and_stays(
    tmp_path: Path, obstacle: Callable[[Path, Path], None]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("precious")
    obstacle(tmp_path / "spool", home)
    before = os.lstat(tmp_path / "spool")
    with (
        pytest.raises(OutputError, match="spool is in the way: it is a"),
        locked_folder(tmp_path / "spool", private=True),
    ):
        pass
    assert os.path.samestat(before, os.lstat(tmp_path / "spool"))
    assert os.listdir(home) == ["thesis.tex"]


def test_a_folder_that_somebody_has_named_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    with locked_folder(tmp_path / "cache") as folder:
        folder.write("a", b"1")
    assert sorted(os.listdir(tmp_path / "disk")) == ["a", "lock"]
    link_that_leads_nowhere(tmp_path / "other", tmp_path)
    with (
        pytest.raises(OutputError, match="other is in the way: it is a link to"),
        locked_folder(tmp_path / "other"),
    ):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_a_folder_of_another_user_is_refused_unless_it_was_named(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    os.chown(folder, 12345, -1)
    with (
        pytest.raises(OutputError, match=r"belongs to another user .12345."),
        locked_folder(folder, private=True),
    ):
        pass
    assert os.listdir(folder) == []
    with locked_folder(folder):
        pass


def test_nobody_else_may_enter_a_folder_of_our_own_making(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "spool", private=True):
        assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700


def symbolic(path: Path, target: Path) -> None:
    path.symlink_to(target)


def hard(path: Path, target: Path) -> None:
    path.hardlink_to(target)


def folder_there(path: Path, target: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("obstacle", [symbolic, hard, folder_there, pipe])
@pytest.mark.parametrize("name", ["lock", "index"])
def test_what_is_not_ours_under_the_name_of_a_file_is_refused_and_stays(
    tmp_path: Path, obstacle: Callable[[Path, Path], None], name: str
) -> None:
    precious, spool = tmp_path / "precious", tmp_path / "spool"
    precious.write_text("precious")
    spool.mkdir()
    obstacle(spool / name, precious)
    with pytest.raises(OutputError, match=f"{name} is in the way: it is a"), locked_folder(spool) as folder:
        os.close(folder.open("index"))
    assert precious.read_text() == "precious"
    assert os.path.lexists(spool / name)


def test_only_files_of_the_names_that_are_told_are_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    with locked_folder(tmp_path / "spool") as folder:
        for name in ("index", "state", "notes.txt"):
            folder.write(name, b"x")
        (tmp_path / "spool" / "level").symlink_to(tmp_path / "precious")
        with pytest.raises(OutputError, match="level is in the way"):
            folder.remove("level")
        assert folder.dissolve(["index", "state", "level"]) == ["level", "notes.txt"]
    assert sorted(os.listdir(tmp_path / "spool")) == ["level", "notes.txt"]
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_dissolved_folder_is_gone_and_another_one_in_its_stead_stays(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "a") as folder:
        folder.write("index", b"x")
        assert folder.dissolve(["index"]) == []
    assert os.listdir(tmp_path) == []
    with locked_folder(tmp_path / "a") as folder:
        (tmp_path / "a").rename(tmp_path / "moved")
        (tmp_path / "a").mkdir()
        folder.dissolve([])
    assert (tmp_path / "a").is_dir()


KILLED = """
import os, signal, sys
from pathlib import Path
from satclip_engine.files import write_atomically
def killed(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), killed)
"""


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    subprocess.run([sys.executable, "-c", KILLED, path], check=False, timeout=60)
    assert os.listdir(tmp_path) == [".a.bin.part"]
    (tmp_path / ".b.bin.part").write_text("of another file")
    write_atomically(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert sorted(os.listdir(tmp_path)) == [".b.bin.part", "a.bin"]


def test_writers_of_one_file_at_once_leave_one_of_their_contents_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    barrier = threading.Barrier(4)

    def write(number: int) -> None:
        for turn in range(20):
            barrier.wait()
            write_atomically(path, bytes([number]) * (1000 + turn))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["a.bin"]
    assert path.read_bytes() in [bytes([number]) * 1019 for number in range(4)]


def test_a_writer_at_work_and_what_is_not_ours_under_temporary_names_are_left_alone(tmp_path: Path) -> None:
    path, precious = tmp_path / "a.bin", tmp_path / "precious"
    precious.write_text("precious")
    for number in range(1, MAX_TEMPORARIES):
        (tmp_path / temporary_name("a.bin", tmp_path, number)).symlink_to(precious)

    def meanwhile(file: BinaryIO) -> None:
        file.write(b"outer")
        write_atomically(path, b"inner")
        assert path.read_bytes() == b"inner"

    write_atomically(path, meanwhile)
    assert path.read_bytes() == b"outer"
    assert precious.read_text() == "precious"
    assert len(os.listdir(tmp_path)) == 2 + MAX_TEMPORARIES - 1


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "a.bin").symlink_to("target")
    with pytest.warns(UserWarning, match="was a link to target: the link is replaced"):
        write_atomically(tmp_path / "a.bin", b"new")
    assert (tmp_path / "target").read_text() == "precious"
    assert (tmp_path / "a.bin").read_bytes() == b"new"
    assert not (tmp_path / "a.bin").is_symlink()


def test_a_link_to_a_name_that_commands_terminals_is_told_in_escapes(tmp_path: Path) -> None:
    (tmp_path / "a.bin").symlink_to("\x1b]0;owned\x07")
    with pytest.warns(UserWarning, match=r"was a link to \\x1b\]0;owned\\x07: the link is replaced"):
        write_atomically(tmp_path / "a.bin", b"new")


def test_without_replacing_what_has_appeared_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"first", replace=False)
    (tmp_path / "link").symlink_to("nowhere")

    def unsupported(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    for name in (path, tmp_path / "link"):
        with pytest.raises(OutputError, match="has appeared meanwhile"):
            write_atomically(name, b"second", replace=False)
    monkeypatch.setattr(os, "link", unsupported)  # as on FAT
    for name in (path, tmp_path / "link"):
        with pytest.raises(OutputError, match="has appeared meanwhile"):
            write_atomically(name, b"second", replace=False)
    write_atomically(tmp_path / "b.bin", b"b", replace=False)
    assert path.read_bytes() == b"first"
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "b.bin", "link"]


@pytest.mark.parametrize("length", [200, 222, 240, 251, 255])
def test_names_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("ü" * (length // 2)).ljust(length - length // 2, "a")
    assert len(os.fsencode(path.name)) == length
    write_atomically(path, b"x")
    assert os.listdir(tmp_path) == [path.name]
    hidden = hidden_name(path.name, ".satclip-spool", tmp_path)
    assert len(os.fsencode(hidden)) <= 255
    assert hidden != hidden_name(path.name[:-1] + "b", ".satclip-spool", tmp_path)
    (tmp_path / hidden).mkdir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a" * 256, "File name too long"),
        ("a\0b", "holds a NUL"),
        ("pipe", "it is a pipe"),
        ("/dev/null", "device"),
    ],
)
def test_names_that_cannot_be_written_are_said_so(tmp_path: Path, name: str, message: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match=message):
        write_atomically(tmp_path / name, b"x")


def test_a_name_of_any_bytes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a\xff\n.bin")
    write_atomically(path, b"x")
    assert os.listdir(os.fsencode(tmp_path)) == [b"a\xff\n.bin"]


def test_a_folder_that_cannot_be_synced_after_a_file_has_its_name_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.warns(UserWarning, match=r"a\.bin is complete and right, but the disk has not confirmed"):
        write_atomically(tmp_path / "a.bin", b"x")
    assert (tmp_path / "a.bin").read_bytes() == b"x"


def test_a_folder_that_cannot_be_locked_for_want_of_descriptors_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, count = os.open, 0

    def exhausted(*arguments: object, **options: object) -> int:
        nonlocal count
        count += 1
        if count > allowed:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", exhausted)
    for allowed in (0, 1):  # noqa: B007 (`exhausted` reads it)
        count = 0
        with pytest.raises(OSError, match="Too many open files"), locked_folder(tmp_path / "spool"):
            pass
        assert os.listdir(tmp_path) == []


def test_a_close_that_fails_is_of_no_consequence_once_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = os.close

    def failing(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with locked_folder(tmp_path / "spool") as folder:
        monkeypatch.setattr(os, "close", failing)
        write_atomically(tmp_path / "a.bin", b"x")
        folder.dissolve([])
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["a.bin"]

"""Files on disk: atomic writes, folders that are worked in without following links, and exclusive locks.

    write_atomically(path, content)          a file, whole or not at all
    with locked_folder(path) as folder:      a folder for this process alone
        folder.write("state.json", content)  files in it, relative to its descriptor

Nothing that is not ours is removed or overwritten: a link, folder, pipe or second name of another file under
a name of ours raises OutputError and stays as it is. Temporary files have names that follow from the file's
own and are locked while they are written, so the next writer of the same file removes what a killed one left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from satclip_engine.errors import OutputError, one_line

LOCK: Final = "lock"  # the file by which a folder is held
TEMPORARY_SUFFIX: Final = ".part"  # of files that are being written, or were when their process was killed
MAX_TEMPORARIES: Final = 8  # names of temporary files of one file before they are random
_NAME_BYTES: Final = 255  # of a file's name where the file system does not say
_SAFELY: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_NO_FOLDER_SYNC: Final = (errno.EINVAL, errno.ENOTSUP)  # of file systems that keep no folders to force
_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # of those without flock
_NO_PLAIN_FILE: Final = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV)  # of links, folders, devices

Content = Callable[[BinaryIO], object] | bytes


class WorkingFolder:
    """An open folder in which names are relative to its descriptor and lead through no link.

    Names are plain names without a slash. Whatever lies under a name that is opened, removed or replaced must
    be a plain file; anything else is not ours, stays as it is and raises OutputError. Other failures are
    OSError.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def close(self) -> None:
        _close(self.descriptor)

    def names(self) -> list[str]:
        """Names of all that lies in the folder, whose ever it is."""
        return os.listdir(self.descriptor)

    def has(self, name: str) -> bool:
        """True where something lies under the name, if only a link that leads nowhere."""
        return self._status(name) is not None

    def open(self, name: str, flags: int = os.O_RDWR | os.O_CREAT) -> int:
        """Descriptor of a plain file, made if need be, that has no second name."""
        try:
            descriptor = os.open(name, flags | _SAFELY, 0o666, dir_fd=self.descriptor)
        except OSError as error:
            if error.errno in _NO_PLAIN_FILE:
                raise self._refusal(name) from None
            raise
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(descriptor)
            raise self._refusal(name)
        return descriptor

    def create(self, name: str) -> int:
        """Descriptor of a new file; a plain one of that name is removed before."""
        self.remove(name)
        return self.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def read(self, name: str) -> bytes | None:
        """Content of a file; None when there is none."""
        try:
            descriptor = self.open(name, os.O_RDONLY)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            return file.read()

    def size(self, name: str) -> int:
        """Bytes of a file; 0 when there is none."""
        status = self._status(name)
        return 0 if status is None else status.st_size

    def remove(self, *names: str) -> None:
        """Remove files, all or none if one of them is not ours; those that are missing are no failure."""
        kinds = {name: status.st_mode for name in names if (status := self._status(name))}
        for name, mode in kinds.items():
            if not stat.S_ISREG(mode):
                raise self._refusal(name)
        for name in kinds:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.descriptor)

    def write(self, name: str, content: Content, *, replace: bool = True) -> None:
        """Write a file whole or not at all; without `replace` one that is there stays: FileExistsError."""
        with self._temporary(name) as (file, temporary):
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
            self.give_name(temporary, self, name, replace=replace)
        self.confirm(name)

    def give_name(self, name: str, target: WorkingFolder, new: str, *, replace: bool) -> None:
        """Move a finished file to its name in a folder of the same file system.

        A link of that name is replaced with `replace`, its target stays as it is, and a note says so. Without
        `replace` nothing is: FileExistsError; and the file may keep its first name beside the new one.
        """
        ends = {"src_dir_fd": self.descriptor, "dst_dir_fd": target.descriptor}
        if replace:
            note = replaced_link(target.path / new)
            os.replace(name, new, **ends)
            if note:
                warnings.warn(note, stacklevel=4)
            return
        try:
            os.link(name, new, **ends, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if target.has(new):
                raise FileExistsError(
                    errno.EEXIST, os.strerror(errno.EEXIST), str(target.path / new)
                ) from None
            os.rename(name, new, **ends)

    def confirm(self, name: str) -> None:
        """Force the folder's entries to disk now that a file has its name; a failure is a note."""
        try:
            self.sync()
        except OSError as error:
            warnings.warn(
                f"{self.path / name} is complete and right, but the disk has not confirmed its name "
                f"({error.strerror or error}): a crash of the machine could undo it",
                stacklevel=4,
            )

    def sync(self) -> None:
        """Force the folder's entries to disk, so that renames in it survive a crash."""
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise

    def dissolve(self, names: Iterable[str]) -> list[str]:
        """Remove these files and `lock`, and the folder if nothing else is in it; names of what stays.

        `lock` goes last, so that no other run takes a folder that is about to go. No descriptor is needed.
        """
        for name in (*names, LOCK):
            with contextlib.suppress(OutputError):
                self.remove(name)
        try:
            if os.path.samestat(os.lstat(self.path), os.fstat(self.descriptor)):
                os.rmdir(self.path)
            return []
        except FileNotFoundError:
            return []
        except OSError:
            with contextlib.suppress(OSError):
                return sorted(set(self.names()) - {LOCK})
            return []

    def is_open_file(self, descriptor: int, name: str) -> bool:
        """True where a descriptor's file is still the one of that name."""
        status = self._status(name)
        return status is not None and os.path.samestat(os.fstat(descriptor), status)

    def remove_abandoned(self, name: str) -> bool:
        """Remove a temporary file whose writer has died; True where nothing lies under its name then."""
        try:
            descriptor = self.open(name, os.O_RDWR)
        except FileNotFoundError:
            return True
        except OSError:  # not ours
            return False
        try:
            if os.fstat(descriptor).st_uid != os.geteuid() or not try_lock(descriptor):
                return False
            if self.is_open_file(descriptor, name):
                os.unlink(name, dir_fd=self.descriptor)
            return True
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _temporary(self, name: str) -> Iterator[tuple[BinaryIO, str]]:
        """An open temporary file for a file of that name; gone at the end unless it has got its name."""
        descriptor, temporary = self._new_temporary(name)
        with os.fdopen(descriptor, "w+b") as file:
            try:
                yield file, temporary
            finally:
                # By another run's hands the name may be that of another file by now.
                if self.is_open_file(descriptor, temporary):
                    with contextlib.suppress(OSError):
                        os.unlink(temporary, dir_fd=self.descriptor)

    def _new_temporary(self, name: str) -> tuple[int, str]:
        """Make a temporary file, locked so that others can tell it from one whose writer has died."""
        for number in range(MAX_TEMPORARIES):
            temporary = temporary_name(name, self.path, number)
            if not self.remove_abandoned(temporary):
                continue  # of a writer at work, or not ours
            descriptor = self._exclusive(temporary)
            if descriptor is not None:
                self._remove_abandoned_after(name, number)
                return descriptor, temporary
        temporary = f".{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
        return self.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL), temporary

    def _exclusive(self, name: str) -> int | None:
        """Descriptor of a new and locked file; None when somebody was faster."""
        try:
            descriptor = self.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return None
        if try_lock(descriptor) is not False and self.is_open_file(descriptor, name):
            return descriptor
        os.close(descriptor)
        return None

    def _remove_abandoned_after(self, name: str, number: int) -> None:
        """Remove what several writers of a file left that were killed at once."""
        for further in range(number + 1, MAX_TEMPORARIES):
            temporary = temporary_name(name, self.path, further)
            if not self.has(temporary):
                return
            self.remove_abandoned(temporary)

    def _status(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _refusal(self, name: str) -> OutputError:
        return in_the_way(self.path / name)


def write_atomically(path: Path, write: Content, *, replace: bool = True) -> None:
    """Write a file whole or not at all: a temporary file beside it, fsync, rename, fsync of the folder.

    write: the content, or a function that writes it to an open file. replace: a file that is there.

    A link of that name is replaced, not followed: its target stays as it is, and a note says so. Raises
    OutputError naming the file; the temporary file is removed then, and a file that was there is left.
    """
    check_name(path)
    try:
        with open_folder(path.parent) as folder:
            folder.write(path.name, write, replace=replace)
    except OutputError:
        raise
    except FileExistsError:
        raise OutputError(f"{path} has appeared meanwhile: it is left as it is") from None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def check_name(path: Path, thing: str = "") -> None:
    """Raise OutputError for a name under which no file can be written, whatever may be replaced.

    thing: the kind of file, for the message: "the preview ".
    """
    cannot = f"cannot write {thing}{path}"
    if "\0" in str(path):
        raise OutputError(f"{cannot}: its name holds a NUL character")
    try:
        os.fsencode(path)
        if not path.parent.is_dir():
            raise OutputError(f"{cannot}: there is no folder {path.parent}")
        status = _followed(path)
    except UnicodeEncodeError:
        raise OutputError(f"{cannot}: this locale cannot express its name: set PYTHONUTF8=1") from None
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{cannot}: {error.strerror or error}") from error
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise OutputError(f"{cannot}: it is {_kind(status)}")


def existing(path: Path) -> str | None:
    """Description of what lies under a name, links not followed: "exists already (a link to X)", or None."""
    if not os.path.lexists(path):
        return None
    return f"exists already (a link to {os.readlink(path)})" if path.is_symlink() else "exists already"


def replaced_link(path: Path) -> str | None:
    """Note that a link is replaced by a file; None where there is no link."""
    if not path.is_symlink():
        return None
    return one_line(
        f"{path} was a link to {os.readlink(path)}: the link is replaced, and what it led to stays as it was"
    )


def _kind(status: os.stat_result) -> str:
    """Kind of a file in words."""
    kinds = (
        (stat.S_ISLNK, "a link"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISREG, "a file with a second name (a hard link)" if status.st_nlink > 1 else "a file"),
    )
    return next((words for is_kind, words in kinds if is_kind(status.st_mode)), "a device")


def check_readable(path: str | os.PathLike[str]) -> None:
    """Raise OSError for a pipe, socket or device, which readers would wait for; any other name passes."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # names of GDAL's own, and what readers say more of
        return
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise OSError(errno.EINVAL, f"{_kind(status)}, no file")


def in_the_way(path: Path) -> OutputError:
    """Error for something under a name of ours that is not ours."""
    try:
        kind = _kind(os.lstat(path))
    except OSError:
        kind = "no plain file"
    link = f" to {os.readlink(path)}" if kind == "a link" else ""
    return OutputError(
        f"{path} is in the way: it is {kind}{link}, which is not ours; remove it, or write elsewhere"
    )


def temporary_name(name: str, folder: Path, number: int = 0) -> str:
    """Name of the temporary file for a file; `number` for several writers at once."""
    return hidden_name(name, f".{number}{TEMPORARY_SUFFIX}" if number else TEMPORARY_SUFFIX, folder)


def hidden_name(name: str, suffix: str, folder: Path) -> str:
    """Name of something that goes with a file or folder: `.NAME` and a suffix.

    A name that would become too long for the file system is cut, and a digest of it tells it from others.
    """
    try:
        limit = os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError):
        limit = _NAME_BYTES
    encoded = os.fsencode(name)
    room = limit - len(os.fsencode(suffix)) - 1
    if len(encoded) <= room:
        return f".{name}{suffix}"
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    return f".{encoded[: room - len(digest) - 1].decode(errors='ignore')}-{digest}{suffix}"


@contextlib.contextmanager
def open_folder(path: Path, *, private: bool = False) -> Iterator[WorkingFolder]:
    """An existing folder; `private` as for `locked_folder`. Raises OSError."""
    folder = _entered(path, private)
    try:
        yield folder
    finally:
        folder.close()


def sync_file(path: Path) -> None:
    """Force a file's content to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk, so that renames in it survive a crash. Raises OSError."""
    with open_folder(folder) as opened:
        opened.sync()


@contextlib.contextmanager
def locked_folder(path: Path, *, private: bool = False) -> Iterator[WorkingFolder]:
    """Hold a folder, made if need be, for this process alone, by an flock on its file `lock`.

    private: the folder's name is of our making, so it must be a real folder of this user, and nobody else may
        enter a new one. Otherwise somebody has named it: it may be a link to one and belong to others, and
        a new one is as readable as the umask says.

    Raises OutputError when another process holds it or something that is not ours is in the way, OSError when
    it cannot be made. What a run that got no further has made is removed.
    """
    folder, lock = _held(path, private)
    try:
        with contextlib.suppress(OSError):  # a full disk must not keep a run from going on
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield folder
    finally:
        _close(lock)
        folder.close()


def _held(path: Path, private: bool) -> tuple[WorkingFolder, int]:
    """A folder and the descriptor of its lock, which is held."""
    while True:
        is_new = _make_folder(path, 0o700 if private else 0o777)
        try:
            folder = _entered(path, private)
        except FileNotFoundError:
            continue  # another run removed the folder between the two calls
        except BaseException:
            _remove_if(is_new, path)
            raise
        try:
            lock = _lock_of(folder)
        except BaseException:
            folder.close()
            _remove_if(is_new, path)
            raise
        if lock is not None:
            return folder, lock
        folder.close()


def _make_folder(path: Path, mode: int) -> bool:
    """Make a folder unless there is one; True where it is new."""
    try:
        path.mkdir(mode)
    except FileExistsError:
        if path.is_symlink() and not path.exists():
            raise in_the_way(path) from None
        return False
    return True


def _remove_if(is_new: bool, path: Path) -> None:
    if is_new:
        with contextlib.suppress(OSError):
            path.rmdir()


def _entered(path: Path, private: bool) -> WorkingFolder:
    """An open folder. Raises OutputError unless it is one and, if it has to be private, ours."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        folder = WorkingFolder(path, os.open(path, flags | os.O_NOFOLLOW if private else flags))
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise in_the_way(path) from None
        raise
    if not private or _is_ours(folder):
        return folder
    owner = os.fstat(folder.descriptor).st_uid
    folder.close()
    raise OutputError(f"{path} is in the way: it belongs to another user ({owner}); write elsewhere")


def _is_ours(folder: WorkingFolder) -> bool:
    """True where a folder belongs to whom new files in it belong to.

    That is this user, unless the file system gives all files one owner or root none.
    """
    owner = os.fstat(folder.descriptor).st_uid
    if owner == os.geteuid():
        return True
    name = f".{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        descriptor = folder.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    except OSError:
        return False
    try:
        return os.fstat(descriptor).st_uid == owner
    finally:
        os.close(descriptor)
        os.unlink(name, dir_fd=folder.descriptor)


def _lock_of(folder: WorkingFolder) -> int | None:
    """Descriptor of a folder's lock, which is held then; None where another run has just removed it."""
    try:
        lock = folder.open(LOCK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.is_open_file(lock, LOCK):
            return lock
        os.close(lock)
        return None
    except BlockingIOError:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        process = owner if owner.isdecimal() else "unknown"
        text = f"another run (process {process}) is writing to {folder.path}: wait until it has ended"
        raise OutputError(text) from None
    except BaseException:
        os.close(lock)
        raise


def try_lock(descriptor: int) -> bool | None:
    """Lock a file or folder; False where another process holds it, None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _close(descriptor: int) -> None:
    """Close a descriptor through which nothing was written that matters; a failure is of no consequence."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _followed(path: Path) -> os.stat_result | None:
    """Status of what a name leads to; None where it leads nowhere."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise

"""Atlases from strangers: answered right or refused in one line; and nobody else's folder is touched."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import itertools
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories.atlas import PARIS, places

import satclip_engine as se
from satclip_engine.atlas import folder
from satclip_engine.atlas.metadata import sealed
from satclip_engine.atlas.write import write_atlas
from satclip_engine.errors import OutputError, UsageError, WeightsError

pytest.importorskip("zarr")

HEAD = np.ones((1, 8))


def refusal(path: Path, points: Any = PARIS) -> str:
    """The line with which an atlas is refused, when it is opened or when it answers."""
    with pytest.raises(WeightsError) as error:
        se.load(path).with_head(HEAD)(points)
    assert str(error.value).isprintable()
    return str(error.value)


def metadata(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / "zarr.json").read_text())
    return content


def with_values(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where all values of a JSON document are."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from with_values(value, (*at, key))


def replaced(content: dict[str, Any], at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = json.loads(json.dumps(content))
    node = changed
    for key in at[:-1]:
        node = node[key]
    node[at[-1]] = value
    return changed  # type: ignore[no-any-return]


REPLACEMENTS = (
    *(None, True, False, 0, -1, 1, 2, 4.0, -0.5, 1e308, 2**31, 2**63, 10**30, 10**400),
    *(float("nan"), float("inf"), -float("inf"), "", "x", "\x1b]0;mine\x07", "a\0b", "9" * 5000),
    *([], [1], [[[]]], {}, {"a": 1}),
)


def test_every_value_of_the_metadata_is_read_right_or_refused(copied: Path) -> None:
    content = metadata(copied)
    expected = se.load(copied)(PARIS), se.load(copied).with_head(HEAD)(PARIS)
    cases = [(at, value) for at in with_values(content) for value in REPLACEMENTS]
    order, messages = np.random.default_rng(0).permutation(len(cases)), []
    for number in order[:500]:
        at, value = cases[number]
        (copied / "zarr.json").write_text(json.dumps(replaced(content, at, value)))
        try:
            atlas = se.load(copied)
            answers = atlas(PARIS), atlas.with_head(HEAD)(PARIS)
        except WeightsError as error:
            messages.append(str(error))
        else:
            for answer, right in zip(answers, expected, strict=True):
                np.testing.assert_array_equal(answer, right, err_msg=str((at, value)))
    assert all(map(str.isprintable, messages))
    assert 10 < len(messages) < 490


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (("certificate", "max_sigma"), 1e-9, "max_sigma: 1e-09, but its bands' errors are up to"),
        (("certificate", "max_tolerance"), 0.0, "max_tolerance: 0, but its bands' errors are up to"),
        (("certificate", "confidence"), 1, "confidence: expected a number between 0 and 1, found 1"),
        (("certificate", "positions"), 10**30, "positions: expected a whole number"),
        (("certificate", "min_cosine"), -1e308, "min_cosine: expected a number from -1 to 1"),
        (("certificate", "sigma", 0), 1.0, "its bands do not agree about their sigma"),
        (("zones", 0, "rows"), 2**63, "rows: expected a whole number"),
        (("zones", 0, "order"), 4.0, "order: expected one of 4, 6, 8, 10, 12, found 4.0"),
        (("origin", "degrees"), 201, "degrees: expected a whole number from 1 to 200"),
        (("band_names", 0), "a\nb", "printable letters"),
        (("chunk_crc32c", 0), "AAAA", "not a sum for each chunk"),
    ],
)
def test_numbers_that_cannot_be_are_refused_under_a_right_hash_too(
    copied: Path, at: tuple[Any, ...], value: Any, words: str
) -> None:
    content = metadata(copied)
    content["attributes"] = sealed(replaced(content["attributes"], at, value))
    (copied / "zarr.json").write_text(json.dumps(content))
    assert words in refusal(copied)


def chunks(path: Path) -> list[Path]:
    return sorted(file for file in (path / "zone00" / "c").rglob("0") if file.is_file())


def test_chunks_of_another_place_or_atlas_are_noticed(
    exact, atlas_path: Path, copied: Path, tmp_path: Path
) -> None:
    first, last = chunks(copied)[0], chunks(copied)[-1]
    first.rename(tmp_path / "t")
    last.rename(first)
    (tmp_path / "t").rename(last)
    assert "is a chunk of another place or atlas" in refusal(copied, places(500))
    shutil.copytree(atlas_path, tmp_path / "second.zarr")
    other = tmp_path / "other.zarr"
    write_atlas(exact.with_head(np.eye(8)[::-1]), other, tolerance=1e-3)
    for mine, theirs in zip(chunks(tmp_path / "second.zarr"), chunks(other), strict=False):
        shutil.copyfile(theirs, mine)
    assert "is a chunk of another place or atlas" in refusal(tmp_path / "second.zarr", places(500))


def test_chunks_that_unpack_to_more_than_they_can_are_not_unpacked(copied: Path) -> None:
    victim = chunks(copied)[0]
    for file in chunks(copied):
        content = bytearray(victim.read_bytes())
        content[4:8] = (2**31 - 16).to_bytes(4, "little")  # what Blosc would allocate
        file.write_bytes(content)
    assert "is no chunk of its array" in refusal(copied, places(500))
    content = metadata(copied)
    codecs = content["consolidated_metadata"]["metadata"]["zone00"]["codecs"]
    codecs[2:] = [{"name": "gzip", "configuration": {"level": 9}}]
    (copied / "zarr.json").write_text(json.dumps(content))
    for file in chunks(copied):
        file.write_bytes(gzip.compress(bytes(10**7)))
    assert "in chunks and codecs that satclip-engine writes" in refusal(copied)


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse", "folder", "empty", "cut"])
def test_chunks_that_are_no_files_of_their_size_are_refused(copied: Path, kind: str) -> None:
    for file in chunks(copied):
        content = file.read_bytes()
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "device":
            file.symlink_to("/dev/zero")
        elif kind == "sparse":
            with file.open("wb") as sparse:
                sparse.truncate(1 << 40)
        elif kind == "folder":
            file.mkdir()
        else:
            file.write_bytes(content[: 7 if kind == "cut" else 0])
    assert str(copied) in refusal(copied, places(500))


def test_metadata_that_is_no_file_is_refused(copied: Path) -> None:
    (copied / "zarr.json").unlink()
    os.mkfifo(copied / "zarr.json")
    assert "zarr.json is no file" in refusal(copied)
    (copied / "zarr.json").unlink()
    with (copied / "zarr.json").open("wb") as sparse:
        sparse.truncate(1 << 40)
    assert "zarr.json has more than the" in refusal(copied)
    (copied / "zarr.json").write_text('{"zarr_format":3,"node_type":"group","attributes":' + "[" * 100000)
    assert str(copied) in refusal(copied)


def test_sums_name_every_chunk(copied: Path) -> None:
    """They are the last four bytes of the files, by row and column."""
    sums = metadata(copied)["attributes"]["chunk_crc32c"]
    for number, text in enumerate(sums):
        files = [file for file in (copied / f"zone{number:02}" / "c").rglob("0") if file.is_file()]
        files.sort(key=lambda file: [int(name) for name in file.parts[-3:-1]])
        assert base64.b64decode(text) == b"".join(file.read_bytes()[-4:] for file in files)


def test_heads_beyond_float32_are_refused(atlas) -> None:
    for head in (np.full((1, 8), 1e39), np.full((1, 8), 3e38)):
        with pytest.raises(UsageError, match="larger than float32 can hold"):
            atlas.with_head(head)
    with pytest.raises(UsageError, match="larger than float32 can hold"):
        atlas.with_head(np.full((1, 8), 1e30)).with_head([[1e30]])


# -- writing


def test_names_of_bands_that_could_not_be_read_again_are_refused(exact, tmp_path: Path) -> None:
    for name in ("a\0b", "\x1b[2J", "x" * 201):
        with pytest.raises(UsageError, match="at most 200 printable letters"):
            write_atlas(exact.with_head(HEAD, names=[name]), tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []


def killed(job: Any) -> None:
    """Run a job in a child that kills itself somewhere in it."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        with contextlib.suppress(BaseException):
            job()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["before", "after", "between"])
def test_after_a_run_was_killed_the_next_one_finds_an_atlas_and_removes_what_was_left(
    exact, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    coarse = exact.select("1-2")
    exchange = folder._exchange

    def exchanged_then_killed(first: Path, second: Path) -> bool:
        if not exchange(first, second):
            pytest.skip("this file system exchanges no names")
        die()
        return True

    with monkeypatch.context() as patched:
        if moment == "before":
            patched.setattr(folder, "_exchange", die)
        elif moment == "after":
            patched.setattr(folder, "_exchange", exchanged_then_killed)
        else:
            patched.setattr(folder, "_exchange", lambda *_: False)
            patched.setattr(
                folder.Folder, "_replace", lambda self, target: (target.rename(self._aside), die())
            )
        killed(lambda: write_atlas(coarse, copied, tolerance=1e-2, overwrite=True))
    if moment != "between":  # at every moment one of the two has the name
        assert se.load(copied).embed_dim == (2 if moment == "after" else 8)
    assert len(list(tmp_path.iterdir())) > (moment != "between")
    with pytest.raises(OutputError, match="exists already"):
        write_atlas(coarse, copied, tolerance=1e-2)
    assert np.isfinite(se.load(copied)(PARIS)).all()
    write_atlas(coarse, copied, tolerance=1e-2, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["copy.zarr"]
    assert se.load(copied).embed_dim == 2


def test_what_is_not_ours_is_neither_removed_nor_followed(exact, copied: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    partial = tmp_path / ".new.zarr.partial"
    for make in (lambda: partial.symlink_to(mine), lambda: mine.rename(partial), partial.touch):
        make()
        with pytest.raises(OutputError, match=r"\.new\.zarr\.partial is in the way"):
            write_atlas(exact, tmp_path / "new.zarr", tolerance=1e-2)
        if partial.is_dir() and not partial.is_symlink():
            partial.rename(mine)
        else:
            partial.unlink()
    (copied / "notes.txt").write_text("about it")
    with pytest.raises(OutputError, match=r"beside the atlas it holds notes\.txt"):
        write_atlas(exact, copied, tolerance=1e-2, overwrite=True)
    (copied / "notes.txt").unlink()
    for name in ("zone00/c/notes.txt", "zone00/c/0/0.abc.partial", "statistics/mine/0"):
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).write_text("about it")
        with pytest.raises(OutputError, match=f"beside the atlas it holds {name.removesuffix('/0')}: move"):
            write_atlas(exact, copied, tolerance=1e-2, overwrite=True)
        assert (copied / name).read_text() == "about it"
        (copied / name).unlink()
    (copied / "statistics/mine").rmdir()
    (tmp_path / "link.zarr").symlink_to(copied)
    with pytest.raises(OutputError, match="is a link, which is not overwritten"):
        write_atlas(exact, tmp_path / "link.zarr", tolerance=1e-2, overwrite=True)
    assert (mine / "thesis.txt").read_text() == "years"
    assert np.isfinite(se.load(tmp_path / "link.zarr")(PARIS)).all()


def test_what_zarr_was_writing_when_it_was_killed_is_removed(exact, tmp_path: Path) -> None:
    for name in ("zarr", "zone00/zarr", "zone00/c/0/0/0"):
        leftover = tmp_path / ".a.zarr.partial" / f"{name}.{'0123456789abcdef' * 2}.partial"
        leftover.parent.mkdir(parents=True, exist_ok=True)
        leftover.touch()
    write_atlas(exact, tmp_path / "a.zarr", tolerance=1e-2)
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr"]


def test_two_runs_do_not_write_one_atlas(exact, tmp_path: Path) -> None:
    with folder.Folder(tmp_path / "a.zarr", overwrite=False):
        with pytest.raises(OutputError, match="another run is writing"):
            write_atlas(exact, tmp_path / "a.zarr", tolerance=1e-2)
        assert (tmp_path / ".a.zarr.partial").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_an_atlas_may_have_the_longest_name(tmp_path: Path) -> None:
    path = tmp_path / f"{'a' * 250}.zarr"
    folder.check_target(path, overwrite=False)
    with folder.Folder(path, overwrite=False) as unfinished:
        assert unfinished.temporary.is_dir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("owner", ["zarr", "flock"])
def test_a_start_that_fails_leaves_nothing(exact, tmp_path: Path, monkeypatch, owner: str) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if owner == "zarr":
        monkeypatch.setattr("zarr.open_group", fails)
    else:
        monkeypatch.setattr(folder, "_foreign_names", fails)
    with pytest.raises(OutputError, match="No space left"):
        write_atlas(exact, tmp_path / "a.zarr", tolerance=1e-2)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_after_the_atlas_is_complete_says_so(exact, tmp_path: Path, monkeypatch) -> None:
    def fails(path: Path) -> None:
        if path == tmp_path:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(folder, "sync_folder", fails)
    with pytest.raises(OutputError, match=r"a\.zarr is complete, but its name is not forced to disk"):
        write_atlas(exact, tmp_path / "a.zarr", tolerance=1e-2)
    assert np.isfinite(se.load(tmp_path / "a.zarr")(PARIS)).all()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("number", [1, 40, 170, 300])
def test_whichever_opening_of_a_file_fails_nothing_is_left_but_what_was_there(
    exact, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, overwrite: bool
) -> None:
    calls, real = itertools.count(1), io.open

    def fails_once(*arguments: Any, **options: Any) -> Any:
        if str(tmp_path) in str(arguments[0]) and next(calls) == number:
            raise OSError(5, "Input/output error")
        return real(*arguments, **options)

    target = copied if overwrite else tmp_path / "new.zarr"
    monkeypatch.setattr(io, "open", fails_once)
    with contextlib.suppress(OutputError):
        write_atlas(exact, target, tolerance=1e-2, overwrite=overwrite)
    monkeypatch.undo()
    assert {file.name for file in tmp_path.iterdir()} <= {"copy.zarr", "new.zarr"}
    for file in tmp_path.iterdir():
        assert np.isfinite(se.load(file)(PARIS)).all()

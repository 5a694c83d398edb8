"""Going on after a stop: killed runs, damaged spools, other runs, Ctrl-C."""

from __future__ import annotations

import copy
import functools
import json
import math
import operator
import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zlib

import numpy as np
import pytest
from factories.planned import OtherNetwork, WithNetwork

from satclip_engine.backends.protocols import CALL
from satclip_engine.encoder import load
from satclip_engine.errors import OutputError, UsageError
from satclip_engine.files import open_folder
from satclip_engine.geo.grid import make_grid
from satclip_engine.raster import cog, write
from satclip_engine.raster.spool import Spool, read_state, spool_folder, write_state
from satclip_engine.raster.write import write_raster as write_raster_by_plan

BLOCKSIZE = 16
MEMORY = 30_000  # so little that metatiles are 32 pixels wide and overviews take a second pyramid_pass
GRID = {"resolution": 0.5}
# What is tested here is the writing of pixels, whoever computes them.
write_raster = functools.partial(write_raster_by_plan, exact=True)
SCRIPT = textwrap.dedent("""
    import sys, time
    from satclip_engine.encoder import load
    from satclip_engine.geo.grid import make_grid
    from satclip_engine.raster import cog, write
    from satclip_engine.raster.write import write_raster

    weights, path, slow, options = sys.argv[1], sys.argv[2], sys.argv[3], eval(sys.argv[4])

    encoder = load(weights, threads=2)
    if slow == "compute":
        evaluate = type(encoder.network).encode_pixels
        def slowly(self, pixels, rows=None, cols=None, out=None, *call, **options):
            if out is not None:  # the survey gives no memory
                time.sleep(0.005)
            return evaluate(self, pixels, rows, cols, out, *call, **options)
        type(encoder.network).encode_pixels = slowly
    if slow == "assemble":
        copy = cog._copy
        def slowly(*a):
            time.sleep(0.005)
            copy(*a)
        cog._copy = slowly
    options = {"memory": 30_000, "exact": True, **options}
    try:
        write_raster(encoder, path, make_grid(resolution=0.5), blocksize=16, **options)
    except KeyboardInterrupt:
        print("interrupted", time.time(), file=sys.stderr)
        raise
""")


@pytest.fixture(scope="module")
def tiny_file(tiny_weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    tiny_weights.save(path)
    return path


@pytest.fixture(scope="module")
def whole(tiny_file, tmp_path_factory):
    """What an uninterrupted run writes."""
    path = tmp_path_factory.mktemp("whole") / "out.tif"
    write_raster(load(tiny_file, threads=1), path, make_grid(**GRID), blocksize=BLOCKSIZE, memory=1 << 30)
    return path.read_bytes()


class CountingNetwork(OtherNetwork):
    """A network that counts the pixels it is asked for, and may be told to fail after some."""

    pixels, fail_after, error = 0, None, None

    def encode_pixels(self, pixels, rows=None, cols=None, out=None, call=CALL):
        given, out = out, self.inner.encode_pixels(pixels, rows, cols, out, call)
        if given is not None:  # the survey gives no memory
            self.pixels += out.shape[0] * out.shape[1]
            if self.fail_after is not None and self.pixels > self.fail_after:
                raise self.error
        return out


class Counting(WithNetwork):
    """An encoder with such a network."""

    def __init__(self, encoder, *, fail_after=None, error=None):
        super().__init__(encoder, CountingNetwork(encoder.network))
        self.network.fail_after, self.network.error = fail_after, error

    @property
    def pixels(self):
        return self.network.pixels


@pytest.fixture
def interrupted(tiny_file, tmp_path):
    """A spool about half of whose metatiles are finished; its output's path."""
    path = tmp_path / "out.tif"
    failing = Counting(load(tiny_file), fail_after=360 * 360, error=RuntimeError("stop here"))
    with pytest.raises(RuntimeError, match="stop here"):
        write_raster(failing, path, make_grid(**GRID), blocksize=BLOCKSIZE, threads=1, memory=MEMORY)
    assert not path.exists()
    return path


def resume(path, tiny_file, **options):
    encoder = Counting(load(tiny_file))
    options = {"threads": 1, "blocksize": BLOCKSIZE, "memory": MEMORY, "resume": True, **options}
    return write_raster(encoder, path, make_grid(**GRID), **options), encoder.pixels


def start(tiny_file, path, slow, options="{}"):
    command = [sys.executable, "-c", SCRIPT, tiny_file, path, slow, options]
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def size_of(path):
    return path.stat().st_size if path.exists() else 0


def test_a_run_killed_at_any_moment_leaves_no_file_and_resumes_to_the_same_bytes(tiny_file, tmp_path, whole):
    path = tmp_path / "out.tif"
    index = spool_folder(path) / "index"
    sizes = []
    for options in (
        "{}",
        "{'resume': True}",
        "{'resume': True, 'threads': 3}",
        "{'resume': True, 'memory': 1 << 20}",
    ):
        before = size_of(index)
        process = start(tiny_file, path, "compute", options)
        wait_for(lambda before=before: size_of(index) > before + 15_000, process)
        process.kill()
        process.wait()
        assert not path.exists()
        sizes.append(size_of(index))
    assert sizes == sorted(set(sizes))
    report, pixels = resume(path, tiny_file)
    assert 0 < report.resumed_from < 1
    assert pixels == round((1 - report.resumed_from) * 360 * 720)
    assert path.read_bytes() == whole
    assert os.listdir(tmp_path) == ["out.tif"]


def test_a_run_killed_while_the_file_is_put_together_recomputes_nothing(tiny_file, tmp_path, whole):
    path = tmp_path / "out.tif"
    process = start(tiny_file, path, "assemble")
    wait_for(lambda: size_of(spool_folder(path) / "output.tif") > len(whole) // 2, process)
    process.kill()
    process.wait()
    assert not path.exists()
    report, pixels = resume(path, tiny_file)
    assert (report.resumed_from, pixels) == (1.0, 0)
    assert path.read_bytes() == whole


def damage_nothing(folder):
    pass


def cut_the_index(folder):
    os.truncate(folder / "index", (folder / "index").stat().st_size - 7)


def append_noise_to_the_index(folder):
    with (folder / "index").open("ab") as file:
        file.write(os.urandom(1000))


def flip_a_bit_of_the_index(folder):
    flip(folder / "index", 0.5)


def flip_a_bit_of_the_tiles(folder):
    flip(folder / "level-0.tiles", 0.5)


def flip_a_bit_of_an_overview(folder):
    flip(folder / "level-1.tiles", 0.5)


def flip_a_bit_of_a_carry_over(folder):
    flip(folder / "tier-0.remainder", 0.2)


def cut_the_tiles(folder):
    os.truncate(folder / "level-0.tiles", (folder / "level-0.tiles").stat().st_size * 2 // 3)


def remove_a_level(folder):
    (folder / "level-1.tiles").unlink()


def remove_the_carry_over(folder):
    (folder / "tier-0.remainder").unlink()


def remove_the_index(folder):
    (folder / "index").unlink()


def remove_the_state(folder):
    (folder / "state.json").unlink()


def spoil_the_state(folder):
    os.truncate(folder / "state.json", 100)


def empty_the_state(folder):
    (folder / "state.json").write_text("{}")


def flip(path, where):
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (damage_nothing, "all"),
        (cut_the_index, "some"),
        (append_noise_to_the_index, "all"),
        (flip_a_bit_of_the_index, "some"),
        (flip_a_bit_of_the_tiles, "some"),
        (flip_a_bit_of_an_overview, "some"),
        (flip_a_bit_of_a_carry_over, "some"),
        (cut_the_tiles, "some"),
        (remove_a_level, "none"),
        (remove_the_carry_over, "none"),
        (remove_the_index, "none"),
        (remove_the_state, "none"),
        (spoil_the_state, "none"),
        (empty_the_state, "none"),
    ],
)
@pytest.mark.filterwarnings("ignore:what the interrupted run left is damaged")
def test_a_damaged_spool_costs_only_what_was_damaged(interrupted, tiny_file, whole, damage, kept):
    folder = spool_folder(interrupted)
    damage(folder)
    report, pixels = resume(interrupted, tiny_file)
    assert interrupted.read_bytes() == whole
    bounds = {"all": (0.45, 0.5), "some": (0.1, 0.499), "none": (0.0, 0.0)}[kept]
    assert bounds[0] <= report.resumed_from <= bounds[1]
    assert pixels == round((1 - report.resumed_from) * 360 * 720)
    assert not folder.exists()


REPLACEMENTS = (
    *(None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e300, 2**63, 10**400, float("nan"), float("inf")),
    *("", "x", "int16", "exact", "\0", "1"),
    *([], [1], [[]], {}, {"scale": [1.0]}),
)


def leaves(content, path=()):
    """Paths to all values of a JSON document."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        if isinstance(value, (dict, list)):
            yield from leaves(value, (*path, key))
        yield (*path, key)


def replaced(content, path, value):
    copied = copy.deepcopy(content)
    parent = functools.reduce(operator.getitem, path[:-1], copied)
    parent[path[-1]] = value
    return copied


@pytest.fixture
def coarse(tiny_file, tmp_path):
    """An interrupted run of few pixels: its output's path, how it is resumed, what it has to become."""
    grid, options = make_grid(resolution=3), {"blocksize": 16, "threads": 1, "memory": MEMORY}
    write_raster(load(tiny_file), tmp_path / "whole.tif", grid, **options)
    whole, path = (tmp_path / "whole.tif").read_bytes(), tmp_path / "out.tif"
    failing = Counting(load(tiny_file), fail_after=60 * 60, error=RuntimeError("stop here"))
    with pytest.raises(RuntimeError, match="stop here"):
        write_raster(failing, path, grid, **options)
    encoder = load(tiny_file)
    return path, lambda: write_raster(encoder, path, grid, resume=True, **options), whole


def each_tampered_state(path, states):
    """Puts the spool back with one state after the other."""
    folder, kept = spool_folder(path), path.with_name("kept")
    shutil.copytree(folder, kept)
    for state in states:
        shutil.rmtree(folder, ignore_errors=True)
        path.unlink(missing_ok=True)
        shutil.copytree(kept, folder)
        (folder / "state.json").write_bytes(state)
        yield


def test_a_state_as_it_was_left_is_resumed(coarse):
    path, resumed, whole = coarse
    assert resumed().resumed_from > 0
    assert path.read_bytes() == whole


@pytest.mark.filterwarnings("ignore:what the interrupted run left is damaged")
def test_a_state_in_which_a_value_has_changed_is_started_over(coarse):
    path, resumed, whole = coarse
    state = json.loads((spool_folder(path) / "state.json").read_text())
    random = np.random.default_rng(0)
    changed = [
        replaced(state, leaf, REPLACEMENTS[random.integers(len(REPLACEMENTS))]) for leaf in leaves(state)
    ]
    nested = b"[" * 100_000
    states = [json.dumps(content).encode() for content in changed if content != state]
    assert len(states) > 40
    for _ in each_tampered_state(path, [*states, nested, b"", b"\xff", b"9" * 5000]):
        report = resumed()
        assert report.resumed_from == 0
        assert report.notes[0] == "what the interrupted run left is damaged: starting over"
        assert path.read_bytes() == whole


@pytest.mark.filterwarnings("ignore:what the interrupted run left is damaged")
@pytest.mark.parametrize("name", ["quantiser", "reconstruction", "span", "overwrite"])
def test_a_state_of_other_types_that_bears_its_digest_is_started_over(coarse, name):
    path, resumed, whole = coarse
    state = read_state(spool_folder(path))
    values = [value for value in REPLACEMENTS if name != "overwrite" or not isinstance(value, bool)]
    values = [value for value in values if value != state[name] and value not in (1, 2)]
    if name == "quantiser":
        values.append({**state[name], "offset": [math.nan, *state[name]["offset"][1:]]})
    sealed = path.with_name("sealed")
    sealed.mkdir()
    states = []
    for value in values:
        with open_folder(sealed) as folder:
            write_state(folder, {**state, name: value})
            states.append(folder.read("state.json"))
    for _ in each_tampered_state(path, states):
        assert resumed().resumed_from == 0
        assert path.read_bytes() == whole


def test_records_of_another_state_and_records_shorter_than_their_counts_are_no_records(coarse):
    path, resumed, whole = coarse
    folder = spool_folder(path)
    header, state = struct.Struct("<4sII"), read_state(folder)
    seed = Spool(None, state)._seed
    index = (folder / "index").read_bytes()
    _, length, _ = header.unpack_from(index)
    body = index[header.size : header.size + length]
    forged = [
        header.pack(b"SCSB", len(part), zlib.crc32(part, seed)) + part
        for part in (body[:-8], body[:20], b"", body + bytes(8), bytes([255] * 12) + body[12:])
    ]
    foreign = header.pack(b"SCSB", len(body), zlib.crc32(body)) + body
    kept = path.with_name("kept")
    shutil.copytree(folder, kept)
    for content in (*forged, foreign):
        shutil.rmtree(folder, ignore_errors=True)
        path.unlink(missing_ok=True)
        shutil.copytree(kept, folder)
        (folder / "index").write_bytes(content)
        assert resumed().resumed_from == 0
        assert path.read_bytes() == whole


def linked_spool(folder, precious):
    folder.symlink_to(precious)


def linked_lock(folder, precious):
    folder.mkdir()
    (folder / "lock").symlink_to(precious / "thesis.tex")


def second_name_of_lock(folder, precious):
    folder.mkdir()
    (folder / "lock").hardlink_to(precious / "thesis.tex")


def linked_tiles(folder, precious):
    folder.mkdir()
    (folder / "level-0.tiles").symlink_to(precious / "thesis.tex")


def linked_state(folder, precious):
    folder.mkdir()
    (folder / "state.json").symlink_to(precious / "thesis.tex")


def folder_as_index(folder, precious):
    (folder / "index").mkdir(parents=True)


@pytest.mark.parametrize(
    "obstacle",
    [linked_spool, linked_lock, second_name_of_lock, linked_tiles, linked_state, folder_as_index],
)
@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_what_is_not_ours_in_the_way_of_a_spool_is_refused_and_stays(tiny, tmp_path, obstacle, options):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("precious")
    folder = spool_folder(tmp_path / "out.tif")
    obstacle(folder, precious)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(OutputError, match="is in the way: it is a"):
        write_raster(tiny, tmp_path / "out.tif", make_grid(resolution=9), **options)
    assert (precious / "thesis.tex").read_text() == "precious"
    assert os.listdir(precious) == ["thesis.tex"]
    assert set(before) <= {path.name for path in folder.iterdir()}
    assert not (tmp_path / "out.tif").exists()


def test_files_that_are_not_ours_in_a_spool_stay_and_a_note_says_so(tiny, tmp_path):
    folder = spool_folder(tmp_path / "out.tif")
    folder.mkdir()
    (folder / "notes.txt").write_text("precious")
    (folder / "level-0.tiles").write_text("of a killed run")
    with pytest.warns(UserWarning, match=r"is left, because it holds notes\.txt, which is not ours"):
        write_raster(tiny, tmp_path / "out.tif", make_grid(resolution=9))
    assert os.listdir(folder) == ["notes.txt"]
    assert (tmp_path / "out.tif").exists()


def test_a_run_that_fails_before_anything_is_finished_leaves_no_spool(tiny_file, tmp_path):
    failing = Counting(load(tiny_file), fail_after=0, error=OSError(24, "Too many open files"))
    with pytest.raises(OutputError, match="Too many open files"):
        write_raster(failing, tmp_path / "out.tif", make_grid(**GRID), blocksize=BLOCKSIZE)
    assert os.listdir(tmp_path) == []


def test_a_spool_that_cannot_be_removed_after_the_file_has_its_name_is_a_note(
    tiny_file, tmp_path, monkeypatch
):
    def failing(folder):
        raise OSError(5, "Input/output error")

    path = tmp_path / "out.tif"
    with monkeypatch.context() as patched:
        patched.setattr(write, "remove_folder", failing)
        with pytest.warns(UserWarning, match=r"complete and right, but .*spool could not be removed"):
            resume(path, tiny_file)
    report, pixels = resume(path, tiny_file)
    assert (report.resumed_from, pixels) == (1.0, 0)
    assert os.listdir(tmp_path) == ["out.tif"]


def test_threads_and_memory_may_change_between_runs(interrupted, tiny_file, whole):
    report, _ = resume(interrupted, tiny_file, threads=3, memory=1 << 20)
    assert report.resumed_from > 0
    assert interrupted.read_bytes() == whole


OTHERS = {
    "dtype": ({"dtype": "int16"}, "dtype was int8, is now int16"),
    "compress": ({"compress": "deflate"}, "compress was zstd, is now deflate"),
    "blocksize": ({"blocksize": 32}, "blocksize was 16, is now 32"),
    "interleave": ({"interleave": "pixel"}, "interleave was tile, is now pixel"),
}


@pytest.mark.parametrize(("options", "message"), OTHERS.values(), ids=OTHERS)
def test_other_options_are_refused_by_name_and_the_spool_is_kept(
    interrupted, tiny_file, whole, options, message
):
    with pytest.raises(OutputError, match=f"cannot be resumed: .*{message}"):
        resume(interrupted, tiny_file, **options)
    report, _ = resume(interrupted, tiny_file)
    assert report.resumed_from > 0
    assert interrupted.read_bytes() == whole


def test_another_grid_another_function_or_another_instruction_set_is_refused(interrupted, tiny_file):
    encoder = load(tiny_file)
    for changed, grid, message in (
        (encoder, make_grid(resolution=0.25), "rows was 360, is now 720"),
        (encoder, make_grid(resolution=0.5, crs="OGC:CRS84"), "another crs"),
        (encoder.with_head(np.eye(8) * 2, names=encoder.band_names), make_grid(**GRID), "another function"),
        (load(tiny_file, backend="reference"), make_grid(**GRID), "backend was cpu, is now reference"),
    ):
        with pytest.raises(OutputError, match=f"cannot be resumed: .*{message}"):
            write_raster(changed, interrupted, grid, blocksize=BLOCKSIZE, resume=True)


class Elsewhere:
    """An encoder that says it computes on a GPU."""

    backend = "triton"

    def __init__(self, encoder, device, isa):
        self.encoder, self.device, self.isa = encoder, device, isa

    def __getattr__(self, name):
        return getattr(self.encoder, name)


def test_what_one_device_began_or_finished_another_one_refuses(interrupted, tiny_file, tmp_path):
    encoder, grid = load(tiny_file), make_grid(**GRID)
    hopper = Elsewhere(encoder, "cuda:0", "triton 3.7.1 sm_90 exact")
    with pytest.raises(OutputError, match=r"backend was cpu, is now triton; .* is now .* sm_90 exact"):
        write_raster(hopper, interrupted, grid, blocksize=BLOCKSIZE, resume=True)
    finished = tmp_path / "finished.tif"
    report = write_raster(hopper, finished, make_grid(resolution=10), blocksize=BLOCKSIZE)
    assert report.device == "cuda:0"
    for isa, message in (
        ("triton 3.7.1 sm_80 exact", "instruction set was triton 3.7.1 sm_90 exact, is now .* sm_80 exact"),
        ("triton 3.7.1 sm_90 fast", "instruction set was triton 3.7.1 sm_90 exact, is now .* sm_90 fast"),
    ):
        other = Elsewhere(encoder, "cuda:0", isa)
        with pytest.raises(OutputError, match=message):
            write_raster(other, finished, make_grid(resolution=10), blocksize=BLOCKSIZE, resume=True)
    equal = Elsewhere(encoder, "cuda:1", hopper.isa)  # of several GPUs of a kind any may go on
    report = write_raster(equal, finished, make_grid(resolution=10), blocksize=BLOCKSIZE, resume=True)
    assert report.resumed_from == 1


def test_without_resume_what_was_left_is_replaced(interrupted, tiny_file, whole):
    report, pixels = resume(interrupted, tiny_file, resume=False)
    assert (report.resumed_from, pixels) == (0.0, 360 * 720)
    assert interrupted.read_bytes() == whole


def test_resuming_nothing_starts_afresh(tiny_file, tmp_path, whole):
    report, _ = resume(tmp_path / "out.tif", tiny_file)
    assert report.resumed_from == 0
    assert (tmp_path / "out.tif").read_bytes() == whole


def test_resuming_a_finished_raster_says_so_and_touches_nothing(tiny_file, tmp_path):
    path = tmp_path / "out.tif"
    resume(path, tiny_file)
    before = path.stat()
    report, pixels = resume(path, tiny_file)
    assert (report.resumed_from, pixels, report.bytes) == (1.0, 0, before.st_size)
    assert "complete already" in report.notes[0]
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert report.overviews == [2, 4]
    with pytest.raises(OutputError, match=r"is finished, but it differs: dtype was int8, is now int16"):
        resume(path, tiny_file, dtype="int16")
    with pytest.raises(UsageError, match="overwrite and resume are mutually exclusive"):
        resume(path, tiny_file, overwrite=True)


def test_a_run_killed_just_after_its_file_had_its_name_leaves_a_spool_that_resuming_removes(
    tiny_file, tmp_path, monkeypatch
):
    path, remove = tmp_path / "out.tif", write.remove_folder

    def killed(folder):
        raise RuntimeError("killed")

    monkeypatch.setattr(write, "remove_folder", killed)
    with pytest.raises(RuntimeError, match="killed"):
        resume(path, tiny_file)
    monkeypatch.setattr(write, "remove_folder", remove)
    assert sorted(os.listdir(tmp_path)) == [spool_folder(path).name, "out.tif"]
    assert resume(path, tiny_file)[0].resumed_from == 1
    assert os.listdir(tmp_path) == ["out.tif"]


def test_an_interrupted_replacement_keeps_the_old_file_until_it_is_resumed(tiny_file, tmp_path, whole):
    path = tmp_path / "out.tif"
    path.write_text("the old file")
    failing = Counting(load(tiny_file), fail_after=360 * 360, error=RuntimeError("stop here"))
    with pytest.raises(RuntimeError, match="stop here"):
        write_raster(
            failing, path, make_grid(**GRID), blocksize=BLOCKSIZE, threads=1, memory=MEMORY, overwrite=True
        )
    assert path.read_text() == "the old file"
    report, _ = resume(path, tiny_file)
    assert report.resumed_from > 0
    assert path.read_bytes() == whole


def test_two_runs_at_once_do_not_meet(tiny_file, tmp_path, whole):
    path = tmp_path / "out.tif"
    process = start(tiny_file, path, "compute")
    wait_for(lambda: size_of(spool_folder(path) / "index") > 0, process)
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(OutputError, match=f"another run .process {process.pid}. is writing"):
            write_raster(load(tiny_file), path, make_grid(**GRID), blocksize=BLOCKSIZE, **options)
    assert process.wait(timeout=60) == 0
    assert path.read_bytes() == whole


def test_a_file_that_appears_meanwhile_is_left_alone(tiny_file, tmp_path, monkeypatch):
    path, assemble = tmp_path / "out.tif", cog.assemble

    def late(*arguments):
        assemble(*arguments)
        path.write_text("somebody else's")

    monkeypatch.setattr(cog, "assemble", late)
    with pytest.raises(OutputError, match="has appeared while it was being computed"):
        write_raster(load(tiny_file), path, make_grid(resolution=2.0))
    assert path.read_text() == "somebody else's"


def test_ctrl_c_stops_within_a_second_and_keeps_what_is_finished(tiny_file, tmp_path, whole):
    path = tmp_path / "out.tif"
    process = start(tiny_file, path, "compute")
    wait_for(lambda: size_of(spool_folder(path) / "index") > 15_000, process)
    sent = time.time()
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    first, traceback = process.stderr.read().split("\n", 1)
    word, interrupted = first.split()
    assert word == "interrupted"
    assert float(interrupted) - sent < 2.5  # a second, with room for a busy machine
    assert "KeyboardInterrupt" in traceback
    assert not path.exists()
    report, _ = resume(path, tiny_file)
    assert report.resumed_from > 0
    assert path.read_bytes() == whole


def test_an_interrupt_inside_the_calling_thread_stops_the_workers(tiny_file, tmp_path):
    class Interrupting:
        told = 0

        def start(self, total_pixels): ...

        def stage(self, text): ...

        def finish(self): ...

        def advance(self, pixels):
            self.told += 1
            if self.told > 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_raster(
            load(tiny_file),
            tmp_path / "out.tif",
            make_grid(**GRID),
            blocksize=BLOCKSIZE,
            progress=Interrupting(),
        )
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("satclip-raster-")]


def test_a_failing_survey_leaves_no_spool(tiny_file, tmp_path):
    class Failing(OtherNetwork):
        def encode_pixels(self, *arguments, **options):
            raise RuntimeError("no survey")

    encoder = load(tiny_file)
    with pytest.raises(RuntimeError, match="no survey"):
        write_raster(WithNetwork(encoder, Failing(encoder.network)), tmp_path / "out.tif", make_grid(**GRID))
    assert os.listdir(tmp_path) == []


def test_files_are_copied_without_the_kernels_help_too(interrupted, tiny_file, whole, monkeypatch):
    def unsupported(*arguments):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", unsupported)
    monkeypatch.setattr(cog, "COPY_BYTES", 1000)
    resume(interrupted, tiny_file)
    assert interrupted.read_bytes() == whole


def test_a_spool_moved_with_its_output_goes_on_there(interrupted, tiny_file, tmp_path, whole):
    target = tmp_path / "elsewhere" / "out.tif"
    target.parent.mkdir()
    shutil.move(spool_folder(interrupted), spool_folder(target))
    report, _ = resume(target, tiny_file)
    assert report.resumed_from > 0
    assert target.read_bytes() == whole

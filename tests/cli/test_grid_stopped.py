"""`satclip-grid` stopped at any moment, and going on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import rasterio
from factories.cli_runs import SMALL, assert_one_line, names, run


def test_resume_without_anything_to_go_on_from_starts_afresh(folder, weights):
    result = run("a.tif", "--weights", weights, *SMALL, "--resume", "-q")
    assert result.exit_code == 0, result.output
    assert names(folder) == ["a.png", "a.tif"]


def test_resume_of_a_finished_output_says_so_and_changes_nothing(folder, weights):
    run("a.tif", "--weights", weights, *SMALL, "-q")
    before = {name: (Path(name).read_bytes(), Path(name).stat().st_mtime_ns) for name in names(folder)}
    result = run("a.tif", "--weights", weights, *SMALL, "--resume")
    assert result.exit_code == 0, result.output
    assert result.output.count("is complete already") == 1
    assert before == {
        name: (Path(name).read_bytes(), Path(name).stat().st_mtime_ns) for name in names(folder)
    }


def test_resume_draws_a_preview_that_is_still_missing(folder, weights):
    run("a.tif", "--weights", weights, *SMALL, "--no-preview", "-q")
    result = run("a.tif", "--weights", weights, *SMALL, "--resume", "-q")
    assert result.exit_code == 0, result.output
    assert names(folder) == ["a.png", "a.tif"]


# 720 × 360 pixels in 18 superblocks, one after the other.
PARTS = ["--resolution", "0.5", "--blocksize", "16", "--threads", "1", "-q"]

# The command in a process of its own, every strip a twentieth of a second slower than it is.
SLOWED = """
import time
from satclip_engine.cli.grid import main
from satclip_engine.backends.protocols import Prepared

evaluate = Prepared.encode_pixels

def slow(*args, **kwargs):
    time.sleep(0.05)
    return evaluate(*args, **kwargs)

Prepared.encode_pixels = slow
main()
"""


def _wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _stopped(folder: Path, weights: str, number: int, *more: str) -> subprocess.Popen:
    """A run in its own process, sent the signal when the first part is finished."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWED, "a.tif", "--weights", weights, *PARTS, *more],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    index = folder / ".a.tif.satclip-spool" / "index"
    _wait_for(lambda: index.is_file() and index.stat().st_size, process)
    process.send_signal(number)
    process.wait(timeout=60)
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_so_in_one_line_and_can_go_on(folder, weights, number, status):
    process = _stopped(folder, weights, number)
    said = process.stderr.read()
    assert process.returncode == status, said
    assert said.count("\n") == 1
    assert "what is finished lies in .a.tif.satclip-spool: the same command with --resume" in said
    assert not Path("a.tif").exists()


# Ctrl-C while a module is imported, or a function is called, for the first time.
INTERRUPTED_EARLY = {
    "the imports": """
import builtins
real = builtins.__import__
def interrupted(name, *args, **kwargs):
    if name == "click":
        raise KeyboardInterrupt
    return real(name, *args, **kwargs)
builtins.__import__ = interrupted
""",
    "reading the weights": """
import satclip_engine.encoder
def interrupted(*args, **kwargs):
    raise KeyboardInterrupt
satclip_engine.encoder.load = interrupted
""",
    "the survey": """
import satclip_engine.raster.write
def interrupted(*args, **kwargs):
    raise KeyboardInterrupt
satclip_engine.raster.write.find_quantiser = interrupted
""",
}


@pytest.mark.parametrize("moment", INTERRUPTED_EARLY)
def test_who_interrupts_before_anything_is_kept_is_promised_nothing(folder, weights, moment):
    code = INTERRUPTED_EARLY[moment] + "from satclip_engine.cli._entry import grid; grid()"
    done = subprocess.run(
        [sys.executable, "-c", code, "a.tif", "--weights", weights, *PARTS], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "satclip-grid: interrupted\n")
    assert names(folder) == []


COMMAND = "from satclip_engine.cli.grid import main; main()"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs to choose a core")
def test_workers_deep_in_kernels_do_not_abort_an_interrupted_run(folder):
    # Twenty threads on one core: each block of work takes seconds, longer than anyone waits for them.
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            COMMAND,
            "a.tif",
            "--resolution",
            "0.1",
            "--threads",
            "20",
            "--memory",
            "16GB",
        ],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    )
    try:
        said = ""
        while "computing" not in said:
            said = process.stderr.readline()
            assert said, "ended before it computed"
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130, said
    # Where nothing is finished yet, nothing is left.
    ending = "the same command with --resume continues from there" if names(folder) else "interrupted"
    assert said.splitlines()[-1].endswith(ending)
    assert "Traceback" not in said
    assert "terminate" not in said


def test_a_killed_run_leaves_nothing_under_the_name_and_resume_ends_with_the_same_bytes(folder, weights):
    process = _stopped(folder, weights, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not Path("a.tif").exists()
    result = run("a.tif", "--weights", weights, *PARTS, "--resume", "--json")
    assert result.exit_code == 0, result.output
    assert 0 < json.loads(result.stdout)["resumed_from"] < 1
    assert names(folder) == ["a.png", "a.tif"]
    Path("whole").mkdir()
    run("whole/a.tif", "--weights", weights, *PARTS)
    assert Path("a.tif").read_bytes() == Path("whole/a.tif").read_bytes()
    assert Path("a.png").read_bytes() == Path("whole/a.png").read_bytes()


def test_resuming_a_killed_overwrite_replaces_raster_and_preview(folder, weights):
    run("a.tif", "--weights", weights, *SMALL, "-q")
    old = Path("a.tif").read_bytes(), Path("a.png").read_bytes()
    _stopped(folder, weights, signal.SIGKILL, "--overwrite")
    assert (Path("a.tif").read_bytes(), Path("a.png").read_bytes()) == old
    result = run("a.tif", "--weights", weights, *PARTS, "--resume")
    assert result.exit_code == 0, result.output
    assert names(folder) == ["a.png", "a.tif"]
    with rasterio.open("a.tif") as raster:
        assert (raster.height, raster.width) == (360, 720)
    assert Path("a.png").read_bytes() != old[1]


def test_resuming_with_other_options_is_refused_and_keeps_the_state(folder, weights):
    _stopped(folder, weights, signal.SIGKILL)
    before = names(folder)
    result = run("a.tif", "--weights", weights, *PARTS, "--dtype", "int16", "--resume")
    assert_one_line(result, 1, "a.tif", "dtype was int8, is now int16", "without --resume")
    assert names(folder) == before


def test_a_full_disk_is_one_line_and_the_run_can_go_on(folder, weights):
    """A limit on the size of files stands for the disk."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    code += "from satclip_engine.cli.grid import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", code, "a.tif", "--weights", weights, *PARTS], capture_output=True, text=True
    )
    assert process.returncode == 1
    assert process.stderr.count("\n") == 1, process.stderr
    assert "a.tif" in process.stderr
    assert "--resume" in process.stderr
    assert process.stdout == ""
    assert names(folder) == [".a.tif.satclip-spool"]
    assert run("a.tif", "--weights", weights, *PARTS, "--resume").exit_code == 0
    assert names(folder) == ["a.png", "a.tif"]

"""Results meet the terminal whatever its encoding, and nothing that files hold moves its cursor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from factories.cli_runs import SMALL, assert_one_line, names, run

from satclip_engine.encoder import load
from satclip_engine.errors import printable
from satclip_engine.weights import LocationWeights

COMMAND = [sys.executable, "-c", "from satclip_engine.cli.grid import main; main()"]
FINE = ["--bounds", "0", "0", "60", "60", "--resolution", "0.05", "--bands", "1"]  # which is interpolated


def command(*args: str | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_"))}
    return subprocess.run([*COMMAND, *args], env=inherited | environment, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("encoding", "deviation"),
    [
        ("utf-8", "σ"),
        ("latin-1", "sd"),
        ("cp1252", "sd"),
        ("cp437", "σ"),
        ("ascii", ""),
    ],
)
def test_a_finished_raster_is_status_0_in_every_encoding(folder, encoding, deviation):
    done = command("a.tif", "--weights", "default-l10", *FINE, "--no-preview", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding, errors="replace")
    assert f"{deviation} at most" in text
    assert "sd at most" not in text or deviation == "sd"


NAMES = [
    (b"\xff.tif", r"'\xff.tif'"),
    ("ü.tif".encode(), "ü.tif"),
    (b"a\x1b]0;x\x07\n.tif", r"'a\x1b]0;x\x07\n.tif'"),
]


@pytest.mark.parametrize(("name", "written"), NAMES)
def test_a_name_of_any_bytes_is_written_and_resumed(folder, weights, name, written):
    path = Path(os.fsdecode(name))
    result = run(path, "--weights", weights, *SMALL, "-q")
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.output
    assert names(folder) == sorted([path.name, path.with_suffix(".png").name])
    result = run(path, "--weights", weights, *SMALL, "-q", "--resume", "--json")
    assert json.loads(result.stdout)["resumed_from"] == 1
    path.rename("plain.tif")
    with rasterio.open("plain.tif") as raster:
        assert (
            raster.tags()["command"]
            .replace("'ü.tif'", "ü.tif")
            .startswith(f"satclip-grid {written} --weights")
        )
        assert len(set(raster.scales)) == 6


def test_a_name_that_the_locale_cannot_express_is_written_all_the_same(folder, weights):
    options = ["--weights", weights, *SMALL, "-q", "--no-preview"]
    done = command("ü.tif".encode(), *options, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0, done.stderr
    assert names(folder) == ["ü.tif"]
    with rasterio.open("ü.tif") as raster:
        assert raster.tags()["command"].startswith("satclip-grid 'ü.tif' --weights")


def test_control_characters_of_names_and_files_are_shown_as_escapes(folder, weights):
    stored = load(weights).weights
    name = "w\x1b]0;owned\x07.safetensors"
    LocationWeights(stored.tensors, stored.convention).save(name)
    result = run("a.tif", "--weights", name, *SMALL, "-v")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert r"w\x1b]0;owned\x07.safetensors" in result.stdout
    with rasterio.open("a.tif") as raster:
        assert raster.tags()["weights"] == r"w\x1b]0;owned\x07.safetensors"
    result = run("b.tif", "--weights", "no\x9b31m.ckpt", *SMALL)
    assert result.exit_code == 1
    assert r"no\x9b31m.ckpt" in result.stderr


def test_printable_text_is_left_as_it_is_and_every_other_has_a_printable_form():
    assert printable("a σ ü 😀\nb") == "a σ ü 😀\nb"
    letters = [chr(code) for code in (*range(0x300), *range(0xD7FF, 0xE001), 0x200E, 0x2028, 0x202E, 0x1F600)]
    shown = printable("".join(letters))
    assert shown.encode().decode() == shown
    assert not any(letter in shown for letter in "\x00\x07\x1b\x7f\x9b\u202e\u2028")
    assert "\n" in shown


def test_a_name_that_is_too_long_is_refused_before_the_weights_are_read(folder):
    result = run("a" * 252 + ".tif", "--weights", "nosuch.ckpt", *SMALL)
    assert_one_line(result, 1, "File name too long")
    result = run("a.tif", "--preview", "a" * 252 + ".png", "--weights", "nosuch.ckpt", *SMALL)
    assert_one_line(result, 1, "the preview", "File name too long")


@pytest.mark.parametrize("length", [222, 240, 251])
def test_a_raster_of_a_long_name_has_its_picture(folder, weights, length):
    name = "a" * length
    result = run(f"{name}.tif", "--weights", weights, *SMALL, "-q")
    assert result.exit_code == 0, result.output
    assert names(folder) == [f"{name}.png", f"{name}.tif"]


def test_memory_that_does_not_suffice_for_the_picture_leaves_the_raster_and_says_so(
    folder, weights, monkeypatch
):
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("satclip_engine.preview.write.render_preview", exhausted)
        result = run("a.tif", "--weights", weights, *SMALL, "-q")
    assert_one_line(result, 1, "a.tif is complete and right, but its picture is not", "memory", "--resume")
    assert names(folder) == ["a.tif"]
    assert run("a.tif", "--weights", weights, *SMALL, "-q", "--resume").exit_code == 0
    assert names(folder) == ["a.png", "a.tif"]


def test_ctrl_c_while_the_picture_is_drawn_says_that_the_raster_is_complete(folder, weights, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("satclip_engine.preview.write.render_preview", interrupted)
    result = run("a.tif", "--weights", weights, *SMALL, "-q")
    assert_one_line(result, 130, "a.tif is complete and right", "interrupted", "--resume draws it")


KILLED = """
import os, signal
from PIL import Image
from satclip_engine.preview import write
from satclip_engine.cli.grid import main
def save(self, file, **options):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
Image.Image.save = save
write.MAP_WIDTH = write.MAP_HEIGHT = 200
main()
"""


def test_what_a_run_left_that_was_killed_while_it_saved_its_picture_goes_with_the_next(folder, weights):
    options = ["a.tif", "--weights", weights, *SMALL, "-q"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *options], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert names(folder) == [".a.png.part", "a.tif"]
    assert run("a.tif", "--weights", weights, *SMALL, "-q", "--resume").exit_code == 0
    assert names(folder) == ["a.png", "a.tif"]


def test_a_picture_is_never_drawn_through_a_link(folder, weights):
    Path("precious").write_text("precious")
    Path("a.png").symlink_to("precious")
    assert_one_line(run("a.tif", "--weights", weights, *SMALL, "-q"), 1, "a.png", "a link to precious")
    result = run("a.tif", "--weights", weights, *SMALL, "-q", "--overwrite")
    assert result.exit_code == 0
    assert "a.png was a link to precious: the link is replaced" in result.stderr
    assert Path("precious").read_text() == "precious"
    assert not Path("a.png").is_symlink()


def test_the_raster_whose_pixels_are_taken_is_not_replaced_by_a_picture(folder, weights):
    with rasterio.open("like.png", "w", driver="PNG", height=18, width=36, count=1, dtype="uint8") as dataset:
        dataset.write(np.zeros((1, 18, 36), "u1"))
    before = Path("like.png").read_bytes()
    options = ["--like", "like.png", "--preview", "like.png", "--overwrite"]
    assert_one_line(run("a.tif", "--weights", weights, *options), 2, "--like", "is the preview itself")
    assert Path("like.png").read_bytes() == before


@pytest.mark.parametrize("limit", [7, 9])
def test_too_few_descriptors_leave_what_is_finished_or_nothing(folder, weights, limit):
    code = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit})); "
    code += "from satclip_engine.cli.grid import main; main()"
    options = ["a.tif", "--weights", weights, *SMALL, "-q", "--no-preview"]
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        assert names(folder) == ["a.tif"]
    elif names(folder):
        assert names(folder) == [".a.tif.satclip-spool"]
        assert Path(".a.tif.satclip-spool/index").stat().st_size > 0
    assert run(*options, "--resume").exit_code == 0
    assert names(folder) == ["a.tif"]

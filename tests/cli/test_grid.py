"""`satclip-grid` as people and scripts meet it: what it writes, what it says, and how it fails."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from click.testing import CliRunner, Result

from satclip_engine import __version__
from satclip_engine.cli.grid import main
from satclip_engine.encoder import load
from satclip_engine.grid import make_grid
from satclip_engine.pca import pca_head
from satclip_engine.weights import LocationWeights

SMALL = ["--resolution", "10"]  # 36 × 18 pixels


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> str:
    """A checkpoint of six bands that computes in no time."""
    rng = np.random.default_rng(7)
    tensors = {
        "layers.0.weight": rng.normal(size=(16, 36)) * 0.02,
        "layers.0.bias": rng.normal(size=16) * 0.1,
        "last_layer.weight": rng.normal(size=(6, 16)),
        "last_layer.bias": rng.normal(size=6),
    }
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    LocationWeights(tensors, "orthonormal").save(path)
    return str(path)


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr("satclip_engine.raster.preview.MAP_WIDTH", 200)
    monkeypatch.setattr("satclip_engine.raster.preview.MAP_HEIGHT", 200)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_one_line(result: Result, code: int, *fragments: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("satclip-grid: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    for fragment in fragments:
        assert fragment in result.stderr


# What it writes


def test_a_run_writes_the_raster_and_its_picture_and_nothing_else(folder, weights):
    result = run("a.tif", "--weights", weights, *SMALL, "-q")
    assert result.exit_code == 0, result.output
    assert names(folder) == ["a.png", "a.tif"]
    with rasterio.open("a.tif") as raster:
        assert (raster.count, raster.height, raster.width) == (6, 18, 36)
        assert raster.dtypes == ("int8",) * 6
        assert raster.descriptions == ("e001", "e002", "e003", "e004", "e005", "e006")
        assert raster.crs.to_epsg() == 4326
        assert tuple(raster.bounds) == (-180, -90, 180, 90)


def test_pixels_are_the_encoders_within_half_a_quantisation_step(folder, weights):
    run("a.tif", "--weights", weights, *SMALL, "--no-preview", "-q")
    exact = load(weights).evaluate(make_grid(resolution=10))
    with rasterio.open("a.tif") as raster:
        scales, offsets = np.array(raster.scales), np.array(raster.offsets)
        values = raster.read().transpose(1, 2, 0) * scales + offsets
    assert (np.abs(values - exact) <= scales * 0.5001).all()


def test_chosen_bands_are_written_under_their_own_names(folder, weights):
    run("a.tif", "--weights", weights, *SMALL, "--bands", "2,5-6", "--dtype", "float32", "--no-preview", "-q")
    exact = load(weights).evaluate(make_grid(resolution=10))
    with rasterio.open("a.tif") as raster:
        assert raster.descriptions == ("e002", "e005", "e006")
        np.testing.assert_allclose(raster.read(1), exact[..., 1], rtol=1e-6, atol=1e-6)


def test_principal_components_are_those_of_the_globe_whatever_the_bounds(folder, weights):
    args = ["--bounds", -20, -30, 40, 50, "--resolution", 10, "--bands", "pca:3", "--dtype", "float32"]
    result = run("a.tif", "--weights", weights, *args, "--no-preview", "-q")
    assert result.exit_code == 0, result.output
    head, fit = pca_head(load(weights), 3)
    exact = head.evaluate(make_grid(bounds=(-20, -30, 40, 50), resolution=10))
    with rasterio.open("a.tif") as raster:
        assert raster.descriptions == ("pca1", "pca2", "pca3")
        np.testing.assert_allclose(raster.read().transpose(1, 2, 0), exact, rtol=1e-5, atol=1e-5)
        shares = [float(share) for share in raster.tags()["pca_explained_variance"].split()]
    np.testing.assert_allclose(shares, fit.explained, atol=1e-4)


def test_a_projected_window_and_a_raster_like_it_have_the_same_pixels(folder, weights):
    window = ["--crs", "EPSG:32633", "--bounds", 300000, 5000000, 400000, 5080000, "--resolution", 10000]
    assert run("a.tif", "--weights", weights, *window, "--no-preview", "-q").exit_code == 0
    result = run("b.tif", "--weights", weights, "--like", "a.tif", "--no-preview", "-q")
    assert result.exit_code == 0, result.output
    with rasterio.open("a.tif") as a, rasterio.open("b.tif") as b:
        assert a.transform == b.transform
        assert a.crs == b.crs
        np.testing.assert_array_equal(a.read(), b.read())


def test_the_summary_says_how_much_of_a_raster_is_no_place_and_names_a_custom_crs(folder, weights):
    window = ["--crs", "EPSG:3857", "--bounds", 19_000_000, -2e6, 21_000_000, 0, "--resolution", 200_000]
    result = run("a.tif", "--weights", weights, *window, "-q")
    assert "nodata   50 % of the pixels" in result.stdout
    window = ["--crs", "+proj=moll +lon_0=150", "--bounds", -2e6, -2e6, 2e6, 2e6, "--resolution", 200_000]
    result = run("b.tif", "--weights", weights, *window, "-q")
    assert "pixels of 200000 m, +proj=moll +lon_0=150" in result.stdout
    assert "nodata" not in result.stdout
    result = run("c.tif", "--weights", weights, *window, "-q", "--json")
    assert pyproj.CRS(json.loads(result.stdout)["crs"]).equals(pyproj.CRS(window[1]))


@pytest.mark.parametrize(
    ("window", "text"),
    [
        (["--bounds", 0.1, 0.2, 0.7, 0.5, "--resolution", 0.1], "west 0.1, south 0.2, east 0.7, north 0.5"),
        (["--bounds", 178, -20, 182, -18, "--resolution", 1], "west 178, south -20, east 182, north -18"),
        (
            ["--crs", "EPSG:32633", "--bounds", 300000, 5e6, 400000, 5.1e6, "--resolution", 50000],
            "west 300000, south 5000000, east 400000, north 5100000",
        ),
    ],
)
def test_the_summary_shows_the_extent_in_units_of_the_crs(folder, weights, window, text):
    result = run("a.tif", "--weights", weights, *window, "--no-preview", "-q")
    assert f"  extent   {text}\n" in result.stdout


def test_degrees_given_to_a_projection_get_a_note_and_a_raster(folder, weights):
    window = ["--crs", "EPSG:32633", "--bounds", -12, 34, 42, 72, "--resolution", 1]
    result = run("a.tif", "--weights", weights, *window, "--no-preview", "-q")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("satclip-grid: note: the raster lies wholly outside the area of use")
    assert names(folder) == ["a.tif"]


def test_the_raster_that_gives_the_pixels_is_never_replaced(folder, weights):
    run("a.tif", "--weights", weights, *SMALL, "--no-preview", "-q")
    before = Path("a.tif").read_bytes()
    result = run("./a.tif", "--weights", weights, "--like", "a.tif", "--overwrite", "-q")
    assert_one_line(result, 2, "--like: a.tif is OUTPUT itself")
    assert Path("a.tif").read_bytes() == before


def test_bounds_may_cross_the_antimeridian(folder, weights):
    result = run("a.tif", "--weights", weights, "--bounds", 170, -20, 190, -10, "--resolution", 1, "-q")
    assert result.exit_code == 0, result.output
    with rasterio.open("a.tif") as raster:
        assert tuple(raster.bounds) == (170, -20, 190, -10)


def test_tags_say_where_the_values_come_from_without_folders_or_times(folder, weights):
    run("a.tif", "--weights", weights, *SMALL, "--no-preview", "-q", "--threads", 1)
    with rasterio.open("a.tif") as raster:
        tags = raster.tags()
    assert tags["software"] == f"satclip-engine {__version__}"
    assert tags["weights"] == "small.safetensors"
    assert tags["weights_sha256"] == load(weights).weights.sha256
    assert tags["harmonics"] == "exact"
    expected = "satclip-grid a.tif --weights small.safetensors --resolution 10"
    assert tags["command"] == f"{expected} --dtype int8 --bands all --compress zstd"
    assert str(Path(weights).parent) not in str(tags)


def test_the_same_command_gives_the_same_bytes_whatever_the_number_of_threads(folder, weights):
    for name, threads in (("one", 1), ("two", 3)):
        Path(name).mkdir()
        run(f"{name}/a.tif", "--weights", weights, "--resolution", 2, "--threads", threads, "-q")
    assert Path("one/a.tif").read_bytes() == Path("two/a.tif").read_bytes()
    assert Path("one/a.png").read_bytes() == Path("two/a.png").read_bytes()


# What it says


def test_the_summary_goes_to_stdout_and_names_the_files(folder, weights):
    result = run("a.tif", "--weights", weights, *SMALL)
    lines = result.stdout.splitlines()
    assert lines[0] == "a.tif"
    assert "36 x 18 pixels of 10°, EPSG:4326" in result.stdout
    assert "extent   west -180, south -90, east 180, north 90\n" in result.stdout
    assert re.search(r"time     [\d.]+ s \(raster [\d.]+ s, [\d.]+ k?\s?px/s\)\n", result.stdout)
    assert "a.png" in lines[-1]
    assert max(map(len, lines)) <= 80


def test_json_is_one_object_with_what_was_done(folder, weights):
    result = run("a.tif", "--weights", weights, *SMALL, "--bands", "pca:2", "--json", "-q")
    report = json.loads(result.stdout)
    assert report["path"].endswith("a.tif")
    assert report["preview"] == "a.png"
    assert report["shape"] == [18, 36]
    assert report["bands"] == 2
    assert report["dtype"] == "int8"
    assert report["crs"] == "EPSG:4326"
    assert report["transform"] == [10, 0, -180, 0, -10, 90]
    assert report["bounds"] == [-180, -90, 180, 90]
    assert report["total_seconds"] > report["seconds"]
    assert report["bytes"] == Path("a.tif").stat().st_size
    assert report["seconds"] > 0
    assert report["pixels_per_second"] > 0
    assert 0 < report["max_quantisation_error"] < 1
    assert report["clipping"]["fraction"] <= 1e-4
    assert report["resumed_from"] == 0
    assert 20e6 < report["peak_memory"] < 5e9
    assert report["weights"]["sha256"] == load(weights).weights.sha256
    assert report["backend"]["name"] in ("cpu", "reference")
    assert len(report["pca_explained_variance"]) == 2
    assert report["version"] == __version__


def test_in_a_pipe_progress_is_a_few_plain_lines_and_quiet_is_silent(folder, weights):
    plain = run("a.tif", "--weights", weights, *SMALL)
    assert 1 <= plain.stderr.count("\n") <= 8
    assert "\r" not in plain.stderr
    assert "\x1b" not in plain.stderr
    quiet = run("b.tif", "--weights", weights, *SMALL, "-q")
    assert quiet.stderr == ""
    assert quiet.stdout.startswith("b.tif")


def test_help_shows_examples_and_imports_nothing_heavy():
    code = (
        "import sys; from satclip_engine.cli.grid import main; main(['--help'], standalone_mode=False); "
        "heavy = {'numpy', 'rasterio', 'xarray', 'torch', 'odc', 'pyproj', 'imagecodecs', 'PIL', 'rich'}; "
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for text in (
        "satclip-grid world.tif",
        "--resume",
        ".OUTPUT.satclip-spool",
        "Exit status",
        "[default: int8]",
    ):
        assert text in done.stdout


def test_the_version_is_printed():
    assert run("--version").stdout == f"satclip-grid {__version__}\n"


# How it fails


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        ([], ["OUTPUT", "--help"]),
        (["a.zarr"], ["Zarr output is not available", ".tif"]),
        (["a.png"], [".tif or .tiff"]),
        (["a.tif", "--weights", "nosuch"], ["nosuch", "default"]),
        (["a.tif", "--resolution", "0"], ["--resolution"]),
        (["a.tif", "--resolution", "-1"], ["--resolution"]),
        (["a.tif", "--resolution", "nan"], ["--resolution"]),
        (["a.tif", "--resolution", "0.7"], ["--resolution", "nearest"]),
        (["a.tif", "--resolution", "1e-9"], ["--resolution", "3.6e+11 × 1.8e+11"]),
        (["a.tif", "--resolution", "wide"], ["--resolution"]),
        (["a.tif", "--bounds", "-10", "0", "-20", "10"], ["--bounds", "west"]),
        (["a.tif", "--bounds", "179", "-20", "-179", "-18"], ["--bounds", "179 -20 181 -18"]),
        (["a.tif", "--bounds", "-10", "-95", "10", "0"], ["--bounds", "pole"]),
        (["a.tif", "--bounds", "-10", "0"], ["--bounds", "4"]),
        (["a.tif", "--bounds", "3e5", "5e6", "4e5", "6e6"], ["--bounds", "if they are metres, give --crs"]),
        (["a.tif", "--crs", "EPSG:99999"], ["--crs", "EPSG:99999"]),
        (["a.tif", "--crs", "EPSG:32633"], ["--resolution", "metre"]),
        (["a.tif", "--like", "nosuch.tif"], ["--like", "nosuch.tif"]),
        (["a.tif", "--like", "b.tif", "--crs", "EPSG:4326"], ["--like", "--crs"]),
        (["a.tif", "--dtype", "int7"], ["--dtype", "int16"]),
        (["a.tif", "--bands", "0-3"], ["--bands", "0-3"]),
        (["a.tif", "--bands", "5,5"], ["--bands", "band 5 twice"]),
        (["a.tif", "--bands", "200-300"], ["--bands", "1-256"]),
        (["a.tif", "--bands", "pca:0"], ["--bands"]),
        (["a.tif", "--bands", "pca:257"], ["--bands", "256"]),
        (["a.tif", "--bands", "some"], ["--bands"]),
        (["a.tif", "--memory", "3XB"], ["--memory"]),
        (["a.tif", "--memory", "1KB"], ["--memory"]),
        (["a.tif", "--blocksize", "100"], ["--blocksize", "16"]),
        (["a.tif", "--threads", "0"], ["--threads"]),
        (["a.tif", "--backend", "cuda"], ["--backend", "reference"]),
        (["a.tif", "--overwrite", "--resume"], ["--overwrite", "--resume"]),
        (["a.tif", "--preview", "a.jpg"], ["--preview", ".png"]),
        (["a.tif", "--preview", "b.png", "--no-preview"], ["--preview", "--no-preview"]),
        (["a.tif", "-v", "-q"], ["-v", "-q"]),
        (["a.tif", "--nosuch"], ["--nosuch"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "a.tif" in value else None,
)
def test_unusable_arguments_are_one_line_and_status_2(folder, args, fragments):
    assert_one_line(run(*args), 2, *fragments)
    assert names(folder) == []


def test_a_like_file_without_georeference_is_status_2(folder, weights):
    from PIL import Image

    Image.new("L", (8, 8)).save("plain.png")
    assert_one_line(run("a.tif", "--weights", weights, "--like", "plain.png"), 2, "--like", "no georeference")
    assert names(folder) == ["plain.png"]


@pytest.mark.parametrize("output", ["missing/a.tif", "file/a.tif"])
def test_a_folder_that_is_not_there_is_status_1(folder, weights, output):
    Path("file").write_text("")
    assert_one_line(run(output, "--weights", weights, *SMALL), 1, "no folder")
    assert names(folder) == ["file"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, where not even root can make files")
def test_a_folder_that_cannot_be_written_is_status_1(folder, weights):
    assert_one_line(run("/proc/a.tif", "--weights", weights, *SMALL, "--no-preview", "-q"), 1, "/proc")


def test_an_output_that_exists_is_kept(folder, weights):
    Path("a.tif").write_text("mine")
    assert_one_line(run("a.tif", "--weights", weights, *SMALL), 1, "a.tif", "--overwrite")
    assert Path("a.tif").read_text() == "mine"
    assert names(folder) == ["a.tif"]


@pytest.mark.parametrize("option", [[], ["--resume"]])
def test_a_preview_that_exists_is_kept_and_nothing_is_computed(folder, weights, option):
    Path("a.png").write_text("mine")
    assert_one_line(run("a.tif", "--weights", weights, *SMALL, *option), 1, "a.png", "--overwrite")
    assert names(folder) == ["a.png"]
    assert Path("a.png").read_text() == "mine"


def test_overwrite_replaces_raster_and_preview(folder, weights):
    Path("a.tif").write_text("old")
    Path("a.png").write_text("old")
    result = run("a.tif", "--weights", weights, *SMALL, "--overwrite", "-q")
    assert result.exit_code == 0, result.output
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    with rasterio.open("a.tif") as raster:
        assert raster.count == 6


def test_the_preview_can_have_another_name_or_none(folder, weights):
    run("a.tif", "--weights", weights, *SMALL, "--preview", "other.png", "-q")
    run("b.tif", "--weights", weights, *SMALL, "--no-preview", "-q")
    assert names(folder) == ["a.tif", "b.tif", "other.png"]


class Hostile:
    def __reduce__(self):
        return os.system, ("touch executed",)


def _damaged(kind: str, good: Path) -> Path:
    path = Path(f"{kind}.safetensors")
    content = good.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "corrupt":
        path.write_bytes(content[:8] + b"\xff" * 64 + content[72:])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "hostile":
        path = Path("hostile.ckpt")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": Hostile()}, protocol=2))
            archive.writestr("archive/version", "3")
    else:
        path = Path("gone.safetensors")
    return path


@pytest.mark.parametrize("kind", ["truncated", "corrupt", "empty", "hostile", "missing"])
def test_weights_that_cannot_be_read_are_named_and_status_1(folder, weights, kind):
    if kind == "hostile":
        pytest.importorskip("torch", reason="reading .ckpt files needs torch")
    path = _damaged(kind, Path(weights))
    before = names(folder)
    assert_one_line(run("a.tif", "--weights", path, *SMALL), 1, path.name)
    assert names(folder) == before
    assert not Path("executed").exists()


def test_an_unexpected_failure_is_one_line_and_verbose_adds_the_traceback(folder, weights, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("something\nodd")

    monkeypatch.setattr("satclip_engine.raster.write.write_raster", broken)
    assert_one_line(run("a.tif", "--weights", weights, *SMALL), 1, "RuntimeError: something odd", "-v")
    verbose = run("a.tif", "--weights", weights, *SMALL, "-v")
    assert verbose.exit_code == 1
    assert "Traceback" in verbose.stderr


def test_a_preview_that_fails_leaves_the_raster_and_says_so(folder, weights, monkeypatch):
    from PIL import Image

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    result = run("a.tif", "--weights", weights, *SMALL, "-q")
    assert_one_line(result, 1, "a.tif is complete", "No space left on device")
    assert names(folder) == ["a.tif"]


# Stopping and going on


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
from satclip_engine.encoder import Encoder

evaluate = Encoder.evaluate

def slow(*args, **kwargs):
    time.sleep(0.05)
    return evaluate(*args, **kwargs)

Encoder.evaluate = slow
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
import satclip_engine.raster.survey
def interrupted(*args, **kwargs):
    raise KeyboardInterrupt
satclip_engine.raster.survey.find_quantiser = interrupted
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
    assert said.splitlines()[-1].endswith("the same command with --resume goes on from here")
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
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
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


def test_the_installed_command_is_this_one():
    command = shutil.which("satclip-grid", path=str(Path(sys.executable).parent)) or shutil.which(
        "satclip-grid"
    )
    assert command is not None, "the package is not installed"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"satclip-grid {__version__}\n"

"""`satclip-grid` as people and scripts meet it: what it writes, what it says, and how it fails."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from factories import cf_files
from factories.cli_runs import SMALL, assert_one_line, names, run
from rasterio.warp import transform_bounds

from satclip_engine import __version__
from satclip_engine.arrays.pca import pca_head
from satclip_engine.encoder import load
from satclip_engine.geo.grid import make_grid
from satclip_engine.raster.write import write_raster

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
        array = load(weights).grid(bounds=(-20, -30, 40, 50), resolution=10, bands="pca:3")
        assert array.band.values.tolist() == ["pca1", "pca2", "pca3"]
        np.testing.assert_array_equal(array.values, raster.read())
    np.testing.assert_allclose(shares, fit.explained, atol=1e-4)


def test_bounds_in_degrees_make_a_projected_raster_around_them(folder, weights):
    args = ["a.tif", "--weights", weights, "--bands", "1", "--no-preview", "-q"]
    bounds = ["--bounds", "14,45,14.9,46", "--bounds-crs", "EPSG:4326"]
    result = run(*args, "--crs", "EPSG:32633", "--resolution", "1km", *bounds)
    assert result.exit_code == 0, result.output
    west, south, east, north = transform_bounds("EPSG:4326", "EPSG:32633", 14, 45, 14.9, 46, densify_pts=999)
    with rasterio.open("a.tif") as raster:
        edges = np.array([west // 1000, south // 1000, -(-east // 1000), -(-north // 1000)])
        np.testing.assert_allclose(raster.bounds, 1000 * edges)
        assert "--bounds 14 45 14.9 46 --bounds-crs EPSG:4326" in raster.tags()["command"]


def test_bounds_snap_to_seconds_of_arc(folder, weights):
    args = ["a.tif", "--weights", weights, "--bands", "1", "--no-preview", "-q"]
    result = run(*args, "--bounds=-1,-1,0.995,1", "--resolution", "300s", "--snap")
    assert result.exit_code == 0, result.output
    with rasterio.open("a.tif") as raster:
        assert raster.shape == (24, 24)
        assert raster.bounds == pytest.approx((-1, -1, 1, 1))
        assert "--resolution 300s" in raster.tags()["command"]
        assert "--snap" in raster.tags()["command"]


def test_like_a_file_without_a_crs_takes_the_one_given(folder, weights):
    name = cf_files.era5().write(folder / "era5.nc")
    args = ["a.tif", "--weights", weights, "--like", name, "--bands", "1", "--no-preview", "-q"]
    assert_one_line(run(*args), 2, "--like: netcdf:", "has no CRS", "by --crs EPSG:4326")
    assert run(*args, "--crs", "EPSG:4326").exit_code == 0
    with rasterio.open("a.tif") as raster:
        assert raster.bounds == (-7.5, -97.5, 352.5, 97.5)
    args[0] = "b.tif"
    args[4] = cf_files.osi_saf().write(folder / "osi.nc")
    assert_one_line(run(*args, "--crs", "EPSG:4326"), 2, "its CRS is", "leave out --crs")
    assert run(*args).exit_code == 0
    with rasterio.open("b.tif") as raster:
        assert raster.bounds == (-4_095_000, -5_405_000, 3_905_000, 6_095_000)


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


def test_bounds_far_from_a_projections_area_get_a_note_and_a_raster(folder, weights):
    window = ["--crs", "EPSG:32633", "--bounds", -12e3, 34e3, 42e3, 72e3, "--resolution", 1000]
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


@pytest.mark.triton
def test_backend_and_precision_are_in_the_report_and_the_tags(folder, weights):
    pytest.importorskip("triton")
    given = ["--backend", "triton", "--precision", "fast", "--resolution", "30", "--no-preview"]
    done = run("a.tif", "--weights", weights, *given, "--json", "-q")
    report = json.loads(done.stdout)
    assert (report["device"], report["precision"]) == ("cpu", "fast")
    assert report["backend"]["name"] == "triton"
    assert report["backend"]["isa"].endswith("interpreter fast")
    with rasterio.open("a.tif") as raster:
        assert "--backend triton --precision fast" in raster.tags()["command"]
        assert raster.tags()["backend"] == f"triton {report['backend']['isa']}"
    done = run("a.tif", "--weights", weights, *given[:2], *given[4:], "--resume", "-q")
    assert_one_line(done, 1, "it differs", "fast, is now triton", "exact")
    verbose = run("b.tif", "--weights", weights, *given, "-v")
    assert re.search(r"backend  triton \(triton .* interpreter fast\) on cpu\n", verbose.stdout)


def test_tiles_of_other_bands_types_and_runs_share_scales(folder, weights):
    common = ["--weights", weights, "--resolution", 1, "--no-preview", "-q"]
    first = run("a.tif", *common, "--bounds", 0, 0, 20, 10, "--json=full")
    Path("a.json").write_text(first.stdout)
    window = run("b.tif", *common, "--bounds", 20, 0, 40, 10, "--range", "window", "--json=full")
    assert (first.exit_code, window.exit_code) == (0, 0)
    report = json.loads(first.stdout)["quantisation"]
    assert (report["range"], report["dtype"]) == ("globe", "int8")
    for name, options in (
        ("c.tif", ["--bands", "2-3"]),
        ("d.tif", ["--bands", "2,3", "--range", "a.tif"]),
        ("e.tif", ["--bands", "2,3", "--range", folder / "a.json"]),
    ):
        assert run(name, *common, "--bounds", 20, 0, 40, 10, *options, "--dtype", "uint8").exit_code == 0
        with rasterio.open(name) as dataset:
            assert dataset.dtypes == ("uint8", "uint8")
            assert dataset.nodata == 0
            np.testing.assert_array_equal(dataset.scales, report["scale"][1:3])
            np.testing.assert_array_equal(
                dataset.offsets, np.array(report["offset"][1:3]) - 128 * np.array(report["scale"][1:3])
            )
            assert ("--range a.json" in dataset.tags()["command"]) == (name == "e.tif")
    assert json.loads(window.stdout)["quantisation"]["scale"] != report["scale"]
    assert run("f.tif", *common, "--scale", "common").exit_code == 0
    with rasterio.open("f.tif") as dataset:
        assert len(set(dataset.scales)) == len(set(dataset.offsets)) == 1
        assert dataset.tags()["command"].endswith("--scale common")


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
        (["a.tif", "--like", "b.tif", "--bounds", "0", "0", "1", "1"], ["--like", "--bounds"]),
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
        (["a.tif", "--backend", "gpu"], ["--backend", "reference"]),
        (["a.tif", "--device", "gpu"], ["--device", "'gpu' is none of cpu, cuda and cuda:N"]),
        (["a.tif", "--device", "cuda", "--backend", "cpu"], ["--backend 'cpu'", "not on device 'cuda'"]),
        (["a.tif", "--precision", "half"], ["--precision", "exact", "fast"]),
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


def test_a_gpu_that_is_not_there_is_status_2_with_the_way_out(folder, weights):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("a.tif", "--weights", weights, "--device", "cuda:1")
    assert_one_line(done, 2, "--device 'cuda:1': this machine has no CUDA device that torch can use", "'cpu'")
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


def test_the_installed_command_is_this_one():
    command = shutil.which("satclip-grid", path=str(Path(sys.executable).parent)) or shutil.which(
        "satclip-grid"
    )
    assert command is not None, "the package is not installed"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"satclip-grid {__version__}\n"


def test_choices_are_read_in_any_case_as_gdal_reads_them(folder, weights):
    result = run("a.tif", "--weights", weights, *SMALL, "--compress", "ZSTD", "--dtype", "Int16", "-q")
    assert result.exit_code == 0, result.output
    with rasterio.open("a.tif") as raster:
        assert (raster.dtypes[0], raster.profile["compress"]) == ("int16", "zstd")
    again = run("a.tif", "--weights", weights, *SMALL, "--dtype", "int16", "--resume", "-q")
    assert "complete already" in again.stdout
    report = write_raster(load(weights), "b.tif", make_grid(resolution=30), compress="DEFLATE")
    assert report.compress == "deflate"

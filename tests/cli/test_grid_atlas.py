"""`satclip-grid --atlas`: the lattice of the Earth as a file, and rasters from it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from factories.cli_runs import assert_one_line, names, run

from satclip_engine.encoder import load
from satclip_engine.geo.grid import make_grid

pytest.importorskip("zarr")


def test_an_atlas_is_written_and_rasters_come_from_it(folder, weights):
    result = run("--atlas", "earth.zarr", "--weights", weights, "-q")
    assert result.exit_code == 0, result.output
    assert names(folder) == ["earth.zarr"]
    assert "int16" in result.stdout
    assert 'se.load("earth.zarr")' in result.stdout
    args = ["--bounds", 5, 40, 25, 60, "--resolution", 0.5, "--dtype", "float32", "--no-preview", "-q"]
    assert run("a.tif", "--weights", "earth.zarr", *args).exit_code == 0
    encoder = load(weights)
    exact = encoder.evaluate(make_grid(bounds=(5, 40, 25, 60), resolution=0.5))
    with rasterio.open("a.tif") as raster:
        off = np.abs(raster.read().transpose(1, 2, 0) - exact) / encoder.moments.sigma
        assert off.max() <= 1e-3
        assert float(raster.tags()["reconstruction_max_sigma"]) <= 1e-3


def test_the_report_in_json_has_size_error_and_type(folder, weights):
    options = ["--dtype", "float32", "--tolerance", 1e-4, "--bands", "1,3", "--json", "-q"]
    report = json.loads(run("--atlas", "earth.zarr", "--weights", weights, *options).stdout)
    assert (report["dtype"], report["bands"]) == ("float32", 2)
    assert report["certificate"]["max_sigma"] <= 1e-4
    assert load("earth.zarr").band_names == ["e001", "e003"]


def test_what_describes_a_raster_and_what_is_there_already_are_refused(folder, weights):
    for extra in (["out.tif"], ["--resolution", 1], ["--exact"], ["--plan"], ["--resume"]):
        result = run("--atlas", "earth.zarr", "--weights", weights, *extra)
        assert result.exit_code == 2
        assert "leave out" in result.stderr
    (folder / "earth.zarr").mkdir()
    assert_one_line(run("--atlas", "earth.zarr", "--weights", weights, "-q"), 1, "exists", "--overwrite")
    assert_one_line(run("--atlas", "earth.tif", "--weights", weights, "-q"), 2, "--atlas", ".zarr")


def test_an_exact_raster_cannot_come_from_an_atlas(folder, weights):
    assert run("--atlas", "earth.zarr", "--weights", weights, "-q").exit_code == 0
    result = run("a.tif", "--weights", "earth.zarr", "--resolution", 10, "--exact", "-q")
    assert result.exit_code == 2, result.output
    assert names(folder) == ["earth.zarr"]


def test_without_an_output_the_command_says_what_is_missing(folder):
    result = run()
    assert result.exit_code == 2
    assert "Missing argument 'OUTPUT'" in result.stderr

"""`satclip-grid --plan`, `--tolerance`, `--exact`: what is said of a reconstruction, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from factories.cli_runs import assert_one_line, names, run

from satclip_engine.weights import LocationWeights

WINDOW = ["--bounds", 5, 40, 13, 48, "--resolution", 0.02]  # 160,000 pixels


@pytest.fixture(scope="module")
def smooth(tmp_path_factory) -> str:
    """A checkpoint of four bands whose pixels cost far more to evaluate than to interpolate."""
    rng = np.random.default_rng(3)
    tensors = {
        "layers.0.weight": rng.normal(size=(384, 36)) * 0.01,
        "layers.0.bias": rng.normal(size=384) * 0.05,
        "layers.1.weight": rng.normal(size=(384, 384)) * 0.08,
        "layers.1.bias": rng.normal(size=384) * 0.1,
        "last_layer.weight": rng.normal(size=(4, 384)) * 0.1,
        "last_layer.bias": rng.normal(size=4),
    }
    path = tmp_path_factory.mktemp("weights") / "smooth.safetensors"
    LocationWeights(tensors, "orthonormal").save(path)
    return str(path)


def test_a_plan_says_path_reason_time_error_and_size_and_writes_nothing(folder, smooth):
    result = run("a.tif", "--weights", smooth, *WINDOW, "--plan", "-q")
    assert result.exit_code == 0, result.output
    assert names(folder) == []
    lines = {line[2:10].strip(): line[11:] for line in result.stdout.splitlines()[1:]}
    assert result.stdout.startswith("a.tif is not written; it would be:\n")
    assert lines["path"] == "lattice"
    assert "the field is smooth: nodes every" in lines["why"]
    assert "product grid" in lines["time"]
    assert "σ at most" in lines["error"]
    assert "while it is written" in lines["size"]


def test_a_plan_in_json_has_the_measured_errors_of_every_band(folder, smooth):
    result = run("a.tif", "--weights", smooth, *WINDOW, "--plan", "--json", "-q")
    plan = json.loads(result.stdout)
    assert (plan["path"], plan["shape"], plan["bands"]) == ("lattice", [400, 400], 4)
    assert len(plan["certificate"]["max_error"]) == 4
    assert plan["seconds"]["lattice"] < plan["seconds"]["product grid"]
    assert names(folder) == []


def test_the_plan_of_an_exact_run_and_of_a_small_one_say_why(folder, smooth):
    assert "as asked for" in run("a.tif", "--weights", smooth, *WINDOW, "--plan", "--exact").stdout
    small = run("a.tif", "--weights", smooth, "--resolution", 10, "--plan").stdout
    assert "fewer than 100,000 points" in small


def test_the_summary_and_the_command_in_the_tags_name_the_tolerance(folder, smooth):
    result = run("a.tif", "--weights", smooth, *WINDOW, "--tolerance", 0.01, "--no-preview", "-q")
    assert result.exit_code == 0, result.output
    assert "a tolerance of 0.01 σ" in result.stdout
    assert "σ at most" in result.stdout
    with rasterio.open("a.tif") as raster:
        tags = raster.tags()
    assert "--tolerance 0.01" in tags["command"]
    assert float(tags["reconstruction_max_sigma"]) <= 0.01


def test_an_exact_run_reports_no_lattice(folder, smooth):
    result = run("a.tif", "--weights", smooth, *WINDOW, "--exact", "--no-preview", "-q", "--json")
    report = json.loads(result.stdout)
    assert report["reconstruction"] is None
    assert "--exact" in report["command"]


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--tolerance", 1e-9], ["--tolerance 1e-09 σ is below", "the floor is", "use --exact"]),
        (["--tolerance", -1], ["--tolerance must be positive"]),
        (["--tolerance", "nan"], ["--tolerance must be positive"]),
    ],
)
def test_tolerances_that_cannot_be_are_refused(folder, smooth, options, fragments):
    assert_one_line(run("a.tif", "--weights", smooth, *WINDOW, *options, "-q"), 2, *fragments)
    assert names(folder) == []


def test_exact_and_a_tolerance_exclude_each_other(folder, smooth):
    result = run("a.tif", "--weights", smooth, *WINDOW, "--exact", "--tolerance", 0.01)
    assert result.exit_code == 2
    assert "--exact and --tolerance are mutually exclusive" in result.stderr

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


def test_a_plan_in_json_has_the_measured_errors_of_every_band_when_asked_in_full(folder, smooth):
    arguments = ["a.tif", "--weights", smooth, *WINDOW, "--plan", "-q"]
    plan, full = (json.loads(run(*arguments, how).stdout) for how in ("--json", "--json=full"))
    assert (plan["path"], plan["shape"], plan["bands"], plan["dtype"]) == ("a.tif", [400, 400], 4, "int8")
    assert plan["reconstruction"]["path"] == "lattice"
    assert plan["pixel_seconds"]["lattice"] < plan["pixel_seconds"]["product grid"]
    assert plan["seconds"] > plan["pixel_seconds"]["lattice"]
    assert plan["peak_memory"] > 50e6
    assert plan["disk_estimate"] > plan["bytes"] > 0
    assert "max_error" not in plan["reconstruction"]["certificate"]
    assert len(full["reconstruction"]["certificate"]["max_error"]) == 4
    assert names(folder) == []


def test_the_json_of_a_run_and_of_its_plan_share_their_words(folder, smooth):
    arguments = ["a.tif", "--weights", smooth, *WINDOW, "--no-preview", "-q"]
    plan, report = (json.loads(run(*arguments, *how).stdout) for how in (["--json", "--plan"], ["--json"]))
    for word in ("path", "shape", "bands", "dtype", "compress", "interleave", "blocksize", "threads"):
        assert plan[word] == report[word], word
    assert set(plan) - set(report) == {"pixel_seconds"}
    assert set(plan["reconstruction"]) == set(report["reconstruction"]) - {"seconds"}
    full = json.loads(run("b.tif", *arguments[1:], "--json=full").stdout)
    assert len(full["reconstruction"]["certificate"]["sigma"]) == 4
    assert_one_line(run(*arguments, "--json=brief"), 2, "--json=brief", "--json or --json=full")


def test_a_plan_needs_no_output(folder, smooth):
    result = run("--weights", smooth, *WINDOW, "--plan", "-q")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("The raster is not written; it would be:\n")
    lines = {line[2:10].strip(): line[11:] for line in result.stdout.splitlines()[1:]}
    assert lines["bands"] == "4, int8, zstd"
    assert "thread" in lines["time"]
    assert "B" in lines["memory"]
    assert json.loads(run("--weights", smooth, *WINDOW, "--plan", "-q", "--json").stdout)["path"] is None
    assert names(folder) == []


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_summaries_fit_the_terminal_and_break_between_words(folder, smooth, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    arguments = ["a.tif", "--weights", smooth, *WINDOW, "-q", "--overwrite"]
    wide = {}
    for how in ([], ["--plan"]):
        lines = run(*arguments, *how).stdout.splitlines()
        assert max(map(len, lines)) < min(columns, 81)
        wide[len(how)] = " ".join(" ".join(lines).split())
    assert "at order" in wide[0]
    assert "pixels alone" in wide[1]


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

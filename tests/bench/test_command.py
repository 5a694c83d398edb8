"""The command satclip-bench: from options to a file of results."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from factories.benchmarks import SMALL, implementation

from satclip_engine.bench import catalogue, machine, results, run
from satclip_engine.cli.bench import main
from satclip_engine.errors import OutputError


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(catalogue, "WORKLOADS", SMALL)


def invoke(*words: str):
    return CliRunner().invoke(main, list(words))


def test_a_group_runs_from_the_command_to_a_file(tiny, tmp_path):
    path = tmp_path / "results.json"
    for group in ("points", "grid"):
        result = invoke(group, "--threads", "1", "--repeat", "1", "--no-memory", "--json", str(path))
        assert result.exit_code == 0, result.output
        assert "satclip" in result.stdout
        assert "\x1b" not in result.stdout
    content = results.read(path)
    assert content["machine"] == machine.machine()
    assert list(content["runs"]) == ["points", "grid"]
    record = content["runs"]["points"]["records"][0]
    assert record["contestant"] == "satclip"
    assert record["error"] <= record["tolerance"]
    assert record["rate"]["q1"] <= record["rate"]["median"] <= record["rate"]["q3"]
    assert content["runs"]["points"]["versions"]["numpy"] == np.__version__


def test_a_wrong_answer_makes_the_exit_status_1_and_shows_no_time(monkeypatch):
    workload = catalogue.PointsWorkload(3, 10)
    monkeypatch.setattr(catalogue, "WORKLOADS", (workload,))
    entries = [implementation("satclip", error=1.0, ours=True), implementation("baseline")]
    monkeypatch.setitem(run.SUITES, catalogue.PointsWorkload, lambda *arguments: entries)
    result = invoke("points", "--threads", "1", "--no-memory")
    assert result.exit_code == 1
    assert "satclip-bench points: 1 of 2 failed; points L=3, N=10: satclip: wrong answer" in result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("satclip ")]
    assert "failed" in line
    assert "/s" not in line


def test_results_of_another_machine_are_left_alone(tiny, tmp_path):
    path = tmp_path / "results.json"
    content = {"machine": {**machine.machine(), "cpu": "another"}, "runs": {}}
    path.write_text(json.dumps(content))
    result = invoke("points", "--json", str(path))
    assert result.exit_code == 2
    assert "another machine" in result.stderr
    assert json.loads(path.read_text()) == content


def test_a_missing_folder_is_named_before_anything_runs(tmp_path):
    with pytest.raises(OutputError, match="there is no folder"):
        results.check(tmp_path / "no" / "results.json", machine.machine())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["points", "--compare", "everyone"], "none of all, none, torch"),
        (["points", "--threads", "0"], "--threads"),
        (["lines"], "No such command"),
        ([], "Missing command"),
    ],
)
def test_unusable_options_are_one_line_and_status_2(words, message):
    result = invoke(*words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_help_needs_nothing_heavy():
    program = (
        "import sys, satclip_engine.cli.bench; print({'torch', 'numpy', 'rich', 'scipy'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "set()"

"""benchmarks/gpu_check.sh without a GPU: a dry run, and steps that fail or take too long."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import gpu_check  # noqa: E402
from gpucheck import build, document, machine, rows, sanitizer, targets  # noqa: E402
from gpucheck.rows import Check, Note, Rows, Time  # noqa: E402
from gpucheck.speed.comparison import (  # noqa: E402
    DRY,
    FULL,
    Comparison,
    SpeedWorkload,
    accelerator,
)
from gpucheck.steps import STEPS, Step  # noqa: E402

pytestmark = pytest.mark.gpu_tools

ROOT = Path(gpu_check.__file__).parents[1]


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that a dry run of all steps leaves."""
    out = tmp_path_factory.mktemp("check")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHON"] = sys.executable
    command = [str(ROOT / "benchmarks" / "gpu_check.sh"), "--dry-run", str(out)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")
    assert process.returncode == 0, process.stderr[-4000:]
    assert process.stdout == f"{out / 'report.md'}\n"
    return out


@pytest.fixture(scope="module")
def report(dry: Path) -> dict[str, Any]:
    return json.loads((dry / "report.json").read_text())


def test_a_dry_run_takes_every_step(report: dict[str, Any]) -> None:
    assert [step["name"] for step in report["steps"]] == ["build", *(step.name for step in STEPS)]
    assert all(step["ok"] and step["rows"] for step in report["steps"])


def test_every_backend_and_baseline_is_timed(report: dict[str, Any]) -> None:
    steps = {step["name"]: step["rows"] for step in report["steps"]}
    for name in ("points", "grid", "train", "loss"):
        times = {row["contestant"] for row in steps[name] if row["kind"] == "Time"}
        for word in ("triton", "PyTorch eager", "torch.compile", "cpu"):
            assert any(word in implementation for implementation in times), (name, word)


def test_every_error_has_a_bound_and_is_within(report: dict[str, Any]) -> None:
    checks = [row for step in report["steps"] for row in step["rows"] if row["kind"] == "Check"]
    names = {row["name"] for row in checks}
    assert len(checks) > 80
    assert all(row["ok"] for row in checks)
    for word in ("harmonics", "embedding", "∂weight", "∂bias", "grid", "int8", "loss", "autograd", "atomic"):
        assert any(word in name for name in names), word


def test_the_report_is_for_people_too(dry: Path) -> None:
    text = (dry / "report.md").read_text()
    assert "**A dry run**" in text
    assert "## Targets" in text
    assert "not measured" in text
    for step in STEPS:
        assert f"## {step.title}" in text


def test_a_dry_run_imports_nothing_that_only_rasters_need(dry: Path) -> None:
    program = """
import importlib, sys
blocked = {"rasterio", "rioxarray", "odc", "pyproj", "safetensors", "PIL", "imagecodecs", "pytest"}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
speed = [f"speed.{module}" for module in ("points", "grids", "training", "losses")]
for name in ("steps", "parity", "differentiation", "small", "document", "targets", "machine", *speed):
    importlib.import_module(f"gpucheck.{name}")
"""
    environment = build.environment(dry / "tree", interpreted=True)
    process = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr


def test_the_build_compiles_with_cuda_into_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(build.subprocess, "run", lambda command, check: commands.append(command))
    build.build(tmp_path, dry=False)
    configure, compile_ = commands
    assert "-DSATCLIP_CUDA=on" in configure
    assert f"-DSATCLIP_OUTPUT={tmp_path / 'satclip_engine'}" in configure
    assert compile_ == ["cmake", "--build", str(tmp_path / "cmake")]
    package = tmp_path / "satclip_engine"
    assert (package / "kernels" / "launch.py").is_file()
    assert not list(package.glob("*.so"))
    build.build(tmp_path, dry=False)  # a second time it finds its links


def step(program: str) -> Step:
    return Step("made", "Made", lambda rows, dry: None, 5)


def run_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, seconds: float) -> Any:
    """A step whose process runs that program."""
    popen = subprocess.Popen

    def replaced(command: list[str], **options: Any) -> Any:
        return popen([sys.executable, "-c", program, command[-2]], **options)

    monkeypatch.setattr(gpu_check.subprocess, "Popen", replaced)
    return gpu_check._step(step(program), tmp_path, tmp_path, seconds, dry=True)


def test_a_step_that_takes_too_long_is_stopped_and_keeps_its_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Rows(tmp_path / "kept.jsonl").add(Note("first", "found"))
    source, target = str(tmp_path / "kept.jsonl"), str(tmp_path / "made.jsonl")
    program = f"import shutil, time; shutil.copy({source!r}, {target!r}); time.sleep(60)"
    outcome = run_step(monkeypatch, tmp_path, program, 3)
    assert outcome.fault == "stopped after 3 s"
    assert outcome.rows == [Note("first", "found")]
    assert not outcome.ok


def test_a_step_that_dies_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outcome = run_step(monkeypatch, tmp_path, "raise SystemExit(3)", 20)
    assert outcome.fault == "ended with status 3"


def test_a_step_that_finds_nothing_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not run_step(monkeypatch, tmp_path, "pass", 20).ok
    assert (
        gpu_check._step(step("pass"), tmp_path, tmp_path, 0.5, dry=True).fault
        == "there was no time left for it"
    )


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = Rows(tmp_path / "rows.jsonl")
    time = Time("workload", "implementation", "points", 10.0, 1.0, 0.9, 1.1, 5)
    for row in (Check("a", 0.5, 1.0), Check("b", float("nan"), 1.0), time):
        written.add(row)
    assert written.attempt("c", lambda: 1 // 0) is None
    read = rows.read(tmp_path / "rows.jsonl")
    assert [row.ok for row in read] == [True, False, True, False]
    assert read[2] == time
    assert "ZeroDivisionError" in read[3].text


def test_wrong_answers_are_not_timed(tmp_path: Path) -> None:
    comparison = Comparison(Rows(tmp_path / "rows.jsonl"), accelerator(True), DRY)
    workload = SpeedWorkload("workload", "points", 1, 1)
    wrong = workload.implementation("wrong", lambda: lambda: 1, lambda answer: 0.5, 0.1)
    broken = workload.implementation("broken", lambda: lambda: 1 // 0, lambda answer: 0.0, 0.1)
    comparison.run(workload, [wrong, broken])
    written = rows.read(tmp_path / "rows.jsonl")
    assert [type(row) for row in written] == [Check, Note]
    assert written[0].error == 0.5
    assert "ZeroDivisionError" in written[1].text
    assert not any(row.ok for row in written)


@pytest.mark.parametrize(("budget", "expected"), [(1e-9, FULL.rounds.fewest), (60.0, FULL.rounds.most)])
def test_times_are_medians_of_as_many_rounds_as_the_budget_allows(
    tmp_path: Path, budget: float, expected: int
) -> None:
    calls: list[int] = []
    sizes = dataclasses.replace(FULL, rounds=dataclasses.replace(FULL.rounds, budget=budget))
    comparison = Comparison(Rows(tmp_path / "rows.jsonl"), accelerator(True), sizes)
    workload = SpeedWorkload("workload", "points", 1, 1)
    count = workload.implementation("count", lambda: lambda: calls.append(1), lambda answer: 0.0, 0.1)
    comparison.run(workload, [count])
    (time,) = rows.read(tmp_path / "rows.jsonl")
    assert isinstance(time, Time)
    assert time.rounds == expected
    assert len(calls) == FULL.rounds.warm_up + expected
    assert time.q1 <= time.seconds <= time.q3


STEP = "L=40, batch 8,192"


def timed(workload: str, implementation: str, seconds: float, work: float = 8192.0) -> Time:
    return Time(workload, implementation, "samples", work, seconds, seconds, seconds, 5)


def test_targets_are_met_or_not() -> None:
    measured = [
        timed(f"training step {STEP}", "PyTorch eager", 6.0),
        timed(f"training step {STEP}", "torch.compile", 1.5),
        timed(f"training step {STEP}", "triton exact", 1.0),
        timed(f"forward and backward {STEP}", "triton exact", 3.4),
        timed(f"forward {STEP}", "triton exact", 1.0),
        timed("grid L=40, 256×3600", "triton fast float32", 1.5e-3, 256 * 3600),
        Check("exact: something", 1e-5, 2e-5),
        Check("fast: something", 6e-3, 5e-3),
    ]
    values = {target.name: target.value(measured) for target in targets.TARGETS}
    met = {
        target.name: target.met(value)
        for target in targets.TARGETS
        if (value := values[target.name]) is not None
    }
    assert list(met.values()) == [True, False, False, True, True, False]
    hidden = next(value for name, value in values.items() if "float32, fast" in name)
    assert hidden == pytest.approx(100 * 256 * 3600 * 512 * 768 / 1.5e-3 / 494.7e12)


def test_the_report_names_what_failed() -> None:
    outcomes = [
        document.Outcome("a", "First", [Check("x", 2.0, 1.0), Note("y", "broken", ok=False)], 1.0),
        document.Outcome("b", "Second", [timed("workload", "implementation", 1.0)], 1.0, "stopped after 1 s"),
    ]
    text = document.markdown({"gpu": "none"}, outcomes, dry=False)
    assert "| a | 2 failed | 1 | 2 |" in text
    assert "**failed** y: broken" in text
    assert "**stopped after 1 s**" in text
    assert [step["ok"] for step in document.as_json({}, outcomes)["steps"]] == [False, False]


def test_the_sanitizer_reports_its_last_line_and_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "compute-sanitizer"
    fake.write_text('#!/bin/sh\\necho "$2: ERROR SUMMARY"; test "$2" = memcheck\\n'.replace("\\n", "\n"))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    written = Rows(tmp_path / "rows.jsonl")
    sanitizer.run(written, dry=False)
    assert [(row.name, row.ok) for row in rows.read(tmp_path / "rows.jsonl")] == [
        ("memcheck", True),
        ("racecheck", False),
    ]


def test_power_and_clocks_are_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_query", lambda fields: [])
    with machine.Sampler() as sampler:
        pass
    assert "not sampled" in sampler.summary()
    samples = iter(
        [["300 W", "1980 MHz", "2619 MHz", "50", "Active"], ["650 W", "1755 MHz", "2619 MHz", "60", "Active"]]
    )
    monkeypatch.setattr(machine, "_query", lambda fields: next(samples, []))
    monkeypatch.setattr(machine, "_SAMPLE_SECONDS", 0.0)
    sampler = machine.Sampler()
    sampler._run()
    assert "2 samples; power.draw 300–650 W; clocks.sm 1755–1980 MHz" in sampler.summary()

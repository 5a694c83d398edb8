"""Running satclip-grid in tests."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from satclip_engine.cli.grid import main

SMALL = ["--resolution", "10"]  # 36 × 18 pixels


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

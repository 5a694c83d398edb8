"""Check of everything that only a GPU can show, in one call: see docs/gpu.md.

    benchmarks/gpu_check.sh OUT             # build, parity, gradients, times, sanitizer; OUT/report.md, .json
    benchmarks/gpu_check.sh --dry-run OUT   # the same on a machine without a GPU, tiny and interpreted

Needs torch, triton, numpy, xarray, click, pybind11, cmake, ninja and nvcc, and no network. Exit status: 0 all
is well, 1 something is wrong: the report says what. What takes too long is stopped and counts as wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from gpucheck import build
from gpucheck.rows import Note, read

LIMIT_SECONDS = 465.0  # of everything, so that it ends within eight minutes
BUILD_SECONDS = 150.0  # of them for the build at most


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, write the report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="folder for the report; made when it is not there"
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, without compiling")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="some of the steps")
    options = parser.parse_args(arguments)
    out, begin = options.out.resolve(), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    tree = out / "tree"
    print(f"building into {tree}", file=sys.stderr)
    fault = _build(tree, out, dry=options.dry_run)
    sys.path.insert(0, str(tree))
    return _check(out, tree, begin, fault, options.only, dry=options.dry_run)


def _build(tree: Path, out: Path, *, dry: bool) -> str:
    """Build in a process of its own; returns the reason why that failed, or nothing."""
    command = [sys.executable, "-P", "-m", "gpucheck.build", str(tree), *(["--dry-run"] if dry else [])]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with (out / "build.txt").open("w") as file:
        try:
            process = subprocess.run(
                command, env=environment, stdout=file, stderr=file, timeout=BUILD_SECONDS
            )
        except subprocess.TimeoutExpired:
            return f"the build was stopped after {BUILD_SECONDS:.0f} s, see build.txt"
    return "" if process.returncode == 0 else "the build failed, see build.txt"


def _check(out: Path, tree: Path, begin: float, fault: str, only: Sequence[str] | None, *, dry: bool) -> int:
    from gpucheck import document, machine
    from gpucheck.steps import STEPS

    rows = build.describe(tree, dry=dry)
    outcomes = [document.Outcome("build", "Build", rows, time.monotonic() - begin, fault)]
    for step in STEPS:
        if only and step.name not in only:
            continue
        remaining = LIMIT_SECONDS - (time.monotonic() - begin)
        outcomes.append(_step(step, out, tree, min(step.seconds, remaining), dry=dry))
    described = machine.describe()
    (out / "report.md").write_text(document.markdown(described, outcomes, dry=dry))
    (out / "report.json").write_text(json.dumps(document.as_json(described, outcomes), indent=1) + "\n")
    print(out / "report.md")
    return 0 if all(outcome.ok for outcome in outcomes) else 1


def _step(step: object, out: Path, tree: Path, seconds: float, *, dry: bool) -> object:
    from gpucheck.document import Outcome
    from gpucheck.steps import Step

    assert isinstance(step, Step)
    print(f"{step.title}, {seconds:.0f} s at most", file=sys.stderr)
    file, start = out / f"{step.name}.jsonl", time.monotonic()
    file.unlink(missing_ok=True)
    fault = (
        "there was no time left for it" if seconds < 1 else _process(step.name, file, tree, seconds, dry=dry)
    )
    rows = read(file)
    if not rows and not fault:
        rows = [Note(step.name, "it found nothing", ok=False)]
    return Outcome(step.name, step.title, rows, time.monotonic() - start, fault)


def _process(name: str, rows: Path, tree: Path, seconds: float, *, dry: bool) -> str:
    """Run a step in a process of its own; returns the reason why it did not end well, or nothing."""
    command = [sys.executable, "-P", "-m", "gpucheck.steps", name, str(rows), *(["--dry-run"] if dry else [])]
    environment = build.environment(tree, interpreted=dry)
    # A group of its own: what the step started is stopped with it.
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            status = process.wait(seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return f"stopped after {seconds:.0f} s"
    return f"ended with status {status}" if status else ""


if __name__ == "__main__":
    sys.exit(main())

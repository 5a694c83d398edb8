"""Run of compute-sanitizer over small.py: reads and writes outside of tensors, races in shared memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from gpucheck.rows import Note, Rows

TOOLS = ("memcheck", "racecheck")
_TOOL_SECONDS = 70
_ERROR_STATUS = 9


def run(rows: Rows, *, dry: bool) -> None:
    """Run both tools; without compute-sanitizer, and in a dry run, small.py alone."""
    program = [sys.executable, "-P", "-m", "gpucheck.small"]
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None or dry:
        rows.add(
            Note("compute-sanitizer", "not run: it is not on the PATH" if not dry else "not run: no GPU")
        )
        rows.attempt("small sizes", _watch, rows, "small sizes", program)
        return
    for tool in TOOLS:
        command = [
            sanitizer,
            "--tool",
            tool,
            "--error-exitcode",
            str(_ERROR_STATUS),
            "--print-limit",
            "5",
            *program,
        ]
        rows.attempt(tool, _watch, rows, tool, command)


def _watch(rows: Rows, name: str, command: list[str]) -> None:
    # Torch's allocator gives out pieces of large blocks, whose ends a sanitizer does not see.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        process = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_TOOL_SECONDS
        )
    except subprocess.TimeoutExpired as stopped:
        lines = (stopped.stdout or b"").decode(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("=========") and "error" in line.lower()]
        rows.add(Note(name, f"stopped after {_TOOL_SECONDS} s with {len(errors)} errors seen", ok=not errors))
        return
    lines = (process.stdout + process.stderr).strip().splitlines()
    rows.add(Note(name, lines[-1] if lines else "no output", ok=process.returncode == 0))

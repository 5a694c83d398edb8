"""Registers, spills and shared memory that each CUDA kernel takes of a multiprocessor, per architecture.

    python benchmarks/cuda_resources.py             a Markdown table, from the extension as it is installed
    python benchmarks/cuda_resources.py --json

The numbers are read from the compiled code by cuobjdump, nvcc's or the one in triton's wheel; no GPU is
needed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

WORD_BYTES = 4


@dataclass(frozen=True)
class Resources:
    kernel: str
    architecture: str
    registers: int
    stack: int  # bytes of a thread
    spill_stores: int  # bytes of a thread
    spill_loads: int
    shared: int  # bytes of a block that are fixed; the rest is asked for at launch
    instructions: int
    tensor: int  # of these, multiplications of tensor cores


def cuobjdump() -> str | None:
    """A cuobjdump that reads what nvcc wrote, or None."""
    beside = [Path(nvcc).resolve().parent / "cuobjdump"] if (nvcc := shutil.which("nvcc")) else []
    if (spec := importlib.util.find_spec("triton")) and spec.origin:
        beside.append(Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump")
    usable = (str(tool) for tool in beside if os.access(tool, os.X_OK))
    return shutil.which("cuobjdump") or next(usable, None)


def extension() -> Path:
    from satclip_engine import _C

    return Path(_C.__file__)


def resources(library: Path, tool: str) -> list[Resources]:
    """All kernels of a library or cubin, by name and architecture."""
    usage = dict(_usage(_run(tool, "-res-usage", library)))
    code = dict(_code(_run(tool, "-sass", library)))
    kernels = []
    for (architecture, symbol), line in usage.items():
        instructions = code[architecture, symbol]
        kernels.append(
            Resources(
                kernel=_plain(symbol),
                architecture=architecture,
                registers=_number(line, "REG"),
                stack=_number(line, "STACK"),
                spill_stores=_bytes(instructions, "STL"),
                spill_loads=_bytes(instructions, "LDL"),
                shared=_number(line, "SHARED"),
                instructions=len(instructions),
                tensor=sum("HMMA" in text for text in instructions),
            )
        )
    return sorted(kernels, key=lambda row: (row.kernel, row.architecture))


def table(rows: list[Resources]) -> str:
    lines = [
        "| kernel | architecture | registers | stack | spilled out/in | shared | instructions | tensor |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.kernel} | {row.architecture} | {row.registers} | {row.stack} "
            f"| {row.spill_stores}/{row.spill_loads} | {row.shared} | {row.instructions} | {row.tensor} |"
        )
    return "\n".join(lines)


def _run(*command: str | Path) -> str:
    process = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed: {process.stderr.strip() or process.stdout.strip()}")
    return process.stdout


def _usage(text: str) -> Iterator[tuple[tuple[str, str], str]]:
    architecture = symbol = ""
    for line in text.splitlines():
        if match := re.search(r"arch = (sm_\w+)", line):
            architecture = match.group(1)
        elif match := re.search(r"Function (\S+):", line):
            symbol = match.group(1)
        elif "REG:" in line and symbol:
            yield (architecture, symbol), line


def _code(text: str) -> Iterator[tuple[tuple[str, str], list[str]]]:
    architecture = symbol = ""
    instructions: list[str] = []
    for line in text.splitlines():
        if match := re.search(r"arch = (sm_\w+)", line):
            architecture = match.group(1)
        elif match := re.search(r"Function : (\S+)", line):
            symbol, instructions = match.group(1), []
            yield (architecture, symbol), instructions
        elif match := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(match.group(1))


def _number(line: str, name: str) -> int:
    match = re.search(rf"\b{name}:(\d+)", line)
    return int(match.group(1)) if match else 0


def _bytes(instructions: list[str], operation: str) -> int:
    """Bytes of local memory that a thread reads or writes, each instruction once."""
    total = 0
    for text in instructions:
        if match := re.search(rf"\b{operation}(?:\.\w+)*", text):
            width = re.search(r"\.(64|128)\b", match.group())
            total += int(width.group(1)) // 8 if width else WORD_BYTES
    return total


def _plain(symbol: str) -> str:
    """`EncodePixels<Exact, false>` of the mangled name of launched<EncodePixels<Exact, false>>."""
    tool = shutil.which("c++filt")
    if tool is None:
        return symbol
    name = _run(tool, symbol).strip().replace("satclip::cuda::", "")
    match = re.search(r"launched<(.*) ?>\(", name)
    return re.sub(r"\(int\)|\(bool\)", "", match.group(1)).strip() if match else name


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", nargs="?", type=Path, help="default: the installed extension")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if (tool := cuobjdump()) is None:
        sys.exit("cuobjdump was not found: install the CUDA toolkit, or triton, whose wheel has one")
    rows = resources(arguments.library or extension(), tool)
    if not rows:
        sys.exit("there is no CUDA code in it: the build left it out (see satclip_engine._C.cuda_missing)")
    print(json.dumps([asdict(row) for row in rows], indent=1) if arguments.json else table(rows))


if __name__ == "__main__":
    main()

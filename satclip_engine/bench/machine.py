"""Which machine and which versions a result is from."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from satclip_engine.backends import available_cores
from satclip_engine.bench.kernels import instruction_sets

_PACKAGES = ("satclip-engine", "numpy", "torch", "scipy", "rasterio", "rioxarray", "imagecodecs", "torchgeo")


def machine() -> dict[str, Any]:
    """Processor, instruction sets (best first), cores that this process may use, memory, system."""
    return {
        "cpu": _cpu(),
        "instruction_sets": instruction_sets(),
        "cores": available_cores(),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Of Python and of what is compared, as far as it is installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def label(described: dict[str, Any]) -> str:
    """AMD EPYC, 2 cores, avx512."""
    best = (described["instruction_sets"] or ["no compiled kernels"])[0]
    cores = described["cores"]
    return f"{described['cpu']}, {cores} core{'s' if cores != 1 else ''}, {best}"


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return " ".join(found[1].split()) if found else platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None

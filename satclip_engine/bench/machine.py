"""Machine and versions that a result is from."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from satclip_engine import backends
from satclip_engine.backends import compiled
from satclip_engine.device import processor_name

_PACKAGES = ("satclip-engine", "numpy", "torch", "scipy", "rasterio", "rioxarray", "imagecodecs", "torchgeo")


def machine() -> dict[str, Any]:
    """Processor, instruction sets (best first), cores that this process may use, memory, system."""
    return {
        "cpu": processor_name(),
        "instruction_sets": instruction_sets(),
        "cores": backends.available_cores(),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def instruction_sets() -> list[str]:
    """Instruction sets of the compiled core that run here, best first; empty without the core."""
    return compiled._C.instruction_sets() if compiled._C is not None else []


def versions() -> dict[str, str]:
    """Versions of Python and of the compared packages, as far as they are installed."""
    return {"python": platform.python_version()} | package_versions(_PACKAGES)


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    installed = {}
    for package in packages:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def label(described: dict[str, Any]) -> str:
    """One-line description: AMD EPYC, 2 cores, avx512."""
    best = (described["instruction_sets"] or ["no compiled kernels"])[0]
    cores = described["cores"]
    return f"{described['cpu']}, {cores} core{'s' if cores != 1 else ''}, {best}"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None

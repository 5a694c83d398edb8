"""The GPU, its driver and versions, and its power and clocks while something runs."""

from __future__ import annotations

import platform
import shutil
import subprocess
import threading
from importlib import metadata
from typing import Any

_FACTS = (
    "name",
    "driver_version",
    "compute_cap",
    "memory.total",
    "power.limit",
    "clocks.max.sm",
    "clocks.max.memory",
    "clocks.applications.graphics",
    "ecc.mode.current",
    "mig.mode.current",
    "persistence_mode",
    "temperature.gpu",
)
_SAMPLED = ("power.draw", "clocks.sm", "clocks.mem", "temperature.gpu", "clocks_throttle_reasons.active")
_PACKAGES = ("torch", "triton", "numpy", "xarray", "pybind11", "cmake", "ninja")
_EVERY = 0.5  # seconds between samples


def facts() -> dict[str, str]:
    """What nvidia-smi says of the GPU, and which versions are installed."""
    found = dict(zip(_FACTS, _asked(_FACTS), strict=False))
    found |= {"python": platform.python_version(), "processor": _processor()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    found["nvcc"] = _nvcc()
    return found


def _asked(fields: tuple[str, ...]) -> list[str]:
    """Of the first GPU; nothing without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return [value.strip() for value in done.stdout.splitlines()[0].split(",")] if done.returncode == 0 else []


def _nvcc() -> str:
    if shutil.which("nvcc") is None:
        return "absent"
    lines = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout.splitlines()
    return next((line.split("release")[-1].strip() for line in lines if "release" in line), "unknown")


def _processor() -> str:
    from satclip_engine.bench.machine import label, machine

    return label(machine())


class Sampler:
    """Samples of power and clocks from `with` to its end; a thread that asks nvidia-smi."""

    def __init__(self) -> None:
        self._samples: list[list[str]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            sample = _asked(_SAMPLED)
            if not sample:
                return
            self._samples.append(sample)
            self._stop.wait(_EVERY)

    def summary(self) -> str:
        """power.draw 310–690 W; ... of all samples."""
        if not self._samples:
            return "not sampled: nvidia-smi is not there"
        columns = zip(_SAMPLED, zip(*self._samples, strict=True), strict=True)
        return f"{len(self._samples)} samples; " + "; ".join(
            f"{name} {_range(values)}" for name, values in columns
        )


def _range(values: tuple[str, ...]) -> str:
    try:
        numbers = [float(value.split()[0]) for value in values]
    except (ValueError, IndexError):
        return ", ".join(sorted(set(values)))
    unit = values[0].partition(" ")[2]
    return f"{min(numbers):g}–{max(numbers):g} {unit}".rstrip()

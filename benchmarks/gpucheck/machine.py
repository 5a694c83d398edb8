"""GPU, driver and versions of this machine; the GPU's power and clocks while something runs."""

from __future__ import annotations

import platform
import shutil
import subprocess
import threading
from typing import Any

from satclip_engine.bench.machine import label, machine, package_versions

_DESCRIBED = (
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
_SAMPLE_SECONDS = 0.5  # between samples


def describe() -> dict[str, str]:
    """The GPU as nvidia-smi describes it, and installed versions."""
    described = dict(zip(_DESCRIBED, _query(_DESCRIBED), strict=False))
    described |= {"python": platform.python_version(), "processor": label(machine())}
    described |= dict.fromkeys(_PACKAGES, "absent") | package_versions(_PACKAGES)
    described["nvcc"] = _nvcc()
    return described


def _query(fields: tuple[str, ...]) -> list[str]:
    """Values of the first GPU's fields; nothing without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if process.returncode:
        return []
    return [value.strip() for value in process.stdout.splitlines()[0].split(",")]


def _nvcc() -> str:
    if shutil.which("nvcc") is None:
        return "absent"
    lines = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout.splitlines()
    return next((line.split("release")[-1].strip() for line in lines if "release" in line), "unknown")


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
            sample = _query(_SAMPLED)
            if not sample:
                return
            self._samples.append(sample)
            self._stop.wait(_SAMPLE_SECONDS)

    def summary(self) -> str:
        """Ranges of all samples: power.draw 310–690 W; ..."""
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

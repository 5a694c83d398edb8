"""Compute devices by name: "cpu", "cuda" (torch's current one, or the first), "cuda:N"; the processor."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from satclip_engine.errors import UsageError

_DEVICE_NAME = re.compile(r"(cpu)|(cuda)(?::(\d+))?")


@dataclass(frozen=True)
class Device:
    """A device by its kind, "cpu" or "cuda", and its number; None is that of the current one."""

    kind: str = "cpu"
    index: int | None = None

    def __str__(self) -> str:
        return self.kind if self.index is None else f"{self.kind}:{self.index}"


CPU = Device()


def parse_device(value: Any) -> Device:
    """The device of that name, or of that torch.device. Raises UsageError for another word."""
    match = _DEVICE_NAME.fullmatch(str(value))
    if match is None:
        raise UsageError(f"device must be cpu, cuda or cuda:N, not {str(value)!r}", argument="device")
    return Device(match[1] or match[2], None if match[3] is None else int(match[3]))


def absence(device: Device, count: int, who: str, why: str) -> str | None:
    """Reason, as a sentence, why `who` cannot use this CUDA device where it sees `count`; None when it can.

    why: the cause when there are none at all.
    """
    if count == 0:
        return f"device '{device}': this machine has no CUDA device that {who} can use ({why}): use 'cpu'"
    if device.index is not None and device.index >= count:
        devices = "one CUDA device" if count == 1 else f"{count} CUDA devices"
        return f"device '{device}': this machine has {devices}, counted from cuda:0"
    return None


LEAST_CAPABILITY = (8, 0)  # of the oldest GPUs with rows in kernels/tuning.json and code of csrc/cuda


def too_old(device: object, capability: tuple[int, int]) -> str | None:
    """Reason why our kernels do not run on a GPU of that compute capability, or None."""
    if capability >= LEAST_CAPABILITY:
        return None
    needed, has = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, capability))
    return f"needs compute capability {needed}, {device} has {has}"


def torch_absence(device: Device) -> str | None:
    """Reason why torch, which must be installed, cannot use this CUDA device; None when it can."""
    import torch

    if torch.cuda.is_available():
        return absence(device, torch.cuda.device_count(), "torch", "")
    if torch.version.cuda is None:
        why = f"torch {torch.__version__} is built without CUDA"
    else:
        why = "no driver, or CUDA_VISIBLE_DEVICES hides them: nvidia-smi lists them"
    return absence(device, 0, "torch", why)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name() -> str:
    """Model name of the CPU as Linux has it, or what Python's platform module knows."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return " ".join(match[1].split()) if match else platform.processor() or platform.machine()


def cpu_only(name: str, device: Device) -> str | None:
    """Reason why a backend of the CPU does not compute on that device, or None."""
    return None if device == CPU else f"backend {name!r} computes on the CPU, not on device '{device}'"


def too_old_for(name: str, device: Device, capability: tuple[int, int]) -> str | None:
    """Reason why a backend does not compute on a GPU of that compute capability, or None."""
    reason = too_old(f"device '{device}'", capability)
    return None if reason is None else f"backend {name!r} {reason}: use 'cpu'"

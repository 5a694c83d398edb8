"""Starting kernels on the device of their tensors, or, while `recording`, only writing down what would start.

Every kernel of this package is started by `launch`, so what is compiled ahead of time (while `recording`, on
tensors without memory, `device="meta"`) is what runs: the same types, sizes, constants and configuration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton import knobs

from satclip_engine.kernels.tuning import Config, config_for


@dataclass(frozen=True)
class Work:
    """What a launch has to do at least, in all: for rooflines. Multiply-adds and bytes; zero where unknown.

    tf32, half: on tensor cores, in TF32 and in 16 bits, each pass counted (3×TF32 counts three times).
    fp32, fp64: multiply-adds on the ordinary units. bytes: to and from memory, everything once.
    """

    tf32: float = 0
    half: float = 0
    fp32: float = 0
    fp64: float = 0
    bytes: float = 0


@dataclass(frozen=True)
class Launch:
    """A kernel with everything it is started with."""

    kernel: Any
    grid: tuple[int, ...]
    config: Config
    arguments: dict[str, Any] = field(repr=False)  # by parameter name; tensors, numbers and constants
    work: Work = Work()

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@dataclass
class Recording:
    """Launches that were asked for, and the compute capability they were shaped for."""

    capability: str
    launches: list[Launch] = field(default_factory=list)


_recording: ContextVar[Recording | None] = ContextVar("satclip_recording", default=None)


@contextlib.contextmanager
def recording(capability: str) -> Iterator[Recording]:
    """While it lasts kernels are recorded, not started, shaped for `capability`, e.g. "sm_90"."""
    record = Recording(capability)
    token = _recording.set(record)
    try:
        yield record
    finally:
        _recording.reset(token)


def interpreted() -> bool:
    """Whether kernels run on the CPU, by Triton's interpreter."""
    return bool(knobs.runtime.interpret)


def capability(device: torch.device) -> str:
    """What configurations are looked up by: "sm_90", or "interpreter"."""
    record = _recording.get()
    if record is not None:
        return record.capability
    if device.type != "cuda":
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def config(kernel: str, device: torch.device) -> Config:
    """The shape in which a kernel runs best on a device, from the shipped tables."""
    return config_for(kernel, capability(device))


def launch(kernel: Any, grid: tuple[int, ...], config: Config, work: Work = Work(), **arguments: Any) -> None:
    """Start a kernel on the device of its first tensor, in torch's current stream there.

    `arguments` are all of the kernel's parameters by name but those of `config.blocks`, which are added.
    """
    arguments = {**arguments, **config.blocks}
    record = _recording.get()
    if record is not None:
        record.launches.append(Launch(kernel, grid, config, arguments, work))
        return
    if 0 in grid:
        return
    device = next(value.device for value in arguments.values() if isinstance(value, torch.Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](**arguments, num_warps=config.warps, num_stages=config.stages)


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return int(triton.cdiv(a, b))

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

from satclip_engine.kernels.tuning import Config, config_for, has_row, trial_config


@dataclass(frozen=True)
class Work:
    """Work that a launch cannot avoid, in all, for rooflines: multiply-adds and bytes; zero where unknown.

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

    def start(self) -> None:
        """Start it on the device of its first tensor, in torch's current stream there."""
        if 0 in self.grid:
            return
        device = next(value.device for value in self.arguments.values() if isinstance(value, torch.Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            options = {"num_warps": self.config.warps, "num_stages": self.config.stages}
            self.kernel[self.grid](**self.arguments, **options)


@dataclass
class Recording:
    """Launches in the order they were asked for, configured for a compute capability."""

    capability: str
    executes: bool = False
    launches: list[Launch] = field(default_factory=list)

    @property
    def rows(self) -> set[str]:
        """Rows of tuning.json that configured them."""
        return {launch.config.row for launch in self.launches}


_recording: ContextVar[Recording | None] = ContextVar("satclip_recording", default=None)


@contextlib.contextmanager
def recording(capability: str, *, executes: bool = False) -> Iterator[Recording]:
    """Record launches in the block, configured for `capability` ("sm_90"); they start only if `executes`."""
    record = Recording(capability, executes)
    token = _recording.set(record)
    try:
        yield record
    finally:
        _recording.reset(token)


def interpreted() -> bool:
    """True where kernels run on the CPU, by Triton's interpreter."""
    return bool(knobs.runtime.interpret)


def capability(device: torch.device) -> str:
    """Key by which configurations are looked up: "sm_90", or "interpreter"."""
    record = _recording.get()
    if record is not None:
        return record.capability
    if device.type != "cuda":
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def select_config(kernel: str, device: torch.device, *sizes: int) -> Config:
    """Configuration with which a kernel runs best on a device, from tuning.json.

    sizes: extents and strides of its operands. What 16 does not divide is loaded in narrow pieces, whose
    addresses take registers: then the row KERNEL_ragged is taken where there is one.
    """
    if any(size % 16 and size != 1 for size in sizes) and has_row(f"{kernel}_ragged", capability(device)):
        kernel = f"{kernel}_ragged"
    return trial_config(kernel) or config_for(kernel, capability(device))


def launch(kernel: Any, grid: tuple[int, ...], config: Config, work: Work = Work(), **arguments: Any) -> None:
    """Start a kernel as Launch.start does, or record that it would start.

    `arguments` are all of the kernel's parameters by name but those of `config.blocks`, which are added.
    """
    request = Launch(kernel, grid, config, {**arguments, **config.blocks}, work)
    record = _recording.get()
    if record is not None:
        record.launches.append(request)
    if record is None or record.executes:
        request.start()


def cdiv(a: int, b: int) -> int:
    """Divide a by b, rounded up."""
    return int(triton.cdiv(a, b))

"""What our PyTorch operators ask of tensors: a backend that takes them, and no forward-mode tangents.

    resolve("auto", weight)     # float32: "triton" on a GPU, "cpu" on the CPU; else "reference"

torch.library lets an operator register its backward pass only, and where tangents are asked for takes zeros:
a wrong answer without a word. So the functions that call our operators refuse tensors that carry tangents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from satclip_engine._optional import need
from satclip_engine.backends import cpu, triton
from satclip_engine.device import Device, too_old, torch_absence
from satclip_engine.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.autograd import forward_ad
else:
    torch = need("torch", extra="torch", why="computing with tensors")
    forward_ad = torch.autograd.forward_ad


class Row(Protocol):
    """A backend, and what it takes."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> Any:
        """The only one it takes, or None."""

    @property
    def devices(self) -> tuple[str, ...] | None:
        """Types of device on which "auto" may choose it; None: all."""

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""

    def unfit(self, tensor: Tensor) -> str | None:
        """Why it does not take such tensors, or None."""


class Triton:
    """Kernels on a GPU; by Triton's interpreter on the CPU, when asked for by name."""

    name, dtype, devices = "triton", torch.float32, ("cuda",)

    def missing(self) -> str | None:
        missing = triton.Triton().missing()
        if missing is None and not torch.cuda.is_available() and not _interpreted():
            return (
                f"{torch_absence(Device('cuda'))}, or set TRITON_INTERPRET=1 before the start to run it "
                "on the CPU, slowly"
            )
        return missing

    def unfit(self, tensor: Tensor) -> str | None:
        kind = tensor.device.type
        if tensor.dtype != torch.float32 or not (kind == "cuda" or (kind == "cpu" and _interpreted())):
            return f"takes torch.float32 on cuda, not {tensor.dtype} on {tensor.device}"
        if kind == "cuda":
            return too_old(tensor.device, torch.cuda.get_device_capability(tensor.device))
        return None


class Cpu:
    """The compiled kernels."""

    name, dtype, devices = "cpu", torch.float32, ("cpu",)

    def missing(self) -> str | None:
        return cpu.Cpu().missing()

    def unfit(self, tensor: Tensor) -> str | None:
        if tensor.device.type == "cpu" and tensor.dtype == torch.float32:
            return None
        return f"takes torch.float32 on cpu, not {tensor.dtype} on {tensor.device}"


class Reference:
    """PyTorch's own operations, in the dtype and on the device of the tensors."""

    name, dtype, devices = "reference", None, None

    def missing(self) -> str | None:
        return None

    def unfit(self, tensor: Tensor) -> str | None:
        return None


TABLE: tuple[Row, ...] = (Triton(), Cpu(), Reference())  # best first
NAMES = ("auto", *(row.name for row in TABLE))


def resolve(name: str, tensor: Tensor) -> str:
    """The backend of that name, or the first that runs here and takes such tensors for "auto".

    Raises UsageError for an unknown name and for tensors that the backend asked for does not take,
    MissingExtra when it cannot run here.
    """
    if name == "auto":
        return next(row.name for row in TABLE if _may_take(row, tensor))
    row = _named(name)
    if (missing := row.missing()) is not None:
        raise MissingExtra(f"backend {name!r} cannot run here: {missing}", argument="backend")
    if (unfit := row.unfit(tensor)) is not None:
        raise UsageError(
            f"backend {name!r} {unfit}: convert the tensors, or choose 'auto' or 'reference'",
            argument="backend",
        )
    return name


def only_dtype(name: str) -> Any:
    """The one dtype that a backend takes when it is asked for by name; None when it takes several."""
    return None if name == "auto" else _named(name).dtype


def _named(name: str) -> Row:
    for row in TABLE:
        if row.name == name:
            return row
    raise UsageError(f"unknown backend {name!r}: choose from {', '.join(NAMES)}", argument="backend")


def _may_take(row: Row, tensor: Tensor) -> bool:
    """Whether "auto" may choose it; the reference takes every tensor."""
    if row.devices is not None and tensor.device.type not in row.devices:
        return False
    return row.missing() is None and row.unfit(tensor) is None


def _interpreted() -> bool:
    from satclip_engine.kernels.launch import interpreted

    return interpreted()


def refuse_tangents(name: str, *tensors: Tensor) -> None:
    """Raise NotImplementedError when any tensor is a dual one, of forward_ad, torch.func.jvp or jacfwd.

    Nothing is asked, so nothing refused, while torch.compile or torch.export traces: the question would break
    the graph.
    """
    if torch.compiler.is_compiling():
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(
            f"{name} has no forward-mode derivatives (torch.autograd.forward_ad, torch.func.jvp, jacfwd): "
            "take reverse-mode ones, with torch.autograd.grad or backward()"
        )

"""What our PyTorch operators ask of tensors: a backend that takes them, and no forward-mode tangents.

    resolve("auto", weight)     # "cpu", the compiled kernels, for float32 on the CPU; else "reference"

torch.library lets an operator register its backward pass only, and where tangents are asked for takes zeros:
a wrong answer without a word. So the functions that call our operators refuse tensors that carry tangents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from satclip_engine import backends
from satclip_engine._optional import need
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

    name: str

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""

    def unfit(self, tensor: Tensor) -> str | None:
        """Why it does not take such tensors, or None."""


class Cpu:
    """The compiled kernels."""

    name = "cpu"

    def missing(self) -> str | None:
        return backends.Cpu().missing()

    def unfit(self, tensor: Tensor) -> str | None:
        if tensor.device.type == "cpu" and tensor.dtype == torch.float32:
            return None
        return f"takes torch.float32 on cpu, not {tensor.dtype} on {tensor.device}"


class Reference:
    """PyTorch's own operations, in the dtype and on the device of the tensors."""

    name = "reference"

    def missing(self) -> str | None:
        return None

    def unfit(self, tensor: Tensor) -> str | None:
        return None


TABLE: tuple[Row, ...] = (Cpu(), Reference())  # best first
NAMES = ("auto", *(row.name for row in TABLE))


def resolve(name: str, tensor: Tensor) -> str:
    """The backend of that name, or the first that runs here and takes such tensors for "auto".

    Raises UsageError for an unknown name and for tensors that the backend asked for does not take,
    MissingExtra when it cannot run here.
    """
    if name not in NAMES:
        raise UsageError(f"unknown backend {name!r}: choose from {', '.join(NAMES)}")
    for row in TABLE:
        missing, unfit = row.missing(), row.unfit(tensor)
        if name == row.name and unfit is not None:
            raise UsageError(
                f"backend {name!r} {unfit}: convert the tensors, or choose 'auto' or 'reference'"
            )
        if name == row.name and missing is not None:
            raise MissingExtra(f"backend {name!r} cannot run here: {missing}")
        if name in ("auto", row.name) and missing is None and unfit is None:
            return row.name
    raise AssertionError("the reference takes every tensor")


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

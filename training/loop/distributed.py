"""Processes of one run: one alone, or several under torchrun (NCCL, gloo) that share every batch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from satclip_engine.backends.device_copies import to_device
from satclip_engine.device import Device, parse_device, torch_absence
from satclip_engine.errors import UsageError

# While the main process makes features or validates, the others wait.
_TIMEOUT: Final = timedelta(days=7)


@dataclass(frozen=True)
class ProcessContext:
    """This process among those of the run. `group` is None when it is alone."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    group: Any = None

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and messages."""
        return self.rank == 0

    def to_device(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to this process's device; a GPU is not waited for."""
        return to_device(tensor, self.device)

    def any_process(self, flag: bool) -> bool:
        """True where the flag is set in any process."""
        if self.group is None:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group)
        return bool(flags.item())

    def broadcast(self, value: Any) -> Any:
        """The main process's value, in all processes."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def barrier(self) -> None:
        """Wait for the main process."""
        self.broadcast(None)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their mean over the processes."""
        if self.group is None:
            return
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat, group=self.group)
        flat /= self.world_size
        for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))


@contextmanager
def join_processes(device: str) -> Iterator[ProcessContext]:
    """Join the processes that torchrun started, by its environment variables; this one is alone without them.

    device: "auto", "cpu", "cuda" or "cuda:N"; under torchrun "cuda" is that of the local rank.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    torch_device = _torch_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    if world_size == 1:
        yield ProcessContext(torch_device)
        return
    # Tensors of GPUs go by NCCL; what processes exchange beside them does not interrupt the GPUs.
    backend = "cpu:gloo,cuda:nccl" if torch_device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield ProcessContext(torch_device, dist.get_rank(), dist.get_world_size(), dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def _torch_device(name: str, local_rank: int) -> torch.device:
    """Device of this process. Raises UsageError for one that is unknown or not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        requested = parse_device(name)
    except UsageError as error:
        raise UsageError(
            f"device: expected auto, cpu, cuda or cuda:N, got {name!r}", argument="device"
        ) from error
    if requested.kind == "cpu":
        return torch.device("cpu")
    own = Device("cuda", local_rank if requested.index is None else requested.index)
    if (absence := torch_absence(requested) or torch_absence(own)) is not None:
        raise UsageError(absence, argument="device")
    return torch.device(str(own))

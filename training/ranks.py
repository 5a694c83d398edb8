"""The processes of one run: alone, or several started by torchrun, each with its part of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from satclip_engine.backends.device_copies import to_device
from satclip_engine.device import Device, parse_device, torch_absence
from satclip_engine.errors import UsageError

# While the first process makes features or validates, the others wait.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run. `group` is None when it is alone."""

    device: torch.device
    rank: int = 0
    count: int = 1
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def sent(self, tensor: Tensor) -> Tensor:
        """The tensor on this process's device; a GPU is not waited for."""
        return to_device(tensor, self.device)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.group is None:
            return flag
        found = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return bool(found.item())

    def shared(self, value: Any) -> Any:
        """The first process's value, in all of them."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their mean over the processes."""
        if self.group is None:
            return
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat, group=self.group)
        flat /= self.count
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The processes that torchrun started, by its environment variables; this one alone without them.

    device: "auto", "cpu", "cuda" or "cuda:N"; under torchrun "cuda" is that of the local rank.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if count == 1:
        yield Ranks(chosen)
        return
    # Tensors of GPUs go by NCCL; what processes tell each other beside them does not interrupt the GPUs.
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Ranks(chosen, dist.get_rank(), dist.get_world_size(), dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        asked = parse_device(name)
    except UsageError as error:
        raise UsageError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if asked.kind == "cpu":
        return torch.device("cpu")
    own = Device("cuda", local_rank if asked.index is None else asked.index)
    if (absent := torch_absence(asked) or torch_absence(own)) is not None:
        raise UsageError(absent)
    return torch.device(str(own))

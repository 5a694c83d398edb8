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
    if count == 1:
        yield Ranks(chosen)
        return
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Ranks(chosen, dist.get_rank(), dist.get_world_size(), dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    there = torch.cuda.is_available()
    kind, _, number = name.partition(":")
    if (
        kind not in ("auto", "cpu", "cuda")
        or (number and not number.isdigit())
        or (number and kind != "cuda")
    ):
        raise UsageError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cpu" or (kind == "auto" and not there):
        return torch.device("cpu")
    if not there:
        raise UsageError(f"device: {name} is asked for, but torch finds no CUDA device; use cpu")
    index = int(number) if number else local_rank
    if index >= torch.cuda.device_count():
        raise UsageError(f"device: cuda:{index} is asked for, there are {torch.cuda.device_count()} devices")
    return torch.device("cuda", index)

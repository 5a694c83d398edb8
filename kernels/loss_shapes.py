"""How the loss is cut into programs: blocks no longer than rows, and work for all processors."""

from __future__ import annotations

import dataclasses

import triton
from torch import Tensor

from satclip_engine.kernels.launch import capability, cdiv, config
from satclip_engine.kernels.tuning import Config

LONG = 256  # elements of a row, up to which a block of rows lies in shared memory

_PROCESSORS = {"interpreter": 3, "sm_80": 108}  # else those of an H100
_H100 = 132


def shape_for(kernel: str, x: Tensor) -> Config:
    """A kernel's shape for x (n, E): with blocks of elements no longer than E; its own for E > LONG."""
    embed = x.shape[1]
    shape = config(f"{kernel}_long" if embed > LONG else kernel, x.device)
    most = max(16, triton.next_power_of_2(embed))
    narrow: dict[str, int] = {
        name: min(shape[name], most) for name in ("BLOCK_K", "BLOCK_E") if name in shape.blocks
    }
    return dataclasses.replace(shape, blocks={**shape.blocks, **narrow})


def splits(blocks: int, others: int, block: int, x: Tensor) -> tuple[int, int]:
    """Into how many parts each block's way along the `others` is cut, and how many others are in a part.

    As few as keep 90 % of the processors busy from first to last, if each runs one program at a time.
    """
    processors = _PROCESSORS.get(capability(x.device), _H100)
    steps, blocks = max(1, cdiv(others, block)), max(1, blocks)
    shares = [cdiv(steps, parts) for parts in range(1, min(steps, cdiv(4 * processors, blocks)) + 1)]

    def busy(share: int) -> float:
        programs = blocks * cdiv(steps, share)
        return programs / (processors * cdiv(programs, processors))

    share = next((share for share in shares if busy(share) >= 0.9), max(shares, key=busy))
    return cdiv(steps, share), share * block

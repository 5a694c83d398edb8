"""Partition of the loss into programs: blocks no longer than rows, and work for all processors."""

from __future__ import annotations

import dataclasses

import triton
from torch import Tensor

from satclip_engine.kernels.launch import capability, cdiv, select_config
from satclip_engine.kernels.tuning import Config

LONG_ROW = 256  # elements, up to which a block of rows lies in shared memory

_PROCESSORS = {"interpreter": 3, "sm_80": 108}  # else those of an H100
_H100_PROCESSORS = 132


def loss_config(kernel: str, x: Tensor) -> Config:
    """Select a kernel's configuration for x (n, E): blocks no longer than E; another one for E > LONG_ROW."""
    embed = x.shape[1]
    config = select_config(f"{kernel}_long" if embed > LONG_ROW else kernel, x.device)
    limit = max(16, triton.next_power_of_2(embed))
    narrowed: dict[str, int] = {
        name: min(config[name], limit) for name in ("BLOCK_K", "BLOCK_E") if name in config.blocks
    }
    return dataclasses.replace(config, blocks={**config.blocks, **narrowed})


def splits(blocks: int, others: int, block: int, x: Tensor) -> tuple[int, int]:
    """Number of splits of each block's way along the `others`, and of others in a split.

    As few as keep 90 % of the processors busy from first to last, if each runs one program at a time.
    """
    processors = _PROCESSORS.get(capability(x.device), _H100_PROCESSORS)
    steps, blocks = max(1, cdiv(others, block)), max(1, blocks)
    shares = [cdiv(steps, count) for count in range(1, min(steps, cdiv(4 * processors, blocks)) + 1)]

    def busy(share: int) -> float:
        programs = blocks * cdiv(steps, share)
        return programs / (processors * cdiv(programs, processors))

    share = next((share for share in shares if busy(share) >= 0.9), max(shares, key=busy))
    return cdiv(steps, share), share * block

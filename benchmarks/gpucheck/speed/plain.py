"""Helpers for plain PyTorch in float32, for eager and compiled baselines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from satclip_engine.weights import Layers

_BLOCK_BYTES = 2 << 30  # of float32 harmonics at once


def tensors(
    layers: Layers, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[list[Any], list[Any]]:
    """Weights and biases."""
    weights, biases = (
        [torch.tensor(value, dtype=dtype, device=device) for value in values]
        for values in (layers.weights, layers.biases)
    )
    return weights, biases


def in_blocks(encode: Callable[..., Any], layers: Layers, lonlat: Any) -> Callable[[], Any]:
    """Embed many points, block by block as memory allows."""
    network = tensors(layers, lonlat.device)
    blocks = lonlat.split(max(1, _BLOCK_BYTES // (4 * layers.degrees**2)))

    def run() -> Any:
        with torch.inference_mode():
            return torch.cat([encode(block, *network) for block in blocks])

    return run


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Compute PyTorch's own float32 products in TF32, or in float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

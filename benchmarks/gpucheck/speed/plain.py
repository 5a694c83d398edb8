"""The same in plain PyTorch float32, for eager and compiled rivals, and for gradients in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from satclip_engine.bench.peers import harmonics, recurrence
from satclip_engine.weights import Layers

_BLOCK_BYTES = 2 << 30  # of float32 harmonics at once


def tensors(layers: Layers, device: torch.device) -> tuple[list[Any], list[Any]]:
    """Weights and biases in float32."""
    weights, biases = (
        [torch.tensor(value, dtype=torch.float32, device=device) for value in values]
        for values in (layers.weights, layers.biases)
    )
    return weights, biases


def encoder(degrees: int, dtype: torch.dtype, device: torch.device) -> Callable[..., Any]:
    """(places, weights, biases) → embeddings; what does not depend on places is made before."""
    coefficients = recurrence(degrees, dtype, device)

    def encode(lonlat: Any, weights: list[Any], biases: list[Any]) -> Any:
        hidden = harmonics(lonlat, degrees, dtype, coefficients).T
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            hidden = torch.sin(torch.nn.functional.linear(hidden, weight, bias))
        return torch.nn.functional.linear(hidden, weights[-1], biases[-1])

    return encode


def in_blocks(encode: Callable[..., Any], layers: Layers, lonlat: Any) -> Callable[[], Any]:
    """Embeddings of many places, block by block as memory allows."""
    given = tensors(layers, lonlat.device)
    blocks = lonlat.split(max(1, _BLOCK_BYTES // (4 * layers.degrees**2)))

    def run() -> Any:
        with torch.inference_mode():
            return torch.cat([encode(block, *given) for block in blocks])

    return run


def loss(a: Any, b: Any, scale: Any) -> Any:
    """The symmetric cross entropy of all pairs' logits."""
    logits, labels = scale * a @ b.T, torch.arange(len(a), device=a.device)
    entropy = torch.nn.functional.cross_entropy
    return (entropy(logits, labels) + entropy(logits.T, labels)) / 2


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """PyTorch's own float32 products in TF32, or in float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

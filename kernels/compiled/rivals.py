"""What a training step would take in PyTorch, by the same rooflines: what the targets are compared with.

Rivals get the benefit of the doubt: every operation at the GPU's peak, but none shorter than it takes to
start one. float32 products are what PyTorch computes by default; with TF32 they lose 13 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from satclip_engine.kernels.compiled.estimate import SHORTEST
from satclip_engine.kernels.compiled.gpus import Gpu

_EAGER = 5e-6  # seconds an operation: what Python, autograd and the driver need to start one
_FLOAT = 4


@dataclass(frozen=True)
class Operations:
    """`count` equal operations: multiply-adds and bytes of each."""

    count: int
    products: float = 0
    bytes: float = 0

    def seconds(self, rate: float, gpu: Gpu, least: float) -> float:
        return self.count * max(least, self.products / rate, self.bytes / gpu.bandwidth)


def eager(batch: int, degrees: int, sizes: Sequence[int]) -> list[Operations]:
    """Forward, backward, loss and update, operation by operation."""
    return [
        # The recurrence, a degree at a time.
        Operations(11 * degrees, bytes=3 * _FLOAT * batch * degrees),
        *_layers(batch, degrees, sizes),
        # sin, cos, products, sums of biases' gradients
        *(Operations(6, bytes=3 * _FLOAT * batch * width) for width in sizes),
        *_products_of_pairs(batch, sizes[-1]),
        # Of N × N: scaling, two log-softmaxes (one of a transposed copy), two picks, and all of it backwards.
        Operations(10, bytes=2 * _FLOAT * batch**2),
        Operations(1 + 20),  # AdamW in one, and what is small
    ]


def compiled(batch: int, degrees: int, sizes: Sequence[int]) -> list[Operations]:
    """The same, elementwise operations fused as far as a compiler that keeps N × N logits can."""
    return [
        Operations(2, bytes=2 * _FLOAT * batch * degrees**2),  # all harmonics are written and transposed
        *_layers(batch, degrees, sizes),
        *(Operations(2, bytes=2 * _FLOAT * batch * width) for width in sizes),
        *_products_of_pairs(batch, sizes[-1]),
        Operations(3, bytes=2 * _FLOAT * batch**2),  # sums over rows, over columns, and the gradient
        Operations(1 + 6),
    ]


def _layers(batch: int, degrees: int, sizes: Sequence[int]) -> list[Operations]:
    """A product a layer forwards, two backwards, but one in the first."""
    found = []
    for layer, (inputs, outputs) in enumerate(pairwise((degrees**2, *sizes))):
        moved = _FLOAT * (batch * (inputs + outputs) + inputs * outputs)
        found.append(Operations(3 if layer else 2, float(batch) * inputs * outputs, moved))
    return found


def _products_of_pairs(batch: int, width: int) -> list[Operations]:
    return [Operations(3, float(batch) ** 2 * width, _FLOAT * (batch**2 + 2 * batch * width))]


def step(
    rival: str, batch: int, degrees: int, sizes: Sequence[int], gpu: Gpu, *, tf32: bool = False
) -> float:
    """Seconds of "eager" or "compiled"."""
    rate, least = (gpu.tf32 if tf32 else gpu.fp32), (_EAGER if rival == "eager" else SHORTEST)
    operations = {"eager": eager, "compiled": compiled}[rival](batch, degrees, sizes)
    return sum(each.seconds(rate, gpu, least) for each in operations)

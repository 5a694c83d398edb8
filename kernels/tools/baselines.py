"""Estimates of a training step in PyTorch, by the same rooflines: baselines of the report.

They get the benefit of the doubt: every operation at the GPU's peak, but none shorter than it takes to
start one. float32 products are what PyTorch computes by default; with TF32 they lose 13 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from satclip_engine.kernels.tools.gpus import Gpu
from satclip_engine.kernels.tools.roofline import MIN_SECONDS

_EAGER_SECONDS = 5e-6  # of an operation at least: what Python, autograd and the driver need to start one
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Operations:
    """Equal operations, `count` of them: multiply-adds and bytes of each."""

    count: int
    products: float = 0
    bytes: float = 0

    def seconds(self, rate: float, gpu: Gpu, min_seconds: float) -> float:
        return self.count * max(min_seconds, self.products / rate, self.bytes / gpu.bandwidth)


def eager(batch: int, degrees: int, sizes: Sequence[int]) -> list[Operations]:
    """Operations of forward, backward, loss and update in eager PyTorch."""
    return [
        # The recurrence, a degree at a time.
        Operations(11 * degrees, bytes=3 * _FLOAT_BYTES * batch * degrees),
        *_layers(batch, degrees, sizes),
        # sin, cos, products, sums of biases' gradients
        *(Operations(6, bytes=3 * _FLOAT_BYTES * batch * width) for width in sizes),
        *_products_of_pairs(batch, sizes[-1]),
        # Of N × N: scaling, two log-softmaxes (one of a transposed copy), two picks, and all of it backwards.
        Operations(10, bytes=2 * _FLOAT_BYTES * batch**2),
        Operations(1 + 20),  # AdamW in one, and what is small
    ]


def compiled(batch: int, degrees: int, sizes: Sequence[int]) -> list[Operations]:
    """Operations of the same, elementwise ones fused as far as a compiler that keeps N × N logits can."""
    return [
        Operations(
            2, bytes=2 * _FLOAT_BYTES * batch * degrees**2
        ),  # all harmonics are written and transposed
        *_layers(batch, degrees, sizes),
        *(Operations(2, bytes=2 * _FLOAT_BYTES * batch * width) for width in sizes),
        *_products_of_pairs(batch, sizes[-1]),
        Operations(3, bytes=2 * _FLOAT_BYTES * batch**2),  # sums over rows, over columns, and the gradient
        Operations(1 + 6),
    ]


def _layers(batch: int, degrees: int, sizes: Sequence[int]) -> list[Operations]:
    """Products: one a layer forwards, two backwards, but one in the first."""
    products = []
    for layer, (inputs, outputs) in enumerate(pairwise((degrees**2, *sizes))):
        size = _FLOAT_BYTES * (batch * (inputs + outputs) + inputs * outputs)
        products.append(Operations(3 if layer else 2, float(batch) * inputs * outputs, size))
    return products


def _products_of_pairs(batch: int, width: int) -> list[Operations]:
    return [Operations(3, float(batch) ** 2 * width, _FLOAT_BYTES * (batch**2 + 2 * batch * width))]


def step_seconds(
    baseline: str, batch: int, degrees: int, sizes: Sequence[int], gpu: Gpu, *, tf32: bool = False
) -> float:
    """Estimate the seconds of a step by "eager" or "compiled" PyTorch."""
    rate = gpu.tf32 if tf32 else gpu.fp32
    min_seconds = _EAGER_SECONDS if baseline == "eager" else MIN_SECONDS
    operations = {"eager": eager, "compiled": compiled}[baseline](batch, degrees, sizes)
    return sum(operation.seconds(rate, gpu, min_seconds) for operation in operations)

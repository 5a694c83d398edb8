"""Layers packed side by side for kernels that go through them with 16-bit operands."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Stack:
    """pre-activations = (sums of products + bias) · factor; the first layer's products are a product grid's.

    Numbers are scaled by a power of two in each layer, so that float16 holds its weights whatever their size.
    """

    sizes: tuple[int, ...]  # padded: depth of the first layer's products, widths of the layers
    weights: Tensor  # float16 of the layers after the first: [sizes[1]][sizes[2]], [sizes[2]][sizes[3]], …
    factors: Tensor  # [layers] float32: what undoes the scale; with 1/2π where the sine of turns follows
    biases: Tensor  # float32, scaled like the sums: [sizes[1]], [sizes[2]], …
    pairs: bool  # high halves of each layer's weights with the low ones behind them ("exact")

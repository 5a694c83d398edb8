"""Layers of a network packed for kernels that go through all of them with 16-bit operands."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PackedLayers:
    """Layers as pre-activations = (sums of products + bias) · factor; the first one's are Fourier syntheses.

    Numbers are scaled by a power of two in each layer, so that float16 holds its weights whatever their size.
    """

    sizes: tuple[int, ...]  # padded: depth of the first layer's products, widths of the layers
    weights: Tensor  # float16 of the layers after the first: [sizes[1]][sizes[2]], [sizes[2]][sizes[3]], …
    factors: Tensor  # [layers] float32: what undoes the scale; with 1/2π where sin2pi follows
    biases: Tensor  # float32, scaled like the sums: [sizes[1]], [sizes[2]], …
    exact: bool  # each layer's weights are split-fp16, low parts behind the high ones

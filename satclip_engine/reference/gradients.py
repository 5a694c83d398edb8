"""The definition of training: the network with dropout and its gradients, in plain PyTorch formulas.

    a_i = drop_i(W_i h_(i−1) + b_i)    h_i = sin(a_i)    h_0 = Y    e = W h + b
    ∂W_i = Σ dz_i h_(i−1)ᵀ    ∂b_i = Σ dz_i    dz_i = drop_i(cos(a_i) · W_(i+1)ᵀ dz_(i+1))

Weights are folded, as in Layers. Works in their dtype, on their device; harmonics are float64 and rounded
once. Batches are taken in blocks, so the harmonics of a whole batch are never in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from satclip_engine import reference
from satclip_engine._optional import need

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = need("torch", extra="torch", why="encoding with gradients")

_WORD = 0xFFFFFFFF


def philox(
    counter: Tensor, key: tuple[int | Tensor, int | Tensor]
) -> Tensor:  # (..., 4) int64 -> (..., 4) int64
    """Philox4x32-10 (Salmon et al. 2011): four random words for every counter; words are 0..2³²−1."""
    a, b, c, d = counter.unbind(-1)
    low_key, high_key = key
    for _ in range(10):
        # int64 keeps all 64 bits of the products, if not their sign.
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (
            ((second >> 32) & _WORD) ^ b ^ low_key,
            second & _WORD,
            ((first >> 32) & _WORD) ^ d ^ high_key,
            first & _WORD,
        )
        low_key, high_key = (low_key + 0x9E3779B9) & _WORD, (high_key + 0xBB67AE85) & _WORD
    return torch.stack([a, b, c, d], dim=-1)


def dropout_factors(rows: Tensor, units: int, layer: int, p: float, seed: int | Tensor) -> Tensor:
    """Factors of the pre-activations under dropout: 0, or 1/(1 − p). (n,) int64 -> (n, units) float64.

    rows: indices of the points in their batch. layer: 0 for the first hidden layer.
    The word of (row, unit, layer) is a function of these and the seed alone: word unit mod 4 of the counter
    (low row, high row, unit div 4, layer) under the key (low seed, high seed). A unit is dropped if its word
    is below ⌊p·2³²⌋.
    """
    quads = torch.arange((units + 3) // 4, device=rows.device)
    low, high, quad = torch.broadcast_tensors(rows[:, None] & _WORD, rows[:, None] >> 32, quads)
    counter = torch.stack([low, high, quad, torch.full_like(quad, layer)], dim=-1)
    words = philox(counter, (seed & _WORD, (seed >> 32) & _WORD)).flatten(1)[:, :units]
    return (words >= math.floor(p * 2**32)).double() / (1 - p)


def encode_forward(
    lonlat: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    dropout: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:  # (N, 2) -> (N, E), (N, ΣH)
    """Embeddings, and the pre-activations a_i of all hidden layers side by side.

    lonlat: float64 degrees, longitude first, latitudes checked; a point that is not finite gives rows of NaN.
    """
    count, widths = len(lonlat), [len(weight) for weight in weights]
    out = weights[0].new_empty(count, widths[-1])
    saved = weights[0].new_empty(count, sum(widths[:-1]))
    for rows in _blocks(lonlat, weights):
        hidden = _harmonics(lonlat[rows], weights[0])
        for layer, values in enumerate(saved[rows].split(widths[:-1], dim=1)):
            values.copy_(hidden @ weights[layer].T + biases[layer])
            values.mul_(_factors(rows, values, layer, dropout, seed))
            hidden = torch.sin(values)
        out[rows] = hidden @ weights[-1].T + biases[-1]
    return out, saved


def encode_backward(
    grad: Tensor,
    lonlat: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    saved: Tensor,
    dropout: float = 0.0,
    seed: int = 0,
    with_lonlat: bool = False,
) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
    """Gradients of the points (when asked for), of all weights and of all biases; arguments as in forward.

    grad: (N, E), the gradient of the embeddings; saved: what forward returned.
    """
    widths = [len(weight) for weight in weights[:-1]]
    d_weights, d_biases = [torch.zeros_like(w) for w in weights], [torch.zeros_like(b) for b in biases]
    d_first = grad.new_empty(len(lonlat), widths[0])
    for rows in _blocks(lonlat, weights):
        pre_activations = saved[rows].split(widths, dim=1)
        dz = grad[rows]
        for layer in range(len(weights) - 1, -1, -1):
            hidden = torch.sin(pre_activations[layer - 1]) if layer else _harmonics(lonlat[rows], weights[0])
            d_weights[layer] += dz.T @ hidden
            d_biases[layer] += dz.sum(0)
            if layer:
                dz = torch.cos(pre_activations[layer - 1]) * (dz @ weights[layer])
                dz = dz * _factors(rows, dz, layer - 1, dropout, seed)
        d_first[rows] = dz
    d_lonlat = lonlat_backward(d_first, lonlat, weights[0]) if with_lonlat else None
    return d_lonlat, d_weights, d_biases


def lonlat_backward(d_first: Tensor, lonlat: Tensor, weight: Tensor) -> Tensor:  # (N, H), (N, 2) -> (N, 2)
    """Gradient of longitude and latitude, in degrees, from that of the first layer's pre-activations.

    NaN for points that are not finite. At a pole ∂lon is 0 and ∂lat is that along the point's own meridian.
    """
    degrees = math.isqrt(weight.shape[1])
    d_lonlat = torch.empty_like(lonlat)
    for rows in reference.blocks(len(lonlat), degrees**2):
        of_harmonics = (d_first[rows].double() @ weight.double()).T  # [L², n]
        slopes = reference.slopes(lonlat[rows], degrees)
        d_lonlat[rows] = torch.stack([(of_harmonics * slope).sum(0) for slope in slopes], dim=1)
    finite = torch.isfinite(lonlat).all(dim=1, keepdim=True)
    return d_lonlat.masked_fill(~finite, math.nan)


def _harmonics(lonlat: Tensor, weight: Tensor) -> Tensor:  # (n, 2) -> (n, L²)
    return reference.features(lonlat, math.isqrt(weight.shape[1])).T.to(weight.dtype)


def _factors(rows: slice, like: Tensor, layer: int, dropout: float, seed: int) -> Tensor | float:
    if dropout == 0:
        return 1.0
    indices = torch.arange(rows.start, rows.stop, device=like.device)
    return dropout_factors(indices, like.shape[1], layer, dropout, seed).to(like.dtype)


def _blocks(lonlat: Tensor, weights: Sequence[Tensor]) -> list[slice]:
    return reference.blocks(len(lonlat), weights[0].shape[1])

"""Product grids: embeddings at every pair of a latitude and a longitude.

    prepared = prepare(degrees, weights, biases, precision="fast")
    encode_grid(prepared, lat, lon)                                       # (H, W, E) float32
    encode_grid(prepared, lat, lon, quantise=Quantise("int8", ...))       # codes

On a row of constant latitude the first layer is a Fourier series in longitude. panels.py makes its
coefficients, row by row, and waves.py its functions, column by column; what remains for a pixel is a product
of 2L − 1 terms and the later layers, all in one kernel (pixels.py). Rows and columns go in chunks that bound
the memory; a pixel's bits do not depend on them, nor on the window it is asked for with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from satclip_engine.kernels.panels import panels
from satclip_engine.kernels.pixels import pixels, scratch, shape
from satclip_engine.kernels.stack import Stack
from satclip_engine.kernels.store import Quantise
from satclip_engine.kernels.tile import padded
from satclip_engine.kernels.waves import waves

PANEL_BYTES = 256 << 20  # of rows in memory at once
WAVE_BYTES = 64 << 20  # of columns

_LARGEST = 14  # weights and panels stay below 2¹⁴, within float16


@dataclass(frozen=True)
class Prepared:
    """A network packed for product grids, on the device of its weights."""

    degrees: int
    outputs: int
    first: Tensor  # (L², padded H₁) float32: the first layer's weights, scaled for panels
    stack: Stack


def prepare(
    degrees: int, weights: Sequence[Tensor], biases: Sequence[Tensor], precision: str = "exact"
) -> Prepared:
    """Of layers as op.py has them: float32, (outputs, inputs), the first one's inputs l² + l + m."""
    if precision not in ("exact", "fast"):
        raise ValueError(f"precision is exact or fast, not {precision}")
    exponents = _exponents(degrees, weights)
    first = _packed(_scaled(weights[0], exponents[0]))[: degrees**2]
    stack = _stack(degrees, weights, biases, exponents, pairs=precision == "exact")
    return Prepared(degrees, len(weights[-1]), first, stack)


def encode_grid(
    prepared: Prepared,
    lat: Tensor,
    lon: Tensor,
    out: Tensor | None = None,
    quantise: Quantise | None = None,
) -> Tensor:
    """(H,) and (W,) float64 degrees -> (H, W, E) float32, or codes. Latitudes are within ±90, or not finite.

    out: contiguous, of that shape and type. Where a latitude or a longitude is not finite: NaN, or nodata.
    """
    out = _checked(out, (len(lat), len(lon), prepared.outputs), quantise, lat.device)
    if out.numel() == 0:
        return out
    room, multiple = scratch(prepared.stack, out.device), shape(prepared.stack, out.device)["BLOCK_P"]
    depth = prepared.stack.sizes[0]
    for rows, panel in _panels(prepared, lat):
        for columns in _spans(len(lon), WAVE_BYTES // (4 * depth)):
            wave = waves(lon[columns], prepared.degrees, depth, multiple)
            pixels(wave, panel, prepared.stack, out[rows, columns], quantise, room)
    return out


def _checked(
    out: Tensor | None, size: tuple[int, ...], quantise: Quantise | None, device: torch.device
) -> Tensor:
    dtype = torch.float32 if quantise is None else quantise.type
    if out is None:
        return torch.empty(size, dtype=dtype, device=device)
    if out.shape != size or out.dtype != dtype or not out.is_contiguous():
        raise ValueError(f"out must be a contiguous {dtype} tensor of shape {size}")
    return out


def _panels(prepared: Prepared, lat: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of rows with their Fourier coefficients, which the next chunk overwrites."""
    depth, width = prepared.stack.sizes[:2]
    row_bytes = 4 * depth * width + 4 * prepared.degrees**2
    rows = min(len(lat), max(1, PANEL_BYTES // row_bytes))
    room = lat.new_zeros((rows, 2, depth, width), dtype=torch.float16)
    for span in _spans(len(lat), rows):
        yield span, panels(lat[span], prepared.first, prepared.degrees, room)


def _spans(count: int, most: int) -> Iterator[slice]:
    most = max(1, most)
    return (slice(start, min(start + most, count)) for start in range(0, count, most))


def _exponents(degrees: int, weights: Sequence[Tensor]) -> list[Tensor]:
    """Of each layer: weights times 2^−exponent suit float16, those of the first layer contracted to panels.

    By the addition theorem Σ_m Y_lm² = (2l+1)/4π, no P̄(l, m)² is larger, so |G| ≤ |W₁| · √(L²/4π).
    """
    norms = torch.linalg.vector_norm(weights[0], dim=1, dtype=torch.float64)
    largest = [norms.amax() * (degrees / math.sqrt(4 * math.pi)), *(w.abs().amax() for w in weights[1:])]
    return [torch.ceil(torch.log2(size.double().clamp(min=2.0**-80))) - _LARGEST for size in largest]


def _stack(
    degrees: int,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    exponents: Sequence[Tensor],
    *,
    pairs: bool,
) -> Stack:
    # The quick sine takes turns; the embedding has no sine.
    turns = [1.0 if pairs else 2 * math.pi] * (len(weights) - 1) + [1.0]
    layers = list(zip(weights, biases, exponents, strict=True))
    later = [_halves(_packed(_scaled(weight, e)), pairs) for weight, _, e in layers[1:]]
    return Stack(
        sizes=(_depth(degrees), *(padded(len(weight)) for weight in weights)),
        weights=torch.cat([weights[0].new_empty(0, dtype=torch.float16), *later]),
        factors=torch.stack([torch.exp2(e) / turn for e, turn in zip(exponents, turns, strict=True)]).float(),
        biases=torch.cat([_scaled(_padded(bias), e) for _, bias, e in layers]),
        pairs=pairs,
    )


def _depth(degrees: int) -> int:
    """Padded terms of the Fourier series."""
    terms = 2 * degrees - 1
    return 16 if terms <= 16 else -(-terms // 32) * 32


def _scaled(values: Tensor, exponent: Tensor) -> Tensor:
    return values * torch.exp2(-exponent).float()


def _halves(weight: Tensor, pairs: bool) -> Tensor:
    """Flat; the low halves behind the high ones."""
    high = weight.half()
    return torch.cat([high, (weight - high.float()).half()]).flatten() if pairs else high.flatten()


def _packed(weight: Tensor) -> Tensor:
    """(outputs, inputs) -> (padded inputs, padded outputs)."""
    outputs, inputs = weight.shape
    packed = weight.new_zeros((padded(inputs), padded(outputs)))
    packed[:inputs, :outputs] = weight.T
    return packed


def _padded(vector: Tensor) -> Tensor:
    longer = vector.new_zeros(padded(len(vector)))
    longer[: len(vector)] = vector
    return longer

"""Product grids: embeddings at every pair of a latitude and a longitude.

    prepared = prepare(degrees, weights, biases, precision="fast")
    encode_grid(prepared, lat, lon)                                       # (H, W, E) float32
    encode_grid(prepared, lat, lon, quantise=DeviceQuantise("int8", ...))       # codes

On a row of constant latitude the first layer is a Fourier series in longitude. Of the modules in
product_grid/, row_coefficients.py makes its coefficients, row by row, and fourier_basis.py its basis, column
by column; what remains for a pixel is a product of 2L − 1 terms and the later layers, all in one kernel
(encode_pixels.py). Rows and columns go in chunks that bound the memory; a pixel's bits do not depend on
them, nor on the window it is asked for with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from satclip_engine.kernels.device_functions.quantise import DeviceQuantise
from satclip_engine.kernels.product_grid.encode_pixels import encode_pixels, pixel_config, scratch
from satclip_engine.kernels.product_grid.fourier_basis import fourier_basis
from satclip_engine.kernels.product_grid.packed_layers import PackedLayers
from satclip_engine.kernels.product_grid.row_coefficients import row_coefficients
from satclip_engine.kernels.product_grid.tile_dot import padded

COEFFICIENT_BYTES = 256 << 20  # of rows in memory at once
BASIS_BYTES = 64 << 20  # of columns

_MAX_EXPONENT = 14  # weights and row coefficients stay below 2¹⁴, within float16


@dataclass(frozen=True)
class PreparedGrid:
    """A network packed for product grids, on the device of its weights."""

    degrees: int
    outputs: int
    first: Tensor  # (L², padded H₁) float32: the first layer's weights, scaled for row coefficients
    layers: PackedLayers


def prepare(
    degrees: int, weights: Sequence[Tensor], biases: Sequence[Tensor], precision: str = "exact"
) -> PreparedGrid:
    """Pack layers as op.py has them: float32, (outputs, inputs), the first one's inputs l² + l + m."""
    if precision not in ("exact", "fast"):
        raise ValueError(f"precision is exact or fast, not {precision}")
    exponents = _exponents(degrees, weights)
    first = _pack(_scale(weights[0], exponents[0]))[: degrees**2]
    layers = _pack_layers(degrees, weights, biases, exponents, exact=precision == "exact")
    return PreparedGrid(degrees, len(weights[-1]), first, layers)


def encode_grid(
    prepared: PreparedGrid,
    lat: Tensor,
    lon: Tensor,
    out: Tensor | None = None,
    quantise: DeviceQuantise | None = None,
) -> Tensor:
    """Encode (H,) and (W,) float64 degrees -> (H, W, E) float32, or codes.

    Latitudes are within ±90, or not finite. out: contiguous, of that shape and type. Where a latitude or a
    longitude is not finite: NaN, or nodata.
    """
    out = _check_out(out, (len(lat), len(lon), prepared.outputs), quantise, lat.device)
    if out.numel() == 0:
        return out
    layers, buffer = prepared.layers, scratch(prepared.layers, out.device)
    depth, multiple = layers.sizes[0], pixel_config(layers, out.device)["BLOCK_P"]
    for rows, coefficients in _row_chunks(prepared, lat):
        for columns in _spans(len(lon), BASIS_BYTES // (4 * depth)):
            basis = fourier_basis(lon[columns], prepared.degrees, depth, multiple)
            encode_pixels(basis, coefficients, layers, out[rows, columns], quantise, buffer)
    return out


def _check_out(
    out: Tensor | None, size: tuple[int, ...], quantise: DeviceQuantise | None, device: torch.device
) -> Tensor:
    dtype = torch.float32 if quantise is None else quantise.torch_dtype
    if out is None:
        return torch.empty(size, dtype=dtype, device=device)
    if out.shape != size or out.dtype != dtype or not out.is_contiguous():
        raise ValueError(f"out must be a contiguous {dtype} tensor of shape {size}")
    return out


def _row_chunks(prepared: PreparedGrid, lat: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield chunks of rows with their Fourier coefficients, which the next chunk overwrites."""
    depth, width = prepared.layers.sizes[:2]
    row_bytes = 4 * depth * width + 4 * prepared.degrees**2
    rows = min(len(lat), max(1, COEFFICIENT_BYTES // row_bytes))
    buffer = lat.new_zeros((rows, 2, depth, width), dtype=torch.float16)
    for span in _spans(len(lat), rows):
        yield span, row_coefficients(lat[span], prepared.first, prepared.degrees, buffer)


def _spans(count: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _exponents(degrees: int, weights: Sequence[Tensor]) -> list[Tensor]:
    """Exponents of layers: weights times 2^−exponent suit float16, as do the first one's row coefficients.

    By the addition theorem Σ_m Y_lm² = (2l+1)/4π, no P̄(l, m)² is larger, so |G| ≤ |W₁| · √(L²/4π).
    """
    norms = torch.linalg.vector_norm(weights[0], dim=1, dtype=torch.float64)
    largest = [norms.amax() * (degrees / math.sqrt(4 * math.pi)), *(w.abs().amax() for w in weights[1:])]
    return [torch.ceil(torch.log2(size.double().clamp(min=2.0**-80))) - _MAX_EXPONENT for size in largest]


def _pack_layers(
    degrees: int,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    exponents: Sequence[Tensor],
    *,
    exact: bool,
) -> PackedLayers:
    # sin2pi takes turns instead of radians; the embedding has no sine.
    radians = [1.0 if exact else 2 * math.pi] * (len(weights) - 1) + [1.0]
    layers = list(zip(weights, biases, exponents, strict=True))
    later = [_split(_pack(_scale(weight, e)), exact) for weight, _, e in layers[1:]]
    return PackedLayers(
        sizes=(_depth(degrees), *(padded(len(weight)) for weight in weights)),
        weights=torch.cat([weights[0].new_empty(0, dtype=torch.float16), *later]),
        factors=torch.stack(
            [torch.exp2(e) / unit for e, unit in zip(exponents, radians, strict=True)]
        ).float(),
        biases=torch.cat([_scale(_pad(bias), e) for _, bias, e in layers]),
        exact=exact,
    )


def _depth(degrees: int) -> int:
    """Padded terms of the Fourier series."""
    terms = 2 * degrees - 1
    return 16 if terms <= 16 else -(-terms // 32) * 32


def _scale(values: Tensor, exponent: Tensor) -> Tensor:
    return values * torch.exp2(-exponent).float()


def _split(weight: Tensor, exact: bool) -> Tensor:
    """Flatten in float16; where `exact` the low parts follow the high ones."""
    high = weight.half()
    return torch.cat([high, (weight - high.float()).half()]).flatten() if exact else high.flatten()


def _pack(weight: Tensor) -> Tensor:
    """Transpose and pad: (outputs, inputs) -> (padded inputs, padded outputs)."""
    outputs, inputs = weight.shape
    packed = weight.new_zeros((padded(inputs), padded(outputs)))
    packed[:inputs, :outputs] = weight.T
    return packed


def _pad(vector: Tensor) -> Tensor:
    longer = vector.new_zeros(padded(len(vector)))
    longer[: len(vector)] = vector
    return longer

"""Product grids: embeddings at every pair of a latitude and a longitude.

    prepared = prepare(degrees, weights, biases, precision="fast")
    encode_grid(prepared, lat, lon)                                       # (H, W, E) float32
    encode_grid(prepared, lat, lon, quantise=Quantise("int8", ...))       # codes

On a row of constant latitude the first layer is a Fourier series in longitude. panels.py makes its
coefficients, row by row, and waves.py its functions, column by column; what remains for a pixel is a product
of 2L − 1 terms and the later layers: all in one kernel with "fast" (pixels.py), one kernel a layer with "exact"
(synthesis.py, dense.py). Rows, columns and pixels go in chunks that bound the memory; a pixel's bits do not
depend on them, nor on the window it is asked for with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from satclip_engine.kernels.dense import dense
from satclip_engine.kernels.launch import config
from satclip_engine.kernels.panels import panels
from satclip_engine.kernels.pixels import Stack, pixels, scratch
from satclip_engine.kernels.store import Quantise
from satclip_engine.kernels.store import quantise as to_codes
from satclip_engine.kernels.synthesis import synthesis
from satclip_engine.kernels.tile import padded
from satclip_engine.kernels.waves import waves

PANEL_BYTES = 256 << 20  # rows whose first layer is in memory at once
WAVE_BYTES = 64 << 20  # columns likewise
LAYER_BYTES = 64 << 20  # a layer's float32 pre-activations, with "exact"

_LARGEST = 14  # panels stay below 2¹⁴, within float16


@dataclass(frozen=True)
class Prepared:
    """A network packed for product grids, on the device of its weights."""

    degrees: int
    outputs: int
    first: Tensor  # (L², padded H₁) float32: the first layer's weights, scaled for panels
    stack: Stack  # "fast": all layers, in turns; "exact": the first one
    later: tuple[tuple[Tensor, Tensor], ...]  # "exact": the other layers' weights and biases, as given

    @property
    def precision(self) -> str:
        return "exact" if self.later else "fast"


def prepare(
    degrees: int, weights: Sequence[Tensor], biases: Sequence[Tensor], precision: str = "exact"
) -> Prepared:
    """Of layers as op.py has them: float32, (outputs, inputs), the first one's inputs in the order l² + l + m."""
    if precision not in ("exact", "fast"):
        raise ValueError(f"precision is exact or fast, not {precision}")
    exponents = _exponents(degrees, weights)
    first = _packed(_scaled(weights[0], exponents[0]), torch.float32)[: degrees**2]
    if precision == "fast":
        turns = [2 * math.pi] * (len(weights) - 1) + [1.0]  # of the embedding there is no sine
        return Prepared(
            degrees, len(weights[-1]), first, _stack(degrees, weights, biases, exponents, turns), ()
        )
    stack = _stack(degrees, weights[:1], biases[:1], exponents[:1], [1.0])
    return Prepared(degrees, len(weights[-1]), first, stack, tuple(zip(weights[1:], biases[1:], strict=True)))


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
    if out is None:
        dtype = torch.float32 if quantise is None else quantise.type
        out = torch.empty((len(lat), len(lon), prepared.outputs), dtype=dtype, device=lat.device)
    if out.numel() == 0:
        return out
    fill = _fast if prepared.precision == "fast" else _exact
    fill(prepared, lat, lon, out, quantise)
    return out


def _fast(prepared: Prepared, lat: Tensor, lon: Tensor, out: Tensor, quantise: Quantise | None) -> None:
    room = scratch(prepared.stack, out.device)
    multiple = config("pixels", out.device)["BLOCK_P"]
    for rows, panel in _panels(prepared, lat):
        for columns in _spans(len(lon), WAVE_BYTES // (2 * panel.shape[1])):
            wave = waves(lon[columns], prepared.degrees, panel.shape[1], multiple)
            pixels(wave, panel, prepared.stack, out[rows, columns], quantise, room)


def _exact(prepared: Prepared, lat: Tensor, lon: Tensor, out: Tensor, quantise: Quantise | None) -> None:
    multiple = config("synthesis", out.device)["BLOCK_P"]
    most = LAYER_BYTES // (4 * max(len(weight) for weight, _ in prepared.later))
    for rows, panel in _panels(prepared, lat):
        for columns in _spans(len(lon), min(most, WAVE_BYTES // (2 * panel.shape[1]))):
            wave = waves(lon[columns], prepared.degrees, panel.shape[1], multiple)
            # Where columns are split the parts are single rows, so that each part of `out` is contiguous.
            for part in _spans(len(panel), most // len(lon)):
                target = out[rows, columns][part]
                _layers(prepared, wave, panel[part], target.view(-1, prepared.outputs), quantise)


def _layers(prepared: Prepared, wave: Tensor, panel: Tensor, out: Tensor, quantise: Quantise | None) -> None:
    """Pixels of whole layers, one after the other."""
    z = out.new_empty(
        (len(panel), len(out) // len(panel), prepared.later[0][0].shape[1]), dtype=torch.float32
    )
    z = synthesis(wave, panel, prepared.stack, z).view(len(out), -1)
    for weight, bias in prepared.later[:-1]:
        z = dense(z, weight, bias)
    last = dense(z, *prepared.later[-1], out=out if quantise is None else None)
    if quantise is not None:
        to_codes(last, quantise, out)


def _panels(prepared: Prepared, lat: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of rows with their Fourier coefficients, which the next chunk overwrites."""
    depth, width = _depth(prepared.degrees), prepared.first.shape[1]
    row_bytes = 2 * depth * width + 4 * prepared.degrees**2
    rows = min(len(lat), max(1, PANEL_BYTES // row_bytes))
    room = lat.new_zeros((rows, depth, width), dtype=torch.float16)
    for span in _spans(len(lat), rows):
        yield span, panels(lat[span], prepared.first, prepared.degrees, room)


def _spans(count: int, most: int) -> Iterator[slice]:
    most = max(1, most)
    return (slice(start, min(start + most, count)) for start in range(0, count, most))


def _depth(degrees: int) -> int:
    """Of the synthesis: the three products of each term (halves.py)."""
    return padded(3 * (2 * degrees - 1))


def _exponents(degrees: int, weights: Sequence[Tensor]) -> list[Tensor]:
    """Of each layer: weights times 2^−exponent suit float16, those of the first layer contracted to panels.

    By the addition theorem Σ_m Y_lm² = (2l+1)/4π, no P̄(l, m)² is larger, so |G| ≤ |W₁| · √(L²/4π).
    """
    norms = torch.linalg.vector_norm(weights[0], dim=1, dtype=torch.float64)
    first = _ceiling(norms.amax() * (degrees / math.sqrt(4 * math.pi))) - _LARGEST
    return [first, *(_ceiling(weight.abs().amax()) for weight in weights[1:])]


def _ceiling(size: Tensor) -> Tensor:
    """The exponent of the next power of two, float64."""
    return torch.ceil(torch.log2(size.double().clamp(min=2.0**-80)))


def _stack(
    degrees: int,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    exponents: Sequence[Tensor],
    turns: Sequence[float],
) -> Stack:
    layers = list(zip(weights, biases, exponents, strict=True))
    packed = [_packed(_scaled(weight, e), torch.float16).flatten() for weight, _, e in layers[1:]]
    return Stack(
        sizes=(_depth(degrees), *(padded(len(weight)) for weight in weights)),
        weights=torch.cat([weights[0].new_empty(0, dtype=torch.float16), *packed]),
        factors=torch.stack([torch.exp2(e) / turn for e, turn in zip(exponents, turns, strict=True)]).float(),
        biases=torch.cat([_padded(_scaled(bias, e)) for _, bias, e in layers]),
    )


def _scaled(weight: Tensor, exponent: Tensor) -> Tensor:
    return weight * torch.exp2(-exponent).float()


def _packed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(outputs, inputs) -> (padded inputs, padded outputs) of `dtype`."""
    outputs, inputs = weight.shape
    packed = weight.new_zeros((padded(inputs), padded(outputs)), dtype=dtype)
    packed[:inputs, :outputs] = weight.T
    return packed


def _padded(vector: Tensor) -> Tensor:
    longer = vector.new_zeros(padded(len(vector)))
    longer[: len(vector)] = vector
    return longer

"""The fused location encoder for PyTorch: embeddings with gradients, under torch.compile and autocast.

    encode(lonlat, weights, biases, dropout=0.5, seed=7)     # (N, 2) -> (N, E), differentiable in all tensors

Weights are folded, as in Layers: on exact orthonormal harmonics, sine frequencies multiplied in. Longitude
and latitude are float64 degrees, longitude first. reference/gradients.py defines what is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from satclip_engine._optional import need
from satclip_engine.backends.protocols import check_precision
from satclip_engine.errors import UsageError
from satclip_engine.ops import encode as encode_op
from satclip_engine.ops import transforms
from satclip_engine.ops.autograd import is_transformed

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = need("torch", extra="torch", why="satclip_engine.op")


def encode(
    lonlat: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    dropout: float = 0.0,
    seed: int | Tensor = 0,
    backend: str = "auto",
    precision: str = "exact",
) -> Tensor:
    """Embeddings of points, differentiable in points, weights and biases. (N, 2) -> (N, E).

    lonlat: degrees, longitude first; widened to float64. weights: (H, L²), (H, H)..., (E, H), folded; biases:
        (H,)..., (E,). The result has the widest dtype of the weights, float32 at least.
    dropout: share of the hidden pre-activations that are dropped, those of `seed` (0 to 2⁶³ − 1, also as a
        tensor ()); the same by every backend.
    backend: "triton" takes float32 weights on a GPU (on the CPU under TRITON_INTERPRET=1, by name only);
        "cpu", compiled, float32 weights on the CPU; "reference" computes in the widest dtype of the weights,
        on their device; "auto" takes the first of them that takes such weights. float16 and bfloat16 are
        widened to float32 before.
    precision: "exact", or "fast": where "triton" computes, layers after the first then multiply 16-bit
        numbers, and the result errs by up to 5e-3 of its rms. It is the least accuracy: the others, which
        know exact arithmetic only, compute by that.

    Under torch.func (vmap, grad, jacrev, hessian, ...) and in forward mode plain PyTorch computes it, in the
    dtype of the weights, whatever the backend: right to any order, slower, harmonics in memory.

    Points that are not finite give NaN. Raises UsageError (a ValueError) naming the layer for shapes that do
    not fit and the row where |latitude| > 90, TypeError for dtypes, MissingExtra for a backend that cannot
    run here.
    """
    if not weights or len(weights) != len(biases):
        raise UsageError(
            f"expected as many weights as biases, got {len(weights)} and {len(biases)}", argument="weights"
        )
    check_tensor(lonlat)
    if lonlat.is_complex() or lonlat.dtype == torch.bool:
        raise TypeError(f"lonlat must be real numbers, not {lonlat.dtype}")
    wide = functools.reduce(torch.promote_types, [t.dtype for t in (*weights, *biases)], torch.float32)
    weights, biases = [w.to(wide) for w in weights], [b.to(wide) for b in biases]
    lonlat = lonlat.to(torch.float64)
    check_precision(precision)
    if is_transformed(lonlat, *weights, *biases):
        encode_op.check_operands(lonlat, weights, biases)
        return transforms.encode(lonlat, weights, biases, encode_op.check_dropout(dropout), seed)
    trained = torch.is_grad_enabled() and any(t.requires_grad for t in (lonlat, *weights, *biases))
    if isinstance(seed, torch.Tensor):
        seed = int(seed.item())
    if trained or dropout != 0:
        out, _ = encode_op.encode(lonlat, weights, biases, float(dropout), seed, backend, precision)
    else:
        out = encode_op.embed(lonlat, weights, biases, backend, precision)
    return out


def check_tensor(lonlat: object) -> None:
    """Raise TypeError for points that are no tensor."""
    if not isinstance(lonlat, torch.Tensor):
        raise TypeError(
            f"lonlat must be a tensor, not {type(lonlat).__name__}: torch.as_tensor(lonlat), "
            "or satclip_engine.load(…) for arrays and tables"
        )

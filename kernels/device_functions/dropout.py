"""Dropout inside kernels: Philox4x32-10 of (row, unit, layer) under the seed, as the reference draws it.

A dropped pre-activation is saved as −0, which no other one is, so backward need not draw again.
"""

import triton
import triton.language as tl

# Arguments of kernels with dropout that must not make Triton compile the kernel anew for other values.
UNSPECIALISED = ("seed", "threshold", "layer")


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """Four random words for every counter (Salmon et al. 2011); all uint32."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def dropout_factors(rows, units, layer, seed, threshold, scale, BLOCK: tl.constexpr):
    """Factors of pre-activations, 0 or `scale`: rows (n,) int64, units (BLOCK,) → (n, BLOCK) float32.

    The units are BLOCK consecutive ones from a multiple of 4; BLOCK is a power of two, 4 at least. Dropped is
    the unit whose word, number unit mod 4 of its four, is below `threshold` (uint32).
    """
    # One counter serves four units.
    quads = tl.max(tl.reshape(units, (BLOCK // 4, 4)), axis=1) // 4
    low = (rows & 0xFFFFFFFF).to(tl.uint32)[:, None] + tl.zeros_like(quads).to(tl.uint32)[None, :]
    high = (rows >> 32).to(tl.uint32)[:, None] + tl.zeros_like(quads).to(tl.uint32)[None, :]
    quad = tl.zeros_like(low) + quads.to(tl.uint32)[None, :]
    seed = tl.cast(seed, tl.int64)
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    w0, w1, w2, w3 = _philox(low, high, quad, tl.zeros_like(low) + layer, k0, k1)
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))  # (n, BLOCK)
    return tl.where(words < tl.cast(threshold, tl.uint32), 0.0, scale)


@triton.jit
def apply_dropout(z, rows, units, layer, seed, threshold, scale, BLOCK: tl.constexpr):
    """Pre-activations after dropout: −0 where dropped, else scaled and never −0. NaN stays NaN."""
    factor = dropout_factors(rows, units, layer, seed, threshold, scale, BLOCK)
    scaled = z * factor
    scaled = tl.where(scaled == 0.0, 0.0, scaled)
    sign = tl.where((factor == 0.0) & (z == z), -2147483648, 0)
    return (scaled.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def saved_factors(z, scale):
    """Factors that dropout applied to pre-activations saved by forward: 0 for −0, else `scale`."""
    return tl.where(z.to(tl.int32, bitcast=True) == -2147483648, 0.0, scale)

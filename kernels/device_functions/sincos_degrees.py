"""sin and cos of angles in degrees, in float64."""

import math

import triton
import triton.language as tl

# Taylor's series but for their leading terms, from the highest power on.
_SINE_TERMS = tl.constexpr(tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(7, 0, -1)))
_COSINE_TERMS = tl.constexpr(tuple((-1) ** k / math.factorial(2 * k) for k in range(7, -1, -1)))


@triton.jit
def sincos_degrees(degrees):
    """sin and cos of angles within ±360°, float64: multiples of 90° give exact zeros and ones."""
    quarter = tl.floor(degrees * (1 / 90) + 0.5)
    r = (degrees - quarter * 90.0) * 0.017453292519943295  # |r| ≤ π/4; the difference is exact
    t = r * r
    # Taylor's series to r¹⁷ and r¹⁶: what they leave is below 3e-18.
    s = tl.full(t.shape, 1 / 355687428096000, tl.float64)
    for factorial in tl.static_range(7):
        s = s * t + _SINE_TERMS[factorial]
    s = s * t * r + r
    c = tl.full(t.shape, 1 / 20922789888000, tl.float64)
    for factorial in tl.static_range(8):
        c = c * t + _COSINE_TERMS[factorial]
    q = quarter.to(tl.int32) & 3
    sine = tl.where(q == 0, s, tl.where(q == 1, c, tl.where(q == 2, -s, -c)))
    cosine = tl.where(q == 0, c, tl.where(q == 1, -s, tl.where(q == 2, -c, s)))
    return sine, cosine

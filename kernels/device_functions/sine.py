"""sin and cos of float32 tiles inside kernels, absolute error ≤ 4e-7 up to |x| = 12 000.

As on the CPU (csrc/sine.h): x less the nearest multiple of π, whose parity is the sign, then an odd
minimax polynomial of degree 9. π is taken in three pieces, the first two of 11 bits, so their products are
exact with and without fused multiply-add; the library's sine would bring a slow path for large arguments into
every kernel, and the registers it spills. Beyond the limit the reduction loses digits as float32 itself does;
results stay within ±1. NaN and infinity give NaN.
"""

import triton
import triton.language as tl

MAX_RADIANS = 12_000.0

_INVERSE_PI = tl.constexpr(0.318309886183790671538)
_PI_HIGH = tl.constexpr(3.140625)  # 11 bits
_PI_MIDDLE = tl.constexpr(0.0009675025939941406)  # 11 bits
_PI_LOW = tl.constexpr(1.5099579909783765e-07)
_ROUNDING = tl.constexpr(12582912.0)  # 1.5·2²³: adding it rounds to an integer, in the low bits
_HALF_PI = tl.constexpr(1.5707964)


@triton.jit
def _polynomial(r):
    r2 = r * r
    p = r2 * 2.59975169156e-6 - 0.000198064789173
    p = r2 * p + 0.00833301541706
    p = r2 * p - 0.166666570205
    return p * r2 * r + r


@triton.jit
def _reduced(x, k):
    r = x - k * _PI_HIGH
    r = r - k * _PI_MIDDLE
    r = r - k * _PI_LOW
    return tl.where(r > _HALF_PI, _HALF_PI, tl.where(r < -_HALF_PI, -_HALF_PI, r))  # NaN passes


@triton.jit
def sine(x):
    """sin(x), float32."""
    shifted = x * _INVERSE_PI + _ROUNDING
    value = _polynomial(_reduced(x, shifted - _ROUNDING))
    odd = shifted.to(tl.int32, bitcast=True) << 31
    return (value.to(tl.int32, bitcast=True) ^ odd).to(tl.float32, bitcast=True)


@triton.jit
def cosine(x):
    """cos(x) = −(−1)^k sin(x − (k + ½)π), float32."""
    shifted = (x * _INVERSE_PI - 0.5) + _ROUNDING
    value = _polynomial(_reduced(x, (shifted - _ROUNDING) + 0.5))
    even = ~(shifted.to(tl.int32, bitcast=True)) << 31
    return (value.to(tl.int32, bitcast=True) ^ even).to(tl.float32, bitcast=True)

"""sin(2πx) for values that are rounded to 16 bits next: absolute error ≤ 7e-6.

Nine instructions instead of eighteen: float16 errs by 2.4e-4 near 1, so the degree can be low; in turns the
reduction is a rounding and an exact difference; over a whole turn no sign has to be put back. 1/2π is folded
into what precedes.
NaN and infinity give NaN; beyond 2²² turns, where float32 has no fractions, any value in ±1 may come out.
"""

import triton
import triton.language as tl

_ROUNDING = tl.constexpr(12582912.0)  # 1.5·2²³: adding it rounds to an integer


@triton.jit
def sin2pi(x):
    """sin(2πx), float32."""
    r = x - ((x + _ROUNDING) - _ROUNDING)  # [−½, ½]; exact
    r2 = r * r
    p = r2 * 32.7825288810 - 74.4785821719
    p = r2 * p + 81.366912621
    p = r2 * p - 41.3312202773
    p = r2 * p + 6.283055895
    return p * r

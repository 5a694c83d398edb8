"""float32 products on 16-bit tensor cores: x = 2^k · (high + low), float16 each.

    high, low = split(x · scale_up(largest))
    sums = split_dot(high, low, other_high, other_low, sums)     # three products for one of float32
    sums · unscale(largest) · unscale(other's largest)

high takes the first 11 bits of x, low the next 11 and their sign, so a pair errs by 2⁻²³ |x|, and elements
below 2⁻¹⁶ of the largest by 2⁻³⁹ of it. low · low, 2⁻²² of a product, is left out. Why not 3×TF32, whose
parts have 11 bits as well: the same tensor cores multiply float16 twice as fast, and weights can be split
beforehand (split_operands.py). k is shared by what is summed up together, a row of a weight for instance, and
comes from its largest finite element, so that an element that is not finite spoils nothing but its own row.
"""

import triton
import triton.language as tl

PASSES = 3  # products of float16 that make one of float32


@triton.jit
def scale_up(largest):
    """2^−k, which takes the largest element to [2¹⁴, 2¹⁵): float16 ends at 2¹⁶ and, downwards, at 2⁻²⁴."""
    exponent = tl.minimum(268 - (largest.to(tl.int32, bitcast=True) >> 23), 253)
    return (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def unscale(largest):
    """2^k."""
    exponent = tl.minimum(268 - (largest.to(tl.int32, bitcast=True) >> 23), 253)
    return ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def split(x):
    """Split float32 up to 65 504 in size → high, low."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def split_dot(a_high, a_low, b_high, b_low, sums):
    """sums + a · b. The small products first: tensor cores cut what they add off at 2⁻²³ of the sum."""
    sums = tl.dot(a_low, b_high, sums)
    sums = tl.dot(a_high, b_low, sums)
    return tl.dot(a_high, b_high, sums)


@triton.jit
def split_dot_accumulate(a_high, a_low, b_high, b_low, sums):
    """sums + a · b, added in float32: for long sums.

    Tensor cores cut every addition off, three for 16 elements, always towards zero: over 1600 elements that
    alone would come to some 1e-5, where float32 rounds to the nearest.
    """
    return sums + split_dot(a_high, a_low, b_high, b_low, tl.zeros_like(sums))

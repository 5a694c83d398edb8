// exp(x) of float32 vectors for x ≤ 88: within 0.9 units in the last place with fused multiply-add, 1.2
// without.
//
// x is reduced by the nearest multiple of ln 2, whose first constant is short, so that its product is exact
// with or without fused multiply-add; on [−ln 2 / 2, ln 2 / 2] a polynomial of degree 6 with minimax
// coefficients errs by 3e-9. The power of two is multiplied, not added to the exponent, which would turn some
// NaN into numbers.
//
// Below `kExpLimit` the result is 0 (the true one is less than the smallest normal number, 1.2e-38): in a sum
// of which another term is 1 it says nothing, and products of denormal numbers take a hundred times as long.
#pragma once

#include "simd.h"

namespace satclip::SATCLIP_ISA {

constexpr float kExpLimit = -87.33f;

SATCLIP_INLINE Floats exponential(Floats x) {
    const Floats magic = broadcast(12582912.0f + 127.0f);  // 1.5·2²³: the low bits become the biased exponent
    const Floats shifted = multiply_add(x, broadcast(0x1.715476p+0f), magic);
    const Floats k = shifted - magic;
    Floats r = multiply_add(k, broadcast(-0x1.63p-1f), x);
    r = multiply_add(k, broadcast(0x1.bd0106p-13f), r);
    Floats p = multiply_add(r, broadcast(0.00138145401768f), broadcast(0.00836874510894f));
    p = multiply_add(r, p, broadcast(0.0416683907835f));
    p = multiply_add(r, p, broadcast(0.16666520399f));
    p = multiply_add(r, p, broadcast(0.499999934321f));
    p = multiply_add(r, p, broadcast(1.0f));
    p = multiply_add(r, p, broadcast(1.0f));
    const Floats value = p * (Floats)((Ints)shifted << 23);
    return x < broadcast(kExpLimit) ? broadcast(0.0f) : value;
}

}  // namespace satclip::SATCLIP_ISA

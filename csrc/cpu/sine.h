// sin(x) of float32 vectors, absolute error ≤ 1.4e-7: 1.34e-7 at worst over every float32 within the limit
// (the last digit near 1 is worth 6e-8).
//
// x is reduced by the nearest multiple of π (its parity is the sign), in two fused steps whose products are
// exact, or four with short constants where there is no fused multiply-add; on [−π/2, π/2] an odd polynomial
// of degree 9 with minimax coefficients errs by 5e-9. Beyond `kSineLimit` the reduction would lose digits:
// such a vector goes to the C library in float64, lane by lane.
#pragma once

#include <cmath>

#include "simd.h"

namespace satclip::SATCLIP_ISA {

constexpr float kSineLimit = kFused ? 65536.0f : 8192.0f;

// x − kπ, k a multiple of ½.
SATCLIP_INLINE Floats less_turns(Floats x, Floats k) {
    Floats r;
    if constexpr (kFused) {
        r = fused(k, all(-0x1.921fb6p+1f), x);
        r = fused(k, all(0x1.777a5cp-24f), r);
    } else {
        r = x - k * all(0x1.92p+1f);
        r = r - k * all(0x1.fb4p-11f);
        r = r - k * all(0x1.444p-23f);
        r = r - k * all(0x1.68c234p-38f);
    }
    return r;
}

// sin(r) for |r| ≤ π/2.
SATCLIP_INLINE Floats sine_polynomial(Floats r) {
    const Floats r2 = r * r;
    Floats p = fused(r2, all(2.59975169156e-6f), all(-0.000198064789173f));
    p = fused(r2, p, all(0.00833301541706f));
    p = fused(r2, p, all(-0.166666570205f));
    return fused(p * r2, r, r);
}

constexpr float kRounding = 12582912.0f;  // 1.5·2²³: adding it rounds to an integer in the low bits

SATCLIP_INLINE Floats small_sine(Floats x) {
    const Floats shifted = fused(x, all(0.318309886183790671538f), all(kRounding));
    const Floats value = sine_polynomial(less_turns(x, shifted - all(kRounding)));
    return (Floats)((Ints)value ^ ((Ints)shifted << 31));
}

// cos(x) = −(−1)^k sin(x − (k + ½)π)
SATCLIP_INLINE Floats small_cosine(Floats x) {
    const Floats shifted = fused(x, all(0.318309886183790671538f), all(-0.5f)) + all(kRounding);
    const Floats value = sine_polynomial(less_turns(x, (shifted - all(kRounding)) + all(0.5f)));
    return (Floats)((Ints)value ^ (~(Ints)shifted << 31));
}

// Lane by lane, so that a place's sine does not depend on its neighbours.
[[maybe_unused]] static __attribute__((noinline)) Floats careful_sine(Floats x) {
    Floats y = small_sine(x);
    for (int i = 0; i < kLanes; ++i)
        if (std::fabs(x[i]) > kSineLimit) y[i] = static_cast<float>(std::sin(static_cast<double>(x[i])));
    return y;
}

[[maybe_unused]] static __attribute__((noinline)) Floats careful_cosine(Floats x) {
    Floats y = small_cosine(x);
    for (int i = 0; i < kLanes; ++i)
        if (std::fabs(x[i]) > kSineLimit) y[i] = static_cast<float>(std::cos(static_cast<double>(x[i])));
    return y;
}

SATCLIP_INLINE bool beyond_limit(Floats x) { return any((Floats)((Ints)x & 0x7fffffff) > all(kSineLimit)); }

// In place, for a whole micro-tile, so that the test for large arguments is made once.
template <int N>
SATCLIP_INLINE void sine_all(Floats* z) {
    Floats most = all(0.0f);
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) most = larger((Floats)((Ints)z[i] & 0x7fffffff), most);
    if (__builtin_expect(any(most > all(kSineLimit)), 0)) {
        for (int i = 0; i < N; ++i) z[i] = careful_sine(z[i]);
        return;
    }
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) z[i] = small_sine(z[i]);
}

}  // namespace satclip::SATCLIP_ISA

// sin(x) and cos(x) in float32, absolute error ≤ 1.4e-7: 1.34e-7 at worst over every float32 within the limit
// (the last digit near 1 is worth 6e-8). One formula for single numbers, vectors of any instruction set, and
// GPUs.
//
// x is reduced by the nearest multiple of π (its parity is the sign), in two fused steps whose products are
// exact, or four with short constants where there is no fused multiply-add; on [−π/2, π/2] an odd polynomial
// of degree 9 with minimax coefficients errs by 5e-9. Beyond `limit` the reduction loses digits.
#pragma once

#include "device.h"

namespace satclip {

// A: the arithmetic — Value, kFused, all(float), fused(a, b, c) and flipped(value, k): the sign changed where
// k is odd.
template <class A>
struct Sine {
    using V = typename A::Value;

    static constexpr float limit = A::kFused ? 65536.0f : 8192.0f;

    SATCLIP_HD_INLINE static V sine(V x) {
        const V shifted = A::fused(x, A::all(0.318309886183790671538f), A::all(kRounding));
        return A::flipped(polynomial(A::within(less_turns(x, shifted - A::all(kRounding)))), shifted);
    }

    // cos(x) = −(−1)^k sin(x − (k + ½)π)
    SATCLIP_HD_INLINE static V cosine(V x) {
        const V shifted = A::fused(x, A::all(0.318309886183790671538f), A::all(-0.5f)) + A::all(kRounding);
        const V turns = (shifted - A::all(kRounding)) + A::all(0.5f);
        return -A::flipped(polynomial(A::within(less_turns(x, turns))), shifted);
    }

  private:
    // x − kπ, k a multiple of ½.
    SATCLIP_HD_INLINE static V less_turns(V x, V k) {
        V r;
        if constexpr (A::kFused) {
            r = A::fused(k, A::all(-0x1.921fb6p+1f), x);
            r = A::fused(k, A::all(0x1.777a5cp-24f), r);
        } else {
            r = x - k * A::all(0x1.92p+1f);
            r = r - k * A::all(0x1.fb4p-11f);
            r = r - k * A::all(0x1.444p-23f);
            r = r - k * A::all(0x1.68c234p-38f);
        }
        return r;
    }

    // sin(r) for |r| ≤ π/2.
    SATCLIP_HD_INLINE static V polynomial(V r) {
        const V r2 = r * r;
        V p = A::fused(r2, A::all(2.59975169156e-6f), A::all(-0.000198064789173f));
        p = A::fused(r2, p, A::all(0.00833301541706f));
        p = A::fused(r2, p, A::all(-0.166666570205f));
        return A::fused(p * r2, r, r);
    }
};

// On a GPU there is no slow path for large arguments: the library's would cost every kernel its registers.
// Beyond 1e6 digits are lost as float32 itself loses them; results stay within ±1. NaN and infinity give NaN.
struct SineScalar : Scalar<float> {
    SATCLIP_HD_INLINE static float flipped(float value, float k) {
        return bits_as<float>(bits_as<std::uint32_t>(value) ^ (bits_as<std::uint32_t>(k) << 31));
    }
    SATCLIP_HD_INLINE static float within(float r) {
        constexpr float most = 1.5707964f;
#if defined(__CUDA_ARCH__)
        asm("min.NaN.f32 %0, %0, %1;" : "+f"(r) : "f"(most));
        asm("max.NaN.f32 %0, %0, %1;" : "+f"(r) : "f"(-most));
        return r;
#else
        return r > most ? most : (r < -most ? -most : r);  // NaN passes
#endif
    }
};

SATCLIP_HD_INLINE float scalar_sine(float x) { return Sine<SineScalar>::sine(x); }

}  // namespace satclip

// sin(x) and cos(x) in float32, absolute error ≤ 1.4e-7: 1.34e-7 at worst over every float32 within the limit
// (the last digit near 1 is worth 6e-8). One formula for single numbers, vectors of any instruction set, and
// GPUs.
//
// x is reduced by the nearest multiple of π (its parity is the sign), in two fused steps whose products are
// exact, or four with short constants where there is no fused multiply-add; on [−π/2, π/2] an odd polynomial
// of degree 9 with minimax coefficients errs by 5e-9. Beyond `limit` the reduction loses digits.
#pragma once

#include "host_device.h"

namespace satclip {

// A: the arithmetic — Value, kHasFma, broadcast(float), multiply_add(a, b, c), flip_sign(value, k): the sign
// changed where k is odd, and clamp_quarter(r): r within ±π/2.
template <class A>
struct Sine {
    using V = typename A::Value;

    static constexpr float limit = A::kHasFma ? 65536.0f : 8192.0f;

    SATCLIP_HD_INLINE static V sine(V x) {
        const V shifted = A::multiply_add(x, A::broadcast(0.318309886183790671538f), A::broadcast(kRounding));
        return A::flip_sign(polynomial(A::clamp_quarter(reduce(x, shifted - A::broadcast(kRounding)))),
                            shifted);
    }

    // cos(x) = −(−1)^k sin(x − (k + ½)π)
    SATCLIP_HD_INLINE static V cosine(V x) {
        const V shifted = A::multiply_add(x, A::broadcast(0.318309886183790671538f), A::broadcast(-0.5f)) +
                          A::broadcast(kRounding);
        const V turns = (shifted - A::broadcast(kRounding)) + A::broadcast(0.5f);
        return -A::flip_sign(polynomial(A::clamp_quarter(reduce(x, turns))), shifted);
    }

  private:
    // x − kπ, k a multiple of ½.
    SATCLIP_HD_INLINE static V reduce(V x, V k) {
        V r;
        if constexpr (A::kHasFma) {
            r = A::multiply_add(k, A::broadcast(-0x1.921fb6p+1f), x);
            r = A::multiply_add(k, A::broadcast(0x1.777a5cp-24f), r);
        } else {
            r = x - k * A::broadcast(0x1.92p+1f);
            r = r - k * A::broadcast(0x1.fb4p-11f);
            r = r - k * A::broadcast(0x1.444p-23f);
            r = r - k * A::broadcast(0x1.68c234p-38f);
        }
        return r;
    }

    // sin(r) for |r| ≤ π/2.
    SATCLIP_HD_INLINE static V polynomial(V r) {
        const V r2 = r * r;
        V p = A::multiply_add(r2, A::broadcast(2.59975169156e-6f), A::broadcast(-0.000198064789173f));
        p = A::multiply_add(r2, p, A::broadcast(0.00833301541706f));
        p = A::multiply_add(r2, p, A::broadcast(-0.166666570205f));
        return A::multiply_add(p * r2, r, r);
    }
};

// On a GPU there is no slow path for large arguments: the library's would cost every kernel its registers.
// Beyond 1e6 digits are lost as float32 itself loses them; results stay within ±1. NaN and infinity give NaN.
struct SineScalar : Scalar<float> {
    SATCLIP_HD_INLINE static float flip_sign(float value, float k) {
        return bits_as<float>(bits_as<std::uint32_t>(value) ^ (bits_as<std::uint32_t>(k) << 31));
    }
    SATCLIP_HD_INLINE static float clamp_quarter(float r) {
        constexpr float quarter_turn = 1.5707964f;
#if defined(__CUDA_ARCH__)
        asm("min.NaN.f32 %0, %0, %1;" : "+f"(r) : "f"(quarter_turn));
        asm("max.NaN.f32 %0, %0, %1;" : "+f"(r) : "f"(-quarter_turn));
        return r;
#else
        return r > quarter_turn ? quarter_turn : (r < -quarter_turn ? -quarter_turn : r);  // NaN passes
#endif
    }
};

SATCLIP_HD_INLINE float scalar_sine(float x) { return Sine<SineScalar>::sine(x); }

}  // namespace satclip

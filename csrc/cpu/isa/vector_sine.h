// sin(x) and cos(x) of float32 vectors by the formula of csrc/sine.h. A vector with an element beyond the
// formula's limit goes to the C library in float64, lane by lane.
#pragma once

#include <cmath>

#include "simd.h"
#include "sine.h"

namespace satclip::SATCLIP_ISA {

struct SineVector {
    using Value = Floats;
    static constexpr bool kHasFma = SATCLIP_ISA::kHasFma;
    SATCLIP_INLINE Floats broadcast(float v) { return SATCLIP_ISA::broadcast(v); }
    SATCLIP_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
        return SATCLIP_ISA::multiply_add(a, b, c);
    }
    SATCLIP_INLINE Floats flip_sign(Floats value, Floats k) {
        return (Floats)((Ints)value ^ ((Ints)k << 31));
    }
    SATCLIP_INLINE Floats clamp_quarter(Floats r) { return r; }  // larger arguments do not come here
};

constexpr float kSineLimit = Sine<SineVector>::limit;

SATCLIP_INLINE Floats small_sine(Floats x) { return Sine<SineVector>::sine(x); }
SATCLIP_INLINE Floats small_cosine(Floats x) { return Sine<SineVector>::cosine(x); }

// Lane by lane, so that a point's sine does not depend on its neighbours.
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

SATCLIP_INLINE bool beyond_limit(Floats x) {
    return any_lane((Floats)((Ints)x & 0x7fffffff) > broadcast(kSineLimit));
}

// In place, for a whole micro-tile, so that the test for large arguments is made once.
template <int N>
SATCLIP_INLINE void sine_in_place(Floats* z) {
    Floats largest = broadcast(0.0f);
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) largest = maximum((Floats)((Ints)z[i] & 0x7fffffff), largest);
    if (__builtin_expect(any_lane(largest > broadcast(kSineLimit)), 0)) {
        for (int i = 0; i < N; ++i) z[i] = careful_sine(z[i]);
        return;
    }
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) z[i] = small_sine(z[i]);
}

}  // namespace satclip::SATCLIP_ISA

// sin(x) of float32 vectors by the formula of ../sine.h. A vector with an element beyond the formula's limit
// goes to the C library in float64, lane by lane.
#pragma once

#include <cmath>

#include "../sine.h"
#include "simd.h"

namespace satclip::SATCLIP_ISA {

struct SineVector {
    using Value = Floats;
    static constexpr bool kFused = SATCLIP_ISA::kFused;
    SATCLIP_INLINE Floats all(float v) { return SATCLIP_ISA::all(v); }
    SATCLIP_INLINE Floats fused(Floats a, Floats b, Floats c) { return SATCLIP_ISA::fused(a, b, c); }
    SATCLIP_INLINE Floats flipped(Floats value, Floats k) { return (Floats)((Ints)value ^ ((Ints)k << 31)); }
    SATCLIP_INLINE Floats within(Floats r) { return r; }  // larger arguments do not come here
};

constexpr float kSineLimit = Sine<SineVector>::limit;

SATCLIP_INLINE Floats small_sine(Floats x) { return Sine<SineVector>::sine(x); }
SATCLIP_INLINE Floats small_cosine(Floats x) { return Sine<SineVector>::cosine(x); }

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

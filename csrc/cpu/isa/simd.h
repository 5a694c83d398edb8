// SIMD vectors of floats and doubles at the width of the instruction set this file is compiled for.
//
// Compiler vector types carry the arithmetic; only what they cannot say (fused multiply-add, "any lane") is
// written per instruction set. Everything is `static inline` inside the instruction set's own namespace: a
// function of one instruction set must never be merged with its namesake of another.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define SATCLIP_MEMBER inline __attribute__((always_inline))
#define SATCLIP_INLINE static SATCLIP_MEMBER

namespace satclip::SATCLIP_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kUnits = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kUnits = 4;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kUnits = 8;
#else
constexpr int kLanes = 4, kUnits = 4;
#endif
constexpr int kDoubleLanes = kLanes / 2;  // doubles in a vector
#if defined(__AVX2__) || defined(__aarch64__)
constexpr bool kHasFma = true;
#else
constexpr bool kHasFma = false;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef double Doubles __attribute__((vector_size(4 * kLanes)));
typedef int64_t Longs __attribute__((vector_size(4 * kLanes)));
typedef float HalfFloats __attribute__((vector_size(4 * kDoubleLanes)));

SATCLIP_INLINE Floats load(const float* p) {
    Floats v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
SATCLIP_INLINE void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }
SATCLIP_INLINE Doubles load(const double* p) {
    Doubles v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
SATCLIP_INLINE void store(double* p, Doubles v) { std::memcpy(p, &v, sizeof v); }
SATCLIP_INLINE void store_narrowed(float* p, Doubles v) {
    const HalfFloats h = __builtin_convertvector(v, HalfFloats);
    std::memcpy(p, &h, sizeof h);
}
SATCLIP_INLINE Floats broadcast(float v) { return v - Floats{}; }
SATCLIP_INLINE Doubles broadcast(double v) { return v - Doubles{}; }

#if defined(__AVX512F__)
SATCLIP_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
SATCLIP_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) {
    return (Doubles)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
SATCLIP_INLINE bool any_lane(Ints mask) { return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0; }
#elif defined(__AVX2__)
SATCLIP_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
SATCLIP_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) {
    return (Doubles)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
SATCLIP_INLINE bool any_lane(Ints mask) { return _mm256_movemask_epi8((__m256i)mask) != 0; }
#elif defined(__aarch64__)
SATCLIP_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
    return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
SATCLIP_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) {
    return (Doubles)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
SATCLIP_INLINE bool any_lane(Ints mask) { return vmaxvq_u32((uint32x4_t)mask) != 0; }
#else
SATCLIP_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
SATCLIP_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) { return a * b + c; }
SATCLIP_INLINE bool any_lane(Ints mask) {
    int32_t bits = 0;
    for (int i = 0; i < kLanes; ++i) bits |= mask[i];
    return bits != 0;
}
#endif

// The first n < kLanes numbers of a vector, from memory and to it; the rest of what is loaded is 0.
#if defined(__AVX512F__)
SATCLIP_INLINE __mmask16 first_lanes(unsigned n) { return static_cast<__mmask16>((1u << n) - 1); }
SATCLIP_INLINE Floats load_first(const float* p, unsigned n) {
    return (Floats)_mm512_maskz_loadu_ps(first_lanes(n), p);
}
SATCLIP_INLINE void store_first(float* p, Floats v, unsigned n) {
    _mm512_mask_storeu_ps(p, first_lanes(n), (__m512)v);
}
template <class V>
SATCLIP_INLINE void store_first(int8_t* p, V v, unsigned n) {
    _mm_mask_storeu_epi8(p, first_lanes(n), (__m128i)v);
}
template <class V>
SATCLIP_INLINE void store_first(int16_t* p, V v, unsigned n) {
    _mm256_mask_storeu_epi16(p, first_lanes(n), (__m256i)v);
}
#else
SATCLIP_INLINE Floats load_first(const float* p, unsigned n) {
    Floats v = {};
    std::memcpy(&v, p, n % kLanes * sizeof(float));
    return v;
}
template <class T, class V>
SATCLIP_INLINE void store_first(T* p, V v, unsigned n) {
    std::memcpy(p, &v, n % kLanes * sizeof(T));
}
#endif

// Stores past the caches, to memory aligned to a vector. Other threads see them after stream_fence().
#if defined(__AVX512F__)
SATCLIP_INLINE void stream(float* p, Floats v) { _mm512_stream_ps(p, (__m512)v); }
SATCLIP_INLINE void stream_fence() { _mm_sfence(); }
#elif defined(__AVX2__)
SATCLIP_INLINE void stream(float* p, Floats v) { _mm256_stream_ps(p, (__m256)v); }
SATCLIP_INLINE void stream_fence() { _mm_sfence(); }
#else
SATCLIP_INLINE void stream(float* p, Floats v) { store(p, v); }
SATCLIP_INLINE void stream_fence() {}
#endif

// As the instructions do: where one is NaN, the second.
#if defined(__AVX512F__)
// (Masked: gcc 12 warns of the others' undefined lanes.)
SATCLIP_INLINE Floats maximum(Floats a, Floats b) {
    return (Floats)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
}
SATCLIP_INLINE Floats minimum(Floats a, Floats b) {
    return (Floats)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
}
#elif defined(__AVX2__)
SATCLIP_INLINE Floats maximum(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
SATCLIP_INLINE Floats minimum(Floats a, Floats b) { return (Floats)_mm256_min_ps((__m256)a, (__m256)b); }
#else
SATCLIP_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }
SATCLIP_INLINE Floats minimum(Floats a, Floats b) { return a < b ? a : b; }
#endif

}  // namespace satclip::SATCLIP_ISA

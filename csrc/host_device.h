// Marks of code that runs on the host and on a GPU. Without nvcc they mean nothing, but that a function is
// inlined: vectors of one instruction set must not be passed through a function of another.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define SATCLIP_HD __host__ __device__
#define SATCLIP_HD_INLINE __host__ __device__ __forceinline__
#define SATCLIP_UNROLL _Pragma("unroll")
#define SATCLIP_ONCE _Pragma("unroll 1")
#else
#define SATCLIP_HD
#define SATCLIP_HD_INLINE inline __attribute__((always_inline))
#if defined(SATCLIP_ROLLED)  // where speed does not matter and the compiler's time does
#define SATCLIP_UNROLL
#else
#define SATCLIP_UNROLL _Pragma("GCC unroll 16")
#endif
#define SATCLIP_ONCE
#endif

namespace satclip {

template <class To, class From>
SATCLIP_HD_INLINE To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// Adding 1.5 · 2²³ rounds to the nearest even integer, |x| < 2²², and leaves it in the low bits.
constexpr float kRounding = 12582912.0f;

// Arithmetic on single numbers, with the interface that templates over vectors of numbers expect.
template <class T>
struct Scalar {
    using Value = T;
    static constexpr bool kHasFma = true;
    SATCLIP_HD_INLINE static T broadcast(T v) { return v; }
    SATCLIP_HD_INLINE static T multiply_add(T a, T b, T c) {
#if defined(__CUDA_ARCH__)
        return fma(a, b, c);
#else
        if constexpr (sizeof(T) == sizeof(float)) return __builtin_fmaf(a, b, c);
        return __builtin_fma(a, b, c);
#endif
    }
};

}  // namespace satclip

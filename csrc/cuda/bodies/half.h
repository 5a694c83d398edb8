// IEEE half precision without cuda_fp16.h, so that host and device round alike.
#pragma once

#include "host_device.h"

namespace satclip::cuda {

// To nearest even; beyond 65504 infinity.
SATCLIP_HD_INLINE std::uint16_t half_bits(float value) {
#if defined(__CUDA_ARCH__)
    std::uint16_t half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
#else
    const std::uint32_t bits = bits_as<std::uint32_t>(value), magnitude = bits & 0x7fffffffu;
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    if (magnitude > 0x7f800000u) return 0x7fffu;                                      // NaN
    if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // rounds to 2¹⁶
    if (magnitude < 0x38800000u)  // subnormal: adding ½ lets the float adder shift and round
        return static_cast<std::uint16_t>(
            sign | (bits_as<std::uint32_t>(bits_as<float>(magnitude) + 0.5f) - bits_as<std::uint32_t>(0.5f)));
    return static_cast<std::uint16_t>(sign |
                                      ((magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
#endif
}

// Two of them in a word, the first in the low half.
SATCLIP_HD_INLINE std::uint32_t half_pair(float low, float high) {
#if defined(__CUDA_ARCH__)
    std::uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return half_bits(low) | static_cast<std::uint32_t>(half_bits(high)) << 16;
#endif
}

inline float half_value(std::uint16_t half) {
    const std::uint32_t magnitude = half & 0x7fffu, sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
    const std::uint32_t bits =
        magnitude >= 0x7c00u ? 0x7f800000u | (magnitude & 0x3ffu) << 13 : magnitude << 13;
    // Multiplying by 2¹¹² moves the exponent, subnormal halves included.
    const float value = magnitude >= 0x7c00u ? bits_as<float>(bits) : bits_as<float>(bits) * 0x1p+112f;
    return bits_as<float>(bits_as<std::uint32_t>(value) | sign);
}

}  // namespace satclip::cuda

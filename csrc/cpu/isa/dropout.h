// Dropout masks of training: Philox4x32-10 (Salmon et al. 2011) of (point, unit, layer) under the seed, so
// that any backend and any cut of the work drops the same ones, and nothing need be stored.
#pragma once

#include "simd.h"

namespace satclip::SATCLIP_ISA {

typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint64_t LongWords __attribute__((vector_size(4 * kLanes)));

// Upper and lower halves of the products of 32-bit lanes with a constant.
SATCLIP_INLINE void multiply_wide(Words a, uint32_t b, Words& high, Words& low) {
    const LongWords factor = LongWords{} + b, lower = LongWords{} + 0xffffffffu;
#if defined(__AVX512F__)  // masked with all ones, because GCC 12 warns of the other one in its own header
    const auto product = [&](LongWords v) {
        return (LongWords)_mm512_maskz_mul_epu32(0xff, (__m512i)v, (__m512i)factor);
    };
#elif defined(__AVX2__)
    const auto product = [&](LongWords v) {
        return (LongWords)_mm256_mul_epu32((__m256i)v, (__m256i)factor);
    };
#else
    const auto product = [&](LongWords v) { return (v & lower) * factor; };
#endif
    const LongWords even = product((LongWords)a), odd = product((LongWords)a >> 32);
    low = (Words)((even & lower) | (odd << 32));
    high = (Words)((even >> 32) | (odd & ~lower));
}

// Four random words for each lane.
struct Philox {
    Words word[4];
    SATCLIP_INLINE Philox of(Words row_low, Words row_high, uint32_t block, uint32_t layer, uint64_t seed) {
        Words c0 = row_low, c1 = row_high, c2 = Words{} + block, c3 = Words{} + layer;
        uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
        for (int round = 0; round < 10; ++round) {
            Words high0, low0, high1, low1;
            multiply_wide(c0, 0xd2511f53u, high0, low0);
            multiply_wide(c2, 0xcd9e8d57u, high1, low1);
            c0 = high1 ^ c1 ^ k0;
            c1 = low1;
            c2 = high0 ^ c3 ^ k1;
            c3 = low0;
            k0 += 0x9e3779b9u;
            k1 += 0xbb67ae85u;
        }
        return {{c0, c1, c2, c3}};
    }
};

}  // namespace satclip::SATCLIP_ISA

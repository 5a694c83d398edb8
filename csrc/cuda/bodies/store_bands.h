// Quantisation on store in kernels: a few neighbouring bands of one pixel, by the rule of csrc/quantise.h.
#pragma once

#include <type_traits>

#include "quantise.h"

namespace satclip::cuda {

struct CodeArithmetic : Scalar<float> {
    using Integer = std::int32_t;
    SATCLIP_HD_INLINE static Integer integer(int v) { return v; }
    SATCLIP_HD_INLINE static Integer bits(float v) { return bits_as<Integer>(v); }
    SATCLIP_HD_INLINE static float minimum(float a, float b) { return a < b ? a : b; }
    SATCLIP_HD_INLINE static float maximum(float a, float b) { return a > b ? a : b; }
};

template <int N, class T>
struct alignas(N * sizeof(T)) Vector {
    T value[N];
};

// Writes N neighbouring bands, at once when they are aligned and all there; else the first `count`, one by
// one.
template <int N, class T, class Code>
SATCLIP_HD_INLINE void store_codes(T* out, const float* value, bool aligned, int count, const Code& code) {
    if (aligned) {
        Vector<N, T> codes;
        SATCLIP_UNROLL
        for (int i = 0; i < N; ++i) codes.value[i] = code(value[i], i);
        *reinterpret_cast<Vector<N, T>*>(out) = codes;
    } else {
        SATCLIP_UNROLL
        for (int i = 0; i < N; ++i)
            if (i < count) out[i] = code(value[i], i);
    }
}

template <int N>
SATCLIP_HD_INLINE void store_bands(const PixelStore& to, std::ptrdiff_t pixel, int band, const float* value,
                                   bool aligned, int count) {
    const std::ptrdiff_t offset = pixel + band;
    const auto codes = [&](auto* out) {
        using T = std::remove_reference_t<decltype(*out)>;
        store_codes<N>(out + offset, value, aligned, count, [&](float v, int i) {
            return static_cast<T>(
                quantise<T, CodeArithmetic>(v, to.inverse_scale[band + i], to.offset[band + i]));
        });
    };
    if (to.type == StoredType::float32)
        store_codes<N>(static_cast<float*>(to.out) + offset, value, aligned, count,
                       [](float v, int) { return v; });
    else if (to.type == StoredType::int8)
        codes(static_cast<std::int8_t*>(to.out));
    else
        codes(static_cast<std::int16_t*>(to.out));
}

// True where N bands of any pixel can be written at once.
template <int N>
inline bool aligned_for(const PixelStore& to, int bands) {
    const std::uintptr_t bytes = static_cast<std::uintptr_t>(bytes_of(to.type));
    return bands % N == 0 && to.row_stride % N == 0 && to.column_stride % N == 0 &&
           reinterpret_cast<std::uintptr_t>(to.out) % (N * bytes) == 0;
}

}  // namespace satclip::cuda

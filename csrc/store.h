// The quantising store: float32 → integer codes, one rule for rasters, resampling and GPUs.
//
//     code = round half even((value − offset) · inverse_scale), clamped to ±127 or ±32767; NaN is −128 or
//     −32768
#pragma once

#include <cstddef>
#include <type_traits>

#include "device.h"

namespace satclip {

template <class T>
struct Codes;
template <>
struct Codes<std::int8_t> {
    static constexpr int limit = 127, missing = -128;
};
template <>
struct Codes<std::int16_t> {
    static constexpr int limit = 32767, missing = -32768;
};

template <class T>
SATCLIP_HD_INLINE T quantised(float value, float inverse_scale, float offset) {
    constexpr float limit = static_cast<float>(Codes<T>::limit);
    float code = (value - offset) * inverse_scale;
    code = code > limit ? limit : code;
    code = code < -limit ? -limit : code;
    const std::int32_t rounded = bits_as<std::int32_t>(code + kRounding) - bits_as<std::int32_t>(kRounding);
    return static_cast<T>(value == value ? rounded : Codes<T>::missing);
}

enum class Stored { float32, int8, int16 };

// Pixels (row, column, band), bands contiguous; strides in values.
struct Store {
    void* out;
    std::ptrdiff_t row_stride, column_stride;
    Stored as;
    const float* inverse_scale;  // [bands], null for float32
    const float* offset;         // [bands], null for float32
};

constexpr int bytes_of(Stored as) { return as == Stored::int8 ? 1 : as == Stored::int16 ? 2 : 4; }

template <int N, class T>
struct alignas(N * sizeof(T)) Vector {
    T value[N];
};

// Writes N neighbouring bands, at once when `whole`: when all are there and, on a GPU, aligned. Otherwise the
// first `count` of them, one by one.
template <int N, class T, class Code>
SATCLIP_HD_INLINE void store_codes(T* out, const float* value, bool whole, int count, const Code& code) {
    if (whole) {
        Vector<N, T> codes;
        SATCLIP_UNROLL
        for (int i = 0; i < N; ++i) codes.value[i] = code(value[i], i);
#if defined(__CUDA_ARCH__)
        *reinterpret_cast<Vector<N, T>*>(out) = codes;
#else
        std::memcpy(out, &codes, sizeof codes);
#endif
    } else {
        SATCLIP_UNROLL
        for (int i = 0; i < N; ++i)
            if (i < count) out[i] = code(value[i], i);
    }
}

template <int N>
SATCLIP_HD_INLINE void store_bands(const Store& to, std::ptrdiff_t pixel, int band, const float* value,
                                   bool whole, int count) {
    const std::ptrdiff_t at = pixel + band;
    const auto codes = [&](auto* out) {
        using T = std::remove_reference_t<decltype(*out)>;
        store_codes<N>(out + at, value, whole, count, [&](float v, int i) {
            return quantised<T>(v, to.inverse_scale[band + i], to.offset[band + i]);
        });
    };
    if (to.as == Stored::float32)
        store_codes<N>(static_cast<float*>(to.out) + at, value, whole, count, [](float v, int) { return v; });
    else if (to.as == Stored::int8)
        codes(static_cast<std::int8_t*>(to.out));
    else
        codes(static_cast<std::int16_t*>(to.out));
}

// Whether N bands of any pixel can be written at once.
template <int N>
inline bool aligned_for(const Store& to, int bands) {
    const std::uintptr_t bytes = static_cast<std::uintptr_t>(bytes_of(to.as));
    return bands % N == 0 && to.row_stride % N == 0 && to.column_stride % N == 0 &&
           reinterpret_cast<std::uintptr_t>(to.out) % (N * bytes) == 0;
}

}  // namespace satclip

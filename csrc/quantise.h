// Quantisation on store: float32 → integer codes, one rule for rasters, resampling and GPUs.
//
//     code = round half even((value − offset) · inverse_scale), clamped to ±127 or ±32767; NaN is −128 or
//     −32768
#pragma once

#include <cstddef>

#include "host_device.h"

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

// The code of a value, or of a vector of them, as a 32-bit integer. A: the arithmetic — Value, Integer,
// broadcast(float), integer(int), bits(Value), smaller and maximum(Value, Value), of which NaN may give
// either.
template <class T, class A>
SATCLIP_HD_INLINE typename A::Integer quantise(typename A::Value value, typename A::Value inverse_scale,
                                               typename A::Value offset) {
    const typename A::Value limit = A::broadcast(static_cast<float>(Codes<T>::limit)),
                            rounding = A::broadcast(kRounding);
    typename A::Value code = (value - offset) * inverse_scale;
    code = A::maximum(A::minimum(limit, code), -limit);
    const typename A::Integer rounded = A::bits(code + rounding) - A::bits(rounding);
    return value == value ? rounded : A::integer(Codes<T>::missing);
}

enum class StoredType { float32, int8, int16 };

// Pixels (row, column, band), bands contiguous; strides in values.
struct PixelStore {
    void* out;
    std::ptrdiff_t row_stride, column_stride;
    StoredType type;
    const float* inverse_scale;  // [bands], null for float32
    const float* offset;         // [bands], null for float32
    bool streamed = false;       // floats nobody reads soon: a host may write them past its caches
};

constexpr int bytes_of(StoredType type) {
    return type == StoredType::int8 ? 1 : type == StoredType::int16 ? 2 : 4;
}

}  // namespace satclip

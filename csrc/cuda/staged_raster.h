// Host helpers shared by the device run and its emulation.
#pragma once

#include <cstring>
#include <vector>

#include "harmonics.h"
#include "quantise.h"

namespace satclip::cuda {

inline std::vector<SineCosine> sincos_of(const double* degrees, std::size_t count) {
    std::vector<SineCosine> to(count);
    for (std::size_t i = 0; i < count; ++i) to[i] = sincos_degrees(degrees[i]);
    return to;
}

// A raster without gaps, staged piece by piece, and the store its rows are copied to.
struct StagedRaster {
    PixelStore to;
    std::size_t columns, bands;

    std::size_t pixel_bytes() const { return bands * bytes_of(to.type); }
    std::size_t row_bytes() const { return columns * pixel_bytes(); }
    bool contiguous() const {
        return to.column_stride == static_cast<std::ptrdiff_t>(bands) &&
               to.row_stride == static_cast<std::ptrdiff_t>(bands * columns);
    }
    PixelStore store_in(void* memory) const {
        PixelStore store = to;
        store.out = memory;
        store.column_stride = static_cast<std::ptrdiff_t>(bands);
        store.row_stride = static_cast<std::ptrdiff_t>(bands * columns);
        return store;
    }
    void copy_row(std::size_t row, const void* from) const {
        const std::ptrdiff_t size = bytes_of(to.type);
        char* out = static_cast<char*>(to.out) + static_cast<std::ptrdiff_t>(row) * to.row_stride * size;
        if (to.column_stride == static_cast<std::ptrdiff_t>(bands)) {
            std::memcpy(out, from, row_bytes());
            return;
        }
        for (std::size_t i = 0; i < columns; ++i)
            std::memcpy(out + static_cast<std::ptrdiff_t>(i) * to.column_stride * size,
                        static_cast<const char*>(from) + i * pixel_bytes(), pixel_bytes());
    }
    void copy_rows(std::size_t first, std::size_t count, const void* from) const {
        for (std::size_t i = 0; i < count; ++i)
            copy_row(first + i, static_cast<const char*>(from) + i * row_bytes());
    }
};

}  // namespace satclip::cuda

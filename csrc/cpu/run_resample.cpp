// Resampling of a lattice: stencils of the axes, and rows and runs of pixels for threads.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>

#include "parallel.h"
#include "rounding.h"
#include "satclip.h"

namespace satclip {

size_t stencils(const double* positions, size_t count, double origin, double spacing, int order, size_t nodes,
                Stencil* out) {
    for (size_t i = 0; i < count; ++i) {
        const double position = (positions[i] - origin) / spacing,
                     first = std::floor(position) - (order / 2 - 1);
        // NaN passes, on a lattice that has a stencil at all.
        if (first < 0 || first + order > static_cast<double>(nodes) || static_cast<size_t>(order) > nodes)
            return i;
        out[i] = stencil_at(position, order);
    }
    return count;
}

// Pixels that go through all bands together, as bytes of output: they stay in L2.
constexpr size_t kRunBytes = size_t(1) << 16;
constexpr size_t kMinRunPixels = 64, kMaxRunPixels = 256;
// Single points likewise, whose stencils take 128 bytes each.
constexpr size_t kBlockPoints = 64;
// A raster larger than this would only drive what is needed out of the caches, and be read into them before
// it is written.
constexpr size_t kStreamingBytes = size_t(64) << 20;
constexpr int kLineFloats = 16;  // floats in a line of the cache

// True where all vectors of a raster are whole and aligned floats. Others are collected, run by run, and
// copied.
static bool can_stream(const Kernels& kernels, const Lattice& lattice, const PixelStore& to) {
    const auto aligned = [&](std::ptrdiff_t floats) { return floats % kernels.lanes == 0; };
    const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(to.out);
    // Half a line at a time would be written to memory as halves.
    return to.type == StoredType::float32 && kernels.lanes == kLineFloats &&
           first % (sizeof(float) * kLineFloats) == 0 && aligned(lattice.bands) &&
           aligned(to.column_stride) && aligned(to.row_stride);
}

bool resample(const Kernels& kernels, const Lattice& lattice, int order, const std::vector<Stencil>& rows,
              const std::vector<Stencil>& columns, const PixelStore& to, const Control& control) {
    const size_t pixel = static_cast<size_t>(lattice.bands) * bytes_of(to.type);
    const bool large = rows.size() * columns.size() * pixel >= kStreamingBytes;
    const bool direct = large && can_stream(kernels, lattice, to);
    const bool staged = large && !direct && to.column_stride == lattice.bands;
    const size_t run_pixels =
        direct ? kMaxRunPixels : std::clamp(kRunBytes / pixel, kMinRunPixels, kMaxRunPixels);
    const size_t scratch = staged ? run_pixels * pixel / sizeof(float) + 1 : 0;
    return run_parallel(
        columns.empty() ? 0 : rows.size(), scratch, control,
        [&](size_t row, float* stage, KeepRunning& keep_running) {
            for (size_t column = 0; column < columns.size() && keep_running(); column += run_pixels) {
                const size_t count = std::min(run_pixels, columns.size() - column);
                char* out =
                    static_cast<char*>(to.out) + (static_cast<std::ptrdiff_t>(row) * to.row_stride +
                                                  static_cast<std::ptrdiff_t>(column) * to.column_stride) *
                                                     bytes_of(to.type);
                PixelStore run = to;
                run.out = staged ? static_cast<void*>(stage) : out;
                run.streamed = direct;
                kernels.resample->pixels(lattice, order, rows[row], columns.data() + column,
                                         static_cast<int>(count), run);
                if (staged)
                    kernels.resample->copy_streaming(reinterpret_cast<const char*>(stage), count * pixel,
                                                     out);
            }
        });
}

bool resample_points(const Kernels& kernels, const Lattice& lattice, int order, const Positions& positions,
                     const PixelStore& to, size_t& first_outside, const Control& control) {
    const size_t pixel = static_cast<size_t>(lattice.bands) * bytes_of(to.type);
    const bool staged = positions.outputs * pixel >= kStreamingBytes;
    const size_t scratch = staged ? kBlockPoints * pixel / sizeof(float) + 1 : 0;
    std::int64_t in_order[kBlockPoints];
    std::iota(in_order, in_order + kBlockPoints, std::int64_t{0});
    std::atomic<size_t> first{positions.count};
    const auto block = [&](size_t number, float* stage, KeepRunning&) {
        const size_t begin = number * kBlockPoints, count = std::min(kBlockPoints, positions.count - begin);
        Stencil rows[kBlockPoints], columns[kBlockPoints];
        const size_t fit =
            std::min(stencils(positions.rows + begin, count, positions.row_origin, positions.row_spacing,
                              order, positions.row_nodes, rows),
                     stencils(positions.columns + begin, count, positions.column_origin,
                              positions.column_spacing, order, positions.column_nodes, columns));
        if (fit < count) {
            size_t current = first;
            while (begin + fit < current && !first.compare_exchange_weak(current, begin + fit)) {
            }
            return;
        }
        const std::int64_t* index = positions.index + begin;
        const int points = static_cast<int>(count);
        if (!staged) return kernels.resample->points(lattice, order, rows, columns, points, index, to);
        PixelStore staging = to;
        staging.out = stage;
        staging.row_stride = lattice.bands;
        kernels.resample->points(lattice, order, rows, columns, points, in_order, staging);
        const bool dense = to.row_stride == lattice.bands;
        for (size_t i = 0, next; i < count; i = next) {
            next = i + 1;  // neighbours in the output go together
            while (dense && next < count && index[next] == index[next - 1] + 1) ++next;
            kernels.resample->copy_streaming(
                reinterpret_cast<const char*>(stage) + i * pixel, (next - i) * pixel,
                static_cast<char*>(to.out) + index[i] * to.row_stride * bytes_of(to.type));
        }
    };
    const bool finished = run_parallel(ceil_div(positions.count, kBlockPoints), scratch, control, block);
    first_outside = first;
    return finished;
}

}  // namespace satclip

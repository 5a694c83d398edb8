// Lattice → raster: stencils of the axes, and what a call is cut into.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>

#include "parallel.h"
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
constexpr size_t kLeastRun = 64, kMostRun = 256;
// Single places likewise, whose stencils take 128 bytes each.
constexpr size_t kPlaces = 64;
// A raster larger than this would only drive what is needed out of the caches, and be read into them before
// it is written.
constexpr size_t kPastCaches = size_t(64) << 20;
constexpr int kLine = 16;  // floats in a line of the cache

// Whether all vectors of a raster are whole and aligned floats. Others are collected, run by run, and copied.
static bool streams(const Kernels& kernels, const Lattice& lattice, const Store& to) {
    const auto aligned = [&](std::ptrdiff_t floats) { return floats % kernels.lanes == 0; };
    const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(to.out);
    // Half a line at a time would be written to memory as halves.
    return to.as == Stored::float32 && kernels.lanes == kLine && first % (sizeof(float) * kLine) == 0 &&
           aligned(lattice.bands) && aligned(to.column_stride) && aligned(to.row_stride);
}

bool resample(const Kernels& kernels, const Lattice& lattice, int order, const std::vector<Stencil>& rows,
              const std::vector<Stencil>& columns, const Store& to, const Control& control) {
    const size_t pixel = static_cast<size_t>(lattice.bands) * bytes_of(to.as);
    const bool large = rows.size() * columns.size() * pixel >= kPastCaches;
    const bool direct = large && streams(kernels, lattice, to);
    const bool past = large && !direct && to.column_stride == lattice.bands;
    const size_t most = direct ? kMostRun : std::clamp(kRunBytes / pixel, kLeastRun, kMostRun);
    const size_t scratch = past ? most * pixel / sizeof(float) + 1 : 0;
    return run(
        columns.empty() ? 0 : rows.size(), scratch, control, [&](size_t row, float* held, Pulse& pulse) {
            for (size_t column = 0; column < columns.size() && pulse(); column += most) {
                const size_t count = std::min(most, columns.size() - column);
                char* out =
                    static_cast<char*>(to.out) + (static_cast<std::ptrdiff_t>(row) * to.row_stride +
                                                  static_cast<std::ptrdiff_t>(column) * to.column_stride) *
                                                     bytes_of(to.as);
                Store at = to;
                at.out = past ? static_cast<void*>(held) : out;
                at.streamed = direct;
                kernels.lattice->run(lattice, order, rows[row], columns.data() + column,
                                     static_cast<int>(count), at);
                if (past) kernels.lattice->copy(reinterpret_cast<const char*>(held), count * pixel, out);
            }
        });
}

bool resample_places(const Kernels& kernels, const Lattice& lattice, int order, const Positions& at,
                     const Store& to, size_t& misplaced, const Control& control) {
    const size_t pixel = static_cast<size_t>(lattice.bands) * bytes_of(to.as);
    const bool past = at.outputs * pixel >= kPastCaches;
    const size_t scratch = past ? kPlaces * pixel / sizeof(float) + 1 : 0;
    std::int64_t in_order[kPlaces];
    std::iota(in_order, in_order + kPlaces, std::int64_t{0});
    std::atomic<size_t> first{at.count};
    const auto block = [&](size_t number, float* held, Pulse&) {
        const size_t begin = number * kPlaces, count = std::min(kPlaces, at.count - begin);
        Stencil rows[kPlaces], columns[kPlaces];
        const size_t fit = std::min(
            stencils(at.rows + begin, count, at.row_origin, at.row_spacing, order, at.row_nodes, rows),
            stencils(at.columns + begin, count, at.column_origin, at.column_spacing, order, at.column_nodes,
                     columns));
        if (fit < count) {
            size_t known = first;
            while (begin + fit < known && !first.compare_exchange_weak(known, begin + fit)) {
            }
            return;
        }
        const std::int64_t* index = at.index + begin;
        const int places = static_cast<int>(count);
        if (!past) return kernels.lattice->places(lattice, order, rows, columns, places, index, to);
        Store aside = to;
        aside.out = held;
        aside.row_stride = lattice.bands;
        kernels.lattice->places(lattice, order, rows, columns, places, in_order, aside);
        const bool dense = to.row_stride == lattice.bands;
        for (size_t i = 0, next; i < count; i = next) {
            next = i + 1;  // neighbours in the output go together
            while (dense && next < count && index[next] == index[next - 1] + 1) ++next;
            kernels.lattice->copy(reinterpret_cast<const char*>(held) + i * pixel, (next - i) * pixel,
                                  static_cast<char*>(to.out) + index[i] * to.row_stride * bytes_of(to.as));
        }
    };
    const bool finished = run((at.count + kPlaces - 1) / kPlaces, scratch, control, block);
    misplaced = first;
    return finished;
}

}  // namespace satclip

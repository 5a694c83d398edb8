// Lattice → raster: stencils of the axes, and what a call is cut into.
#include <algorithm>
#include <cmath>

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

// Pixels that go through all bands together: 64 · 256 bands of float32 are 64 KB, which stay in L2.
constexpr size_t kRun = 64;

bool resample(const Kernels& kernels, const Lattice& lattice, int order, const std::vector<Stencil>& rows,
              const std::vector<Stencil>& columns, const Store& to, const Control& control) {
    return run(columns.empty() ? 0 : rows.size(), 0, control, [&](size_t row, float*, Pulse& pulse) {
        for (size_t column = 0; column < columns.size() && pulse(); column += kRun) {
            Store at = to;
            at.out = static_cast<char*>(to.out) + (static_cast<std::ptrdiff_t>(row) * to.row_stride +
                                                   static_cast<std::ptrdiff_t>(column) * to.column_stride) *
                                                      bytes_of(to.as);
            kernels.lattice->run(lattice, order, rows[row], columns.data() + column,
                                 static_cast<int>(std::min(kRun, columns.size() - column)), at);
        }
    });
}

}  // namespace satclip

// Lattice → raster, a vector of bands at a time; see ../lattice.h.
#include "../lattice.h"
#include "../satclip.h"
#include "simd.h"

namespace satclip::SATCLIP_ISA {

namespace {

struct BandsArithmetic {
    using Value = Floats;
    SATCLIP_INLINE Floats all(float v) { return SATCLIP_ISA::all(v); }
    SATCLIP_INLINE Floats fused(Floats a, Floats b, Floats c) { return SATCLIP_ISA::fused(a, b, c); }
};

// The bands [band, band + present) of the run.
template <int Order, bool Whole>
void bands(const Lattice& lattice, const Stencil& row, const Stencil* columns, int count, int band,
           int present, const Store& to) {
    const auto read = [present](const float* from) {
        if constexpr (Whole) return load(from);
        alignas(64) float some[kLanes] = {};
        std::memcpy(some, from, sizeof(float) * present);
        return load(some);
    };
    const auto put = [&](int j, Floats value) {
        alignas(64) float values[kLanes];
        store(values, value);
        store_bands<kLanes>(to, j * to.column_stride, band, values, Whole, present);
    };
    resample_run<BandsArithmetic, Order>(lattice, lattice.data + row.first * lattice.row_stride + band, row,
                                         columns, count, read, put);
}

template <int Order>
void run_of(const Lattice& lattice, const Stencil& row, const Stencil* columns, int count, const Store& to) {
    int band = 0;
    for (; band + kLanes <= lattice.bands; band += kLanes)
        bands<Order, true>(lattice, row, columns, count, band, kLanes, to);
    if (band < lattice.bands)
        bands<Order, false>(lattice, row, columns, count, band, lattice.bands - band, to);
}

void run(const Lattice& lattice, int order, const Stencil& row, const Stencil* columns, int count,
         const Store& to) {
    constexpr decltype(&run_of<4>) table[] = {run_of<4>, run_of<6>, run_of<8>, run_of<10>, run_of<12>};
    table[(order - kLeastOrder) / 2](lattice, row, columns, count, to);
}

}  // namespace

extern const LatticeKernels lattice_kernels;
const LatticeKernels lattice_kernels = {run};

}  // namespace satclip::SATCLIP_ISA

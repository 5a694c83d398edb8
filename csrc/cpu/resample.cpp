// Lattice → raster, a vector of bands at a time; see ../lattice.h.
#include "../lattice.h"
#include "../satclip.h"
#include "simd.h"

namespace satclip::SATCLIP_ISA {

namespace {

struct BandsArithmetic {
    using Value = Floats;
    using Integer = Ints;
    SATCLIP_INLINE Floats all(float v) { return SATCLIP_ISA::all(v); }
    SATCLIP_INLINE Floats fused(Floats a, Floats b, Floats c) { return SATCLIP_ISA::fused(a, b, c); }
    SATCLIP_INLINE Ints integer(int v) { return v - Ints{}; }
    SATCLIP_INLINE Ints bits(Floats v) { return (Ints)v; }
};

// Whole vectors of bands, or the first `present` of one.
template <bool Whole>
struct Some {
    int present;

    SATCLIP_MEMBER Floats load(const float* from) const {
        if constexpr (Whole) return SATCLIP_ISA::load(from);
        alignas(64) float some[kLanes] = {};
        std::memcpy(some, from, sizeof(float) * present);
        return SATCLIP_ISA::load(some);
    }
    template <class V>
    SATCLIP_MEMBER void store(void* to, V values) const {
        std::memcpy(to, &values, Whole ? sizeof values : sizeof values / kLanes * present);
    }
};

// How one vector of bands is stored.
template <class T, bool Whole>
struct Encoder {
    typedef T Vector __attribute__((vector_size(kLanes * sizeof(T))));
    Some<Whole> some;
    Floats inverse_scale, offset;

    Encoder(const Some<Whole>& some, const Store& to, int band)
        : some(some),
          inverse_scale(some.load(to.inverse_scale + band)),
          offset(some.load(to.offset + band)) {}
    SATCLIP_MEMBER void operator()(T* to, Floats value) const {
        const Ints codes = quantised<T, BandsArithmetic>(value, inverse_scale, offset);
        some.store(to, __builtin_convertvector(codes, Vector));
    }
};
template <bool Whole>
struct Encoder<float, Whole> {
    Some<Whole> some;

    Encoder(const Some<Whole>& some, const Store&, int) : some(some) {}
    SATCLIP_MEMBER void operator()(float* to, Floats value) const { some.store(to, value); }
};

// Pixels of a run at the bands [band, band + present).
template <int Order, class T, bool Whole>
void bands(const Lattice& lattice, const Stencil& row, const Stencil* columns, int count, int band,
           int present, const Store& to) {
    const Some<Whole> some{present};
    const Encoder<T, Whole> encoder(some, to, band);
    T* out = static_cast<T*>(to.out) + band;
    resample_run<BandsArithmetic, Order>(
        lattice, lattice.data + row.first * lattice.row_stride + band, row, columns, count,
        [&](const float* from) { return some.load(from); },
        [&](int j, Floats value) { encoder(out + j * to.column_stride, value); });
}

template <int Order, class T>
void run_as(const Lattice& lattice, const Stencil& row, const Stencil* columns, int count, const Store& to) {
    int band = 0;
    for (; band + kLanes <= lattice.bands; band += kLanes)
        bands<Order, T, true>(lattice, row, columns, count, band, kLanes, to);
    if (band < lattice.bands)
        bands<Order, T, false>(lattice, row, columns, count, band, lattice.bands - band, to);
}

template <int Order>
void run_of(const Lattice& lattice, const Stencil& row, const Stencil* columns, int count, const Store& to) {
    switch (to.as) {
        case Stored::float32:
            return run_as<Order, float>(lattice, row, columns, count, to);
        case Stored::int8:
            return run_as<Order, std::int8_t>(lattice, row, columns, count, to);
        case Stored::int16:
            return run_as<Order, std::int16_t>(lattice, row, columns, count, to);
    }
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

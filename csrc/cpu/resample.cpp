// Lattice → raster and lattice → single places, a few vectors of bands at a time; see ../lattice.h.
#include <algorithm>

#include "../lattice.h"
#include "../satclip.h"
#include "simd.h"

namespace satclip::SATCLIP_ISA {

namespace {

// Vectors that go through together share the loads of weights; more would not leave registers for the taps.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTogether = 2;
#else
constexpr int kTogether = 1;
#endif

// N neighbouring vectors of bands.
template <int N>
struct Wide {
    Floats part[N];

    SATCLIP_MEMBER Wide operator*(const Wide& other) const {
        Wide product;
        SATCLIP_UNROLL
        for (int n = 0; n < N; ++n) product.part[n] = part[n] * other.part[n];
        return product;
    }
};

template <int N>
struct BandsArithmetic {
    using Value = Wide<N>;
    SATCLIP_INLINE Value all(float v) {
        Value value;
        SATCLIP_UNROLL
        for (int n = 0; n < N; ++n) value.part[n] = SATCLIP_ISA::all(v);
        return value;
    }
    SATCLIP_INLINE Value fused(const Value& a, const Value& b, const Value& c) {
        Value sum;
        SATCLIP_UNROLL
        for (int n = 0; n < N; ++n) sum.part[n] = SATCLIP_ISA::fused(a.part[n], b.part[n], c.part[n]);
        return sum;
    }
};

struct CodesArithmetic {
    using Value = Floats;
    using Integer = Ints;
    SATCLIP_INLINE Floats all(float v) { return SATCLIP_ISA::all(v); }
    SATCLIP_INLINE Ints integer(int v) { return v - Ints{}; }
    SATCLIP_INLINE Ints bits(Floats v) { return (Ints)v; }
    SATCLIP_INLINE Floats smaller(Floats a, Floats b) { return SATCLIP_ISA::smaller(a, b); }
    SATCLIP_INLINE Floats larger(Floats a, Floats b) { return SATCLIP_ISA::larger(a, b); }
};

// Whole vectors of bands, or the first `present` of one.
template <bool Whole>
struct Some {
    unsigned present;

    explicit Some(int bands) : present(static_cast<unsigned>(bands) % kLanes) {}

    SATCLIP_MEMBER Floats load(const float* from) const {
        if constexpr (Whole) return SATCLIP_ISA::load(from);
        return load_some(from, present);
    }
    template <int N>
    SATCLIP_MEMBER Wide<N> load_wide(const float* from) const {
        Wide<N> value;
        SATCLIP_UNROLL
        for (int n = 0; n < N; ++n) value.part[n] = load(from + n * kLanes);
        return value;
    }
    template <class T, class V>
    SATCLIP_MEMBER void store(T* to, V values) const {
        if constexpr (Whole)
            std::memcpy(to, &values, sizeof values);
        else
            store_some(to, values, present);
    }
};

// How N vectors of bands are stored; whole ones of floats may be streamed past the caches.
template <class T, int N, bool Whole, bool Streamed>
struct Encoder {
    typedef T Vector __attribute__((vector_size(kLanes * sizeof(T))));
    Some<Whole> some;
    Wide<N> inverse_scale, offset;

    Encoder(const Some<Whole>& some, const Store& to, int band)
        : some(some),
          inverse_scale(some.template load_wide<N>(to.inverse_scale + band)),
          offset(some.template load_wide<N>(to.offset + band)) {}
    SATCLIP_MEMBER void operator()(T* to, const Wide<N>& value) const {
        SATCLIP_UNROLL
        for (int n = 0; n < N; ++n) {
            const Ints codes =
                quantised<T, CodesArithmetic>(value.part[n], inverse_scale.part[n], offset.part[n]);
            some.store(to + n * kLanes, __builtin_convertvector(codes, Vector));
        }
    }
};
template <int N, bool Whole, bool Streamed>
struct Encoder<float, N, Whole, Streamed> {
    Some<Whole> some;

    Encoder(const Some<Whole>& some, const Store&, int) : some(some) {}
    SATCLIP_MEMBER void operator()(float* to, const Wide<N>& value) const {
        SATCLIP_UNROLL
        for (int n = 0; n < N; ++n) {
            if constexpr (Streamed && Whole)
                stream(to + n * kLanes, value.part[n]);
            else
                some.store(to + n * kLanes, value.part[n]);
        }
    }
};

// Bands in pieces of N vectors, of single ones, and of less than one: piece(N, whole).
template <class Piece>
SATCLIP_INLINE void in_pieces(int bands, Piece&& piece) {
    int band = 0;
    for (; band + kTogether * kLanes <= bands; band += kTogether * kLanes)
        piece(std::integral_constant<int, kTogether>(), std::true_type(), band, kTogether * kLanes);
    for (; band + kLanes <= bands; band += kLanes)
        piece(std::integral_constant<int, 1>(), std::true_type(), band, kLanes);
    if (band < bands) piece(std::integral_constant<int, 1>(), std::false_type(), band, bands - band);
}

template <int Order, class T, bool Streamed>
void run_as(const Lattice& lattice, const Stencil& row, const Stencil* columns, int count, const Store& to) {
    in_pieces(lattice.bands, [&](auto together, auto whole, int band, int present) {
        constexpr int N = decltype(together)::value;
        constexpr bool kWhole = decltype(whole)::value;
        const Some<kWhole> some(present);
        const Encoder<T, N, kWhole, Streamed> encoder(some, to, band);
        T* out = static_cast<T*>(to.out) + band;
        resample_run<BandsArithmetic<N>, Order>(
            lattice, lattice.data + row.first * lattice.row_stride + band, row, columns, count,
            [&](const float* from) { return some.template load_wide<N>(from); },
            [&](int j, const Wide<N>& value) { encoder(out + j * to.column_stride, value); });
    });
}

// Places one by one. A row of nodes is summed along the row first, as far as its bands go.
template <int Order, class T>
void places_as(const Lattice& lattice, const Stencil* rows, const Stencil* columns, int count,
               const std::int64_t* index, const Store& to) {
    in_pieces(lattice.bands, [&](auto together, auto whole, int band, int present) {
        constexpr int N = decltype(together)::value;
        constexpr bool kWhole = decltype(whole)::value;
        using A = BandsArithmetic<N>;
        const Some<kWhole> some(present);
        const Encoder<T, N, kWhole, false> encoder(some, to, band);
        T* out = static_cast<T*>(to.out) + band;
        for (int i = 0; i < count; ++i) {
            const Stencil &row = rows[i], &column = columns[i];
            const float* from =
                lattice.data + row.first * lattice.row_stride + column.first * lattice.column_stride + band;
            const auto along = [&](int a) {
                return weighted<A, Order>(column.weight, [&](int b) {
                    return some.template load_wide<N>(from + a * lattice.row_stride +
                                                      b * lattice.column_stride);
                });
            };
            encoder(out + index[i] * to.row_stride, weighted<A, Order>(row.weight, along));
        }
    });
}

template <int Order>
struct OfOrder {
    static void run(const Lattice& lattice, const Stencil& row, const Stencil* columns, int count,
                    const Store& to) {
        switch (to.as) {
            case Stored::float32:
                if (!to.streamed) return run_as<Order, float, false>(lattice, row, columns, count, to);
                run_as<Order, float, true>(lattice, row, columns, count, to);
                return streamed();
            case Stored::int8:
                return run_as<Order, std::int8_t, false>(lattice, row, columns, count, to);
            case Stored::int16:
                return run_as<Order, std::int16_t, false>(lattice, row, columns, count, to);
        }
    }
    static void places(const Lattice& lattice, const Stencil* rows, const Stencil* columns, int count,
                       const std::int64_t* index, const Store& to) {
        switch (to.as) {
            case Stored::float32:
                return places_as<Order, float>(lattice, rows, columns, count, index, to);
            case Stored::int8:
                return places_as<Order, std::int8_t>(lattice, rows, columns, count, index, to);
            case Stored::int16:
                return places_as<Order, std::int16_t>(lattice, rows, columns, count, index, to);
        }
    }
};

void run(const Lattice& lattice, int order, const Stencil& row, const Stencil* columns, int count,
         const Store& to) {
    constexpr decltype(&OfOrder<4>::run) table[] = {OfOrder<4>::run, OfOrder<6>::run, OfOrder<8>::run,
                                                    OfOrder<10>::run, OfOrder<12>::run};
    table[(order - kLeastOrder) / 2](lattice, row, columns, count, to);
}

void places(const Lattice& lattice, int order, const Stencil* rows, const Stencil* columns, int count,
            const std::int64_t* index, const Store& to) {
    constexpr decltype(&OfOrder<4>::places) table[] = {
        OfOrder<4>::places, OfOrder<6>::places, OfOrder<8>::places, OfOrder<10>::places, OfOrder<12>::places};
    table[(order - kLeastOrder) / 2](lattice, rows, columns, count, index, to);
}

// To memory past the caches, whole vectors aligned to their size; the ends as usual.
void copy(const char* from, size_t bytes, char* to) {
    constexpr size_t kVector = sizeof(Floats);
    const size_t ahead =
        std::min(bytes, (kVector - reinterpret_cast<std::uintptr_t>(to) % kVector) % kVector);
    std::memcpy(to, from, ahead);
    size_t at = ahead;
    for (; at + kVector <= bytes; at += kVector) {
        Floats some;
        std::memcpy(&some, from + at, kVector);
        stream(reinterpret_cast<float*>(to + at), some);
    }
    std::memcpy(to + at, from + at, bytes - at);
    streamed();
}

}  // namespace

extern const LatticeKernels lattice_kernels;
const LatticeKernels lattice_kernels = {run, places, copy};

}  // namespace satclip::SATCLIP_ISA

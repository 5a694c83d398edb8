// Lattice → raster and lattice → single points, a few vectors of bands at a time; see csrc/lattice.h.
#include <algorithm>

#include "cpu/kernels.h"
#include "lattice.h"
#include "simd.h"

namespace satclip::SATCLIP_ISA {

namespace {

// Vectors that go through together share the loads of weights; more would not leave registers for the taps.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kVectorsTogether = 2;
#else
constexpr int kVectorsTogether = 1;
#endif

// N neighbouring vectors of bands.
template <int N>
struct BandVectors {
    Floats vector[N];

    SATCLIP_MEMBER BandVectors operator*(const BandVectors& other) const {
        BandVectors product;
        SATCLIP_UNROLL
        for (int n = 0; n < N; ++n) product.vector[n] = vector[n] * other.vector[n];
        return product;
    }
};

template <int N>
struct BandsArithmetic {
    using Value = BandVectors<N>;
    SATCLIP_INLINE Value broadcast(float v) {
        Value value;
        SATCLIP_UNROLL
        for (int n = 0; n < N; ++n) value.vector[n] = SATCLIP_ISA::broadcast(v);
        return value;
    }
    SATCLIP_INLINE Value multiply_add(const Value& a, const Value& b, const Value& c) {
        Value sum;
        SATCLIP_UNROLL
        for (int n = 0; n < N; ++n)
            sum.vector[n] = SATCLIP_ISA::multiply_add(a.vector[n], b.vector[n], c.vector[n]);
        return sum;
    }
};

struct CodesArithmetic {
    using Value = Floats;
    using Integer = Ints;
    SATCLIP_INLINE Floats broadcast(float v) { return SATCLIP_ISA::broadcast(v); }
    SATCLIP_INLINE Ints integer(int v) { return v - Ints{}; }
    SATCLIP_INLINE Ints bits(Floats v) { return (Ints)v; }
    SATCLIP_INLINE Floats minimum(Floats a, Floats b) { return SATCLIP_ISA::minimum(a, b); }
    SATCLIP_INLINE Floats maximum(Floats a, Floats b) { return SATCLIP_ISA::maximum(a, b); }
};

// Whole vectors of bands, or the first `present` of one.
template <bool Whole>
struct BandAccess {
    unsigned present;

    explicit BandAccess(int bands) : present(static_cast<unsigned>(bands) % kLanes) {}

    SATCLIP_MEMBER Floats load(const float* from) const {
        if constexpr (Whole) return SATCLIP_ISA::load(from);
        return load_first(from, present);
    }
    template <int N>
    SATCLIP_MEMBER BandVectors<N> load_vectors(const float* from) const {
        BandVectors<N> value;
        SATCLIP_UNROLL
        for (int n = 0; n < N; ++n) value.vector[n] = load(from + n * kLanes);
        return value;
    }
    template <class T, class V>
    SATCLIP_MEMBER void store(T* to, V values) const {
        if constexpr (Whole)
            std::memcpy(to, &values, sizeof values);
        else
            store_first(to, values, present);
    }
};

// Stores N vectors of bands, as floats or codes; whole ones of floats may be streamed past the caches.
template <class T, int N, bool Whole, bool Streamed>
struct BandWriter {
    typedef T Vector __attribute__((vector_size(kLanes * sizeof(T))));
    BandAccess<Whole> access;
    BandVectors<N> inverse_scale, offset;

    BandWriter(const BandAccess<Whole>& access, const PixelStore& to, int band)
        : access(access),
          inverse_scale(access.template load_vectors<N>(to.inverse_scale + band)),
          offset(access.template load_vectors<N>(to.offset + band)) {}
    SATCLIP_MEMBER void operator()(T* to, const BandVectors<N>& value) const {
        SATCLIP_UNROLL
        for (int n = 0; n < N; ++n) {
            const Ints codes =
                quantise<T, CodesArithmetic>(value.vector[n], inverse_scale.vector[n], offset.vector[n]);
            access.store(to + n * kLanes, __builtin_convertvector(codes, Vector));
        }
    }
};
template <int N, bool Whole, bool Streamed>
struct BandWriter<float, N, Whole, Streamed> {
    BandAccess<Whole> access;

    BandWriter(const BandAccess<Whole>& access, const PixelStore&, int) : access(access) {}
    SATCLIP_MEMBER void operator()(float* to, const BandVectors<N>& value) const {
        SATCLIP_UNROLL
        for (int n = 0; n < N; ++n) {
            if constexpr (Streamed && Whole)
                stream(to + n * kLanes, value.vector[n]);
            else
                access.store(to + n * kLanes, value.vector[n]);
        }
    }
};

// Bands in groups of N vectors, of single ones, and of less than one: body(N, whole, first band, bands).
template <class Body>
SATCLIP_INLINE void for_band_groups(int bands, Body&& body) {
    int band = 0;
    for (; band + kVectorsTogether * kLanes <= bands; band += kVectorsTogether * kLanes)
        body(std::integral_constant<int, kVectorsTogether>(), std::true_type(), band,
             kVectorsTogether * kLanes);
    for (; band + kLanes <= bands; band += kLanes)
        body(std::integral_constant<int, 1>(), std::true_type(), band, kLanes);
    if (band < bands) body(std::integral_constant<int, 1>(), std::false_type(), band, bands - band);
}

template <int Order, class T, bool Streamed>
void pixels_as(const Lattice& lattice, const Stencil& row, const Stencil* columns, int count,
               const PixelStore& to) {
    for_band_groups(lattice.bands, [&](auto together, auto whole, int band, int present) {
        constexpr int N = decltype(together)::value;
        constexpr bool kWhole = decltype(whole)::value;
        const BandAccess<kWhole> access(present);
        const BandWriter<T, N, kWhole, Streamed> write(access, to, band);
        T* out = static_cast<T*>(to.out) + band;
        resample_run<BandsArithmetic<N>, Order>(
            lattice, lattice.data + row.first * lattice.row_stride + band, row, columns, count,
            [&](const float* from) { return access.template load_vectors<N>(from); },
            [&](int j, const BandVectors<N>& value) { write(out + j * to.column_stride, value); });
    });
}

// Points one by one. A row of nodes is summed along the row first, as far as its bands go.
template <int Order, class T>
void points_as(const Lattice& lattice, const Stencil* rows, const Stencil* columns, int count,
               const std::int64_t* index, const PixelStore& to) {
    for_band_groups(lattice.bands, [&](auto together, auto whole, int band, int present) {
        constexpr int N = decltype(together)::value;
        constexpr bool kWhole = decltype(whole)::value;
        using A = BandsArithmetic<N>;
        const BandAccess<kWhole> access(present);
        const BandWriter<T, N, kWhole, false> write(access, to, band);
        T* out = static_cast<T*>(to.out) + band;
        for (int i = 0; i < count; ++i) {
            const Stencil &row = rows[i], &column = columns[i];
            const float* from =
                lattice.data + row.first * lattice.row_stride + column.first * lattice.column_stride + band;
            const auto along = [&](int a) {
                return weighted_sum<A, Order>(column.weight, [&](int b) {
                    return access.template load_vectors<N>(from + a * lattice.row_stride +
                                                           b * lattice.column_stride);
                });
            };
            write(out + index[i] * to.row_stride, weighted_sum<A, Order>(row.weight, along));
        }
    });
}

template <int Order>
struct Interpolation {
    static void pixels(const Lattice& lattice, const Stencil& row, const Stencil* columns, int count,
                       const PixelStore& to) {
        switch (to.type) {
            case StoredType::float32:
                if (!to.streamed) return pixels_as<Order, float, false>(lattice, row, columns, count, to);
                pixels_as<Order, float, true>(lattice, row, columns, count, to);
                return stream_fence();
            case StoredType::int8:
                return pixels_as<Order, std::int8_t, false>(lattice, row, columns, count, to);
            case StoredType::int16:
                return pixels_as<Order, std::int16_t, false>(lattice, row, columns, count, to);
        }
    }
    static void points(const Lattice& lattice, const Stencil* rows, const Stencil* columns, int count,
                       const std::int64_t* index, const PixelStore& to) {
        switch (to.type) {
            case StoredType::float32:
                return points_as<Order, float>(lattice, rows, columns, count, index, to);
            case StoredType::int8:
                return points_as<Order, std::int8_t>(lattice, rows, columns, count, index, to);
            case StoredType::int16:
                return points_as<Order, std::int16_t>(lattice, rows, columns, count, index, to);
        }
    }
};

void resample_pixels(const Lattice& lattice, int order, const Stencil& row, const Stencil* columns, int count,
                     const PixelStore& to) {
    constexpr decltype(&Interpolation<4>::pixels) table[] = {
        Interpolation<4>::pixels, Interpolation<6>::pixels, Interpolation<8>::pixels,
        Interpolation<10>::pixels, Interpolation<12>::pixels};
    table[(order - kMinOrder) / 2](lattice, row, columns, count, to);
}

void resample_points(const Lattice& lattice, int order, const Stencil* rows, const Stencil* columns,
                     int count, const std::int64_t* index, const PixelStore& to) {
    constexpr decltype(&Interpolation<4>::points) table[] = {
        Interpolation<4>::points, Interpolation<6>::points, Interpolation<8>::points,
        Interpolation<10>::points, Interpolation<12>::points};
    table[(order - kMinOrder) / 2](lattice, rows, columns, count, index, to);
}

// Copies past the caches, whole vectors aligned to their size; the ends as usual.
void copy_streaming(const char* from, size_t bytes, char* to) {
    constexpr size_t kVector = sizeof(Floats);
    const size_t unaligned =
        std::min(bytes, (kVector - reinterpret_cast<std::uintptr_t>(to) % kVector) % kVector);
    std::memcpy(to, from, unaligned);
    size_t offset = unaligned;
    for (; offset + kVector <= bytes; offset += kVector) {
        Floats vector;
        std::memcpy(&vector, from + offset, kVector);
        stream(reinterpret_cast<float*>(to + offset), vector);
    }
    std::memcpy(to + offset, from + offset, bytes - offset);
    stream_fence();
}

}  // namespace

extern const ResampleKernels resample_kernels;
const ResampleKernels resample_kernels = {resample_pixels, resample_points, copy_streaming};

}  // namespace satclip::SATCLIP_ISA

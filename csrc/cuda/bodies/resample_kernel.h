// Lattice resampling: a thread computes four bands (or one) of a run of pixels of a row, see csrc/lattice.h.
// The columns of the lattice that it slides over are registers; neighbouring threads have neighbouring bands,
// so reads and writes are whole sectors. There is nothing to share and no barrier: rows of the lattice that
// runs have in common come from L1 and L2. A run of 64 pixels of a raster ten times finer than the lattice
// reads 115 vectors and multiplies 64 · 8 + 14 · 8.
#pragma once

#include "lattice.h"
#include "policy.h"
#include "store_bands.h"

namespace satclip::cuda {

constexpr int kRunPixels = 64;

template <int N>
struct Bands {
    float value[N];
};

template <int N>
struct BandsArithmetic {
    using Value = Bands<N>;
    SATCLIP_HD_INLINE static Value broadcast(float v) {
        Value to;
        SATCLIP_UNROLL
        for (int i = 0; i < N; ++i) to.value[i] = v;
        return to;
    }
    SATCLIP_HD_INLINE static Value multiply_add(const Value& a, const Value& b, const Value& c) {
        Value to;
        SATCLIP_UNROLL
        for (int i = 0; i < N; ++i)
            to.value[i] = Scalar<float>::multiply_add(a.value[i], b.value[i], c.value[i]);
        return to;
    }
};

template <int N>
SATCLIP_HD_INLINE Bands<N> operator*(const Bands<N>& a, const Bands<N>& b) {
    Bands<N> to;
    SATCLIP_UNROLL
    for (int i = 0; i < N; ++i) to.value[i] = a.value[i] * b.value[i];
    return to;
}

template <int Order, int N>
struct Resample {
    static constexpr int kThreads = 256;

    Lattice lattice;
    const Stencil *rows, *columns;
    std::int64_t row_count, column_count;
    PixelStore to;
    bool aligned;  // N bands of a pixel are

    SATCLIP_HD_INLINE std::int64_t items() const { return row_count * runs() * vectors(); }

    template <class P>
    SATCLIP_BODY void operator()(P& p) const {
        p.threads([&](int thread) {
            for (std::int64_t item = p.block() * kThreads + thread; item < items();
                 item += p.blocks() * kThreads)
                run(p, item / vectors() / runs(), item / vectors() % runs() * kRunPixels,
                    static_cast<int>(item % vectors()) * N);
        });
    }

  private:
    SATCLIP_HD_INLINE std::int64_t runs() const { return (column_count + kRunPixels - 1) / kRunPixels; }
    SATCLIP_HD_INLINE std::int64_t vectors() const { return (lattice.bands + N - 1) / N; }

    template <class P>
    SATCLIP_BODY void run(P& p, std::int64_t row, std::int64_t column, int band) const {
        const Stencil& of_row = rows[row];
        const float* nodes = lattice.data + of_row.first * lattice.row_stride + band;
        const std::int64_t remaining = column_count - column;
        resample_run<BandsArithmetic<N>, Order>(
            lattice, nodes, of_row, columns + column,
            remaining < kRunPixels ? static_cast<int>(remaining) : kRunPixels,
            [&](const float* from) { return load(p, from); },
            [&](int j, const Bands<N>& value) {
                store_bands<N>(to, row * to.row_stride + (column + j) * to.column_stride, band, value.value,
                               aligned, lattice.bands - band);
            });
    }

    template <class P>
    SATCLIP_BODY static Bands<N> load(P& p, const float* from) {
        Bands<N> to;
        if constexpr (N == 4) {
            const Words words = p.read(reinterpret_cast<const Words*>(from));
            for (int i = 0; i < N; ++i) to.value[i] = bits_as<float>(words.word[i]);
        } else {
            for (int i = 0; i < N; ++i) to.value[i] = p.read(from + i);
        }
        return to;
    }
};

}  // namespace satclip::cuda

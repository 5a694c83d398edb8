// Products summed over points: Σ_point x[i][point] · y[j][point], for weight gradients and those of the
// contrastive loss.
//
// Both operands lie as the forward kernels leave them, [tile][row][kTile] with points along the lanes, so
// nothing is transposed: each of kDotX × kDotY accumulators holds a partial sum a lane, and lanes are added
// once at the end, by a tree of shuffles. Points that do not exist must be zero in one operand and finite in
// the other.
#pragma once

#include <utility>

#include "gemm.h"

namespace satclip::SATCLIP_ISA {

// Rows of a micro-tile: 24 accumulators for 10 loads with 32 registers, 12 for 7 with 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kDotX = 4, kDotY = 6;
#else
constexpr int kDotX = 3, kDotY = 4;
#endif
constexpr int kDotSums = kDotX * kDotY;

// A matrix over points: row r in tile t begins at data + t·tile + r·kTile.
struct Rows {
    const float* data;
    size_t tile;  // floats from one tile to the next
    int count;
};

template <class Mask, int... J>
SATCLIP_INLINE Floats shuffled(Floats a, Floats b, std::integer_sequence<int, J...>, Mask index) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, index(J)...);
#else
    return __builtin_shuffle(a, b, Ints{index(J)...});
#endif
}

// a and b hold segments of S lanes, each the partial sums of one number; the result holds all of them, in
// order, in segments half as long.
template <int S>
SATCLIP_INLINE Floats fold_segments(Floats a, Floats b) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
    return shuffled(a, b, lanes, [](int j) constexpr { return j / (S / 2) * S + j % (S / 2); }) +
           shuffled(a, b, lanes, [](int j) constexpr { return j / (S / 2) * S + j % (S / 2) + S / 2; });
}

// The sum of the lanes of each of N ≤ kLanes vectors (a power of two) → out[0..N).
template <int N, int S = kLanes>
SATCLIP_INLINE void sum_lanes(const Floats* v, float* out) {
    if constexpr (S == 1) {
        std::memcpy(out, v, sizeof(float) * kLanes);
    } else if constexpr (N == 1) {
        const Floats half = fold_segments<S>(v[0], v[0]);
        sum_lanes<1, S / 2>(&half, out);
    } else {
        Floats half[N / 2];
#pragma GCC unroll 8
        for (int i = 0; i < N / 2; ++i) half[i] = fold_segments<S>(v[2 * i], v[2 * i + 1]);
        sum_lanes<N / 2, S / 2>(half, out);
    }
}

// Sums of a micro-tile, [kDotX][kDotY]; room for a vector beyond.
struct DotSums {
    alignas(64) float value[kDotSums + kLanes];
};

// Rows x0.. of x with rows y0.. of y over `tiles` tiles. Rows beyond the last are computed as the last one.
[[maybe_unused]] static void dot(const Rows& x, int x0, const Rows& y, int y0, int tiles, DotSums& sums) {
    const float *xs[kDotX], *ys[kDotY];
    for (int i = 0; i < kDotX; ++i)
        xs[i] = x.data + static_cast<size_t>(x0 + i < x.count ? x0 + i : x.count - 1) * kTile;
    for (int j = 0; j < kDotY; ++j)
        ys[j] = y.data + static_cast<size_t>(y0 + j < y.count ? y0 + j : y.count - 1) * kTile;
    Floats acc[kDotSums];
#pragma GCC unroll 24
    for (int i = 0; i < kDotSums; ++i) acc[i] = broadcast(0.0f);
    for (int t = 0; t < tiles; ++t) {
        for (int lane = 0; lane < kTile; lane += kLanes) {
            Floats a[kDotX];
#pragma GCC unroll 4
            for (int i = 0; i < kDotX; ++i) a[i] = load(xs[i] + lane);
#pragma GCC unroll 6
            for (int j = 0; j < kDotY; ++j) {
                const Floats b = load(ys[j] + lane);
#pragma GCC unroll 4
                for (int i = 0; i < kDotX; ++i)
                    acc[i * kDotY + j] = multiply_add(a[i], b, acc[i * kDotY + j]);
            }
        }
        for (int i = 0; i < kDotX; ++i) xs[i] += x.tile;
        for (int j = 0; j < kDotY; ++j) ys[j] += y.tile;
    }
    // Groups of a power of two: 16 + 8, 8 + 4 or fours.
    constexpr int group = kLanes < 16 ? kLanes : 16;
    constexpr int whole = kDotSums / group * group;
#pragma GCC unroll 6
    for (int i = 0; i < whole; i += group) sum_lanes<group>(acc + i, sums.value + i);
    if constexpr (whole < kDotSums) sum_lanes<kDotSums - whole>(acc + whole, sums.value + whole);
}

}  // namespace satclip::SATCLIP_ISA

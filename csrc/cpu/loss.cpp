// The contrastive loss on one pair of blocks: rows of a lie along the lanes, rows of b are broadcast.
//
// S exists as micro-tiles of kUnits columns × kTile rows. Going forward, each is added to running sums of
// exponentials a row and a column and forgotten; going back, it is computed again and becomes the
// probabilities P, which for one pair of blocks lie in L2 until they are multiplied with the rows of b and a.
#include "dot.h"
#include "exp.h"

namespace satclip::SATCLIP_ISA {

// At 256 elements a block of a's rows and the P of a pair of blocks take 393 KB each. Measured on a Zen 4
// with 1 MB of L2, backward at N = 16384: 47 G multiply-adds a second, 42 with half as many rows, 44 with
// 288.
constexpr int kMostTiles = 384 / kTile, kMostPanels = 256 / kUnits;
constexpr int kSlots = kUnits > kLanes ? kUnits : kLanes;  // floats of a panel's columns, in whole vectors
constexpr float kNone = -__builtin_inff();

// s[column][kTile] = scale · a · b for a tile of a's rows and a panel of b's. Not inlined: amid other code
// GCC keeps AVX2's accumulators in memory, at half the speed.
static __attribute__((noinline)) void similarities(const float* tile, const float* panel, int embed,
                                                   float scale, float* s) {
    Floats acc[kUnits * 3];
#pragma GCC unroll 24
    for (int i = 0; i < kUnits * 3; ++i) acc[i] = all(0.0f);
    accumulate<3>(tile, panel, embed, acc);
#pragma GCC unroll 24
    for (int i = 0; i < kUnits * 3; ++i) store(s + i * kLanes, all(scale) * acc[i]);
}

// Which rows and columns of S a micro-tile is.
struct Place {
    int row, column;    // the first ones
    int rows, columns;  // how many there are; the rest are missing
};

static Place place_of(const LossOperands& o, int tile, int panel) {
    Place at = {tile * kTile, panel * kUnits, kTile, kUnits};
    if (o.rows - at.row < kTile) at.rows = o.rows - at.row;
    if (o.columns - at.column < kUnits) at.columns = o.columns - at.column;
    return at;
}

static void fill_missing(const Place& at, float value, float* s) {
    for (int u = 0; u < kUnits; ++u)
        for (int i = u < at.columns ? at.rows : 0; i < kTile; ++i) s[u * kTile + i] = value;
}

// partner(row of a, its place in the micro-tile) for each row whose partner is in this micro-tile.
template <class Partner>
SATCLIP_INLINE void each_partner(const LossOperands& o, const Place& at, Partner&& partner) {
    for (int u = 0; u < at.columns; ++u) {
        const ptrdiff_t i = at.column + u - o.offset - at.row;
        if (i >= 0 && i < at.rows) partner(at.row + static_cast<int>(i), u * kTile + static_cast<int>(i));
    }
}

// Sums of exponentials are kept as Σ exp(S − top), top being the largest S so far. The first `top` is −∞ and
// its sum 0. NaN may be lost in a maximum, but never in the sum.
SATCLIP_INLINE Floats rescaled(Floats sum, Floats before, Floats now) {
    return sum * exponential(before - now);
}

static void add_to_rows(const float* s, float* top, float* sum) {
    for (int r = 0; r < kTile; r += kLanes) {
        const Floats before = load(top + r);
        Floats most = before;
#pragma GCC unroll 8
        for (int u = 0; u < kUnits; ++u) most = larger(load(s + u * kTile + r), most);
        Floats total = rescaled(load(sum + r), before, most);
#pragma GCC unroll 8
        for (int u = 0; u < kUnits; ++u) total += exponential(load(s + u * kTile + r) - most);
        store(top + r, most);
        store(sum + r, total);
    }
}

template <int S>
SATCLIP_INLINE Floats larger_segments(Floats a, Floats b) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
    return larger(
        shuffled(a, b, lanes, [](int j) constexpr { return j / (S / 2) * S + j % (S / 2); }),
        shuffled(a, b, lanes, [](int j) constexpr { return j / (S / 2) * S + j % (S / 2) + S / 2; }));
}

// The largest lane of each of N ≤ kLanes vectors (a power of two) → the first N lanes; as sum_lanes.
template <int N, int S = kLanes>
SATCLIP_INLINE Floats largest_lanes(const Floats* v) {
    if constexpr (S == 1) {
        return v[0];
    } else if constexpr (N == 1) {
        const Floats half = larger_segments<S>(v[0], v[0]);
        return largest_lanes<1, S / 2>(&half);
    } else {
        Floats half[N / 2];
#pragma GCC unroll 8
        for (int i = 0; i < N / 2; ++i) half[i] = larger_segments<S>(v[2 * i], v[2 * i + 1]);
        return largest_lanes<N / 2, S / 2>(half);
    }
}

// kGroup columns at a time: as many as fit one vector.
static void add_to_columns(const float* s, float* top, float* sum) {
    constexpr int kGroup = kUnits < kLanes ? kUnits : kLanes;
    for (int first = 0; first < kUnits; first += kGroup) {
        Floats most[kGroup], part[kGroup];
#pragma GCC unroll 8
        for (int u = 0; u < kGroup; ++u) {
            const float* column = s + (first + u) * kTile;
            most[u] = larger(load(column), larger(load(column + kLanes), load(column + 2 * kLanes)));
        }
        const Floats before = load(top + first), now = larger(largest_lanes<kGroup>(most), before);
        store(top + first, now);
#pragma GCC unroll 8
        for (int u = 0; u < kGroup; ++u) {
            const float* column = s + (first + u) * kTile;
            const Floats base = all(top[first + u]);
            part[u] = exponential(load(column) - base) + exponential(load(column + kLanes) - base) +
                      exponential(load(column + 2 * kLanes) - base);
        }
        alignas(64) float added[kLanes];
        sum_lanes<kGroup>(part, added);
        store(sum + first, rescaled(load(sum + first), before, now) + load(added));
    }
}

// Sums over one block are made on their own before they are added: shorter chains, smaller rounding.
static void merge(const float* top, const float* sum, int count, float* all_top, float* all_sum) {
    for (int i = 0; i < count; i += kLanes) {
        const Floats before = load(all_top + i), here = load(top + i), most = larger(here, before);
        store(all_sum + i, rescaled(load(all_sum + i), before, most) + rescaled(load(sum + i), here, most));
        store(all_top + i, most);
    }
}

static void loss_forward(const LossOperands& o, const LossBlock& block, const LossSums& sums) {
    const size_t tile_size = static_cast<size_t>(o.embed) * kTile;
    const size_t panel_size = static_cast<size_t>(o.embed) * kUnits;
    alignas(64) float row_top[kMostTiles * kTile], row_sum[kMostTiles * kTile] = {}, s[kUnits * kTile];
    for (float& top : row_top) top = kNone;
    for (int panel = block.panel; panel < block.panel + block.panels; ++panel) {
        alignas(64) float column_top[kSlots], column_sum[kSlots] = {};
        for (float& top : column_top) top = kNone;
        for (int t = 0; t < block.tiles; ++t) {
            const Place at = place_of(o, block.tile + t, panel);
            similarities(o.a_tiles + (block.tile + t) * tile_size, o.b_panels + panel * panel_size, o.embed,
                         o.scale, s);
            if (at.rows < kTile || at.columns < kUnits) fill_missing(at, kNone, s);
            each_partner(o, at, [&](int row, int i) { sums.partner[row] = s[i]; });
            add_to_rows(s, row_top + t * kTile, row_sum + t * kTile);
            add_to_columns(s, column_top, column_sum);
        }
        const size_t slot = static_cast<size_t>(panel) * kSlots;
        merge(column_top, column_sum, kSlots, sums.column_top + slot, sums.column_sum + slot);
    }
    const size_t row = static_cast<size_t>(block.tile) * kTile;
    merge(row_top, row_sum, block.tiles * kTile, sums.row_top + row, sums.row_sum + row);
}

// p = exp(S − row_lse) + exp(S − column_lse), the gradient of the loss in units of factor but for the
// partners' −2; d[column][kTile] are the products a·b.
static void probabilities(const float* d, float scale, const float* row_lse, const float* column_lse,
                          float* p) {
    for (int u = 0; u < kUnits; ++u)
#pragma GCC unroll 3
        for (int r = 0; r < kTile; r += kLanes) {
            const Floats s = all(scale) * load(d + u * kTile + r);
            store(p + u * kTile + r,
                  exponential(s - load(row_lse + r)) + exponential(s - all(column_lse[u])));
        }
}

// P[tile][column of the block][kTile] of a pair of blocks; returns Σ P · (a·b).
static double block_probabilities(const LossOperands& o, const LossBlock& block, const LossGradient& g,
                                  float* all_p) {
    const size_t tile_size = static_cast<size_t>(o.embed) * kTile;
    const size_t panel_size = static_cast<size_t>(o.embed) * kUnits;
    alignas(64) float d[kUnits * kTile];
    double sum = 0.0;
    for (int n = 0; n < block.panels; ++n) {
        const int panel = block.panel + n;
        Floats along = all(0.0f);
        for (int t = 0; t < block.tiles; ++t) {
            const Place at = place_of(o, block.tile + t, panel);
            float* p = all_p + static_cast<size_t>(t * block.panels + n) * kUnits * kTile;
            similarities(o.a_tiles + (block.tile + t) * tile_size, o.b_panels + panel * panel_size, o.embed,
                         1.0f, d);
            probabilities(d, o.scale, g.row_lse + at.row, g.column_lse + at.column, p);
            if (at.rows < kTile || at.columns < kUnits) fill_missing(at, 0.0f, p);
            each_partner(o, at, [&](int, int i) { p[i] -= 2.0f; });
            for (int i = 0; i < kUnits * kTile; i += kLanes) along = fused(load(p + i), load(d + i), along);
        }
        for (int i = 0; i < kLanes; ++i) sum += along[i];
    }
    return sum;
}

// Rows of an operand with `vectors` vectors of their elements along the lanes: row i at data + i·width.
struct Chunk {
    const float* data;
    int width;
    int first;    // element of the row
    int present;  // elements that exist
};

template <class Body>
SATCLIP_INLINE void each_chunk(const float* chunks, int count, int embed, Body&& body) {
    for (int first = 0; first < embed; first += kTile) {
        const int present = embed - first < kTile ? embed - first : kTile;
        const int width = (present + kLanes - 1) / kLanes * kLanes;
        body(Chunk{chunks + static_cast<size_t>(first) * count, width, first, present});
    }
}

// acc[u][R·lanes] += Σ_k w[k·Step + u·Unit] · x[k][R·lanes]: P is read as it lies, along rows or columns.
template <int R, int Units, int Unit, int Step>
SATCLIP_INLINE void accumulate_scattered(const float* x, const float* w, int steps, Floats* acc) {
    for (int k = 0; k < steps; ++k) {
        Floats lanes[R];
#pragma GCC unroll 3
        for (int r = 0; r < R; ++r) lanes[r] = load(x + r * kLanes);
#pragma GCC unroll 8
        for (int u = 0; u < Units; ++u) {
            const Floats weight = all(w[u * Unit]);
#pragma GCC unroll 3
            for (int r = 0; r < R; ++r) acc[u * R + r] = fused(weight, lanes[r], acc[u * R + r]);
        }
        x += R * kLanes;
        w += Step;
    }
}

// out[row][element of the chunk] += factor · acc[row][R·lanes]
template <int R, int Units>
SATCLIP_INLINE void add_rows(const Floats* acc, float factor, int rows, const Chunk& chunk, int embed,
                             float* out) {
    alignas(64) float sums[Units * R * kLanes];
#pragma GCC unroll 24
    for (int i = 0; i < Units * R; ++i) store(sums + i * kLanes, acc[i]);
    for (int u = 0; u < rows; ++u) {
        float* to = out + static_cast<ptrdiff_t>(u) * embed + chunk.first;
        const float* from = sums + u * R * kLanes;
        int i = 0;
        for (; i + kLanes <= chunk.present; i += kLanes)
            store(to + i, fused(all(factor), load(from + i), load(to + i)));
        for (; i < chunk.present; ++i) to[i] += factor * from[i];
    }
}

// As many rows of da at once as divide a tile.
constexpr int kRowGroup = kTile % kUnits ? kTile / 2 : kUnits;

// da[row] += factor · Σ_column P · b[column]
template <int R>
static void row_gradients(const LossOperands& o, const LossBlock& block, const Chunk& b, const float* p,
                          const LossGradient& g) {
    const int column = block.panel * kUnits, most = block.panels * kUnits;
    const int columns = o.columns - column < most ? o.columns - column : most;
    const float* x = b.data + static_cast<size_t>(column) * b.width;
    for (int t = 0; t < block.tiles; ++t)
        for (int i = 0; i < kTile; i += kRowGroup) {
            const int row = (block.tile + t) * kTile + i;
            if (row >= o.rows) break;
            Floats acc[kRowGroup * R];
#pragma GCC unroll 24
            for (int n = 0; n < kRowGroup * R; ++n) acc[n] = all(0.0f);
            accumulate_scattered<R, kRowGroup, 1, kTile>(x, p + static_cast<size_t>(t) * most * kTile + i,
                                                         columns, acc);
            add_rows<R, kRowGroup>(acc, g.factor, o.rows - row < kRowGroup ? o.rows - row : kRowGroup, b,
                                   o.embed, g.da + static_cast<ptrdiff_t>(row) * o.embed);
        }
}

// db[column] += factor · Σ_row P · a[row]
template <int R>
static void column_gradients(const LossOperands& o, const LossBlock& block, const Chunk& a, const float* p,
                             const LossGradient& g) {
    const int most = block.panels * kUnits;
    for (int j = 0; j < most; j += kUnits) {
        const int column = block.panel * kUnits + j;
        Floats acc[kUnits * R];
#pragma GCC unroll 24
        for (int n = 0; n < kUnits * R; ++n) acc[n] = all(0.0f);
        for (int t = 0; t < block.tiles; ++t) {
            const int row = (block.tile + t) * kTile;
            accumulate_scattered<R, kUnits, kTile, 1>(a.data + static_cast<size_t>(row) * a.width,
                                                      p + (static_cast<size_t>(t) * most + j) * kTile,
                                                      o.rows - row < kTile ? o.rows - row : kTile, acc);
        }
        add_rows<R, kUnits>(acc, g.factor, o.columns - column < kUnits ? o.columns - column : kUnits, a,
                            o.embed, g.db + static_cast<ptrdiff_t>(column) * o.embed);
    }
}

using Gradients = void (*)(const LossOperands&, const LossBlock&, const Chunk&, const float*,
                           const LossGradient&);
constexpr Gradients kRowGradients[4] = {nullptr, row_gradients<1>, row_gradients<2>, row_gradients<3>};
constexpr Gradients kColumnGradients[4] = {nullptr, column_gradients<1>, column_gradients<2>,
                                           column_gradients<3>};

static double loss_backward(const LossOperands& o, const LossBlock& block, const LossGradient& g,
                            float* scratch) {
    const double sum = block_probabilities(o, block, g, scratch);
    each_chunk(o.b_chunks, o.columns, o.embed,
               [&](const Chunk& b) { kRowGradients[b.width / kLanes](o, block, b, scratch, g); });
    each_chunk(o.a_chunks, o.rows, o.embed,
               [&](const Chunk& a) { kColumnGradients[a.width / kLanes](o, block, a, scratch, g); });
    return sum;
}

static void exponentials(const float* x, size_t count, float* out) {
    for (size_t at = 0; at < count; at += kLanes) {
        alignas(64) float part[kLanes] = {};
        const size_t here = count - at < kLanes ? count - at : kLanes;
        std::memcpy(part, x + at, here * sizeof(float));
        store(part, exponential(load(part)));
        std::memcpy(out + at, part, here * sizeof(float));
    }
}

extern const LossKernels loss_kernels;
const LossKernels loss_kernels = {kLanes,      kTile,        kUnits,        kSlots,      kMostTiles,
                                  kMostPanels, loss_forward, loss_backward, exponentials};

}  // namespace satclip::SATCLIP_ISA

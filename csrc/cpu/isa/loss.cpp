// Contrastive loss on one pair of blocks: rows of a lie along the lanes, rows of b are broadcast.
//
// S exists as micro-tiles of kUnits columns × kTile rows. Going forward, each is added to running sums of
// exponentials a row and a column and dropped; going back, it is computed again and becomes the
// probabilities P, which for one pair of blocks lie in L2 until they are multiplied with the rows of b and a.
#include "dot.h"
#include "exp.h"

namespace satclip::SATCLIP_ISA {

// At 256 elements a block of a's rows and the P of a pair of blocks take 393 KB each. Measured on a Zen 4
// with 1 MB of L2, backward at N = 16384: 47 G multiply-adds a second, 42 with half as many rows, 44 with
// 288.
constexpr int kMaxBlockTiles = 384 / kTile, kMaxBlockPanels = 256 / kUnits;
constexpr int kPanelSlots =
    kUnits > kLanes ? kUnits : kLanes;  // floats of a panel's columns, in whole vectors
constexpr float kMinusInfinity = -__builtin_inff();

// s[column][kTile] = scale · a · b for a tile of a's rows and a panel of b's. Not inlined: amid other code
// GCC keeps AVX2's accumulators in memory, at half the speed.
static __attribute__((noinline)) void similarities(const float* tile, const float* panel, int embed,
                                                   float scale, float* s) {
    Floats acc[kUnits * 3];
#pragma GCC unroll 24
    for (int i = 0; i < kUnits * 3; ++i) acc[i] = broadcast(0.0f);
    accumulate<3>(tile, panel, embed, acc);
#pragma GCC unroll 24
    for (int i = 0; i < kUnits * 3; ++i) store(s + i * kLanes, broadcast(scale) * acc[i]);
}

// Rows and columns of S that a micro-tile covers.
struct MicroTile {
    int row, column;    // the first ones
    int rows, columns;  // how many there are; the rest are missing
};

static MicroTile micro_tile_of(const LossOperands& o, int tile, int panel) {
    MicroTile micro = {tile * kTile, panel * kUnits, kTile, kUnits};
    if (o.rows - micro.row < kTile) micro.rows = o.rows - micro.row;
    if (o.columns - micro.column < kUnits) micro.columns = o.columns - micro.column;
    return micro;
}

static void fill_missing(const MicroTile& micro, float value, float* s) {
    for (int u = 0; u < kUnits; ++u)
        for (int i = u < micro.columns ? micro.rows : 0; i < kTile; ++i) s[u * kTile + i] = value;
}

// partner(row of a, index in the micro-tile) for each row whose partner is in this micro-tile.
template <class Partner>
SATCLIP_INLINE void for_partners(const LossOperands& o, const MicroTile& micro, Partner&& partner) {
    for (int u = 0; u < micro.columns; ++u) {
        const ptrdiff_t i = micro.column + u - o.offset - micro.row;
        if (i >= 0 && i < micro.rows)
            partner(micro.row + static_cast<int>(i), u * kTile + static_cast<int>(i));
    }
}

// Running sums of exponentials are Σ exp(S − max), max being the largest S so far. The first `max` is −∞ and
// its sum 0. NaN may be lost in a maximum, but never in the sum.
SATCLIP_INLINE Floats rescaled(Floats sum, Floats before, Floats now) {
    return sum * exponential(before - now);
}

static void add_to_rows(const float* s, float* running_max, float* sum) {
    for (int r = 0; r < kTile; r += kLanes) {
        const Floats before = load(running_max + r);
        Floats largest = before;
#pragma GCC unroll 8
        for (int u = 0; u < kUnits; ++u) largest = maximum(load(s + u * kTile + r), largest);
        Floats total = rescaled(load(sum + r), before, largest);
#pragma GCC unroll 8
        for (int u = 0; u < kUnits; ++u) total += exponential(load(s + u * kTile + r) - largest);
        store(running_max + r, largest);
        store(sum + r, total);
    }
}

template <int S>
SATCLIP_INLINE Floats larger_segments(Floats a, Floats b) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
    return maximum(
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
static void add_to_columns(const float* s, float* running_max, float* sum) {
    constexpr int kGroup = kUnits < kLanes ? kUnits : kLanes;
    for (int first = 0; first < kUnits; first += kGroup) {
        Floats largest[kGroup], group_sum[kGroup];
#pragma GCC unroll 8
        for (int u = 0; u < kGroup; ++u) {
            const float* column = s + (first + u) * kTile;
            largest[u] = maximum(load(column), maximum(load(column + kLanes), load(column + 2 * kLanes)));
        }
        const Floats before = load(running_max + first),
                     now = maximum(largest_lanes<kGroup>(largest), before);
        store(running_max + first, now);
#pragma GCC unroll 8
        for (int u = 0; u < kGroup; ++u) {
            const float* column = s + (first + u) * kTile;
            const Floats base = broadcast(running_max[first + u]);
            group_sum[u] = exponential(load(column) - base) + exponential(load(column + kLanes) - base) +
                           exponential(load(column + 2 * kLanes) - base);
        }
        alignas(64) float added[kLanes];
        sum_lanes<kGroup>(group_sum, added);
        store(sum + first, rescaled(load(sum + first), before, now) + load(added));
    }
}

// Sums over one block are computed on their own before they are added: shorter chains, smaller rounding.
static void merge(const float* block_max, const float* block_sum, int count, float* all_max, float* all_sum) {
    for (int i = 0; i < count; i += kLanes) {
        const Floats before = load(all_max + i), current = load(block_max + i),
                     largest = maximum(current, before);
        store(all_sum + i,
              rescaled(load(all_sum + i), before, largest) + rescaled(load(block_sum + i), current, largest));
        store(all_max + i, largest);
    }
}

static void loss_forward(const LossOperands& o, const LossBlock& block, const LossSums& sums) {
    const size_t tile_size = static_cast<size_t>(o.embed) * kTile;
    const size_t panel_size = static_cast<size_t>(o.embed) * kUnits;
    alignas(64) float row_max[kMaxBlockTiles * kTile], row_sum[kMaxBlockTiles * kTile] = {};
    alignas(64) float s[kUnits * kTile];
    for (float& value : row_max) value = kMinusInfinity;
    for (int panel = block.panel; panel < block.panel + block.panels; ++panel) {
        alignas(64) float column_max[kPanelSlots], column_sum[kPanelSlots] = {};
        for (float& value : column_max) value = kMinusInfinity;
        for (int t = 0; t < block.tiles; ++t) {
            const MicroTile micro = micro_tile_of(o, block.tile + t, panel);
            similarities(o.a_tiles + (block.tile + t) * tile_size, o.b_panels + panel * panel_size, o.embed,
                         o.scale, s);
            if (micro.rows < kTile || micro.columns < kUnits) fill_missing(micro, kMinusInfinity, s);
            for_partners(o, micro, [&](int row, int i) { sums.partner[row] = s[i]; });
            add_to_rows(s, row_max + t * kTile, row_sum + t * kTile);
            add_to_columns(s, column_max, column_sum);
        }
        const size_t slot = static_cast<size_t>(panel) * kPanelSlots;
        merge(column_max, column_sum, kPanelSlots, sums.column_max + slot, sums.column_sum + slot);
    }
    const size_t row = static_cast<size_t>(block.tile) * kTile;
    merge(row_max, row_sum, block.tiles * kTile, sums.row_max + row, sums.row_sum + row);
}

// p = exp(S − row_lse) + exp(S − column_lse), the gradient of the loss in units of factor but for the
// partners' −2; d[column][kTile] are the products a·b.
static void probabilities(const float* d, float scale, const float* row_lse, const float* column_lse,
                          float* p) {
    for (int u = 0; u < kUnits; ++u)
#pragma GCC unroll 3
        for (int r = 0; r < kTile; r += kLanes) {
            const Floats s = broadcast(scale) * load(d + u * kTile + r);
            store(p + u * kTile + r,
                  exponential(s - load(row_lse + r)) + exponential(s - broadcast(column_lse[u])));
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
        Floats dots = broadcast(0.0f);
        for (int t = 0; t < block.tiles; ++t) {
            const MicroTile micro = micro_tile_of(o, block.tile + t, panel);
            float* p = all_p + static_cast<size_t>(t * block.panels + n) * kUnits * kTile;
            similarities(o.a_tiles + (block.tile + t) * tile_size, o.b_panels + panel * panel_size, o.embed,
                         1.0f, d);
            probabilities(d, o.scale, g.row_lse + micro.row, g.column_lse + micro.column, p);
            if (micro.rows < kTile || micro.columns < kUnits) fill_missing(micro, 0.0f, p);
            for_partners(o, micro, [&](int, int i) { p[i] -= 2.0f; });
            for (int i = 0; i < kUnits * kTile; i += kLanes)
                dots = multiply_add(load(p + i), load(d + i), dots);
        }
        for (int i = 0; i < kLanes; ++i) sum += dots[i];
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
SATCLIP_INLINE void for_chunks(const float* chunks, int count, int embed, Body&& body) {
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
            const Floats weight = broadcast(w[u * Unit]);
#pragma GCC unroll 3
            for (int r = 0; r < R; ++r) acc[u * R + r] = multiply_add(weight, lanes[r], acc[u * R + r]);
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
            store(to + i, multiply_add(broadcast(factor), load(from + i), load(to + i)));
        for (; i < chunk.present; ++i) to[i] += factor * from[i];
    }
}

// As many rows of da at once as divide a tile.
constexpr int kRowGroup = kTile % kUnits ? kTile / 2 : kUnits;

// da[row] += factor · Σ_column P · b[column]
template <int R>
static void row_gradients(const LossOperands& o, const LossBlock& block, const Chunk& b, const float* p,
                          const LossGradient& g) {
    const int column = block.panel * kUnits, padded = block.panels * kUnits;
    const int columns = o.columns - column < padded ? o.columns - column : padded;
    const float* x = b.data + static_cast<size_t>(column) * b.width;
    for (int t = 0; t < block.tiles; ++t)
        for (int i = 0; i < kTile; i += kRowGroup) {
            const int row = (block.tile + t) * kTile + i;
            if (row >= o.rows) break;
            Floats acc[kRowGroup * R];
#pragma GCC unroll 24
            for (int n = 0; n < kRowGroup * R; ++n) acc[n] = broadcast(0.0f);
            accumulate_scattered<R, kRowGroup, 1, kTile>(x, p + static_cast<size_t>(t) * padded * kTile + i,
                                                         columns, acc);
            add_rows<R, kRowGroup>(acc, g.factor, o.rows - row < kRowGroup ? o.rows - row : kRowGroup, b,
                                   o.embed, g.da + static_cast<ptrdiff_t>(row) * o.embed);
        }
}

// db[column] += factor · Σ_row P · a[row]
template <int R>
static void column_gradients(const LossOperands& o, const LossBlock& block, const Chunk& a, const float* p,
                             const LossGradient& g) {
    const int padded = block.panels * kUnits;
    for (int j = 0; j < padded; j += kUnits) {
        const int column = block.panel * kUnits + j;
        Floats acc[kUnits * R];
#pragma GCC unroll 24
        for (int n = 0; n < kUnits * R; ++n) acc[n] = broadcast(0.0f);
        for (int t = 0; t < block.tiles; ++t) {
            const int row = (block.tile + t) * kTile;
            accumulate_scattered<R, kUnits, kTile, 1>(a.data + static_cast<size_t>(row) * a.width,
                                                      p + (static_cast<size_t>(t) * padded + j) * kTile,
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
    for_chunks(o.b_chunks, o.columns, o.embed,
               [&](const Chunk& b) { kRowGradients[b.width / kLanes](o, block, b, scratch, g); });
    for_chunks(o.a_chunks, o.rows, o.embed,
               [&](const Chunk& a) { kColumnGradients[a.width / kLanes](o, block, a, scratch, g); });
    return sum;
}

static void exponentials(const float* x, size_t count, float* out) {
    for (size_t begin = 0; begin < count; begin += kLanes) {
        alignas(64) float values[kLanes] = {};
        const size_t present = count - begin < kLanes ? count - begin : kLanes;
        std::memcpy(values, x + begin, present * sizeof(float));
        store(values, exponential(load(values)));
        std::memcpy(out + begin, values, present * sizeof(float));
    }
}

extern const LossKernels loss_kernels;
const LossKernels loss_kernels = {kLanes,          kTile,        kUnits,        kPanelSlots, kMaxBlockTiles,
                                  kMaxBlockPanels, loss_forward, loss_backward, exponentials};

}  // namespace satclip::SATCLIP_ISA

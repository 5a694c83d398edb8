// CUDA kernels of product grids:
//
//     FourierBasis     cos(m·lon), sin(m·lon) of every column, once a call
//     RowCoefficients  Σ_l P(l,m)(x) · W[unit, (l, ±m)] of a chunk of rows
//     EncodePixels     64 pixels of a row: basis · coefficients, sine, hidden layers, last layer, store
//
// Why 64 pixels × 8 warps × up to 512 units, one block to a multiprocessor: 64 × 512 sums are 128 registers
// in each of 256 threads, half of all there are, so a layer is one panel and its results may overwrite its
// inputs in shared memory (128 KB of float32, 64 KB of float16; with 34 KB for stores, sm_80's 163 KB). Each
// warp has outputs of its own and all 64 pixels, so no two warps read the same weights: these come as whole
// fragments from L2 to registers, one step ahead, 16 bytes a lane, without shared memory and barriers. In a
// step a warp reads 2 KB of activations for 32 fragments' multiplications of 8 clocks (sm_80; float32: 96), a
// quarter of shared memory's rate for its share of a multiprocessor. Weights cross from L2 once for 64
// pixels: at sm_80's full rate that is 32 B/clk of float16, about what L2 gives a multiprocessor, and 11
// B/clk of float32. On sm_90 mma.sync is faster than that: there float16 layers wait for L2, by estimate at
// 45 % of the tensor cores' peak; more pixels would need more registers than there are. Layers wider than 512
// go panel by panel from one buffer in global memory to another, as do all where shared memory is too small.
//
// A pixel's sums run over l, m and inputs in their order and do not depend on the window.
#pragma once

#include "fragments.h"
#include "harmonics.h"
#include "sine.h"
#include "store_bands.h"

namespace satclip::cuda {

constexpr int kWarps = 8;
constexpr int kTileFragments = 4;                              // fragments of 16 pixels
constexpr int kTilePixels = kTileFragments * kFragmentPixels;  // of a block
constexpr int kGroupsOfWarp = 4, kFewGroups = 2;               // in a panel
constexpr int kUnitsOfGroups = kWarps * kGroup;
constexpr int kMaxPanelUnits = kGroupsOfWarp * kUnitsOfGroups;  // of a panel
constexpr int kOrdersOfStep = Exact::kStep / 2;
constexpr int kRowsTogether = 8;  // that share a contraction

// A layer in groups of 16 outputs: group (panel · groups + j) · kWarps + warp is warp's j-th of a panel. A
// warp reads its weights straight on.
struct DenseView {
    const Words* weight;  // [panel][warp][step][j][lane]; the first layer's are RowCoefficients
    const float* bias;    // [padded outputs]
    int steps;            // of inputs
    int groups;           // of a warp in a panel: kGroupsOfWarp or kFewGroups
    int panels;
    int outputs;
};

struct GridNetwork {
    int degrees;
    const double *a, *c;      // of the recurrence, see LegendreTable
    const double* diagonal;   // [degrees]
    const Pair* first;        // [order m, l = m .. L−1][padded outputs], (−1)^m in it
    int hidden;               // sine layers
    const DenseView* layers;  // [hidden + 1]
    DenseView first_layer;    // layers[0], at hand on the host
    int widest;               // padded outputs of the widest sine layer
    int bands;
};

SATCLIP_HD_INLINE int padded_outputs(const DenseView& layer) {
    return layer.panels * layer.groups * kUnitsOfGroups;
}
SATCLIP_HD_INLINE std::ptrdiff_t panel_words(const DenseView& layer) {
    return static_cast<std::ptrdiff_t>(padded_outputs(layer) / kGroup) * layer.steps * kWarp;
}

// Offset of the fragment of a group at a step.
SATCLIP_HD_INLINE std::ptrdiff_t weight_fragment(const DenseView& layer, int group, int step) {
    const int slot = group / kWarps, warps_before = slot / layer.groups * kWarps + group % kWarps;
    return ((static_cast<std::ptrdiff_t>(warps_before) * layer.steps + step) * layer.groups +
            slot % layer.groups) *
           kWarp;
}

// Activations: [step][fragment of pixels][lane]
template <class Operands>
SATCLIP_HD_INLINE std::ptrdiff_t activation_words(int padded) {
    return static_cast<std::ptrdiff_t>(padded / Operands::kStep) * kTileFragments * kWarp;
}

struct FourierBasis {
    static constexpr int kThreads = kTilePixels;

    int degrees, steps;
    const SineCosine* columns;
    std::int64_t count;
    Words* fourier_basis;  // [tile of columns][step][fragment][lane]; zeros beyond count and beyond degrees

    template <class P>
    SATCLIP_BODY void operator()(P& p) const {
        for (std::int64_t tile = p.block(); tile * kTilePixels < count; tile += p.blocks())
            p.threads([&](int thread) { column(tile, thread); });
    }

  private:
    SATCLIP_BODY void column(std::int64_t tile, int pixel) const {
        const std::int64_t index = tile * kTilePixels + pixel;
        const SineCosine first = index < count ? columns[index] : SineCosine{0.0, 0.0};
        const double unity = index < count ? 1.0 + (first.cosine - first.cosine) : 0.0;  // NaN stays NaN
        double cosine = unity, sine = first.sine - first.sine;
        const int g = pixel % 8, upper = pixel / 8 % 2, fragment = pixel / kFragmentPixels;
        float* to =
            reinterpret_cast<float*>(fourier_basis + (tile * steps * kTileFragments + fragment) * kWarp);
        for (int m = 0; m < steps * kOrdersOfStep; ++m) {
            if (m) next_multiple(cosine, sine, first.cosine, first.sine);
            float* pair =
                to + (m / kOrdersOfStep * kTileFragments * kWarp + g * 4 + m % kOrdersOfStep) * 4 + upper;
            pair[0] = m < degrees ? static_cast<float>(cosine) : 0.0f;
            pair[2] = m < degrees ? static_cast<float>(sine) : 0.0f;
        }
    }
};

struct RowCoefficients {
    static constexpr int kThreads = 128;

    GridNetwork network;
    const SineCosine* rows;
    int count;
    float* coefficients;  // [row] as weights of a layer

    int orders() const { return network.first_layer.steps * kOrdersOfStep; }
    Blocks blocks() const {
        return {static_cast<std::int64_t>(orders()) * ((count + kRowsTogether - 1) / kRowsTogether),
                network.degrees * kRowsTogether * static_cast<int>(sizeof(float))};
    }

    template <class P>
    SATCLIP_BODY void operator()(P& p) const {
        const int orders = network.first_layer.steps * kOrdersOfStep;
        const int m = static_cast<int>(p.block() % orders);
        const int first = static_cast<int>(p.block() / orders) * kRowsTogether;
        float* legendre = p.template shared<float>();  // [l − m][row]
        if (m < network.degrees)
            p.threads([&](int thread) {
                if (thread < kRowsTogether) write_legendre(m, first + thread, legendre + thread);
            });
        p.barrier();
        p.threads([&](int thread) {
            for (int unit = thread; unit < padded_outputs(network.first_layer); unit += kThreads)
                contract(p, m, first, unit, legendre);
        });
    }

  private:
    SATCLIP_BODY void write_legendre(int m, int row, float* to) const {
        const SineCosine of = rows[row < count ? row : count - 1];
        const double x = -of.sine;
        double sectoral = kLegendre00 + (x - x);
        for (int k = 1; k <= m; ++k)
            sectoral = flush_tiny<Scalar<double>>(sectoral * (of.cosine * network.diagonal[k]));
        const std::size_t offset = legendre_offset(network.degrees, m);
        legendre_recurrence<Scalar<double>>(network.a + offset, network.c + offset, network.degrees, m, x,
                                            sectoral * (m ? kSqrt2 : 1.0), [&](int l, double p) {
                                                const bool tiny = p < kHarmonicTiny && p > -kHarmonicTiny;
                                                to[(l - m) * kRowsTogether] =
                                                    tiny ? 0.0f : static_cast<float>(p);
                                            });
    }

    // Beyond L − 1 there is nothing to sum: zeros fill the last step.
    template <class P>
    SATCLIP_BODY void contract(P& p, int m, int first, int unit, const float* legendre) const {
        float cosine[kRowsTogether] = {}, sine[kRowsTogether] = {};
        const int padded = padded_outputs(network.first_layer),
                  terms = m < network.degrees ? network.degrees - m : 0;
        const Pair* weight = network.first + legendre_offset(network.degrees, terms ? m : 0) * padded + unit;
        for (int l = 0; l < terms; ++l, weight += padded, legendre += kRowsTogether) {
            const Pair w = p.read(weight);
            SATCLIP_UNROLL
            for (int r = 0; r < kRowsTogether; ++r) {
                cosine[r] = Scalar<float>::multiply_add(w.cosine, legendre[r], cosine[r]);
                sine[r] = Scalar<float>::multiply_add(w.sine, legendre[r], sine[r]);
            }
        }
        const std::ptrdiff_t fragment =
            weight_fragment(network.first_layer, unit / kGroup, m / kOrdersOfStep);
        const int word = Exact::word_of_weight(m % kOrdersOfStep * 2, unit % kGroup);
        float* to = coefficients + (first * panel_words(network.first_layer) + fragment) * 4 + word;
        SATCLIP_UNROLL
        for (int r = 0; r < kRowsTogether; ++r, to += panel_words(network.first_layer) * 4)
            if (first + r < count) *reinterpret_cast<Pair*>(to) = {cosine[r], sine[r]};
    }
};

// HiddenOperands: Exact or Fast, for the layers after the first. Wide: activations in global memory.
template <class HiddenOperands, bool Wide>
struct EncodePixels {
    static constexpr int kThreads = kWarps * kWarp;

    GridNetwork network;
    const Words* fourier_basis;
    const Words* coefficients;
    int rows, columns;
    PixelStore to;
    bool aligned;    // four bands of a pixel are
    Words* scratch;  // when Wide: two buffers a block

    int tiles() const { return rows * ((columns + kTilePixels - 1) / kTilePixels); }
    static int shared_bytes(const GridNetwork& network) {
        const std::ptrdiff_t words = Wide ? 0 : activation_words<HiddenOperands>(network.widest);
        return static_cast<int>(words * sizeof(Words) + kTilePixels * kStagedRow * sizeof(float));
    }

    template <class P>
    SATCLIP_BODY void operator()(P& p) const {
        const int across = (columns + kTilePixels - 1) / kTilePixels;
        for (int tile = static_cast<int>(p.block()); tile < rows * across;
             tile += static_cast<int>(p.blocks()))
            encode(p, {tile / across, tile % across * kTilePixels});
    }

  private:
    // Bands that are stored together: those of one group of each warp. Staged rows are padded so that the
    // lanes (g, t) of half a warp write to banks of their own.
    static constexpr int kStaged = kUnitsOfGroups, kStagedRow = kStaged + 8;

    struct Tile {
        int row, column;
    };
    template <class P, int Groups>
    struct State {
        typename P::template PerLane<Sums> sums[kTileFragments][2 * Groups];
    };

    template <class P>
    SATCLIP_BODY void encode(P& p, const Tile& tile) const {
        DenseView layer = network.first_layer;
        layer.weight = coefficients + tile.row * panel_words(layer);
        dense<Exact, false>(p, layer,
                            fourier_basis + static_cast<std::ptrdiff_t>(tile.column / kTilePixels) *
                                                layer.steps * kTileFragments * kWarp,
                            tile, activations(p, 0));
        for (int i = 1; i <= network.hidden; ++i) {
            p.barrier();
            dense<HiddenOperands, true>(p, network.layers[i], activations(p, i - 1), tile,
                                        i < network.hidden ? activations(p, i) : nullptr);
        }
    }

    // Of layer i: two take turns when Wide.
    template <class P>
    SATCLIP_BODY Words* activations(P& p, int i) const {
        if (!Wide) return p.template shared<Words>();
        return scratch + (p.block() * 2 + i % 2) * activation_words<HiddenOperands>(network.widest);
    }

    // [pixel][kStagedRow], behind the activations.
    template <class P>
    SATCLIP_BODY float* staged(P& p) const {
        Words* shared = p.template shared<Words>();
        return reinterpret_cast<float*>(Wide ? shared
                                             : shared + activation_words<HiddenOperands>(network.widest));
    }

    // Through the sine into `out`; stored where that is null, which only a layer that may be the last has.
    template <class Operands, bool Last, class P>
    SATCLIP_BODY void dense(P& p, const DenseView& layer, const Words* inputs, const Tile& tile,
                            Words* out) const {
        if (layer.groups == kGroupsOfWarp)
            dense_panels<Operands, kGroupsOfWarp, Last>(p, layer, inputs, tile, out);
        else
            dense_panels<Operands, kFewGroups, Last>(p, layer, inputs, tile, out);
    }

    template <class Operands, int Groups, bool Last, class P>
    SATCLIP_BODY void dense_panels(P& p, const DenseView& layer, const Words* inputs, const Tile& tile,
                                   Words* out) const {
        auto states = p.template per_warp<State<P, Groups>>();
        const int panel_count = Wide || Last ? layer.panels : 1;
        for (int panel = 0; panel < panel_count; ++panel) {
            p.warps([&](int warp) {
                const int group = panel * Groups * kWarps + warp;
                accumulate<Operands, Groups>(p, states[warp], inputs,
                                             layer.weight + weight_fragment(layer, group, 0), layer.steps);
                add_bias<Groups>(p, states[warp], layer.bias + group * kGroup);
            });
            p.barrier();  // `out` may be what was read
            if (!Last || out)
                p.warps([&](int warp) {
                    activate<Groups>(p, states[warp], panel * Groups * kWarps + warp, out);
                });
            else
                store<Groups>(p, states, tile, panel * Groups * kStaged);
        }
    }

    template <class Operands, int Groups, class P>
    SATCLIP_BODY static void accumulate(P& p, State<P, Groups>& state, const Words* inputs,
                                        const Words* weights, int steps) {
        typename P::template PerLane<Words> next_weights[Groups];
        const auto load = [&](int step) {
            p.lanes([&](int lane) {
                SATCLIP_UNROLL
                for (int j = 0; j < Groups; ++j)
                    next_weights[j][lane] = p.read(weights + (step * Groups + j) * kWarp + lane);
            });
        };
        p.lanes([&](int lane) {
            SATCLIP_UNROLL
            for (int f = 0; f < kTileFragments; ++f) SATCLIP_UNROLL
            for (int n = 0; n < 2 * Groups; ++n) state.sums[f][n][lane] = {};
        });
        load(0);
        SATCLIP_ONCE
        for (int step = 0; step < steps; ++step) {
            typename Operands::template Operand<P> weight[Groups];
            SATCLIP_UNROLL
            for (int j = 0; j < Groups; ++j) Operands::prepare(p, next_weights[j], weight[j]);
            load(step + 1 < steps ? step + 1 : step);
            SATCLIP_UNROLL
            for (int f = 0; f < kTileFragments; ++f) {
                typename P::template PerLane<Words> raw;
                p.lanes([&](int lane) { raw[lane] = inputs[(step * kTileFragments + f) * kWarp + lane]; });
                typename Operands::template Operand<P> input;
                Operands::prepare(p, raw, input);
                Operands::multiply(p, state.sums[f], input, weight);
            }
        }
    }

    template <int Groups, class P>
    SATCLIP_BODY static void add_bias(P& p, State<P, Groups>& state, const float* bias) {
        p.lanes([&](int lane) {
            SATCLIP_UNROLL
            for (int n = 0; n < 2 * Groups; ++n) {
                const float* two = bias + n / 2 * kUnitsOfGroups + n % 2 * 8 + 2 * (lane % 4);
                const float even = p.read(two), odd = p.read(two + 1);
                SATCLIP_UNROLL
                for (int f = 0; f < kTileFragments; ++f) {
                    float (&value)[4] = state.sums[f][n][lane].value;
                    value[0] += even;
                    value[1] += odd;
                    value[2] += even;
                    value[3] += odd;
                }
            }
        });
    }

    template <int Groups, class P>
    SATCLIP_BODY static void activate(P& p, State<P, Groups>& state, int group, Words* out) {
        constexpr int steps = kGroup / HiddenOperands::kStep;
        p.lanes([&](int lane) {
            SATCLIP_UNROLL
            for (int j = 0; j < Groups; ++j) SATCLIP_UNROLL
            for (int f = 0; f < kTileFragments; ++f) {
                float (&first)[4] = state.sums[f][2 * j][lane].value;
                float (&second)[4] = state.sums[f][2 * j + 1][lane].value;
                SATCLIP_UNROLL
                for (int i = 0; i < 4; ++i) {
                    first[i] = scalar_sine(first[i]);
                    second[i] = scalar_sine(second[i]);
                }
                HiddenOperands::store_activations(
                    out + ((group + j * kWarps) * steps * kTileFragments + f) * kWarp + lane,
                    kTileFragments * kWarp, first, second);
            }
        });
    }

    // Group by group of each warp, from `band` on: sums lie with four lanes to eight bands, stores want a
    // warp to a pixel.
    template <int Groups, class P, class States>
    SATCLIP_BODY void store(P& p, States& states, const Tile& tile, int band) const {
        SATCLIP_ONCE
        for (int group = 0; group < Groups && band < network.bands; ++group, band += kStaged) {
            p.warps([&](int warp) {
                SATCLIP_UNROLL
                for (int j = 0; j < Groups; ++j)  // registers have no index
                    if (j == group) stage(p, states[warp], j, staged(p) + warp * kGroup);
            });
            p.barrier();
            p.threads([&](int thread) { store_staged(staged(p), tile, band, thread); });
            p.barrier();
        }
    }

    template <int Groups, class P>
    SATCLIP_BODY static void stage(P& p, State<P, Groups>& state, int j, float* to) {
        p.lanes([&](int lane) {
            SATCLIP_UNROLL
            for (int f = 0; f < kTileFragments; ++f) SATCLIP_UNROLL
            for (int half = 0; half < 2; ++half) {
                const float (&value)[4] = state.sums[f][2 * j + half][lane].value;
                float* pair = to + (f * kFragmentPixels + lane / 4) * kStagedRow + half * 8 + 2 * (lane % 4);
                *reinterpret_cast<Pair*>(pair) = {value[0], value[1]};
                *reinterpret_cast<Pair*>(pair + 8 * kStagedRow) = {value[2], value[3]};
            }
        });
    }

    SATCLIP_BODY void store_staged(const float* from, const Tile& tile, int first, int thread) const {
        constexpr int lanes = kStaged / 4;
        const int band = first + thread % lanes * 4;
        if (band >= network.bands) return;
        SATCLIP_ONCE
        for (int pixel = thread / lanes; pixel < kTilePixels && tile.column + pixel < columns;
             pixel += kThreads / lanes) {
            const auto value =
                *reinterpret_cast<const Vector<4, float>*>(from + pixel * kStagedRow + (band - first));
            store_bands<4>(to, tile.row * to.row_stride + (tile.column + pixel) * to.column_stride, band,
                           value.value, aligned, network.bands - band);
        }
    }
};

}  // namespace satclip::cuda

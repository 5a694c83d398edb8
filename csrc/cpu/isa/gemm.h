// GEMM micro-kernels of the dense layers. Points lie along the lanes of a vector: an activation tile is
// [input][R·lanes] with R = 1..3 vectors, so harmonics, Fourier basis and sines are produced as vectors and
// each layer's result is the next one's operand as it lies. Weights are broadcast from panels
// [input][kUnits]; 3 × 8 accumulators (of 32 registers) need 3 loads and 8 broadcasts for 24 fused
// multiply-adds; 3 × 4 where there are 16 registers.
//
// The last layer is the transpose (vectors along outputs, points broadcast), because its result is stored
// point by point.
//
// Each result is one chain of fused multiply-adds over the inputs of a chunk, in their order, and chunks are
// added in theirs, whatever R, tile or thread computes it: that makes a point's embedding independent of how
// the work was cut.
#pragma once

#include "cpu/kernels.h"
#include "simd.h"
#include "vector_sine.h"

namespace satclip::SATCLIP_ISA {

constexpr int kTile = 3 * kLanes;  // lanes of a full tile
// Tiles that share a panel of weights while it is in L1: a panel comes from L2 once for four. More would need
// as much more of L2 for activations (at 512 inputs a tile is 98 KB with 16 lanes).
constexpr int kBlockTiles = 4;
static_assert(kBlockTiles >= 4, "a tile of folded longitudes has up to four members");
// Inputs of a hidden layer taken at once: a panel of 8 × 512 floats is half of L1.
constexpr int kChunkInputs = 512;
constexpr int kWidePanel = 2 * kLanes;  // outputs in a panel of the last layer
// Points per micro-tile of the last layer, two accumulators each: half of the registers that x86 has.
constexpr int kRowPoints = kLanes == 16 ? 8 : 4;

template <int R>
SATCLIP_INLINE void accumulate(const float* x, const float* w, int inputs, Floats* acc) {
    for (int k = 0; k < inputs; ++k) {
        Floats lanes[R];
#pragma GCC unroll 3
        for (int r = 0; r < R; ++r) lanes[r] = load(x + r * kLanes);
#pragma GCC unroll 8
        for (int u = 0; u < kUnits; ++u) {
            const Floats weight = broadcast(w[u]);
#pragma GCC unroll 3
            for (int r = 0; r < R; ++r) acc[u * R + r] = multiply_add(weight, lanes[r], acc[u * R + r]);
        }
        x += R * kLanes;
        w += kUnits;
    }
}

// h[unit][R·lanes] = (bias or h) + w · x, through the sine when `last`. Later chunks are summed on their own
// before they are added: one chain over all 40000 inputs of L = 200 would err five times as much.
template <int R>
static void dense_panel(const float* x, const float* w, const float* bias, int inputs, bool last, float* h) {
    Floats acc[kUnits * R];
#pragma GCC unroll 8
    for (int u = 0; u < kUnits; ++u)
#pragma GCC unroll 3
        for (int r = 0; r < R; ++r) acc[u * R + r] = broadcast(bias ? bias[u] : 0.0f);
    accumulate<R>(x, w, inputs, acc);
    if (!bias) {
#pragma GCC unroll 24
        for (int i = 0; i < kUnits * R; ++i) acc[i] += load(h + i * kLanes);
    }
    if (last) sine_in_place<kUnits * R>(acc);
#pragma GCC unroll 24
    for (int i = 0; i < kUnits * R; ++i) store(h + i * kLanes, acc[i]);
}

using DensePanel = void (*)(const float*, const float*, const float*, int, bool, float*);
constexpr DensePanel kDensePanel[4] = {nullptr, dense_panel<1>, dense_panel<2>, dense_panel<3>};

// Tiles of points that go through the layers together.
struct Activations {
    int tiles;
    int vectors[kBlockTiles];
    float* data[kBlockTiles];  // [widest][vectors·lanes]
};

SATCLIP_INLINE void hidden_layer(const PackedLayer& layer, const Activations& in, const Activations& out,
                                 bool sine = true) {
    for (int begin = 0; begin < layer.inputs; begin += kChunkInputs) {
        const int inputs = layer.inputs - begin < kChunkInputs ? layer.inputs - begin : kChunkInputs;
        const bool last = begin + inputs == layer.inputs;
        for (int unit = 0; unit < layer.padded; unit += kUnits) {
            const float* w = layer.weight +
                             (static_cast<size_t>(unit) * layer.inputs + static_cast<size_t>(begin) * kUnits);
            for (int t = 0; t < in.tiles; ++t) {
                const int width = in.vectors[t] * kLanes;
                kDensePanel[in.vectors[t]](in.data[t] + static_cast<size_t>(begin) * width, w,
                                           begin == 0 ? layer.bias + unit : nullptr, inputs, last && sine,
                                           out.data[t] + static_cast<size_t>(unit) * width);
            }
        }
    }
}

// out[point][V·lanes] = bias + w · h for kRowPoints points from lane `lane` on.
template <int V>
static void last_panel(const float* h, int width, const float* w, const float* bias, int inputs, int outputs,
                       const TileOutput& to, int lane, int first) {
    Floats acc[kRowPoints][V];
#pragma GCC unroll 8
    for (int p = 0; p < kRowPoints; ++p)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) acc[p][v] = load(bias + v * kLanes);
    for (int k = 0; k < inputs; ++k) {
        Floats weight[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) weight[v] = load(w + v * kLanes);
#pragma GCC unroll 8
        for (int p = 0; p < kRowPoints; ++p) {
            const Floats input = broadcast(h[p]);
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) acc[p][v] = multiply_add(input, weight[v], acc[p][v]);
        }
        h += width;
        w += V * kLanes;
    }
    // Compile-time indices only: a run-time index would send the accumulators to memory inside the loop
    // above.
    alignas(64) float whole[kRowPoints][V * kLanes];
#pragma GCC unroll 8
    for (int p = 0; p < kRowPoints; ++p)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) store(&whole[p][v * kLanes], acc[p][v]);
    const size_t bytes = sizeof(float) * (outputs < V * kLanes ? outputs : V * kLanes);
    for (int p = 0; p < kRowPoints; ++p)
        if (to.index[lane + p] >= 0)
            std::memcpy(to.out + to.index[lane + p] * to.stride + first, whole[p], bytes);
}

SATCLIP_INLINE void last_layer(const PackedLayer& layer, const Activations& in,
                               const TileOutput* tile_outputs) {
    const int whole = layer.padded / kWidePanel * kWidePanel;
    for (int first = 0; first < layer.padded; first += kWidePanel) {
        const float* w = layer.weight + static_cast<size_t>(first) * layer.inputs;
        for (int t = 0; t < in.tiles; ++t) {
            const int width = in.vectors[t] * kLanes;
            for (int lane = 0; lane < width; lane += kRowPoints) {
                bool any_output = false;
                for (int p = 0; p < kRowPoints; ++p) any_output |= tile_outputs[t].index[lane + p] >= 0;
                if (!any_output) continue;
                const auto panel = first < whole ? last_panel<2> : last_panel<1>;
                panel(in.data[t] + lane, width, w, layer.bias + first, layer.inputs, layer.outputs - first,
                      tile_outputs[t], lane, first);
            }
        }
    }
}

// Layers 2 … n on tiles that hold the first layer's sines; `spare` is a second set of buffers.
SATCLIP_INLINE void later_layers(const Network& net, Activations in, Activations spare,
                                 const TileOutput* tile_outputs) {
    for (int i = 1; i < net.hidden; ++i) {
        hidden_layer(net.layers[i], in, spare);
        const Activations next = spare;
        spare = in;
        in = next;
    }
    last_layer(net.layers[net.hidden], in, tile_outputs);
}

}  // namespace satclip::SATCLIP_ISA

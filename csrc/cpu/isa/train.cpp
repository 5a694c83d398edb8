// Forward and backward passes of training: pre-activations are saved, sines and harmonics recomputed. Every
// tile is kTile lanes wide; lanes beyond the batch stand for the north pole and have no gradient.
#include "dot.h"
#include "dropout.h"
#include "point_harmonics.h"

namespace satclip::SATCLIP_ISA {

namespace {

// Mark of a dropped pre-activation: −0, which no other one is.
constexpr uint32_t kDropped = 0x80000000u;
// Tiles summed at once in registers. More are fewer additions to the gradient in memory; dz of 128 units at
// 768 points is 393 KB, within L2 beside the harmonics. Backward at L = 40 on a Zen 4 with 1 MB of L2: 268
// ms, as with 384, 277 with 1536.
constexpr int kGroupTiles = 768 / kTile;
constexpr int kMaxChunkInputs = 2 * kMaxDegrees;  // a chunk that is not a single order has at most 256
constexpr int kTileVectors = kTile / kLanes;

Activations tiles_of(float* data, size_t rows, int tiles) {
    Activations activations{};
    activations.tiles = tiles;
    for (int t = 0; t < tiles; ++t) {
        activations.vectors[t] = kTileVectors;
        activations.data[t] = data + t * rows * kTile;
    }
    return activations;
}

int tiles_for(int count) { return (count + kTile - 1) / kTile; }

// Drops and rescales a tile's rows of four units.
void drop_rows(float* first, int units, uint64_t row, uint32_t layer, const Dropout& dropout) {
    for (int v = 0; v < kTileVectors; ++v) {
        alignas(64) uint32_t low[kLanes], high[kLanes];
        for (int i = 0; i < kLanes; ++i) {
            const uint64_t point = row + static_cast<uint64_t>(v * kLanes + i);
            low[i] = static_cast<uint32_t>(point);
            high[i] = static_cast<uint32_t>(point >> 32);
        }
        Words row_low, row_high;
        std::memcpy(&row_low, low, sizeof low);
        std::memcpy(&row_high, high, sizeof high);
        for (int unit = 0; unit < units; unit += 4) {
            const Philox random = Philox::of(row_low, row_high, unit / 4, layer, dropout.seed);
            for (int k = 0; k < 4 && unit + k < units; ++k) {
                float* to = first + static_cast<size_t>(unit + k) * kTile + v * kLanes;
                const Floats z = load(to);
                // NaN stays NaN. Adding +0 makes a −0 that is not dropped a +0.
                const Words keep = (Words)(random.word[k] >= dropout.threshold) | (Words)(z != z);
                const Words value = (Words)(z * broadcast(dropout.scale) + broadcast(0.0f));
                store(to, (Floats)((value & keep) | (~keep & kDropped)));
            }
        }
    }
}

SATCLIP_INLINE void sines(const float* z, size_t count, float* h) {
    for (size_t i = 0; i < count; i += kTile) {
        Floats v[kTileVectors];
        for (int k = 0; k < kTileVectors; ++k) v[k] = load(z + i + k * kLanes);
        sine_in_place<kTileVectors>(v);
        for (int k = 0; k < kTileVectors; ++k) store(h + i + k * kLanes, v[k]);
    }
}

// dh → dz = dh · cos z · (0 or `scale`), in place.
SATCLIP_INLINE void sine_input_gradient(const float* z, size_t count, const Dropout& dropout,
                                        float* gradient) {
    const bool dropping = dropout.threshold != 0;
    for (size_t i = 0; i < count; i += kLanes) {
        const Floats value = load(z + i);
        const Floats cosine =
            __builtin_expect(beyond_limit(value), 0) ? careful_cosine(value) : small_cosine(value);
        Floats factor = cosine;
        if (dropping) {
            const Words keep = (Words)((Words)value != kDropped);
            factor = (Floats)((Words)(cosine * broadcast(dropout.scale)) & keep);
        }
        store(gradient + i, load(gradient + i) * factor);
    }
}

}  // namespace

size_t train_forward_scratch(const Network& net) {
    return (widest_chunk(net.basis) + static_cast<size_t>(net.widest) + 2 * kOrderStateRows) * kBlockLanes;
}

// A block of up to kBlockTiles tiles. saved[i]: its pre-activations in layer i, dropped and rescaled.
void train_forward(const Network& net, const double* lonlat, int count, uint64_t row, const Dropout& dropout,
                   float* const* saved, float* out, ptrdiff_t stride, float* scratch) {
    float* x = scratch;
    float* h = x + widest_chunk(net.basis) * kBlockLanes;
    const OrderState state = order_state(
        reinterpret_cast<double*>(h + static_cast<size_t>(net.widest) * kBlockLanes), kBlockLanes);
    const int tiles = tiles_for(count);
    start_orders(state, lonlat, count, tiles * kTile);

    const Activations sine = tiles_of(h, net.widest, tiles);
    for (int i = 0; i < net.hidden; ++i) {
        const PackedLayer& layer = net.layers[i];
        const Activations z = tiles_of(saved[i], layer.padded, tiles);
        const int lane_of_tile[kBlockTiles] = {0, kTile, 2 * kTile, 3 * kTile};
        if (i == 0)
            first_layer(net, state, lane_of_tile, x, z, false);
        else
            hidden_layer(layer, sine, z, false);
        for (int t = 0; t < tiles; ++t) {
            if (dropout.threshold)
                drop_rows(z.data[t], layer.outputs, row + static_cast<uint64_t>(t) * kTile, i, dropout);
            sines(z.data[t], static_cast<size_t>(layer.padded) * kTile, sine.data[t]);
        }
    }
    int32_t index[kBlockLanes];
    TileOutput tile_outputs[kBlockTiles];
    for (int i = 0; i < tiles * kTile; ++i) index[i] = i < count ? i : -1;
    for (int t = 0; t < tiles; ++t) tile_outputs[t] = {out, stride, index + t * kTile};
    last_layer(net.layers[net.hidden], sine, tile_outputs);
}

// Backward through a block: from the gradient of its embeddings to those of all pre-activations, and the
// sines that weight gradients need.
void pre_activation_gradients(const TransposedNetwork& net, const float* gradient, ptrdiff_t stride,
                              int count, const float* const* saved, const Dropout& dropout, float* embedding,
                              float* const* dz, float* const* sine) {
    const int tiles = tiles_for(count), outputs = net.layers[net.hidden - 1].inputs;
    for (int t = 0; t < tiles; ++t) {
        float* to = embedding + static_cast<size_t>(t) * outputs * kTile;
        for (int i = 0; i < kTile; ++i) {
            const int point = t * kTile + i;
            for (int k = 0; k < outputs; ++k)
                to[k * kTile + i] = point < count ? gradient[point * stride + k] : 0;
        }
    }
    Activations from = tiles_of(embedding, outputs, tiles);
    for (int i = net.hidden - 1; i >= 0; --i) {
        const PackedLayer& layer = net.layers[i];
        const Activations to = tiles_of(dz[i], layer.padded, tiles);
        const size_t size = static_cast<size_t>(layer.padded) * kTile;
        hidden_layer(layer, from, to, false);
        for (int t = 0; t < tiles; ++t) {
            sine_input_gradient(saved[i] + t * size, size, dropout, to.data[t]);
            sines(saved[i] + t * size, size, sine[i] + t * size);
        }
        from = to;
    }
}

size_t first_layer_scratch(const HarmonicBasis& basis) {
    return (widest_chunk(basis) + 2 * kOrderStateRows) * static_cast<size_t>(kGroupTiles) * kTile;
}

namespace {

// Sums over a group of tiles of x's rows [begin, end) with all of y's → sink(x row, y row, sum).
template <class Sink>
SATCLIP_INLINE void sum_products(const Rows& x, int begin, int end, const Rows& y, int tiles, Sink&& sink) {
    DotSums sums;
    const Rows rows = {x.data, x.tile, end};
    for (int j = 0; j < y.count; j += kDotY)
        for (int i = begin; i < end; i += kDotX) {
            dot(rows, i, y, j, tiles, sums);
            for (int a = 0; a < kDotX && i + a < end; ++a)
                for (int b = 0; b < kDotY && j + b < y.count; ++b)
                    sink(i + a, j + b, sums.value[a * kDotY + b]);
        }
}

void add_row_sums(const Rows& x, int begin, int end, int tiles, float* out) {
    for (int row = begin; row < end; ++row) {
        Floats sum = broadcast(0.0f);
        for (int t = 0; t < tiles; ++t)
            for (int v = 0; v < kTile; v += kLanes)
                sum += load(x.data + t * x.tile + static_cast<size_t>(row) * kTile + v);
        float lanes[kLanes];
        sum_lanes<1>(&sum, lanes);
        out[row] += lanes[0];
    }
}

}  // namespace

// Adds the gradients of units [begin, end) of the first layer with respect to chunk `chunk` of the harmonics,
// which are recomputed; those of the biases with chunk 0.
void first_layer_gradients(const HarmonicBasis& basis, int chunk, const double* lonlat, int count,
                           const float* dz, int padded, int begin, int end, const LayerGradient& to,
                           float* scratch) {
    const int group = kGroupTiles * kTile, inputs = chunk_inputs(basis, chunk);
    const int degrees = basis.legendre.degrees;
    float* x = scratch;
    const OrderState state = order_state(reinterpret_cast<double*>(x + widest_chunk(basis) * group), group);
    int feature[kMaxChunkInputs];
    float sign[kMaxChunkInputs];
    for (int m = basis.chunk_order[chunk]; m < basis.chunk_order[chunk + 1]; ++m)
        for (int l = m; l < degrees; ++l)
            for (int sine = 0; sine <= (m ? 1 : 0); ++sine) {
                const int k = input_of_order(degrees, m) - basis.chunk_input[chunk] +
                              input_within_order(degrees, m, l, sine != 0);
                feature[k] = l * l + l + (sine ? -m : m);
                sign[k] = m % 2 ? -1.0f : 1.0f;
            }
    const size_t columns = static_cast<size_t>(degrees) * degrees;
    for (int first = 0; first < count; first += group) {
        const int tiles = tiles_for(count - first < group ? count - first : group);
        const int points = count - first < tiles * kTile ? count - first : tiles * kTile;
        start_orders(state, lonlat + 2 * static_cast<size_t>(first), points, tiles * kTile);
        for (int m = 1; m < basis.chunk_order[chunk]; ++m)
            for (int lane = 0; lane < tiles * kTile; lane += kDoubleLanes) next_order(state, m, lane);
        for (int t = 0; t < tiles; ++t)
            write_chunk(basis, state, chunk, t * kTile, kTile, x + static_cast<size_t>(t) * inputs * kTile);
        const Rows of_z = {dz + static_cast<size_t>(first) * padded, static_cast<size_t>(padded) * kTile,
                           end};
        const Rows of_x = {x, static_cast<size_t>(inputs) * kTile, inputs};
        sum_products(of_z, begin, end, of_x, tiles, [&](int unit, int k, float sum) {
            to.weight[unit * columns + feature[k]] += sign[k] * sum;
        });
        if (chunk == 0) add_row_sums(of_z, begin, end, tiles, to.bias);
    }
}

// Adds the gradients of outputs [begin, end) of a later layer: dz of its outputs, h of its inputs.
void later_layer_gradients(const float* dz, int outputs_padded, const float* h, int inputs_padded, int inputs,
                           int count, int begin, int end, const LayerGradient& to) {
    const int group = kGroupTiles * kTile;
    for (int first = 0; first < count; first += group) {
        const int tiles = tiles_for(count - first < group ? count - first : group);
        const Rows of_z = {dz + static_cast<size_t>(first) * outputs_padded,
                           static_cast<size_t>(outputs_padded) * kTile, end};
        const Rows of_h = {h + static_cast<size_t>(first) * inputs_padded,
                           static_cast<size_t>(inputs_padded) * kTile, inputs};
        sum_products(of_z, begin, end, of_h, tiles, [&](int unit, int k, float sum) {
            to.weight[static_cast<size_t>(unit) * inputs + k] += sum;
        });
        add_row_sums(of_z, begin, end, tiles, to.bias);
    }
}

extern const TrainKernels train_kernels;
const TrainKernels train_kernels = {kTile,
                                    kBlockTiles,
                                    train_forward,
                                    train_forward_scratch,
                                    pre_activation_gradients,
                                    first_layer_gradients,
                                    first_layer_scratch,
                                    later_layer_gradients};

}  // namespace satclip::SATCLIP_ISA

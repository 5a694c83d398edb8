// Training on a batch: forward block by block; backward in batch chunks, so that its memory besides the saved
// pre-activations does not grow with the batch.
//
// Every gradient is the sum of its chunks in their order, and within one the work is cut by the gradients
// that are written, never by point: it does not depend on the number of threads.
#include <algorithm>
#include <cstring>
#include <vector>

#include "memory.h"
#include "parallel.h"
#include "rounding.h"
#include "satclip.h"

namespace satclip {

namespace {

// Times below: backward of 6144 points at L = 40, 2 × 512 hidden units, one thread of a busy Zen 4, best of
// 7; 1 % is noise.

// Points of a batch chunk, about. More are more pieces of work between two waits, and a workspace of 9 KB
// each at 2 × 512 hidden units: 268 ms with 1536 and 3072, 290 with 6144.
constexpr size_t kChunkPoints = 3072;
// Units of the first layer whose gradients are one piece of work. Fewer compute harmonics, which each piece
// recomputes, more often (275 ms with 64); more are fewer pieces for threads and no faster (269 with 256).
constexpr int kFirstUnits = 128;
// The same of later layers, where nothing is recomputed: 267 to 271 ms with 32, 64 and 128. At 512 outputs 64
// leave 8 pieces a layer.
constexpr int kLaterUnits = 64;

size_t tiles_of(const Kernels& kernels, size_t count) {
    return ceil_div(count, static_cast<size_t>(kernels.train->tile_points));
}

// Offsets of the hidden layers' rows when tiles [0, tiles) of all layers lie one layer after the other.
std::vector<size_t> layer_offsets(const Kernels& kernels, const std::vector<int>& padded, size_t tiles) {
    std::vector<size_t> begin = {0};
    for (const int rows : padded)
        begin.push_back(begin.back() + tiles * static_cast<size_t>(rows) * kernels.train->tile_points);
    return begin;
}

std::vector<int> padded_units(const Kernels& kernels, const std::vector<DenseLayer>& layers) {
    std::vector<int> padded;
    for (size_t i = 0; i + 1 < layers.size(); ++i)
        padded.push_back(round_up(layers[i].outputs, kernels.units));
    return padded;
}

// Layers 2 … n, transposed and packed like sine layers.
class TransposedNetworkData {
  public:
    TransposedNetworkData(const Kernels& kernels, const std::vector<DenseLayer>& layers) {
        for (size_t i = 0; i + 1 < layers.size(); ++i) {
            const DenseLayer& from = layers[i + 1];
            const int padded = round_up(from.inputs, kernels.units);
            const size_t size = static_cast<size_t>(padded) * from.outputs;
            memory_.push_back(aligned_floats(size));
            float* weight = memory_.back().get();
            std::fill_n(weight, size, 0.0f);
            for (int o = 0; o < from.outputs; ++o)
                for (int k = 0; k < from.inputs; ++k)
                    weight[(static_cast<size_t>(k / kernels.units) * from.outputs + o) * kernels.units +
                           k % kernels.units] = from.weight[static_cast<size_t>(o) * from.inputs + k];
            memory_.push_back(aligned_floats(padded));
            float* bias = memory_.back().get();
            std::fill_n(bias, padded, 0.0f);
            layers_.push_back({from.outputs, from.inputs, padded, weight, bias});
        }
    }
    TransposedNetwork view() const { return {static_cast<int>(layers_.size()), layers_.data()}; }

  private:
    std::vector<std::shared_ptr<float>> memory_;
    std::vector<PackedLayer> layers_;
};

// Gradients of a layer's outputs [begin, end), as one piece of work; in the first layer by a chunk of the
// harmonics.
struct GradientPiece {
    int layer, chunk, begin, end;
};

std::vector<GradientPiece> cut_gradients(const std::vector<DenseLayer>& layers, int chunks) {
    std::vector<GradientPiece> pieces;
    for (int chunk = 0; chunk < chunks; ++chunk)
        for (int unit = 0; unit < layers[0].outputs; unit += kFirstUnits)
            pieces.push_back({0, chunk, unit, std::min(unit + kFirstUnits, layers[0].outputs)});
    for (size_t i = 1; i < layers.size(); ++i)
        for (int unit = 0; unit < layers[i].outputs; unit += kLaterUnits)
            pieces.push_back({static_cast<int>(i), 0, unit, std::min(unit + kLaterUnits, layers[i].outputs)});
    return pieces;
}

}  // namespace

size_t train_saved(const Kernels& kernels, const std::vector<DenseLayer>& layers, size_t count) {
    return layer_offsets(kernels, padded_units(kernels, layers), tiles_of(kernels, count)).back();
}

bool train_forward(const NetworkData& network, const double* lonlat, size_t count, const Dropout& dropout,
                   float* out, ptrdiff_t stride, float* saved, const Control& control) {
    const Kernels& kernels = network.kernels();
    const TrainKernels& train = *kernels.train;
    const Network& net = network.view();
    std::vector<int> padded;
    for (int i = 0; i < net.hidden; ++i) padded.push_back(net.layers[i].padded);
    const auto begin = layer_offsets(kernels, padded, tiles_of(kernels, count));
    const size_t block = static_cast<size_t>(train.block_tiles) * train.tile_points;
    return run_parallel(
        ceil_div(count, block), train.forward_scratch(net), control,
        [&](size_t item, float* scratch, KeepRunning&) {
            const size_t first = item * block;
            std::vector<float*> z;
            for (int i = 0; i < net.hidden; ++i) z.push_back(saved + begin[i] + first * padded[i]);
            train.forward(net, lonlat + 2 * first, static_cast<int>(std::min(block, count - first)), first,
                          dropout, z.data(), out + static_cast<ptrdiff_t>(first) * stride, stride, scratch);
        });
}

bool train_backward(const Kernels& kernels, int degrees, const std::vector<DenseLayer>& layers,
                    const double* lonlat, size_t count, const float* saved, const Dropout& dropout,
                    const float* gradient, ptrdiff_t stride, const std::vector<LayerGradient>& to,
                    float* first_gradient, const Control& control) {
    const TrainKernels& train = *kernels.train;
    const HarmonicBasisData basis_data(degrees);
    const HarmonicBasis basis = basis_data.view();
    const TransposedNetworkData transposed_data(kernels, layers);
    const TransposedNetwork transposed = transposed_data.view();
    const int hidden = transposed.hidden, outputs = layers.back().outputs;
    const std::vector<int> padded = padded_units(kernels, layers);
    const auto saved_offsets = layer_offsets(kernels, padded, tiles_of(kernels, count));
    for (size_t i = 0; i < layers.size(); ++i) {
        std::fill_n(to[i].weight, static_cast<size_t>(layers[i].outputs) * layers[i].inputs, 0.0f);
        std::fill_n(to[i].bias, layers[i].outputs, 0.0f);
    }

    const size_t block = static_cast<size_t>(train.block_tiles) * train.tile_points;
    const size_t chunk = std::min(round_up(kChunkPoints, block), round_up(count, block));
    const auto chunk_offsets = layer_offsets(kernels, padded, chunk / train.tile_points);
    const auto memory = aligned_floats(2 * chunk_offsets.back() + chunk * outputs);
    float* const dz = memory.get();
    float* const sine = dz + chunk_offsets.back();
    float* const embedding = sine + chunk_offsets.back();
    const std::vector<GradientPiece> pieces = cut_gradients(layers, basis.chunks);

    for (size_t begin = 0; begin < count; begin += chunk) {
        const int points = static_cast<int>(std::min(chunk, count - begin));
        const bool finished =
            run_parallel(ceil_div<size_t>(points, block), 0, control, [&](size_t item, float*, KeepRunning&) {
                const size_t offset = item * block;
                const int block_points = static_cast<int>(std::min(block, points - offset));
                std::vector<const float*> z;
                std::vector<float*> block_dz, block_sine;
                for (int i = 0; i < hidden; ++i) {
                    z.push_back(saved + saved_offsets[i] + (begin + offset) * padded[i]);
                    block_dz.push_back(dz + chunk_offsets[i] + offset * padded[i]);
                    block_sine.push_back(sine + chunk_offsets[i] + offset * padded[i]);
                }
                train.pre_activation_gradients(
                    transposed, gradient + static_cast<ptrdiff_t>(begin + offset) * stride, stride,
                    block_points, z.data(), dropout, embedding + offset * outputs, block_dz.data(),
                    block_sine.data());
                if (first_gradient)
                    for (int p = 0; p < block_points; ++p) {
                        const size_t tile = train.tile_points, units = layers[0].outputs;
                        const float* from = block_dz[0] + p / tile * tile * padded[0] + p % tile;
                        for (size_t u = 0; u < units; ++u)
                            first_gradient[(begin + offset + p) * units + u] = from[u * tile];
                    }
            });
        if (!finished) return false;
        if (!run_parallel(pieces.size(), train.first_layer_scratch(basis), control,
                          [&](size_t item, float* scratch, KeepRunning&) {
                              const GradientPiece& piece = pieces[item];
                              const int i = piece.layer;
                              if (i == 0)
                                  train.first_layer_gradients(basis, piece.chunk, lonlat + 2 * begin, points,
                                                              dz, padded[0], piece.begin, piece.end, to[0],
                                                              scratch);
                              else
                                  train.later_layer_gradients(
                                      i < hidden ? dz + chunk_offsets[i] : embedding,
                                      i < hidden ? padded[i] : outputs, sine + chunk_offsets[i - 1],
                                      padded[i - 1], layers[i].inputs, points, piece.begin, piece.end, to[i]);
                          }))
            return false;
    }
    return true;
}

}  // namespace satclip

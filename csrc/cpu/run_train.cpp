// Training on a batch: forward block by block; backward in stretches of places, so that what it needs besides
// the kept pre-activations does not grow with the batch.
//
// Every gradient is the sum of its stretches in their order, and within one the work is cut by what is
// written, never by place: it does not depend on the number of threads.
#include <algorithm>
#include <cstring>
#include <vector>

#include "memory.h"
#include "parallel.h"
#include "satclip.h"

namespace satclip {

namespace {

// Times below: backward of 6144 places at L = 40, 2 × 512 hidden units, one thread of a busy Zen 4, best of
// 7; 1 % is noise.

// Places of a stretch, about. More are more pieces of work between two waits, and a workspace of 9 KB each at
// 2 × 512 hidden units: 268 ms with 1536 and 3072, 290 with 6144.
constexpr size_t kStretch = 3072;
// Units of the first layer whose gradients are one piece of work. Fewer make harmonics, which each piece
// makes again, more often (275 ms with 64); more are fewer pieces for threads and no faster (269 with 256).
constexpr int kFirstUnits = 128;
// The same of later layers, where nothing is made again: 267 to 271 ms with 32, 64 and 128. At 512 outputs 64
// leave 8 pieces a layer.
constexpr int kLaterUnits = 64;

int round_up(int n, int to) { return (n + to - 1) / to * to; }

size_t tiles_of(const Kernels& kernels, size_t count) {
    const size_t tile = kernels.train->tile_places;
    return (count + tile - 1) / tile;
}

// Where each hidden layer's rows begin when tiles [0, tiles) of all layers lie one layer after the other.
std::vector<size_t> layer_offsets(const Kernels& kernels, const std::vector<int>& padded, size_t tiles) {
    std::vector<size_t> begin = {0};
    for (const int rows : padded)
        begin.push_back(begin.back() + tiles * static_cast<size_t>(rows) * kernels.train->tile_places);
    return begin;
}

std::vector<int> padded_units(const Kernels& kernels, const std::vector<DenseLayer>& layers) {
    std::vector<int> padded;
    for (size_t i = 0; i + 1 < layers.size(); ++i)
        padded.push_back(round_up(layers[i].outputs, kernels.units));
    return padded;
}

// Layers 2 … n turned round and packed like sine layers.
class BackData {
  public:
    BackData(const Kernels& kernels, const std::vector<DenseLayer>& layers) {
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
    BackNetwork view() const { return {static_cast<int>(layers_.size()), layers_.data()}; }

  private:
    std::vector<std::shared_ptr<float>> memory_;
    std::vector<PackedLayer> layers_;
};

// What the gradients of a layer's outputs [begin, end) come from; `chunk` of the harmonics in the first.
struct Piece {
    int layer, chunk, begin, end;
};

std::vector<Piece> cut_gradients(const std::vector<DenseLayer>& layers, int chunks) {
    std::vector<Piece> pieces;
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
    const size_t block = static_cast<size_t>(train.block_tiles) * train.tile_places;
    return run((count + block - 1) / block, train.forward_scratch(net), control,
               [&](size_t item, float* scratch, Pulse&) {
                   const size_t first = item * block;
                   std::vector<float*> z;
                   for (int i = 0; i < net.hidden; ++i) z.push_back(saved + begin[i] + first * padded[i]);
                   train.forward(net, lonlat + 2 * first, static_cast<int>(std::min(block, count - first)),
                                 first, dropout, z.data(), out + static_cast<ptrdiff_t>(first) * stride,
                                 stride, scratch);
               });
}

bool train_backward(const Kernels& kernels, int degrees, const std::vector<DenseLayer>& layers,
                    const double* lonlat, size_t count, const float* saved, const Dropout& dropout,
                    const float* gradient, ptrdiff_t stride, const std::vector<LayerGradient>& to,
                    float* first, const Control& control) {
    const TrainKernels& train = *kernels.train;
    const BasisData basis_data(degrees);
    const Basis basis = basis_data.view();
    const BackData back_data(kernels, layers);
    const BackNetwork back = back_data.view();
    const int hidden = back.hidden, outputs = layers.back().outputs;
    const std::vector<int> padded = padded_units(kernels, layers);
    const auto kept = layer_offsets(kernels, padded, tiles_of(kernels, count));
    for (size_t i = 0; i < layers.size(); ++i) {
        std::fill_n(to[i].weight, static_cast<size_t>(layers[i].outputs) * layers[i].inputs, 0.0f);
        std::fill_n(to[i].bias, layers[i].outputs, 0.0f);
    }

    const size_t block = static_cast<size_t>(train.block_tiles) * train.tile_places;
    const size_t stretch =
        std::min((kStretch + block - 1) / block * block, (count + block - 1) / block * block);
    const auto own = layer_offsets(kernels, padded, stretch / train.tile_places);
    const auto memory = aligned_floats(2 * own.back() + stretch * outputs);
    float* const dz = memory.get();
    float* const sine = dz + own.back();
    float* const embedding = sine + own.back();
    const std::vector<Piece> pieces = cut_gradients(layers, basis.chunks);

    for (size_t begin = 0; begin < count; begin += stretch) {
        const int places = static_cast<int>(std::min(stretch, count - begin));
        const bool finished = run((places + block - 1) / block, 0, control, [&](size_t item, float*, Pulse&) {
            const size_t at = item * block;
            const int some = static_cast<int>(std::min(block, places - at));
            std::vector<const float*> z;
            std::vector<float*> own_dz, own_sine;
            for (int i = 0; i < hidden; ++i) {
                z.push_back(saved + kept[i] + (begin + at) * padded[i]);
                own_dz.push_back(dz + own[i] + at * padded[i]);
                own_sine.push_back(sine + own[i] + at * padded[i]);
            }
            train.inner(back, gradient + static_cast<ptrdiff_t>(begin + at) * stride, stride, some, z.data(),
                        dropout, embedding + at * outputs, own_dz.data(), own_sine.data());
            if (first)
                for (int p = 0; p < some; ++p) {
                    const size_t tile = train.tile_places, units = layers[0].outputs;
                    const float* from = own_dz[0] + p / tile * tile * padded[0] + p % tile;
                    for (size_t u = 0; u < units; ++u) first[(begin + at + p) * units + u] = from[u * tile];
                }
        });
        if (!finished) return false;
        if (!run(pieces.size(), train.first_scratch(basis), control,
                 [&](size_t item, float* scratch, Pulse&) {
                     const Piece& piece = pieces[item];
                     const int i = piece.layer;
                     if (i == 0)
                         train.first(basis, piece.chunk, lonlat + 2 * begin, places, dz, padded[0],
                                     piece.begin, piece.end, to[0], scratch);
                     else
                         train.later(i < hidden ? dz + own[i] : embedding, i < hidden ? padded[i] : outputs,
                                     sine + own[i - 1], padded[i - 1], layers[i].inputs, places, piece.begin,
                                     piece.end, to[i]);
                 }))
            return false;
    }
    return true;
}

}  // namespace satclip

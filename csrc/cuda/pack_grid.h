// Packed network for the kernels of bodies/grid_kernels.h, in host memory.
#pragma once

#include <vector>

#include "bodies/grid_kernels.h"
#include "satclip.h"

namespace satclip::cuda {

// Precision of the layers after the first; the first is always exact.
enum class Precision { exact, fast };

struct PackedDense {
    std::vector<Words> weight;  // none for the first
    std::vector<float> bias;
    DenseView view;  // without pointers
};

struct PackedGrid {
    Precision precision;
    int degrees;
    std::vector<double> a, c, diagonal;
    std::vector<Pair> first;
    std::vector<PackedDense> layers;

    bool wide() const { return widest() > kMaxPanelUnits; }
    int widest() const;
};

// Throws std::invalid_argument for weights that the precision cannot hold.
PackedGrid pack_grid(int degrees, const std::vector<DenseLayer>& layers, Precision precision);

// The network in the memory that kernels read: upload(vector) copies a vector there and returns its address.
template <class Upload>
GridNetwork grid_network(const PackedGrid& packed, std::vector<DenseView>& layers, Upload&& upload) {
    layers.clear();
    for (const PackedDense& layer : packed.layers) {
        layers.push_back(layer.view);
        layers.back().weight = layer.weight.empty() ? nullptr : upload(layer.weight);
        layers.back().bias = upload(layer.bias);
    }
    GridNetwork network = {};
    network.degrees = packed.degrees;
    network.a = upload(packed.a);
    network.c = upload(packed.c);
    network.diagonal = upload(packed.diagonal);
    network.first = upload(packed.first);
    network.hidden = static_cast<int>(layers.size()) - 1;
    network.layers = upload(layers);
    network.first_layer = layers.front();
    network.widest = packed.widest();
    network.bands = layers.back().outputs;
    return network;
}

}  // namespace satclip::cuda

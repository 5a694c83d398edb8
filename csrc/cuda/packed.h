// A network laid out for the kernels of grid.h, in host memory.
#pragma once

#include <vector>

#include "../satclip.h"
#include "grid.h"

namespace satclip::cuda {

// Of the layers after the first; the first is always exact.
enum class Precision { exact, fast };

struct PackedLayer {
    std::vector<Words> weight;  // none for the first
    std::vector<float> bias;
    DenseView view;  // without pointers
};

struct PackedGrid {
    Precision precision;
    int degrees;
    std::vector<double> a, c, diagonal;
    std::vector<Pair> first;
    std::vector<PackedLayer> layers;

    bool wide() const { return widest() > kMostUnits; }
    int widest() const;
};

// Throws std::invalid_argument for weights that the precision cannot hold.
PackedGrid pack_grid(int degrees, const std::vector<DenseLayer>& layers, Precision precision);

// Pointers come from place(vector), which puts a vector where the kernels run.
template <class Place>
GridNetwork placed(const PackedGrid& packed, std::vector<DenseView>& layers, Place&& place) {
    layers.clear();
    for (const PackedLayer& layer : packed.layers) {
        layers.push_back(layer.view);
        layers.back().weight = layer.weight.empty() ? nullptr : place(layer.weight);
        layers.back().bias = place(layer.bias);
    }
    GridNetwork network = {};
    network.degrees = packed.degrees;
    network.a = place(packed.a);
    network.c = place(packed.c);
    network.diagonal = place(packed.diagonal);
    network.first = place(packed.first);
    network.hidden = static_cast<int>(layers.size()) - 1;
    network.layers = place(layers);
    network.first_layer = layers.front();
    network.widest = packed.widest();
    network.bands = layers.back().outputs;
    return network;
}

}  // namespace satclip::cuda

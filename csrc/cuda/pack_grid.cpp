// Packing of a network into tensor-core fragments.
#include "pack_grid.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "rounding.h"

namespace satclip::cuda {

namespace {

// Whole panels of as few groups a warp as hold the outputs.
DenseView shape_of(int inputs, int step, int outputs) {
    DenseView view = {};
    view.steps = ceil_div(inputs, step);
    view.groups = outputs <= kFewGroups * kUnitsOfGroups ? kFewGroups : kGroupsOfWarp;
    view.panels = ceil_div(outputs, view.groups * kUnitsOfGroups);
    view.outputs = outputs;
    return view;
}

template <class Operands>
std::uint32_t weight_word(const float* row, int inputs, int input);
template <>
std::uint32_t weight_word<Exact>(const float* row, int inputs, int input) {
    return input < inputs ? bits_as<std::uint32_t>(row[input]) : 0u;
}
template <>
std::uint32_t weight_word<Fast>(const float* row, int inputs, int input) {
    return half_pair(input < inputs ? row[input] : 0.0f, input + 1 < inputs ? row[input + 1] : 0.0f);
}

template <class Operands>
std::vector<Words> pack(const DenseView& view, const DenseLayer& layer) {
    constexpr int inputs_of_word = Operands::kStep / 8;
    std::vector<Words> to(static_cast<std::size_t>(panel_words(view)));
    for (int output = 0; output < layer.outputs; ++output) {
        const float* row = layer.weight + static_cast<std::size_t>(output) * layer.inputs;
        for (int step = 0; step < view.steps; ++step) {
            Words* fragment = &to[static_cast<std::size_t>(weight_fragment(view, output / kGroup, step))];
            for (int input = 0; input < Operands::kStep; input += inputs_of_word) {
                const int word = Operands::word_of_weight(input, output % kGroup);
                fragment[word / 4].word[word % 4] =
                    weight_word<Operands>(row, layer.inputs, step * Operands::kStep + input);
            }
        }
    }
    return to;
}

std::vector<Pair> pack_first(int degrees, const DenseLayer& layer, int padded) {
    std::vector<Pair> to(legendre_size(degrees) * padded);
    for (int m = 0; m < degrees; ++m)
        for (int l = m; l < degrees; ++l) {
            Pair* pairs = &to[(legendre_offset(degrees, m) + l - m) * padded];
            const std::size_t middle = static_cast<std::size_t>(l) * l + l;
            const float sign = m % 2 ? -1.0f : 1.0f;
            for (int unit = 0; unit < layer.outputs; ++unit) {
                const float* row = layer.weight + static_cast<std::size_t>(unit) * layer.inputs;
                pairs[unit] = {sign * row[middle + m], m ? sign * row[middle - m] : 0.0f};
            }
        }
    return to;
}

void check_halves(const DenseLayer& layer, std::size_t index) {
    constexpr float largest = 65504.0f;
    const float* end = layer.weight + static_cast<std::size_t>(layer.inputs) * layer.outputs;
    const float* too_large = std::find_if(layer.weight, end, [](float w) { return std::fabs(w) > largest; });
    if (too_large != end)
        throw std::invalid_argument("layer " + std::to_string(index) + " has a weight of " +
                                    std::to_string(*too_large) + ", beyond float16: take precision 'exact'");
}

}  // namespace

int PackedGrid::widest() const {
    int largest = 0;
    for (std::size_t i = 0; i + 1 < layers.size(); ++i)
        largest = std::max(largest, padded_outputs(layers[i].view));
    return largest;
}

PackedGrid pack_grid(int degrees, const std::vector<DenseLayer>& layers, Precision precision) {
    PackedGrid packed = {precision, degrees, {}, {}, {}, {}, {}};
    packed.a.resize(legendre_size(degrees));
    packed.c.resize(legendre_size(degrees));
    packed.diagonal.resize(degrees);
    for (int m = 0; m < degrees; ++m) {
        if (m) packed.diagonal[m] = legendre_diagonal(m);
        for (int l = m + 1; l < degrees; ++l) {
            packed.a[legendre_offset(degrees, m) + l - m] = legendre_a(l, m);
            packed.c[legendre_offset(degrees, m) + l - m] = legendre_c(l, m);
        }
    }
    for (std::size_t i = 0; i < layers.size(); ++i) {
        const DenseLayer& layer = layers[i];
        const bool halves = precision == Precision::fast && i > 0;
        if (halves) check_halves(layer, i);
        PackedDense to;
        to.view = i == 0 ? shape_of(2 * degrees, Exact::kStep, layer.outputs)
                         : shape_of(layer.inputs, halves ? Fast::kStep : Exact::kStep, layer.outputs);
        to.bias.assign(padded_outputs(to.view), 0.0f);
        std::copy_n(layer.bias, layer.outputs, to.bias.begin());
        if (i == 0)
            packed.first = pack_first(degrees, layer, padded_outputs(to.view));
        else
            to.weight = halves ? pack<Fast>(to.view, layer) : pack<Exact>(to.view, layer);
        packed.layers.push_back(std::move(to));
    }
    return packed;
}

}  // namespace satclip::cuda

// Bindings of the forward and backward pass of training, on NumPy arrays.
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>

#include "arguments.h"

using namespace satclip::bindings;
using satclip::Control;
using satclip::DenseLayer;
using satclip::Kernels;
using satclip::LayerGradient;

namespace {

int degrees_of(const std::vector<InFloats>& weights) {
    const py::ssize_t features = weights.empty() || weights[0].ndim() != 2 ? 0 : weights[0].shape(1);
    int degrees = 0;
    while (static_cast<py::ssize_t>(degrees) * degrees < features) ++degrees;
    return degrees;
}

satclip::Dropout dropping(double share, std::uint64_t seed) {
    if (!(share >= 0.0 && share < 1.0))
        throw py::value_error("dropout must be at least 0 and below 1, not " + number_text(share));
    return {static_cast<std::uint32_t>(share * 4294967296.0), static_cast<float>(1.0 / (1.0 - share)), seed};
}

float* flat(const py::array& array, size_t size, const char* name) {
    std::vector<ptrdiff_t> strides;
    if (array.ndim() != 1 || static_cast<size_t>(array.size()) != size)
        throw py::value_error(std::string(name) + " must have shape (" + std::to_string(size) + "), not " +
                              shape_text(array));
    return output(array, {array.shape(0)}, strides);
}

py::ssize_t saved_floats(py::ssize_t count, const std::vector<int>& hidden,
                         const std::optional<std::string>& isa) {
    const Kernels& kernels = kernels_named(isa);
    py::ssize_t floats = kernels.units;  // a point
    std::vector<DenseLayer> layers;
    for (const int units : hidden) {
        if (units < 1 || units > kMaxOutputs)
            throw py::value_error("a hidden layer has at least 1 unit and at most " +
                                  std::to_string(kMaxOutputs) + ", not " + std::to_string(units));
        floats += units + kernels.units;
        layers.push_back({nullptr, nullptr, 0, units});
    }
    if (count < 0 || count > std::numeric_limits<py::ssize_t>::max() / 16 / floats)
        throw py::value_error("count must be at least 0 and its " + std::to_string(floats) +
                              " floats a point fit into memory, not " + std::to_string(count));
    layers.push_back({nullptr, nullptr, 0, 1});
    return static_cast<py::ssize_t>(satclip::train_saved(kernels, layers, count));
}

void forward(const py::object& lonlat, const std::vector<InFloats>& weights,
             const std::vector<InFloats>& biases, const py::array& out, const py::array& saved,
             double dropout, std::uint64_t seed, int threads, const py::object& check,
             const std::optional<std::string>& isa) {
    const int degrees = degrees_of(weights);
    const auto layers = layers_of(degrees, weights, biases);
    const Kernels& kernels = kernels_named(isa);
    const InDoubles a = points_of(lonlat);
    const satclip::Dropout drop = dropping(dropout, seed);
    std::vector<ptrdiff_t> strides;
    float* to = output(out, {a.shape(0), layers.back().outputs}, strides);
    float* pre_activations = flat(saved, satclip::train_saved(kernels, layers, a.shape(0)), "saved");
    without_gil(threads, check, [&](const Control& control) {
        const satclip::NetworkData network(kernels, degrees, layers, control.threads);
        return satclip::train_forward(network, a.data(), a.shape(0), drop, to, strides[0], pre_activations,
                                      control);
    });
}

void backward(const InFloats& gradient, const py::object& lonlat, const std::vector<InFloats>& weights,
              const std::vector<InFloats>& biases, const py::array& saved, double dropout,
              const std::vector<py::array>& d_weights, const std::vector<py::array>& d_biases,
              const std::optional<py::array>& d_first, int threads, const py::object& check,
              const std::optional<std::string>& isa) {
    const int degrees = degrees_of(weights);
    const auto layers = layers_of(degrees, weights, biases);
    const Kernels& kernels = kernels_named(isa);
    const InDoubles a = points_of(lonlat);
    const py::ssize_t count = a.shape(0);
    if (gradient.ndim() != 2 || gradient.shape(0) != count || gradient.shape(1) != layers.back().outputs)
        throw py::value_error("the gradient must have shape (" + std::to_string(count) + ", " +
                              std::to_string(layers.back().outputs) + "), not " + shape_text(gradient));
    if (d_weights.size() != layers.size() || d_biases.size() != layers.size())
        throw py::value_error("a gradient is needed for the weight and the bias of every layer");
    const satclip::Dropout drop = dropping(dropout, 0);  // the saved pre-activations hold the masks
    const float* pre_activations = flat(saved, satclip::train_saved(kernels, layers, count), "saved");
    std::vector<LayerGradient> to;
    std::vector<ptrdiff_t> strides;
    for (size_t i = 0; i < layers.size(); ++i) {
        float* weight = output(d_weights[i], {layers[i].outputs, layers[i].inputs}, strides);
        if (strides[0] != layers[i].inputs && layers[i].outputs > 1)
            throw py::value_error("gradients of weights must be contiguous");
        to.push_back({weight, output(d_biases[i], {layers[i].outputs}, strides)});
    }
    float* first = nullptr;
    if (d_first) {
        first = output(*d_first, {count, layers[0].outputs}, strides);
        if (strides[0] != layers[0].outputs && count > 1) throw py::value_error("d_first must be contiguous");
    }
    without_gil(threads, check, [&](const Control& control) {
        return satclip::train_backward(kernels, degrees, layers, a.data(), count, pre_activations, drop,
                                       gradient.data(), layers.back().outputs, to, first, control);
    });
}

}  // namespace

void bind_train(py::module_& m) {
    // Saved pre-activations are rounded up to whole tiles of points and groups of units.
    m.attr("train_tile") = satclip::find_kernels(nullptr)->train->tile_points;
    m.attr("train_units") = satclip::find_kernels(nullptr)->units;
    m.def("train_saved", &saved_floats, py::arg("count"), py::arg("hidden"), py::arg("isa") = py::none());
    m.def("train_forward", &forward, py::arg("lonlat"), py::arg("weights"), py::arg("biases"), py::arg("out"),
          py::arg("saved"), py::arg("dropout"), py::arg("seed"), py::arg("threads"),
          py::arg("check") = py::none(), py::arg("isa") = py::none());
    m.def("train_backward", &backward, py::arg("gradient"), py::arg("lonlat"), py::arg("weights"),
          py::arg("biases"), py::arg("saved"), py::arg("dropout"), py::arg("d_weights"), py::arg("d_biases"),
          py::arg("d_first"), py::arg("threads"), py::arg("check") = py::none(), py::arg("isa") = py::none());
}

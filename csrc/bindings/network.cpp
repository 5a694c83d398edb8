// Network, encode, encode_grid and harmonics on NumPy arrays.
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "arrays.h"
#include "harmonics.h"

using namespace satclip_python;
using satclip::Control;
using satclip::Kernels;
using satclip::NetworkData;

namespace {

constexpr py::ssize_t kMostOutputs = 1 << 24;  // of a layer: the kernels count units in int
constexpr py::ssize_t kMostColumns = std::numeric_limits<std::int32_t>::max();

std::string plain(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.10g", value);
    return text;
}

void check_degrees(int degrees) {
    if (degrees < 1 || degrees > satclip::kMostDegrees)
        throw py::value_error("degrees must be between 1 and " + std::to_string(satclip::kMostDegrees) +
                              ", not " + std::to_string(degrees));
}

void check_latitudes(const double* lat, ptrdiff_t count, ptrdiff_t step) {
    for (ptrdiff_t i = 0; i < count; ++i) {
        const double value = lat[i * step];
        if (std::isfinite(value) && std::fabs(value) > 90.0)
            throw py::value_error("row " + std::to_string(i) + ": latitude " + plain(value) +
                                  " is outside [-90, 90]");
    }
}

// A writable float32 array of that shape whose last axis is contiguous; strides in floats.
float* output(const py::array& out, const std::vector<py::ssize_t>& shape, std::vector<ptrdiff_t>& strides) {
    bool right = out.ndim() == static_cast<py::ssize_t>(shape.size()) &&
                 py::isinstance<py::array_t<float>>(out) && out.writeable();
    for (size_t i = 0; right && i < shape.size(); ++i) right = out.shape(i) == shape[i];
    strides.assign(shape.size(), 0);
    const bool empty = out.size() == 0;  // NumPy's strides of empty arrays mean nothing
    for (size_t i = 0; right && !empty && i < shape.size(); ++i) {
        right = out.strides(i) % 4 == 0 && (i + 1 < shape.size() || out.strides(i) == 4 || shape[i] < 2);
        strides[i] = out.strides(i) / 4;
    }
    if (!right) {
        std::string wanted;
        for (size_t i = 0; i < shape.size(); ++i) wanted += (i ? ", " : "") + std::to_string(shape[i]);
        throw py::value_error("out must be a writable float32 array of shape (" + wanted +
                              ") with a contiguous last axis, not " +
                              py::str(out.dtype()).cast<std::string>() + " " + shape_text(out));
    }
    return static_cast<float*>(const_cast<void*>(out.data()));
}

InDoubles places(const py::object& lonlat) {
    const InDoubles a(lonlat);  // NumPy's own exception for what is not numbers
    if (a.ndim() != 2 || a.shape(1) != 2)
        throw py::value_error("lonlat must have shape (N, 2), longitude first, not " + shape_text(a));
    check_latitudes(a.data() + 1, a.shape(0), 2);
    return a;
}

InDoubles axis(const py::object& values, const char* name) {
    const InDoubles a(values);
    if (a.ndim() != 1)
        throw py::value_error(std::string(name) + " must be one-dimensional, not " + shape_text(a));
    return a;
}

class PyNetwork {
  public:
    PyNetwork(int degrees, const std::vector<InFloats>& weights, const std::vector<InFloats>& biases,
              const std::optional<std::string>& isa) {
        check_degrees(degrees);
        if (weights.size() < 2 || weights.size() != biases.size())
            throw py::value_error("a network has at least two layers, each with a weight and a bias");
        std::vector<satclip::DenseLayer> layers;
        py::ssize_t inputs = static_cast<py::ssize_t>(degrees) * degrees;
        for (size_t i = 0; i < weights.size(); ++i) {
            const InFloats &w = weights[i], &b = biases[i];
            if (w.ndim() != 2 || w.shape(1) != inputs || w.shape(0) < 1 || w.shape(0) > kMostOutputs ||
                b.ndim() != 1 || b.shape(0) != w.shape(0))
                throw py::value_error("layer " + std::to_string(i) + ": expected weight (n, " +
                                      std::to_string(inputs) + ") and bias (n), found " + shape_text(w) +
                                      " and " + shape_text(b));
            layers.push_back({w.data(), b.data(), static_cast<int>(inputs), static_cast<int>(w.shape(0))});
            inputs = w.shape(0);
        }
        data_ = std::make_unique<NetworkData>(kernels_named(isa), degrees, layers);
    }

    const char* isa() const { return data_->kernels().name; }

    void encode(const py::object& lonlat, const py::array& out, int threads, const py::object& check) const {
        const InDoubles a = places(lonlat);
        std::vector<ptrdiff_t> strides;
        float* to = output(out, {a.shape(0), data_->outputs()}, strides);
        without_gil(threads, check, [&](const Control& control) {
            return satclip::encode(*data_, a.data(), a.shape(0), to, strides[0], control);
        });
    }

    void encode_grid(const py::object& lat, const py::object& lon, const py::array& out, int threads,
                     const py::object& check) const {
        const InDoubles rows = axis(lat, "lat"), columns = axis(lon, "lon");
        check_latitudes(rows.data(), rows.shape(0), 1);
        if (columns.shape(0) > kMostColumns)
            throw py::value_error("lon has " + std::to_string(columns.shape(0)) + " columns: at most " +
                                  std::to_string(kMostColumns) + " in one call");
        std::vector<ptrdiff_t> strides;
        float* to = output(out, {rows.shape(0), columns.shape(0), data_->outputs()}, strides);
        without_gil(threads, check, [&](const Control& control) {
            return satclip::encode_grid(*data_, rows.data(), rows.shape(0), columns.data(), columns.shape(0),
                                        to, strides[0], strides[1], control);
        });
    }

  private:
    std::unique_ptr<NetworkData> data_;
};

py::array_t<double> harmonics(const py::object& lonlat, int degrees, int threads,
                              const std::optional<std::string>& isa) {
    check_degrees(degrees);
    const Kernels& kernels = kernels_named(isa);
    const InDoubles a = places(lonlat);
    py::array_t<double> out({a.shape(0), static_cast<py::ssize_t>(degrees) * degrees});
    double* to = out.mutable_data();
    without_gil(threads, py::none(), [&](const Control& control) {
        return satclip::harmonics(kernels, degrees, a.data(), a.shape(0), to, control);
    });
    return out;
}

}  // namespace

void bind_network(py::module_& m) {
    py::class_<PyNetwork>(m, "Network",
                          "A network packed for one instruction set; immutable, shared by threads.")
        .def(py::init<int, const std::vector<InFloats>&, const std::vector<InFloats>&,
                      const std::optional<std::string>&>(),
             py::arg("degrees"), py::arg("weights"), py::arg("biases"), py::arg("isa") = py::none())
        .def_property_readonly("isa", &PyNetwork::isa)
        .def("encode", &PyNetwork::encode, py::arg("lonlat"), py::arg("out"), py::arg("threads"),
             py::arg("check") = py::none())
        .def("encode_grid", &PyNetwork::encode_grid, py::arg("lat"), py::arg("lon"), py::arg("out"),
             py::arg("threads"), py::arg("check") = py::none());
    m.def("harmonics", &harmonics, py::arg("lonlat"), py::arg("degrees"), py::arg("threads") = 1,
          py::arg("isa") = py::none());
}

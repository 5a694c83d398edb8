// Bindings of Network, encode, encode_grid and harmonics, on NumPy arrays.
#include <pybind11/stl.h>

#include <memory>

#include "arguments.h"

using namespace satclip::bindings;
using satclip::Control;
using satclip::Kernels;
using satclip::NetworkData;

namespace {

class PyNetwork {
  public:
    PyNetwork(int degrees, const std::vector<InFloats>& weights, const std::vector<InFloats>& biases,
              const std::optional<std::string>& isa) {
        const auto layers = layers_of(degrees, weights, biases);
        data_ = std::make_unique<NetworkData>(kernels_named(isa), degrees, layers);
    }

    const char* isa() const { return data_->kernels().name; }

    void encode(const py::object& lonlat, const py::array& out, int threads, const py::object& check) const {
        const InDoubles a = points_of(lonlat);
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
        if (columns.shape(0) > kMaxColumns)
            throw py::value_error("lon has " + std::to_string(columns.shape(0)) + " columns: at most " +
                                  std::to_string(kMaxColumns) + " in one call");
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
    const InDoubles a = points_of(lonlat);
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

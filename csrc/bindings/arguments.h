// Checks of arguments, and calls without the GIL, for all bindings.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "harmonics.h"
#include "satclip.h"

namespace satclip::bindings {

namespace py = pybind11;

// What is passed is copied where it has another type, has gaps or is not aligned.
constexpr int kConverted =
    py::array::c_style | py::array::forcecast | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
using InDoubles = py::array_t<double, kConverted>;
using InFloats = py::array_t<float, kConverted>;

constexpr py::ssize_t kMaxOutputs = 1 << 24;  // of a layer: the kernels count units in int
constexpr py::ssize_t kMaxColumns = std::numeric_limits<std::int32_t>::max();

inline std::string number_text(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.10g", value);
    return text;
}

inline const Kernels& kernels_named(const std::optional<std::string>& isa) {
    const Kernels* kernels = find_kernels(isa ? isa->c_str() : nullptr);
    if (kernels == nullptr) throw py::value_error("this processor has no instruction set '" + *isa + "'");
    return *kernels;
}

// Runs signal handlers when this is Python's main thread, then the caller's own check; true when one of them
// raised (KeyboardInterrupt). The exception stays set.
inline bool interrupted(void* check) {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) return true;
    if (check == nullptr) return false;
    PyObject* result = PyObject_CallNoArgs(static_cast<PyObject*>(check));
    Py_XDECREF(result);
    return result == nullptr;
}

// Calls body(control) without the GIL; raises the exception that interrupted it.
template <class Body>
void without_gil(int threads, const py::object& check, Body&& body) {
    if (threads < 1) throw py::value_error("threads must be at least 1, not " + std::to_string(threads));
    bool finished;
    {
        const py::gil_scoped_release release;
        finished = body(Control{threads, interrupted, check.is_none() ? nullptr : check.ptr()});
    }
    if (!finished) throw py::error_already_set();
}

inline void check_degrees(int degrees) {
    if (degrees < 1 || degrees > kMaxDegrees)
        throw py::value_error("degrees must be between 1 and " + std::to_string(kMaxDegrees) + ", not " +
                              std::to_string(degrees));
}

inline void check_latitudes(const double* lat, ptrdiff_t count, ptrdiff_t step) {
    for (ptrdiff_t i = 0; i < count; ++i) {
        const double value = lat[i * step];
        if (std::isfinite(value) && std::fabs(value) > 90.0)
            throw py::value_error("row " + std::to_string(i) + ": latitude " + number_text(value) +
                                  " is outside [-90, 90]");
    }
}

inline bool aligned(const void* data, std::size_t bytes) {
    return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
}

inline std::string shape_text(const py::array& a) {
    std::string text = "(";
    for (py::ssize_t i = 0; i < a.ndim(); ++i) text += (i ? ", " : "") + std::to_string(a.shape(i));
    return text + ")";
}

// A writable, aligned float32 array of that shape whose last axis is contiguous; strides in floats.
inline float* output(const py::array& out, const std::vector<py::ssize_t>& shape,
                     std::vector<ptrdiff_t>& strides) {
    bool right = out.ndim() == static_cast<py::ssize_t>(shape.size()) &&
                 py::isinstance<py::array_t<float>>(out) && out.writeable() &&
                 aligned(out.data(), sizeof(float));
    for (size_t i = 0; right && i < shape.size(); ++i) right = out.shape(i) == shape[i];
    strides.assign(shape.size(), 0);
    const bool empty = out.size() == 0;  // NumPy's strides of empty arrays mean nothing
    for (size_t i = 0; right && !empty && i < shape.size(); ++i) {
        right = out.strides(i) % 4 == 0 && (i + 1 < shape.size() || out.strides(i) == 4 || shape[i] < 2);
        strides[i] = out.strides(i) / 4;
    }
    if (!right) {
        std::string expected;
        for (size_t i = 0; i < shape.size(); ++i) expected += (i ? ", " : "") + std::to_string(shape[i]);
        throw py::value_error("out must be a writable float32 array of shape (" + expected +
                              ") with a contiguous last axis, aligned to 4 bytes, not " +
                              py::str(out.dtype()).cast<std::string>() + " " + shape_text(out));
    }
    return static_cast<float*>(const_cast<void*>(out.data()));
}

inline InDoubles points_of(const py::object& lonlat) {
    const InDoubles a(lonlat);  // NumPy's own exception for what is not numbers
    if (a.ndim() != 2 || a.shape(1) != 2)
        throw py::value_error("lonlat must have shape (N, 2), longitude first, not " + shape_text(a));
    check_latitudes(a.data() + 1, a.shape(0), 2);
    return a;
}

inline InDoubles axis(const py::object& values, const char* name) {
    const InDoubles a(values);
    if (a.ndim() != 1)
        throw py::value_error(std::string(name) + " must be one-dimensional, not " + shape_text(a));
    return a;
}

// The layers of a network on harmonics of degree 0..L−1; they keep pointing into `weights` and `biases`.
inline std::vector<DenseLayer> layers_of(int degrees, const std::vector<InFloats>& weights,
                                         const std::vector<InFloats>& biases) {
    check_degrees(degrees);
    if (weights.size() < 2 || weights.size() != biases.size())
        throw py::value_error("a network has at least two layers, each with a weight and a bias");
    std::vector<DenseLayer> layers;
    py::ssize_t inputs = static_cast<py::ssize_t>(degrees) * degrees;
    for (size_t i = 0; i < weights.size(); ++i) {
        const InFloats &w = weights[i], &b = biases[i];
        if (w.ndim() != 2 || w.shape(1) != inputs || w.shape(0) < 1 || w.shape(0) > kMaxOutputs ||
            b.ndim() != 1 || b.shape(0) != w.shape(0))
            throw py::value_error("layer " + std::to_string(i) + ": expected weight (n, " +
                                  std::to_string(inputs) + ") and bias (n), found " + shape_text(w) +
                                  " and " + shape_text(b));
        layers.push_back({w.data(), b.data(), static_cast<int>(inputs), static_cast<int>(w.shape(0))});
        inputs = w.shape(0);
    }
    return layers;
}

}  // namespace satclip::bindings

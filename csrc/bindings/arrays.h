// What the bindings share: arrays in, kernels by name, and calls that Python can interrupt.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "satclip.h"

namespace satclip_python {

namespace py = pybind11;

using InDoubles = py::array_t<double, py::array::c_style | py::array::forcecast>;
using InFloats = py::array_t<float, py::array::c_style | py::array::forcecast>;

inline const satclip::Kernels& kernels_named(const std::optional<std::string>& isa) {
    const satclip::Kernels* kernels = satclip::find_kernels(isa ? isa->c_str() : nullptr);
    if (kernels == nullptr) throw py::value_error("this processor has no instruction set '" + *isa + "'");
    return *kernels;
}

// Runs signal handlers when this is Python's main thread, then the caller's own check; true when one of them
// raised (KeyboardInterrupt). The exception stays set.
inline bool raised(void* check) {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) return true;
    if (check == nullptr) return false;
    PyObject* result = PyObject_CallNoArgs(static_cast<PyObject*>(check));
    Py_XDECREF(result);
    return result == nullptr;
}

// body(control) without the GIL; what interrupted it is raised.
template <class Body>
void without_gil(int threads, const py::object& check, Body&& body) {
    if (threads < 1) throw py::value_error("threads must be at least 1, not " + std::to_string(threads));
    bool finished;
    {
        const py::gil_scoped_release release;
        finished = body(satclip::Control{threads, raised, check.is_none() ? nullptr : check.ptr()});
    }
    if (!finished) throw py::error_already_set();
}

inline std::string shape_text(const py::array& a) {
    std::string text = "(";
    for (py::ssize_t i = 0; i < a.ndim(); ++i) text += (i ? ", " : "") + std::to_string(a.shape(i));
    return text + ")";
}

}  // namespace satclip_python

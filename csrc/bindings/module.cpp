// Python module satclip_engine._C. The bindings check arguments; nothing below them does.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "satclip.h"

namespace py = pybind11;

void bind_network(py::module_& m);
void bind_raster(py::module_& m);
void bind_train(py::module_& m);
void bind_loss(py::module_& m);
void bind_lattice(py::module_& m);
void bind_cuda(py::module_& m);

PYBIND11_MODULE(core, m) {
    m.doc() = "Compiled kernels of satclip_engine";
    m.attr("version") = SATCLIP_VERSION;
    m.def(
        "instruction_sets",
        [] {
            std::vector<std::string> names;
            for (const satclip::Kernels* k : satclip::available_kernels()) names.emplace_back(k->name);
            return names;
        },
        "Names of the instruction sets that this processor runs, best first.");
    bind_network(m);
    bind_raster(m);
    bind_train(m);
    bind_loss(m);
    bind_lattice(m);
    bind_cuda(m);
}

// pybind11's own initialisation waits for ever for the GIL of the main interpreter when another one of the
// process imports the module, so that this is asked before it.
extern "C" PYBIND11_EXPORT PyObject* PyInit__C() {
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError,
                        "satclip_engine works in the main interpreter of a process only: import it there, or "
                        "in a process of its own (mod_wsgi: WSGIApplicationGroup %{GLOBAL})");
        return nullptr;
    }
    return PyInit_core();
}

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

PYBIND11_MODULE(_C, m) {
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

// Lattice resampling on arrays in host memory.
#include <pybind11/stl.h>

#include "views.h"

using namespace satclip::bindings;

namespace {

void resample(const py::object& lattice, const py::object& rows, const py::object& columns,
              const py::object& out, int order, const Vector2& origin, const Vector2& spacing,
              const Quantise& quantise, int threads, const py::object& check,
              const std::optional<std::string>& isa) {
    const View nodes = view_of(lattice, "lattice"), target = view_of(out, "out");
    if (nodes.on_device() || target.on_device())
        throw py::value_error("arrays on a GPU are for cuda_resample");
    const satclip::Lattice from = lattice_of(nodes);
    const Stencils at = stencils_of(nodes, rows, columns, order, origin, spacing);
    const satclip::Store to = store_of(target, at.rows.size(), at.columns.size(), from.bands, quantise);
    const satclip::Kernels& kernels = kernels_named(isa);
    without_gil(threads, check, [&](const satclip::Control& control) {
        return satclip::resample(kernels, from, order, at.rows, at.columns, to, control);
    });
}

}  // namespace

void bind_lattice(py::module_& m) {
    m.def("resample", &resample, py::arg("lattice"), py::arg("rows"), py::arg("columns"), py::arg("out"),
          py::kw_only(), py::arg("order") = 8, py::arg("origin") = Vector2(0, 0),
          py::arg("spacing") = Vector2(1, 1), py::arg("quantise") = py::none(), py::arg("threads") = 1,
          py::arg("check") = py::none(), py::arg("isa") = py::none(),
          "Lagrange interpolation of a lattice (h, w, E) at rows × columns → out (H, W, E), float32 or, by "
          "quantise = "
          "(inverse_scale, offset), int8 or int16. Positions are counted in nodes after (position − origin) "
          "/ spacing; "
          "NaN gives NaN.");
}

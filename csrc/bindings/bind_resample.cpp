// Bindings of lattice resampling, on arrays in host memory.
#include <pybind11/stl.h>

#include <numeric>

#include "array_view.h"

using namespace satclip::bindings;

namespace {

// Output row of each point: 0, 1, … or as passed.
std::vector<std::int64_t> index_of(const py::object& index_argument, size_t count, size_t outputs) {
    std::vector<std::int64_t> index(count);
    if (index_argument.is_none()) {
        if (outputs != count)
            throw py::value_error("out has " + std::to_string(outputs) + " rows for " +
                                  std::to_string(count) + " points");
        std::iota(index.begin(), index.end(), std::int64_t{0});
        return index;
    }
    const py::array_t<std::int64_t, py::array::c_style> values(index_argument);
    if (values.ndim() != 1 || static_cast<size_t>(values.shape(0)) != count)
        throw py::value_error("index must have an entry for each of " + std::to_string(count) + " points");
    for (size_t i = 0; i < count; ++i) {
        index[i] = values.data()[i];
        if (index[i] < 0 || static_cast<size_t>(index[i]) >= outputs)
            throw py::value_error("index " + std::to_string(i) + ": " + std::to_string(index[i]) +
                                  " is no row of out, which has " + std::to_string(outputs));
    }
    return index;
}

void resample(const py::object& lattice, const py::object& rows, const py::object& columns,
              const py::object& out, int order, const Vector2& origin, const Vector2& spacing,
              const Quantise& quantise, int threads, const py::object& check,
              const std::optional<std::string>& isa) {
    const View nodes = view_of(lattice, "lattice"), target = view_of(out, "out");
    if (nodes.on_device() || target.on_device())
        throw py::value_error("arrays on a GPU are for cuda_resample");
    const satclip::Lattice from = lattice_of(nodes);
    const Stencils axes = stencils_of(nodes, rows, columns, order, origin, spacing);
    const satclip::PixelStore to =
        store_of(target, axes.rows.size(), axes.columns.size(), from.bands, quantise);
    const satclip::Kernels& kernels = kernels_named(isa);
    without_gil(threads, check, [&](const satclip::Control& control) {
        return satclip::resample(kernels, from, order, axes.rows, axes.columns, to, control);
    });
}

void resample_points(const py::object& lattice, const py::object& rows, const py::object& columns,
                     const py::object& out, int order, const Vector2& origin, const Vector2& spacing,
                     const py::object& index, const Quantise& quantise, int threads, const py::object& check,
                     const std::optional<std::string>& isa) {
    const View nodes = view_of(lattice, "lattice");
    View target = view_of(out, "out");
    if (nodes.on_device() || target.on_device())
        throw py::value_error("single points are resampled on the host, not on a GPU");
    check_order(order);
    const satclip::Lattice from = lattice_of(nodes);
    const InDoubles row = axis(rows, "rows"), column = axis(columns, "columns");
    const size_t count = static_cast<size_t>(row.shape(0));
    if (column.shape(0) != row.shape(0))
        throw py::value_error("there must be as many columns as rows, not " +
                              std::to_string(column.shape(0)) + " and " + std::to_string(count));
    if (target.shape.size() == 2) {  // (points, bands) are (points, 1, bands)
        target.shape.insert(target.shape.begin() + 1, 1);
        target.strides.insert(target.strides.begin() + 1, 0);
    }
    const size_t outputs = target.shape.empty() ? 0 : static_cast<size_t>(target.shape[0]);
    const satclip::PixelStore to = store_of(target, outputs, 1, from.bands, quantise);
    const std::vector<std::int64_t> output_rows = index_of(index, count, outputs);
    const satclip::Positions positions = {row.data(),
                                          column.data(),
                                          count,
                                          origin.first,
                                          spacing.first,
                                          origin.second,
                                          spacing.second,
                                          static_cast<size_t>(nodes.shape[0]),
                                          static_cast<size_t>(nodes.shape[1]),
                                          output_rows.data(),
                                          outputs};
    const satclip::Kernels& kernels = kernels_named(isa);
    size_t first_outside = count;
    without_gil(threads, check, [&](const satclip::Control& control) {
        return satclip::resample_points(kernels, from, order, positions, to, first_outside, control);
    });
    if (first_outside < count)
        throw py::value_error("point " + std::to_string(first_outside) + ": position (" +
                              number_text((row.data()[first_outside] - origin.first) / spacing.first) + ", " +
                              number_text((column.data()[first_outside] - origin.second) / spacing.second) +
                              ") needs " + std::to_string(order / 2) +
                              " nodes on every side, the lattice has " + std::to_string(nodes.shape[0]) +
                              " × " + std::to_string(nodes.shape[1]));
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
    m.def("resample_points", &resample_points, py::arg("lattice"), py::arg("rows"), py::arg("columns"),
          py::arg("out"), py::kw_only(), py::arg("order") = 8, py::arg("origin") = Vector2(0, 0),
          py::arg("spacing") = Vector2(1, 1), py::arg("index") = py::none(), py::arg("quantise") = py::none(),
          py::arg("threads") = 1, py::arg("check") = py::none(), py::arg("isa") = py::none(),
          "Lagrange interpolation of a lattice (h, w, E) at N single points, rows (N,) and columns (N,), → "
          "rows "
          "index (N,) of out (M, E); otherwise as resample. Neighbouring points should follow each other: "
          "each reads order × order nodes.");
}

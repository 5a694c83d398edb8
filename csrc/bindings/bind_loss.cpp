// Bindings of the contrastive loss, on NumPy arrays.
#include <pybind11/stl.h>

#include <limits>
#include <tuple>

#include "arguments.h"

using namespace satclip::bindings;

namespace {

satclip::Contrast contrast(const InFloats& a, const InFloats& b, double scale, py::ssize_t offset) {
    if (a.ndim() != 2 || b.ndim() != 2 || a.shape(1) != b.shape(1) || a.shape(1) < 1)
        throw py::value_error("expected a (n, E) and b (N, E), found " + shape_text(a) + " and " +
                              shape_text(b));
    if (offset < 0 || a.shape(0) > b.shape(0) || offset > b.shape(0) - a.shape(0))
        throw py::value_error("the partners of a's " + std::to_string(a.shape(0)) + " rows from row " +
                              std::to_string(offset) + " of b on are not all among its " +
                              std::to_string(b.shape(0)));
    constexpr py::ssize_t max_rows = std::numeric_limits<int>::max() / 2;  // the kernels count rows in int
    if (b.shape(0) > max_rows || b.shape(1) > max_rows)
        throw py::value_error("b has shape " + shape_text(b) + ": at most " + std::to_string(max_rows) +
                              " each way");
    return {a.data(),
            b.data(),
            static_cast<size_t>(a.shape(0)),
            static_cast<size_t>(b.shape(0)),
            static_cast<size_t>(a.shape(1)),
            scale,
            static_cast<size_t>(offset)};
}

using Sums = std::tuple<py::array_t<float>, py::array_t<float>, py::array_t<float>>;

Sums loss_forward(const InFloats& a, const InFloats& b, double scale, py::ssize_t offset, int threads,
                  const py::object& check, const std::optional<std::string>& isa) {
    const satclip::Contrast operands = contrast(a, b, scale, offset);
    const satclip::Kernels& kernels = kernels_named(isa);
    py::array_t<float> row_lse(a.shape(0)), column_lse(b.shape(0)), partner(a.shape(0));
    float *rows = row_lse.mutable_data(), *columns = column_lse.mutable_data(),
          *partners = partner.mutable_data();
    without_gil(threads, check, [&](const satclip::Control& control) {
        return satclip::loss_forward(kernels, operands, rows, columns, partners, control);
    });
    return {row_lse, column_lse, partner};
}

using Gradients = std::tuple<py::array_t<float>, py::array_t<float>, double>;

Gradients loss_backward(const InFloats& a, const InFloats& b, double scale, const InFloats& row_lse,
                        const InFloats& column_lse, py::ssize_t offset, double factor, int threads,
                        const py::object& check, const std::optional<std::string>& isa) {
    const satclip::Contrast operands = contrast(a, b, scale, offset);
    if (row_lse.ndim() != 1 || column_lse.ndim() != 1 || row_lse.shape(0) != a.shape(0) ||
        column_lse.shape(0) != b.shape(0))
        throw py::value_error("expected a log-sum-exp for each row of a " + shape_text(a) + " and of b " +
                              shape_text(b) + ", found " + shape_text(row_lse) + " and " +
                              shape_text(column_lse));
    const satclip::Kernels& kernels = kernels_named(isa);
    py::array_t<float> da({a.shape(0), a.shape(1)}), db({b.shape(0), b.shape(1)});
    float *to_a = da.mutable_data(), *to_b = db.mutable_data();
    double dscale = 0.0;
    without_gil(threads, check, [&](const satclip::Control& control) {
        return satclip::loss_backward(kernels, operands, row_lse.data(), column_lse.data(), factor, to_a,
                                      to_b, &dscale, control);
    });
    return {da, db, dscale};
}

py::array_t<float> exponentials(const InFloats& x, const std::optional<std::string>& isa) {
    if (x.ndim() != 1) throw py::value_error("x must be one-dimensional, not " + shape_text(x));
    py::array_t<float> out(x.shape(0));
    kernels_named(isa).loss->exponentials(x.data(), static_cast<size_t>(x.shape(0)), out.mutable_data());
    return out;
}

}  // namespace

void bind_loss(py::module_& m) {
    m.def("loss_forward", &loss_forward, py::arg("a"), py::arg("b"), py::arg("scale"), py::arg("offset") = 0,
          py::arg("threads") = 1, py::arg("check") = py::none(), py::arg("isa") = py::none(),
          "Log-sum-exps of scale · a · bᵀ along rows and columns, and its elements (i, offset + i).");
    m.def("loss_backward", &loss_backward, py::arg("a"), py::arg("b"), py::arg("scale"), py::arg("row_lse"),
          py::arg("column_lse"), py::arg("offset") = 0, py::arg("factor") = 1.0, py::arg("threads") = 1,
          py::arg("check") = py::none(), py::arg("isa") = py::none(),
          "Gradients of factor · Σ_i (row_lse_i + column_lse_i − 2·partner_i) by a, b and scale.");
    m.def("exponentials", &exponentials, py::arg("x"), py::arg("isa") = py::none(),
          "exp(x) for x ≤ 88 as the loss computes it; 0 below −87.33.");
}

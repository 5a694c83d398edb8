// Views of float32, int8 and int16 arrays on the host or on a GPU: NumPy's, and those with __dlpack__ or
// __cuda_array_interface__.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "lattice.h"
#include "quantise.h"

namespace satclip::bindings {

struct View {
    void* data = nullptr;
    std::vector<std::int64_t> shape, strides;  // strides in items
    std::optional<StoredType> type;            // none for other types
    std::string type_name;
    int device = -1;  // a GPU's number; −1 on the host
    bool writable = true;
    std::shared_ptr<void> owner;  // keeps the exported memory alive

    bool on_device() const { return device >= 0; }
};

// stream: a cudaStream_t, whose later work waits for that which the array's owner has queued.
View view_of(const py::object& array, const char* name, std::uintptr_t stream = 0);

// (inverse_scale, offset), a value a band.
using Quantise = std::optional<std::pair<InFloats, InFloats>>;

// Store of (rows, columns, bands): float32, or int8 or int16 by `quantise`. The last axis is
// contiguous.
PixelStore store_of(const View& out, std::size_t rows, std::size_t columns, std::size_t bands,
                    const Quantise& quantise);

// Nodes (rows, columns, bands), float32, the last axis contiguous.
Lattice lattice_of(const View& nodes);

using Vector2 = std::pair<double, double>;

void check_order(int order);

struct Stencils {
    std::vector<Stencil> rows, columns;
};
// Throws ValueError naming the first row or column whose stencil does not fit.
Stencils stencils_of(const View& nodes, const py::object& rows, const py::object& columns, int order,
                     const Vector2& origin, const Vector2& spacing);

}  // namespace satclip::bindings

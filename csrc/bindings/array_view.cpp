// Views of arrays: of NumPy, of DLPack capsules and of __cuda_array_interface__.
#include "array_view.h"

#include <pybind11/stl.h>

#include <algorithm>

#include "cuda/cuda.h"
#include "dlpack.h"

namespace satclip::bindings {

namespace {

std::string shape_text(const std::vector<std::int64_t>& shape) {
    std::string text;
    for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return "(" + text + ")";
}

std::optional<StoredType> type_of(char kind, std::size_t bytes) {
    if (kind == 'f' && bytes == 4) return StoredType::float32;
    if (kind == 'i' && bytes == 1) return StoredType::int8;
    if (kind == 'i' && bytes == 2) return StoredType::int16;
    return std::nullopt;
}

// Strides of a contiguous array.
std::vector<std::int64_t> contiguous(const std::vector<std::int64_t>& shape) {
    std::vector<std::int64_t> strides(shape.size(), 1);
    for (std::size_t i = shape.size(); i-- > 1;)
        strides[i - 1] = strides[i] * std::max<std::int64_t>(1, shape[i]);
    return strides;
}

// Byte strides → strides in items; false when they are none.
bool in_items(std::vector<std::int64_t>& strides, std::int64_t item) {
    bool whole = true;
    for (std::int64_t& stride : strides) {
        whole = whole && stride % item == 0;
        stride /= item;
    }
    return whole;
}

View of_numpy(const py::array& array, const char* name) {
    View view;
    view.data = const_cast<void*>(array.data());
    view.shape.assign(array.shape(), array.shape() + array.ndim());
    view.strides.assign(array.strides(), array.strides() + array.ndim());
    view.type_name = py::str(array.dtype()).cast<std::string>();
    view.writable = array.writeable();
    if (array.dtype().byteorder() != '>') view.type = type_of(array.dtype().kind(), array.itemsize());
    if (!in_items(view.strides, std::max<py::ssize_t>(1, array.itemsize())))  // of void it is 0
        throw py::value_error(std::string(name) + ": strides must be whole items");
    if (array.size() == 0) view.strides = contiguous(view.shape);  // NumPy's mean nothing
    return view;
}

View of_capsule(const py::object& capsule) {
    auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kName));
    if (managed == nullptr) throw py::error_already_set();
    PyCapsule_SetName(capsule.ptr(), dlpack::kUsedName);  // it is ours now
    View view;
    view.owner = std::shared_ptr<void>(managed, [](void* owned) {
        auto* tensor = static_cast<dlpack::ManagedTensor*>(owned);
        if (tensor->deleter) tensor->deleter(tensor);
    });
    const dlpack::Tensor& tensor = managed->tensor;
    view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    view.shape.assign(tensor.shape, tensor.shape + tensor.dimensions);
    if (tensor.strides)
        view.strides.assign(tensor.strides, tensor.strides + tensor.dimensions);
    else
        view.strides = contiguous(view.shape);
    const char kind = tensor.type.code == dlpack::kFloat ? 'f' : tensor.type.code == dlpack::kInt ? 'i' : 'u';
    view.type_name = std::string(1, kind) + std::to_string(tensor.type.bits / 8);
    if (tensor.type.lanes == 1) view.type = type_of(kind, tensor.type.bits / 8);
    const bool cuda = tensor.device.type == dlpack::kCuda || tensor.device.type == dlpack::kCudaManaged;
    if (cuda) view.device = tensor.device.id;
    return view;
}

View of_dlpack(const py::object& array, const char* name, std::uintptr_t stream) {
    const auto device = array.attr("__dlpack_device__")().cast<std::pair<int, int>>();
    const bool cuda = device.first == dlpack::kCuda || device.first == dlpack::kCudaManaged;
    if (!cuda && device.first != dlpack::kCpu && device.first != dlpack::kCudaHost)
        throw py::value_error(std::string(name) + " lies on a device that is neither a CPU nor a CUDA GPU");
    // DLPack counts streams as CUDA does, but that 1 is the legacy default stream and 0 is not allowed.
    return of_capsule(cuda ? array.attr("__dlpack__")(py::arg("stream") = stream == 0 ? 1 : stream)
                           : array.attr("__dlpack__")());
}

// Makes our stream wait for the work that the array's owner has queued; absent or None: nothing to wait for.
void wait_for_owner(const py::dict& interface, int device, std::uintptr_t stream) {
    if (!interface.contains("stream") || interface["stream"].is_none()) return;
    cuda::StreamEvent(device, interface["stream"].cast<std::uintptr_t>()).make_wait(stream);
}

void check_interface(const py::dict& interface, const char* name) {
    if (interface.contains("mask") && !interface["mask"].is_none())
        throw py::value_error(std::string(name) + " has a mask, which is not supported");
    if (interface.contains("stream") && py::object(interface["stream"]).equal(py::int_(0)))
        throw py::value_error(std::string(name) +
                              ": stream 0 is ambiguous, __cuda_array_interface__ forbids it");
}

// Unowned or null pointers belong to no device that kernels could write to; an empty array may be anywhere.
int device_of(const View& view, const char* name) {
    if (std::count(view.shape.begin(), view.shape.end(), 0)) return 0;
    const int device = cuda::device_of(view.data);
    if (device < 0) throw py::value_error(std::string(name) + " is not memory of a CUDA device");
    return device;
}

View of_interface(const py::object& array, const char* name, std::uintptr_t stream) {
    const py::dict interface = array.attr("__cuda_array_interface__");
    check_interface(interface, name);
    const auto data = interface["data"].cast<std::pair<std::uintptr_t, bool>>();
    View view;
    view.data = reinterpret_cast<void*>(data.first);
    view.writable = !data.second;
    view.shape = interface["shape"].cast<std::vector<std::int64_t>>();
    view.type_name = interface["typestr"].cast<std::string>();
    const std::int64_t item =
        std::max(1, std::atoi(view.type_name.c_str() + std::min<std::size_t>(2, view.type_name.size())));
    if (view.type_name.size() > 2 && view.type_name[0] != '>') view.type = type_of(view.type_name[1], item);
    if (interface.contains("strides") && !interface["strides"].is_none()) {
        view.strides = interface["strides"].cast<std::vector<std::int64_t>>();
        if (!in_items(view.strides, item))
            throw py::value_error(std::string(name) + ": strides must be whole items");
    } else {
        view.strides = contiguous(view.shape);
    }
    view.device = device_of(view, name);
    wait_for_owner(interface, view.device, stream);
    return view;
}

void check_axis(const InFloats& values, const char* name, std::size_t bands) {
    if (values.ndim() != 1 || values.shape(0) != static_cast<py::ssize_t>(bands))
        throw py::value_error(std::string(name) + " must have a value for each of " + std::to_string(bands) +
                              " bands, not shape " + bindings::shape_text(values));
}

bool last_axis_contiguous(const View& view) { return view.shape.back() < 2 || view.strides.back() == 1; }

std::vector<Stencil> stencils_along(const char* name, const py::object& axis_positions, double origin,
                                    double spacing, int order, std::int64_t nodes) {
    const InDoubles positions = axis(axis_positions, (std::string(name) + "s").c_str());
    std::vector<Stencil> axis_stencils(positions.shape(0));
    const std::size_t outside = stencils(positions.data(), axis_stencils.size(), origin, spacing, order,
                                         static_cast<std::size_t>(nodes), axis_stencils.data());
    if (outside < axis_stencils.size())
        throw py::value_error(std::string(name) + " " + std::to_string(outside) + ": position " +
                              number_text((positions.data()[outside] - origin) / spacing) + " needs " +
                              std::to_string(order / 2) +
                              " nodes on either side, the lattice has nodes 0 to " +
                              std::to_string(nodes - 1));
    return axis_stencils;
}

View any_view(const py::object& array, const char* name, std::uintptr_t stream) {
    if (py::isinstance<py::array>(array)) return of_numpy(py::reinterpret_borrow<py::array>(array), name);
    if (py::hasattr(array, "__dlpack__")) return of_dlpack(array, name, stream);
    if (py::hasattr(array, "__cuda_array_interface__")) return of_interface(array, name, stream);
    throw py::type_error(std::string(name) +
                         " must be a NumPy array or have __dlpack__ or __cuda_array_interface__, not " +
                         py::str(py::type::of(array)).cast<std::string>());
}

}  // namespace

View view_of(const py::object& array, const char* name, std::uintptr_t stream) {
    View view = any_view(array, name, stream);
    if (view.type && !aligned(view.data, bytes_of(*view.type)))
        throw py::value_error(std::string(name) + " must be aligned to its items of " +
                              std::to_string(bytes_of(*view.type)) + " bytes");
    return view;
}

PixelStore store_of(const View& out, std::size_t rows, std::size_t columns, std::size_t bands,
                    const Quantise& quantise) {
    const std::vector<std::int64_t> shape = {static_cast<std::int64_t>(rows),
                                             static_cast<std::int64_t>(columns),
                                             static_cast<std::int64_t>(bands)};
    const bool right_type = out.type && (*out.type == StoredType::float32) == !quantise;
    if (!right_type || out.shape != shape || !out.writable || !last_axis_contiguous(out))
        throw py::value_error(std::string("out must be a writable ") +
                              (quantise ? "int8 or int16" : "float32") + " array of shape " +
                              shape_text(shape) + " with a contiguous last axis, not " + out.type_name + " " +
                              shape_text(out.shape) + (out.writable ? "" : ", read-only"));
    PixelStore store = {out.data, out.strides[0], out.strides[1], *out.type, nullptr, nullptr};
    if (quantise) {
        check_axis(quantise->first, "inverse_scale", bands);
        check_axis(quantise->second, "offset", bands);
        store.inverse_scale = quantise->first.data();
        store.offset = quantise->second.data();
    }
    return store;
}

Lattice lattice_of(const View& nodes) {
    if (nodes.type != StoredType::float32 || nodes.shape.size() != 3 || nodes.shape[2] < 1 ||
        nodes.shape[2] > kMaxOutputs || !last_axis_contiguous(nodes))
        throw py::value_error(
            "lattice must be a float32 array (rows, columns, bands) with a contiguous last axis, not " +
            nodes.type_name + " " + shape_text(nodes.shape));
    return {static_cast<const float*>(nodes.data), nodes.strides[0], nodes.strides[1],
            static_cast<int>(nodes.shape[2])};
}

void check_order(int order) {
    if (order < kMinOrder || order > kMaxOrder || order % 2)
        throw py::value_error("order must be 4, 6, 8, 10 or 12, not " + std::to_string(order));
}

Stencils stencils_of(const View& nodes, const py::object& rows, const py::object& columns, int order,
                     const Vector2& origin, const Vector2& spacing) {
    check_order(order);
    return {stencils_along("row", rows, origin.first, spacing.first, order, nodes.shape[0]),
            stencils_along("column", columns, origin.second, spacing.second, order, nodes.shape[1])};
}

}  // namespace satclip::bindings

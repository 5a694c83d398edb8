// Bindings of the CUDA kernels, on arrays in device or host memory, and of their emulation on the CPU.
#include <pybind11/stl.h>

#include <algorithm>

#include "array_view.h"
#include "cuda/cuda.h"
#include "cuda/emulation/emulate.h"
#include "dlpack.h"

using namespace satclip::bindings;
namespace cuda = satclip::cuda;
using satclip::PixelStore;
using satclip::StoredType;

namespace {

constexpr py::ssize_t kMaxGridColumns = 1 << 24;  // the kernels count tiles in int

void check_grid(const InDoubles& lat, const InDoubles& lon) {
    check_latitudes(lat.data(), lat.shape(0), 1);
    if (lon.shape(0) > kMaxGridColumns)
        throw py::value_error("lon has " + std::to_string(lon.shape(0)) + " columns: at most " +
                              std::to_string(kMaxGridColumns) + " in one call");
}

cuda::Precision precision_of(const std::string& name) {
    if (name == "exact") return cuda::Precision::exact;
    if (name == "fast") return cuda::Precision::fast;
    throw py::value_error("precision must be 'exact' or 'fast', not '" + name + "'");
}

cuda::PackedGrid packed(int degrees, const std::vector<InFloats>& weights,
                        const std::vector<InFloats>& biases, const std::string& precision) {
    const cuda::Precision hidden = precision_of(precision);
    const auto layers = layers_of(degrees, weights, biases);
    const py::gil_scoped_release release;
    return cuda::pack_grid(degrees, layers, hidden);
}

struct Type {
    const char* name;
    const char* code;  // of the array interface
    StoredType stored;
    dlpack::DataType dlpack;
};
constexpr Type kTypes[] = {{"float32", "<f4", StoredType::float32, {dlpack::kFloat, 32, 1}},
                           {"int8", "|i1", StoredType::int8, {dlpack::kInt, 8, 1}},
                           {"int16", "<i2", StoredType::int16, {dlpack::kInt, 16, 1}}};

const Type& type_named(const std::string& name) {
    for (const Type& type : kTypes)
        if (name == type.name) return type;
    throw py::value_error("dtype must be float32, int8 or int16, not '" + name + "'");
}

// A contiguous array in device memory. An event follows the work that fills it: a stream of the caller's may
// be gone by the time that somebody reads.
class CudaArray {
  public:
    CudaArray(int device, std::vector<std::int64_t> shape, const Type& type)
        : device_(device), shape_(std::move(shape)), type_(type) {
        std::size_t bytes = satclip::bytes_of(type.stored);
        for (const std::int64_t n : shape_) bytes *= static_cast<std::size_t>(n);
        memory_ = cuda::allocate(device, bytes);
    }

    // To be called when all work that fills it is in the stream.
    void filled_by(cuda::Stream stream) { filled_.emplace(device_, stream); }

    int device() const { return device_; }
    const char* dtype() const { return type_.name; }
    py::tuple shape() const { return py::tuple(py::cast(shape_)); }

    View view() const {
        View view;
        view.data = memory_.get();
        view.shape = shape_;
        view.strides = {shape_[1] * shape_[2], shape_[2], 1};
        view.type = type_.stored;
        view.type_name = type_.name;
        view.device = device_;
        view.owner = memory_;
        return view;
    }

    // Filled when this returns: so there is no stream to wait for.
    py::dict interface() const {
        const std::optional<cuda::StreamEvent> filled = filled_;  // a copy: it may be filled again meanwhile
        if (filled) {
            const py::gil_scoped_release release;
            filled->synchronize();
        }
        py::dict description;
        description["shape"] = shape();
        description["typestr"] = type_.code;
        description["data"] = py::make_tuple(reinterpret_cast<std::uintptr_t>(memory_.get()), false);
        description["stream"] = py::none();
        description["version"] = 3;
        return description;
    }

    std::pair<int, int> dlpack_device() const { return {dlpack::kCuda, device_}; }

    // stream: the reader's; none for the legacy default stream, −1 when nobody need wait. Every reader takes
    // this version of the capsule, whatever max_version it can read.
    py::capsule dlpack(const std::optional<std::intptr_t>& stream, const py::object& /* max_version */,
                       const std::optional<std::pair<int, int>>& device,
                       const std::optional<bool>& copy) const {
        if (copy.value_or(false)) throw py::buffer_error("CudaArray makes no copies: copy must not be True");
        if (device && *device != dlpack_device())
            throw py::buffer_error("CudaArray stays on CUDA device " + std::to_string(device_) +
                                   ": dl_device must be (2, " + std::to_string(device_) + ")");
        const std::intptr_t reader = stream.value_or(kLegacyStream);
        if (reader == 0 || reader < kNoStream)
            throw py::value_error("stream must be None, -1, 1, 2 or a CUDA stream, not " +
                                  std::to_string(reader));
        if (filled_ && reader != kNoStream) filled_->make_wait(static_cast<cuda::Stream>(reader));
        auto* exported = new Exported{{}, memory_, shape_};
        exported->managed.tensor = {memory_.get(),
                                    {dlpack::kCuda, device_},
                                    static_cast<int>(shape_.size()),
                                    type_.dlpack,
                                    exported->shape.data(),
                                    nullptr,
                                    0};
        exported->managed.context = exported;
        exported->managed.deleter = [](dlpack::ManagedTensor* managed) {
            delete static_cast<Exported*>(managed->context);
        };
        return py::reinterpret_steal<py::capsule>(
            PyCapsule_New(&exported->managed, dlpack::kName, [](PyObject* capsule) {
                if (!PyCapsule_IsValid(capsule, dlpack::kName)) return;  // somebody took it
                auto* managed =
                    static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, dlpack::kName));
                managed->deleter(managed);
            }));
    }

  private:
    static constexpr std::intptr_t kNoStream = -1, kLegacyStream = 1;  // DLPack's numbers

    struct Exported {
        dlpack::ManagedTensor managed;
        std::shared_ptr<void> memory;
        std::vector<std::int64_t> shape;
    };

    int device_;
    std::vector<std::int64_t> shape_;
    const Type& type_;
    std::optional<cuda::StreamEvent> filled_;
    std::shared_ptr<void> memory_;
};

cuda::Stream stream_of(const std::optional<std::uintptr_t>& stream) { return stream.value_or(0); }

// The argument `out`, or a new array on the device.
struct OutputArray {
    py::object result;
    View view;
    CudaArray* cuda_array = nullptr;  // `out` or the new one, if it is a CudaArray

    OutputArray(const py::object& out, int device, std::size_t rows, std::size_t columns, std::size_t bands,
                const std::string& dtype, cuda::Stream stream)
        : result(out) {
        if (!out.is_none()) {
            view = view_of(out, "out", stream);
            if (py::isinstance<CudaArray>(out)) cuda_array = out.cast<CudaArray*>();
            if (view.on_device() && view.device != device)
                throw py::value_error("out lies on CUDA device " + std::to_string(view.device) + ", not on " +
                                      std::to_string(device));
            return;
        }
        const std::vector<std::int64_t> shape = {static_cast<std::int64_t>(rows),
                                                 static_cast<std::int64_t>(columns),
                                                 static_cast<std::int64_t>(bands)};
        result = py::cast(CudaArray(device, shape, type_named(dtype)));
        cuda_array = result.cast<CudaArray*>();
        view = cuda_array->view();
    }

    // To be called when all is queued.
    py::object filled_by(cuda::Stream stream) const {
        if (cuda_array) cuda_array->filled_by(stream);
        return result;
    }
};

class CudaNetwork {
  public:
    CudaNetwork(int degrees, const std::vector<InFloats>& weights, const std::vector<InFloats>& biases,
                const std::string& precision, int device)
        : precision_(precision) {
        const cuda::PackedGrid grid = packed(degrees, weights, biases, precision);
        const py::gil_scoped_release release;
        network_ = std::make_shared<cuda::DeviceNetwork>(grid, device);
    }

    int device() const { return network_->device(); }
    const std::string& precision() const { return precision_; }

    py::object encode_grid(const py::object& lat, const py::object& lon, const py::object& out,
                           const std::optional<std::uintptr_t>& stream, const Quantise& quantise,
                           const std::string& dtype, int threads, const py::object& check) const {
        const InDoubles rows = axis(lat, "lat"), columns = axis(lon, "lon");
        check_grid(rows, columns);
        const cuda::Stream on = stream_of(stream);
        const std::size_t h = rows.shape(0), w = columns.shape(0);
        const OutputArray target(out, device(), h, w, network_->bands(), dtype, on);
        const PixelStore store = store_of(target.view, h, w, network_->bands(), quantise);
        without_gil(threads, check, [&](const satclip::Control& control) {
            return network_->encode_grid(rows.data(), h, columns.data(), w, {store, target.view.on_device()},
                                         on, control);
        });
        return target.filled_by(on);
    }

  private:
    std::shared_ptr<cuda::DeviceNetwork> network_;
    std::string precision_;
};

py::object cuda_resample(const py::object& lattice, const py::object& rows, const py::object& columns,
                         const py::object& out, int order, const Vector2& origin, const Vector2& spacing,
                         const Quantise& quantise, const std::string& dtype, const std::optional<int>& device,
                         const std::optional<std::uintptr_t>& stream, int threads, const py::object& check) {
    const cuda::Stream on = stream_of(stream);
    const View nodes = view_of(lattice, "lattice", on);
    const satclip::Lattice from = lattice_of(nodes);
    const Stencils axes = stencils_of(nodes, rows, columns, order, origin, spacing);
    const int target_device = device ? *device : std::max(0, nodes.device);
    if (nodes.on_device() && nodes.device != target_device)
        throw py::value_error("lattice lies on CUDA device " + std::to_string(nodes.device) + ", not on " +
                              std::to_string(target_device));
    const OutputArray target(out, target_device, axes.rows.size(), axes.columns.size(), from.bands, dtype,
                             on);
    const PixelStore store =
        store_of(target.view, axes.rows.size(), axes.columns.size(), from.bands, quantise);
    const cuda::LatticeSource source = {from, static_cast<std::size_t>(nodes.shape[0]),
                                        static_cast<std::size_t>(nodes.shape[1]), nodes.on_device()};
    without_gil(threads, check, [&](const satclip::Control& control) {
        return cuda::resample(target_device, source, order, axes.rows, axes.columns,
                              {store, target.view.on_device()}, on, control);
    });
    return target.filled_by(on);
}

py::array_t<std::uint8_t> cuda_pinned(py::ssize_t bytes, const std::optional<int>& device) {
    if (bytes < 0) throw py::value_error("bytes must not be negative");
    auto* memory = new std::shared_ptr<void>(
        cuda::allocate_pinned(static_cast<std::size_t>(bytes), device.value_or(-1)));
    const py::capsule owner(memory, [](void* owned) { delete static_cast<std::shared_ptr<void>*>(owned); });
    return py::array_t<std::uint8_t>(bytes, static_cast<std::uint8_t*>(memory->get()), owner);
}

void emulated_grid(int degrees, const std::vector<InFloats>& weights, const std::vector<InFloats>& biases,
                   const std::string& precision, const py::object& lat, const py::object& lon,
                   const py::object& out, const Quantise& quantise, bool backwards, std::size_t piece_bytes) {
    const cuda::PackedGrid grid = packed(degrees, weights, biases, precision);
    const InDoubles rows = axis(lat, "lat"), columns = axis(lon, "lon");
    check_grid(rows, columns);
    const std::size_t h = rows.shape(0), w = columns.shape(0);
    const PixelStore store = store_of(view_of(out, "out"), h, w, grid.layers.back().view.outputs, quantise);
    const py::gil_scoped_release release;
    cuda::emulate_grid(grid, rows.data(), h, columns.data(), w, store, {backwards, piece_bytes});
}

void emulated_resample(const py::object& lattice, const py::object& rows, const py::object& columns,
                       const py::object& out, int order, const Vector2& origin, const Vector2& spacing,
                       const Quantise& quantise, bool backwards, std::size_t piece_bytes) {
    const View nodes = view_of(lattice, "lattice");
    const satclip::Lattice from = lattice_of(nodes);
    const Stencils axes = stencils_of(nodes, rows, columns, order, origin, spacing);
    const PixelStore store =
        store_of(view_of(out, "out"), axes.rows.size(), axes.columns.size(), from.bands, quantise);
    const py::gil_scoped_release release;
    cuda::emulate_resample(from, order, axes.rows, axes.columns, store, {backwards, piece_bytes});
}

constexpr std::size_t kPieceBytes = std::size_t{16} << 20;

void bind_emulation(py::module_ m) {
    m.doc() = "The CUDA kernels' cuda_array bodies, run thread by thread on the CPU: slow, for tests.";
    m.def("encode_grid", &emulated_grid, py::arg("degrees"), py::arg("weights"), py::arg("biases"),
          py::arg("precision"), py::arg("lat"), py::arg("lon"), py::arg("out"), py::kw_only(),
          py::arg("quantise") = py::none(), py::arg("backwards") = false,
          py::arg("piece_bytes") = kPieceBytes,
          "backwards: threads and blocks in the opposite order; piece_bytes: of out, computed and copied at "
          "once.");
    m.def("resample", &emulated_resample, py::arg("lattice"), py::arg("rows"), py::arg("columns"),
          py::arg("out"), py::kw_only(), py::arg("order") = 8, py::arg("origin") = Vector2(0, 0),
          py::arg("spacing") = Vector2(1, 1), py::arg("quantise") = py::none(), py::arg("backwards") = false,
          py::arg("piece_bytes") = kPieceBytes);
}

std::vector<std::pair<std::string, std::pair<int, int>>> device_names() {
    std::vector<std::pair<std::string, std::pair<int, int>>> names;
    const py::gil_scoped_release release;
    for (const cuda::DeviceName& device : cuda::devices())
        names.push_back({device.name, {device.major, device.minor}});
    return names;
}

}  // namespace

void bind_cuda(py::module_& m) {
    const auto text = [](const char* value) -> py::object {
        if (value == nullptr) return py::none();
        return py::str(value);
    };
    m.attr("cuda_build") = text(cuda::build());
    m.attr("cuda_missing") = text(cuda::missing());
    m.def("cuda_devices", &device_names,
          "Name and compute capability of each GPU that a CUDA driver here shows; none without a driver.");
    m.def(
        "cuda_no_devices",
        [] {
            const py::gil_scoped_release release;
            return cuda::no_devices();
        },
        "Why cuda_devices() is empty; an empty string when it is not.");
    m.def("cuda_pinned", &cuda_pinned, py::arg("bytes"), py::arg("device") = py::none(),
          "Page-locked host memory: results are copied into views of it directly, without a second copy.");
    py::class_<CudaArray>(m, "CudaArray", "A contiguous array in a GPU's memory.")
        .def_property_readonly("shape", &CudaArray::shape)
        .def_property_readonly("dtype", &CudaArray::dtype)
        .def_property_readonly("device", &CudaArray::device)
        .def_property_readonly("__cuda_array_interface__", &CudaArray::interface)
        .def("__dlpack_device__", &CudaArray::dlpack_device)
        .def("__dlpack__", &CudaArray::dlpack, py::kw_only(), py::arg("stream") = py::none(),
             py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(),
             py::arg("copy") = py::none());
    py::class_<CudaNetwork>(m, "CudaNetwork", "A network in a GPU's memory; immutable, shared by threads.")
        .def(py::init<int, const std::vector<InFloats>&, const std::vector<InFloats>&, const std::string&,
                      int>(),
             py::arg("degrees"), py::arg("weights"), py::arg("biases"), py::arg("precision") = "exact",
             py::arg("device") = 0)
        .def_property_readonly("device", &CudaNetwork::device)
        .def_property_readonly("precision", &CudaNetwork::precision)
        .def("encode_grid", &CudaNetwork::encode_grid, py::arg("lat"), py::arg("lon"),
             py::arg("out") = py::none(), py::kw_only(), py::arg("stream") = py::none(),
             py::arg("quantise") = py::none(), py::arg("dtype") = "float32", py::arg("threads") = 1,
             py::arg("check") = py::none(),
             "Embeddings of lat × lon → out (H, W, E): a NumPy array, or one in the GPU's memory. Without "
             "`out` a new "
             "CudaArray of `dtype`. quantise = (inverse_scale, offset) makes codes of int8 or int16.");
    m.def("cuda_resample", &cuda_resample, py::arg("lattice"), py::arg("rows"), py::arg("columns"),
          py::arg("out") = py::none(), py::kw_only(), py::arg("order") = 8, py::arg("origin") = Vector2(0, 0),
          py::arg("spacing") = Vector2(1, 1), py::arg("quantise") = py::none(), py::arg("dtype") = "float32",
          py::arg("device") = py::none(), py::arg("stream") = py::none(), py::arg("threads") = 1,
          py::arg("check") = py::none(), "As resample, on a GPU.");
    bind_emulation(m.def_submodule("cuda_emulated"));
}

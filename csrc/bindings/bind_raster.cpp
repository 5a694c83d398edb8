// Bindings of the raster kernels, on NumPy views of pixels and tiles. The GIL is released while they run.
#include <pybind11/stl.h>

#include <stdexcept>

#include "arguments.h"

using namespace satclip::raster;
using satclip::bindings::InFloats;
using satclip::bindings::kernels_named;
namespace py = pybind11;

namespace {

using FloatArray = py::array_t<float>;

void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
}

Block block_of(const py::array& pixels) {
    require(py::isinstance<FloatArray>(pixels) && pixels.ndim() == 3,
            "pixels: expected a float32 array (rows, columns, bands)");
    const auto bands = pixels.shape(2);
    constexpr py::ssize_t size = sizeof(float);
    require(pixels.shape(0) > 0 && pixels.shape(1) > 0 && bands > 0, "pixels: empty");
    constexpr py::ssize_t most = std::numeric_limits<int>::max() / 2;  // the kernels count in int
    require(pixels.shape(0) <= most && pixels.shape(1) <= most && bands <= most,
            "pixels: at most " + std::to_string(most) + " each way");
    require(satclip::bindings::aligned(pixels.data(), sizeof(float)), "pixels: not aligned to 4 bytes");
    require((bands == 1 || pixels.strides(2) == size) &&
                (pixels.shape(1) == 1 || pixels.strides(1) == bands * size) && pixels.strides(0) % size == 0,
            "pixels: the bands of a pixel and the pixels of a row must be contiguous");
    return {static_cast<const float*>(pixels.data()), pixels.strides(0) / size,
            static_cast<int>(pixels.shape(0)), static_cast<int>(pixels.shape(1)), static_cast<int>(bands)};
}

template <class T>
T* vector_of(py::array& array, const char* name, py::ssize_t length) {
    require(py::isinstance<py::array_t<T>>(array) && array.ndim() == 1 && array.shape(0) == length &&
                (length < 2 || array.strides(0) == sizeof(T)) &&
                satclip::bindings::aligned(array.data(), sizeof(T)),
            std::string(name) + ": expected a contiguous vector of " + std::to_string(length) + " values");
    return static_cast<T*>(array.mutable_data());
}

Sample sample_of(const std::string& name) {
    if (name == "int8") return Sample::int8;
    if (name == "uint8") return Sample::uint8;
    if (name == "int16") return Sample::int16;
    if (name == "float16") return Sample::float16;
    require(name == "float32", "dtype: expected int8, uint8, int16, float16 or float32, got '" + name + "'");
    return Sample::float32;
}

void pack_tiles(const py::array& pixels, py::array tiles, int first_row, const std::string& dtype,
                int predictor, const std::optional<InFloats>& inverse_scale,
                const std::optional<InFloats>& offset, py::array clipped, py::array overshoot,
                py::array valid, bool interleaved, const std::optional<std::string>& isa) {
    const Block block = block_of(pixels);
    const Sample sample = sample_of(dtype);
    const bool byte = sample == Sample::int8 || sample == Sample::uint8;
    const bool integer = byte || sample == Sample::int16;
    const int size = byte ? 1 : sample == Sample::float32 ? 4 : 2;
    require(tiles.ndim() == 4 && tiles.itemsize() == size && (tiles.flags() & py::array::c_style) &&
                tiles.writeable() && satclip::bindings::aligned(tiles.data(), size),
            "tiles: expected a contiguous writable array of four dimensions of aligned " +
                std::to_string(size) + "-byte items");
    const auto side = tiles.shape(2);
    const int band_axis = interleaved ? 3 : 1;
    require(tiles.shape(band_axis) == block.bands && tiles.shape(4 - band_axis) == side && side >= 1 &&
                side <= 1024,
            "tiles: expected (tiles, " +
                (interleaved ? "side, side, " + std::to_string(block.bands) + ")"
                             : std::to_string(block.bands) + ", side, side)") +
                " with side at most 1024");
    require(tiles.shape(0) == (block.columns + side - 1) / side,
            "tiles: their number does not match the pixels' columns");
    require(first_row >= 0 && block.rows <= side && first_row <= side - block.rows,
            "first_row: the rows do not fit the tiles");
    require(predictor == 1 || (predictor == 2 && integer) || (predictor == 3 && !integer),
            "predictor: 1, 2 for integers or 3 for floats");
    if (integer)
        require(inverse_scale && offset && inverse_scale->size() == block.bands &&
                    offset->size() == block.bands && inverse_scale->ndim() == 1 && offset->ndim() == 1,
                "inverse_scale, offset: one value a band is needed for integers");
    const Encoding encoding{sample, static_cast<Predictor>(predictor),
                            integer ? inverse_scale->data() : nullptr, integer ? offset->data() : nullptr};
    const Tiles target{static_cast<std::uint8_t*>(tiles.mutable_data()), static_cast<int>(side), first_row,
                       static_cast<int>(tiles.shape(0)), interleaved};
    QuantisationStatistics statistics{vector_of<std::int64_t>(clipped, "clipped", block.bands),
                                      vector_of<float>(overshoot, "overshoot", block.bands),
                                      vector_of<std::int64_t>(valid, "valid", tiles.shape(0))};
    const satclip::Kernels& kernels = kernels_named(isa);
    py::gil_scoped_release release;
    kernels.raster->pack_tiles(block, encoding, target, statistics);
}

void halve(const py::array& pixels, py::array out, const std::optional<std::string>& isa) {
    const Block block = block_of(pixels);
    const Block target = block_of(out);
    require(out.writeable(), "out: read-only");
    require(target.rows == (block.rows + 1) / 2 && target.columns == (block.columns + 1) / 2 &&
                target.bands == block.bands,
            "out: expected half of the pixels' rows and columns, rounded up, and as many bands");
    const satclip::Kernels& kernels = kernels_named(isa);
    py::gil_scoped_release release;
    kernels.raster->halve(block, const_cast<float*>(target.data), target.row_stride);
}

}  // namespace

void bind_raster(py::module_& m) {
    m.def(
        "pack_tiles", &pack_tiles, py::arg("pixels"), py::arg("tiles"), py::kw_only(), py::arg("first_row"),
        py::arg("dtype"), py::arg("predictor"), py::arg("inverse_scale").none(true),
        py::arg("offset").none(true), py::arg("clipped"), py::arg("overshoot"), py::arg("valid"),
        py::arg("interleaved") = false, py::arg("isa") = py::none(),
        "Quantise pixels (rows, columns, bands) into rows of band-planar tiles (tiles, bands, side, side) or "
        "interleaved ones (tiles, side, side, bands), apply the TIFF predictor, and add to the statistics "
        "clipped, overshoot [bands] and valid [tiles].");
    m.def("halve", &halve, py::arg("pixels"), py::arg("out"), py::arg("isa") = py::none(),
          "Mean of the valid values of each 2×2 pixels; at odd edges of what is there.");
}

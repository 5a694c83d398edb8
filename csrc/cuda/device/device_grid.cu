// Embeddings of product grids on a GPU.
#include "host_copies.h"

namespace satclip::cuda {

struct DeviceNetwork::Memory {
    int device;
    Precision precision;
    bool wide;
    GridNetwork network;
    std::vector<std::shared_ptr<void>> arrays;

    template <class T>
    const T* upload(const std::vector<T>& values) {
        const std::size_t bytes = values.size() * sizeof(T);
        arrays.push_back(allocate(device, bytes));
        check(cudaMemcpy(arrays.back().get(), values.data(), bytes, cudaMemcpyHostToDevice), "cudaMemcpy",
              device);
        return static_cast<const T*>(arrays.back().get());
    }
};

DeviceNetwork::DeviceNetwork(const PackedGrid& packed, int device)
    : memory_(new Memory{device, packed.precision, packed.wide(), {}, {}}) {
    const CurrentDevice current(device);
    std::vector<DenseView> layers;
    memory_->network =
        grid_network(packed, layers, [&](const auto& values) { return memory_->upload(values); });
    if (shared_bytes(memory_->network, packed.precision) > max_shared_bytes(device)) memory_->wide = true;
    // Copies of a few pages return before they have arrived, and streams that do not wait for the legacy one
    // read them.
    check(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize", device);
}

DeviceNetwork::~DeviceNetwork() = default;
int DeviceNetwork::device() const { return memory_->device; }
int DeviceNetwork::bands() const { return memory_->network.bands; }

bool DeviceNetwork::encode_grid(const double* lat, std::size_t rows, const double* lon, std::size_t columns,
                                const Destination& to, Stream stream, const Control& control) const {
    if (rows == 0 || columns == 0) return true;
    DeviceMachine machine(memory_->device, stream);
    GridRun<DeviceMachine> run(machine, memory_->network, memory_->precision, memory_->wide,
                               sincos_of(lat, rows).data(), rows, sincos_of(lon, columns).data(), columns);
    return make_raster(machine, to, rows, columns, static_cast<std::size_t>(bands()), control,
                       [&](std::size_t first, std::size_t count, const PixelStore& store) {
                           run.encode(first, count, store);
                       });
}

}  // namespace satclip::cuda

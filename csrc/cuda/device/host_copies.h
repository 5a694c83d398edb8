// Copies of rasters into host memory, for the two calls that compute them. For nvcc only.
#pragma once

#include <atomic>

#include "cpu/parallel.h"
#include "cuda/cuda.h"
#include "cuda/staged_raster.h"
#include "device_machine.h"

namespace satclip::cuda {

constexpr std::size_t kPieceBytes = std::size_t{16} << 20;  // a millisecond of PCIe, and of a kernel

// Scales and offsets of a store, in device memory while this lives.
class Scales {
  public:
    Scales(const DeviceMachine& machine, const PixelStore& store, std::size_t bands)
        : inverse_scale_(machine.upload(store.inverse_scale, store.inverse_scale ? bands : 0)),
          offset_(machine.upload(store.offset, store.offset ? bands : 0)) {}
    PixelStore on_device(PixelStore store) const {
        store.inverse_scale = inverse_scale_.data();
        store.offset = offset_.data();
        return store;
    }

  private:
    DeviceMachine::Buffer<float> inverse_scale_, offset_;
};

// Fills a raster: make(first row, rows, store) queues kernels that fill rows of it, which end in `to`.
template <class Make>
bool make_raster(DeviceMachine& machine, const Destination& to, std::size_t rows, std::size_t columns,
                 std::size_t bands, const Control& control, Make&& make) {
    const Scales scales(machine, to.store, bands);
    if (to.on_device) {
        make(0, rows, scales.on_device(to.store));
        return true;
    }
    const StagedRaster raster = {to.store, columns, bands};
    std::atomic<bool> stop{false};
    KeepRunning keep_running(stop, &control);
    return copy_back(
        machine, rows, raster.row_bytes(), kPieceBytes,
        raster.contiguous() && is_pinned(to.store.out) ? to.store.out : nullptr,
        [&](std::size_t first, std::size_t count, void* memory) {
            make(first, count, scales.on_device(raster.store_in(memory)));
        },
        [&](std::size_t first, std::size_t count, const void* memory) {
            run_parallel(
                count, 0, {control.threads, nullptr, nullptr}, [&](std::size_t row, float*, KeepRunning&) {
                    raster.copy_row(first + row, static_cast<const char*>(memory) + row * raster.row_bytes());
                });
        },
        [&] { return keep_running(); });
}

}  // namespace satclip::cuda

// Rasters into host memory, for the two calls that make them. For nvcc only.
#pragma once

#include <atomic>

#include "../cpu/parallel.h"
#include "cuda.h"
#include "device_machine.h"
#include "places.h"

namespace satclip::cuda {

constexpr std::size_t kPieceBytes = std::size_t{16} << 20;  // a millisecond of PCIe, and of a kernel

// Scales and offsets of a store, in device memory while this lives.
class Scales {
  public:
    Scales(const DeviceMachine& machine, const Store& store, std::size_t bands)
        : inverse_scale_(machine.upload(store.inverse_scale, store.inverse_scale ? bands : 0)),
          offset_(machine.upload(store.offset, store.offset ? bands : 0)) {}
    Store on_device(Store store) const {
        store.inverse_scale = inverse_scale_.data();
        store.offset = offset_.data();
        return store;
    }

  private:
    DeviceMachine::Buffer<float> inverse_scale_, offset_;
};

// make(first row, rows, store) queues what fills the rows of a raster; they end in `to`.
template <class Make>
bool into(DeviceMachine& machine, const Destination& to, std::size_t rows, std::size_t columns,
          std::size_t bands, const Control& control, Make&& make) {
    const Scales scales(machine, to.store, bands);
    if (to.on_device) {
        make(0, rows, scales.on_device(to.store));
        return true;
    }
    const Pieces pieces = {to.store, columns, bands};
    std::atomic<bool> stop{false};
    Pulse pulse(stop, &control);
    return copied_back(
        machine, rows, pieces.row_bytes(), kPieceBytes,
        pieces.contiguous() && is_pinned(to.store.out) ? to.store.out : nullptr,
        [&](std::size_t first, std::size_t count, void* memory) {
            make(first, count, scales.on_device(pieces.staged(memory)));
        },
        [&](std::size_t first, std::size_t count, const void* memory) {
            satclip::run(count, 0, {control.threads, nullptr, nullptr}, [&](std::size_t row, float*, Pulse&) {
                pieces.copy_row(first + row, static_cast<const char*>(memory) + row * pieces.row_bytes());
            });
        },
        [&] { return pulse(); });
}

}  // namespace satclip::cuda

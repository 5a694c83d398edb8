// Lattice resampling on a GPU.
#include "host_copies.h"

namespace satclip::cuda {

namespace {

// The lattice's own memory, or a copy of it without gaps.
class DeviceLattice {
  public:
    DeviceLattice(const DeviceMachine& machine, const LatticeSource& source)
        : lattice_(source.lattice), copy_(machine.buffer<float>(source.on_device ? 0 : values(source))) {
        if (source.on_device) return;
        const std::size_t row = source.columns * lattice_.bands;
        for (std::size_t i = 0; i < source.rows; ++i)
            machine.copy_pixels(copy_.data() + i * row,
                                lattice_.data + static_cast<std::ptrdiff_t>(i) * lattice_.row_stride,
                                lattice_.column_stride, source.columns, lattice_.bands);
        lattice_.data = copy_.data();
        lattice_.column_stride = lattice_.bands;
        lattice_.row_stride = static_cast<std::ptrdiff_t>(row);
        machine.finish();  // page-locked memory is read later than it is handed over
    }
    const Lattice& view() const { return lattice_; }

  private:
    static std::size_t values(const LatticeSource& source) {
        return source.rows * source.columns * static_cast<std::size_t>(source.lattice.bands);
    }

    Lattice lattice_;
    DeviceMachine::Buffer<float> copy_;
};

}  // namespace

bool resample(int device, const LatticeSource& source, int order, const std::vector<Stencil>& rows,
              const std::vector<Stencil>& columns, const Destination& to, Stream stream,
              const Control& control) {
    if (rows.empty() || columns.empty()) return true;
    DeviceMachine machine(device, stream);
    const DeviceLattice lattice(machine, source);
    ResampleRun<DeviceMachine> run(machine, lattice.view(), order, rows.data(), rows.size(), columns.data(),
                                   columns.size());
    return make_raster(machine, to, rows.size(), columns.size(),
                       static_cast<std::size_t>(source.lattice.bands), control,
                       [&](std::size_t first, std::size_t count, const PixelStore& store) {
                           run.resample(first, count, store);
                       });
}

}  // namespace satclip::cuda

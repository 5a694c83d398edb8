// Emulated calls: launches of kernels carried out at once on the CPU, block by block.
#include "emulate.h"

#include "cuda/launches.h"
#include "cuda/staged_raster.h"
#include "host_policy.h"

namespace satclip::cuda {

namespace {

class HostMachine {
  public:
    explicit HostMachine(bool backwards) : backwards_(backwards) {}

    template <class T>
    std::vector<T> buffer(std::size_t count) {
        std::vector<T> to(count);
        if (count) std::memset(static_cast<void*>(to.data()), 0xff, count * sizeof(T));  // NaN
        return to;
    }
    template <class T>
    std::vector<T> upload(const T* from, std::size_t count) {
        return std::vector<T>(from, from + count);
    }
    template <class Body>
    void launch(const Body& body, const Blocks& blocks) {
        HostPolicy policy(Body::kThreads, blocks, backwards_);
        for (std::int64_t i = 0; i < blocks.count; ++i) {
            policy.begin_block(backwards_ ? blocks.count - 1 - i : i);
            body(policy);
        }
    }
    std::size_t processors() const { return 3; }

    class Stage {
      public:
        explicit Stage(std::size_t bytes) : filled_(bytes), copied_(bytes) {}
        void* on_machine() { return filled_.data(); }
        void* on_host() { return copied_.data(); }

      private:
        std::vector<char> filled_, copied_;
    };
    Stage stage(std::size_t bytes, bool) { return Stage(bytes); }
    void fetch(Stage& stage, std::size_t bytes, void* to) { std::memcpy(to, stage.on_machine(), bytes); }
    void await(Stage&) {}

  private:
    bool backwards_;
};

template <class Run>
void run_in_pieces(HostMachine& machine, std::size_t rows, const StagedRaster& raster,
                   const Emulation& options, Run&& run) {
    copy_back(
        machine, rows, raster.row_bytes(), options.piece_bytes, nullptr,
        [&](std::size_t first, std::size_t count, void* memory) {
            run(first, count, raster.store_in(memory));
        },
        [&](std::size_t first, std::size_t count, const void* memory) {
            raster.copy_rows(first, count, memory);
        },
        [] { return true; });
}

}  // namespace

void emulate_grid(const PackedGrid& packed, const double* lat, std::size_t rows, const double* lon,
                  std::size_t columns, const PixelStore& to, const Emulation& options) {
    if (rows == 0 || columns == 0) return;
    HostMachine machine(options.backwards);
    std::vector<DenseView> layers;
    const GridNetwork network =
        grid_network(packed, layers, [](const auto& vector) { return vector.data(); });
    GridRun<HostMachine> run(machine, network, packed.precision, packed.wide(), sincos_of(lat, rows).data(),
                             rows, sincos_of(lon, columns).data(), columns);
    run_in_pieces(machine, rows, {to, columns, static_cast<std::size_t>(network.bands)}, options,
                  [&](std::size_t first, std::size_t count, const PixelStore& store) {
                      run.encode(first, count, store);
                  });
}

void emulate_resample(const Lattice& lattice, int order, const std::vector<Stencil>& rows,
                      const std::vector<Stencil>& columns, const PixelStore& to, const Emulation& options) {
    if (rows.empty() || columns.empty()) return;
    HostMachine machine(options.backwards);
    ResampleRun<HostMachine> run(machine, lattice, order, rows.data(), rows.size(), columns.data(),
                                 columns.size());
    run_in_pieces(machine, rows.size(), {to, columns.size(), static_cast<std::size_t>(lattice.bands)},
                  options, [&](std::size_t first, std::size_t count, const PixelStore& store) {
                      run.resample(first, count, store);
                  });
}

}  // namespace satclip::cuda

// Kernel launches of a call, for any machine that kernels run on. A Machine has
//     buffer<T>(count)                    memory of its own, freed with the handle; .data()
//     upload(pointer, count)              the same, filled from host memory
//     launch(body, Blocks)                carries out a body, in order
//     processors()                        blocks that run at once, at least
// DeviceMachine queues all that on a CUDA stream, HostMachine does it at once.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "bodies/resample_kernel.h"
#include "pack_grid.h"

namespace satclip::cuda {

// Row coefficients that exist at once: they stay in L2 between the kernel that computes them and the one that
// reads them.
constexpr std::size_t kCoefficientBytes = std::size_t{24} << 20;

// Shared memory of a block of EncodePixels with its activations in it.
inline int shared_bytes(const GridNetwork& network, Precision precision) {
    return precision == Precision::exact ? EncodePixels<Exact, false>::shared_bytes(network)
                                         : EncodePixels<Fast, false>::shared_bytes(network);
}

// The product grid of some rows and columns; rows can be encoded in any number of pieces.
template <class Machine>
class GridRun {
  public:
    GridRun(Machine& machine, const GridNetwork& network, Precision precision, bool wide,
            const SineCosine* rows, std::size_t row_count, const SineCosine* columns,
            std::size_t column_count)
        : machine_(machine),
          network_(network),
          precision_(precision),
          wide_(wide),
          columns_(static_cast<std::int64_t>(column_count)),
          rows_(machine.upload(rows, row_count)),
          fourier_basis_(
              machine.template buffer<Words>(tiles() * network.first_layer.steps * kTileFragments * kWarp)),
          chunk_(rows_in_chunk(row_count)),
          coefficients_(machine.template buffer<Words>(chunk_ * panel_words(network.first_layer))),
          scratch_(machine.template buffer<Words>(wide ? 2 * buffer_words() * machine.processors() : 0)) {
        const auto longitudes = machine.upload(columns, column_count);
        const FourierBasis body = {network.degrees, network.first_layer.steps, longitudes.data(), columns_,
                                   fourier_basis_.data()};
        machine.launch(body, {static_cast<std::int64_t>(tiles()), 0});
    }

    // Rows [begin, begin + count) → to, whose first row is row `begin`.
    void encode(std::size_t begin, std::size_t count, PixelStore to) {
        for (std::size_t done = 0; done < count; done += chunk_) {
            const int chunk_rows = static_cast<int>(std::min(chunk_, count - done));
            const RowCoefficients coefficients = {network_, rows_.data() + begin + done, chunk_rows,
                                                  reinterpret_cast<float*>(coefficients_.data())};
            machine_.launch(coefficients, coefficients.blocks());
            if (precision_ == Precision::exact)
                wide_ ? pixels<Exact, true>(chunk_rows, to) : pixels<Exact, false>(chunk_rows, to);
            else
                wide_ ? pixels<Fast, true>(chunk_rows, to) : pixels<Fast, false>(chunk_rows, to);
            to.out = static_cast<char*>(to.out) + chunk_rows * to.row_stride * bytes_of(to.type);
        }
    }

  private:
    std::size_t tiles() const { return (static_cast<std::size_t>(columns_) + kTilePixels - 1) / kTilePixels; }
    std::size_t buffer_words() const {
        return precision_ == Precision::exact ? activation_words<Exact>(network_.widest)
                                              : activation_words<Fast>(network_.widest);
    }
    std::size_t rows_in_chunk(std::size_t rows) const {
        const std::size_t fit = kCoefficientBytes / (panel_words(network_.first_layer) * sizeof(Words));
        const std::size_t whole = std::max<std::size_t>(1, fit / kRowsTogether) * kRowsTogether;
        return std::max<std::size_t>(1, std::min(rows, whole));
    }

    template <class Operands, bool Wide>
    void pixels(int rows, const PixelStore& to) {
        const EncodePixels<Operands, Wide> body = {network_,
                                                   fourier_basis_.data(),
                                                   coefficients_.data(),
                                                   rows,
                                                   static_cast<int>(columns_),
                                                   to,
                                                   aligned_for<4>(to, network_.bands),
                                                   scratch_.data()};
        const std::int64_t blocks = std::min<std::int64_t>(body.tiles(), machine_.processors());
        machine_.launch(body, {blocks, body.shared_bytes(network_)});
    }

    template <class T>
    using Buffer = decltype(std::declval<Machine&>().template buffer<T>(0));

    Machine& machine_;
    GridNetwork network_;
    Precision precision_;
    bool wide_;
    std::int64_t columns_;
    Buffer<SineCosine> rows_;
    Buffer<Words> fourier_basis_;
    std::size_t chunk_;
    Buffer<Words> coefficients_, scratch_;
};

// The raster of some rows and columns of a lattice that lies where kernels read it.
template <class Machine>
class ResampleRun {
  public:
    ResampleRun(Machine& machine, const Lattice& lattice, int order, const Stencil* rows,
                std::size_t row_count, const Stencil* columns, std::size_t column_count)
        : machine_(machine),
          lattice_(lattice),
          order_(order),
          column_count_(static_cast<std::int64_t>(column_count)),
          rows_(machine.upload(rows, row_count)),
          columns_(machine.upload(columns, column_count)) {}

    void resample(std::size_t begin, std::size_t count, const PixelStore& to) {
        switch (order_) {
            case 4:
                return pick<4>(begin, count, to);
            case 6:
                return pick<6>(begin, count, to);
            case 8:
                return pick<8>(begin, count, to);
            case 10:
                return pick<10>(begin, count, to);
            case 12:
                return pick<12>(begin, count, to);
        }
        throw std::logic_error("order " + std::to_string(order_));
    }

  private:
    template <int Order>
    void pick(std::size_t begin, std::size_t count, const PixelStore& to) {
        const bool whole = lattice_.bands % 4 == 0 && lattice_.row_stride % 4 == 0 &&
                           lattice_.column_stride % 4 == 0 &&
                           reinterpret_cast<std::uintptr_t>(lattice_.data) % sizeof(Words) == 0;
        whole ? launch<Order, 4>(begin, count, to) : launch<Order, 1>(begin, count, to);
    }

    template <int Order, int N>
    void launch(std::size_t begin, std::size_t count, const PixelStore& to) {
        const Resample<Order, N> body = {lattice_,
                                         rows_.data() + begin,
                                         columns_.data(),
                                         static_cast<std::int64_t>(count),
                                         column_count_,
                                         to,
                                         aligned_for<N>(to, lattice_.bands)};
        constexpr std::int64_t max_blocks = std::int64_t{1} << 30;
        machine_.launch(body, {std::min(max_blocks, (body.items() + body.kThreads - 1) / body.kThreads), 0});
    }

    template <class T>
    using Buffer = decltype(std::declval<Machine&>().template buffer<T>(0));

    Machine& machine_;
    Lattice lattice_;
    int order_;
    std::int64_t column_count_;
    Buffer<Stencil> rows_, columns_;
};

// Copies rows into host memory that are computed on the machine piece by piece: while one piece is copied the
// next is computed. Machine also has
//     stage(bytes, host)                   memory on the machine, and page-locked memory on the host if asked
//     fetch(stage, bytes, to)              begins copying when all launches so far are done
//     await(stage)                         until it is copied
// make(first row, rows, memory on the machine); take(first row, rows, memory on the host), unless `direct` is
// page-locked memory for all rows; keep_running() → bool.
template <class Machine, class Make, class Take, class Continue>
bool copy_back(Machine& machine, std::size_t rows, std::size_t row_bytes, std::size_t piece_bytes,
               void* direct, Make&& make, Take&& take, Continue&& keep_running) {
    const std::size_t piece =
        std::clamp<std::size_t>(piece_bytes / std::max<std::size_t>(1, row_bytes), 1, rows);
    const std::size_t pieces = (rows + piece - 1) / piece;
    const auto size = [&](std::size_t i) { return std::min(piece, rows - i * piece); };
    typename Machine::Stage stages[2] = {machine.stage(piece * row_bytes, !direct),
                                         machine.stage(piece * row_bytes, !direct)};
    for (std::size_t i = 0; i <= pieces; ++i) {
        if (!keep_running()) return false;
        if (i < pieces) {
            auto& stage = stages[i % 2];
            make(i * piece, size(i), stage.on_machine());
            machine.fetch(stage, size(i) * row_bytes,
                          direct ? static_cast<char*>(direct) + i * piece * row_bytes : stage.on_host());
        }
        if (i > 0) {
            auto& stage = stages[(i - 1) % 2];
            machine.await(stage);
            if (!direct) take((i - 1) * piece, size(i - 1), stage.on_host());
        }
    }
    return true;
}

}  // namespace satclip::cuda

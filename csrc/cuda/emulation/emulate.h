// Emulation of the CUDA kernels on the CPU, for tests: same bodies, same calls, HostPolicy.
#pragma once

#include "cuda/pack_grid.h"

namespace satclip::cuda {

struct Emulation {
    bool backwards;           // see HostPolicy
    std::size_t piece_bytes;  // copied back at once
};

void emulate_grid(const PackedGrid&, const double* lat, std::size_t rows, const double* lon,
                  std::size_t columns, const PixelStore& to, const Emulation&);
void emulate_resample(const Lattice&, int order, const std::vector<Stencil>& rows,
                      const std::vector<Stencil>& columns, const PixelStore& to, const Emulation&);

}  // namespace satclip::cuda

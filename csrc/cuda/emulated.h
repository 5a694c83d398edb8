// The CUDA kernels on the CPU, for tests: same bodies, same calls, HostPolicy.
#pragma once

#include "packed.h"

namespace satclip::cuda {

struct Emulation {
    bool backwards;           // see HostPolicy
    std::size_t piece_bytes;  // that are copied back at once
};

void emulate_grid(const PackedGrid&, const double* lat, std::size_t rows, const double* lon,
                  std::size_t columns, const Store& to, const Emulation&);
void emulate_resample(const Lattice&, int order, const std::vector<Stencil>& rows,
                      const std::vector<Stencil>& columns, const Store& to, const Emulation&);

}  // namespace satclip::cuda

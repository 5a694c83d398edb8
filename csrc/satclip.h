// The whole compiled interface of the CPU core: plain pointers and sizes, no Python, no files.
//
// Every kernel is compiled once per instruction set; `Kernels` is the table of one of them and
// `best_kernels()` the one chosen for this processor. No state outlives a call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace satclip {

struct Kernels {
    const char* name;
};

// The instruction sets that this processor runs, best first. SATCLIP_ISA=name in the environment moves that one to the front.
const std::vector<const Kernels*>& available_kernels();

// The table of that name, or the best one for nullptr; nullptr when this processor cannot run it.
const Kernels* find_kernels(const char* name);

}  // namespace satclip

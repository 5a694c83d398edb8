// Detection of the instruction sets that this processor runs. Compiled for the baseline, so that it can be
// executed anywhere.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace satclip {

namespace baseline {
extern const Kernels kernels;
}
#if SATCLIP_HAS_X86
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

static std::vector<const Kernels*> detect() {
    std::vector<const Kernels*> supported;
#if SATCLIP_HAS_X86
    __builtin_cpu_init();
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        supported.push_back(&avx512::kernels);
    if (has_avx2) supported.push_back(&avx2::kernels);
#endif
    supported.push_back(&baseline::kernels);
    return supported;
}

const std::vector<const Kernels*>& available_kernels() {
    static const std::vector<const Kernels*> kernels = detect();
    return kernels;
}

const Kernels* find_kernels(const char* name) {
    if (name == nullptr) return available_kernels().front();
    for (const Kernels* k : available_kernels())
        if (std::strcmp(k->name, name) == 0) return k;
    return nullptr;
}

}  // namespace satclip

// The table of kernels of one instruction set.
#include "satclip.h"

#define STRINGIFY(x) #x
#define NAME_OF(x) STRINGIFY(x)

namespace satclip::SATCLIP_ISA {

extern const Kernels kernels;
const Kernels kernels = {NAME_OF(SATCLIP_ISA)};

}  // namespace satclip::SATCLIP_ISA

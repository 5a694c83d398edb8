// Execution policies: DevicePolicy runs a kernel's body, a function object with operator()(Policy&), as one
// thread of a GPU's block; HostPolicy runs it as all threads of a block, phase after phase: a function passed
// to threads(), warps() or lanes() is called for every thread before anything behind it runs. So the very
// same body computes on the CPU, slowly, and tests need no GPU.
//
// State of a thread from phase to phase lives in per_warp<State>(); inside a warp, the values of all lanes
// are a PerLane<T>, read and written at [lane] within lanes(). On a GPU both are the thread's own registers.
//
// The multiplications of tensor cores are part of the policy, with the fragments of the PTX manual: g = lane
// / 4, t = lane % 4, a 16-row operand a, an 8-column operand b, sums c:
//     c: (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1)
//     m16n8k8 tf32      a: (g, t) (g+8, t) (g, t+4) (g+8, t+4)              b: (t, g) (t+4, g)
//     m16n8k16 float16  a: pairs (g, 2t) (g+8, 2t) (g, 2t+8) (g+8, 2t+8)    b: pairs (2t, g) (2t+8, g)
#pragma once

#include <cstddef>
#include <cstdint>

#include "host_device.h"

#if defined(__CUDACC__)
#define SATCLIP_BODY __device__ __forceinline__
#else
#define SATCLIP_BODY inline
#endif

namespace satclip::cuda {

constexpr int kWarp = 32;

// Sixteen bytes of a fragment, which one lane loads at once.
struct alignas(16) Words {
    std::uint32_t word[4];
};

// The cosine's and the sine's part of one order.
struct alignas(8) Pair {
    float cosine, sine;
};

// Sums of one 16 × 8 multiplication.
struct Sums {
    float value[4];
};

struct Blocks {
    std::int64_t count;
    int shared_bytes;  // of a block
};

}  // namespace satclip::cuda

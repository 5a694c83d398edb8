// How a kernel's body is carried out. A body is a function object with operator()(Policy&); DevicePolicy runs
// it as one thread of a GPU's block, HostPolicy runs it as all threads of a block, phase after phase: what is
// handed to threads(), warps() or lanes() is done for every thread before anything behind it is. So the very
// same body computes on the CPU, slowly, and tests need no GPU.
//
// What a thread keeps from phase to phase lives in per_warp<State>(); inside a warp, what each lane has is a
// Lanes<T>, read and written at [lane] within lanes(). On a GPU both are the thread's own registers.
//
// The multiplications of tensor cores are part of the policy, with the fragments of the PTX manual: g = lane
// / 4, t = lane % 4, a 16-row operand a, an 8-column operand b, sums c:
//     c: (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1)
//     m16n8k8 tf32      a: (g, t) (g+8, t) (g, t+4) (g+8, t+4)              b: (t, g) (t+4, g)
//     m16n8k16 float16  a: pairs (g, 2t) (g+8, 2t) (g, 2t+8) (g+8, 2t+8)    b: pairs (2t, g) (2t+8, g)
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../device.h"

#if defined(__CUDACC__)
#define SATCLIP_BODY __device__ __forceinline__
#else
#define SATCLIP_BODY inline
#endif

namespace satclip::cuda {

constexpr int kWarp = 32;

// Sixteen bytes of a fragment: what one lane loads at once.
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

// Emulated mma of one warp. Products are exact; the addends of a step are cut to 26 bits below the largest
// and the sum to 24, both towards zero, as measurements of Ampere and later parts show (Fasi et al. 2021), so
// that rounding here is no better than there.
void emulate_mma_tf32(Sums* c, const Words* a, const Words* b, int half);
void emulate_mma_f16(Sums* c, const Words* a, const Words* b, int half);

class HostPolicy {
  public:
    template <class T>
    struct Lanes {
        T all[kWarp];
        T& operator[](int lane) { return all[lane]; }
        const T& operator[](int lane) const { return all[lane]; }
    };

    // backwards: warps and threads run from the last to the first; a result that changes lacks a barrier.
    HostPolicy(int threads, const Blocks& blocks, bool backwards)
        : threads_(threads),
          blocks_(blocks.count),
          backwards_(backwards),
          shared_((blocks.shared_bytes + sizeof(Words) - 1) / sizeof(Words)) {}

    void begin_block(std::int64_t block) {
        block_ = block;
        // NaN in every format: what is read before it is written shows.
        for (Words& words : shared_) words = {{~0u, ~0u, ~0u, ~0u}};
    }

    std::int64_t block() const { return block_; }
    std::int64_t blocks() const { return blocks_; }
    template <class T>
    T* shared() {
        return reinterpret_cast<T*>(shared_.data());
    }
    template <class State>
    std::vector<State> per_warp() const {
        return std::vector<State>(static_cast<std::size_t>(threads_ / kWarp));
    }
    template <class F>
    void threads(F&& f) const {
        each(threads_, f);
    }
    template <class F>
    void warps(F&& f) const {
        each(threads_ / kWarp, f);
    }
    template <class F>
    void lanes(F&& f) const {
        each(kWarp, f);
    }
    void barrier() const {}
    template <class T>
    static T read(const T* from) {
        return *from;
    }
    // half: which 8 columns of a pair of operands b.
    static void mma_tf32(Lanes<Sums>& c, const Lanes<Words>& a, const Lanes<Words>& b, int half) {
        emulate_mma_tf32(c.all, a.all, b.all, half);
    }
    static void mma_f16(Lanes<Sums>& c, const Lanes<Words>& a, const Lanes<Words>& b, int half) {
        emulate_mma_f16(c.all, a.all, b.all, half);
    }

  private:
    template <class F>
    void each(int count, F&& f) const {
        for (int i = 0; i < count; ++i) f(backwards_ ? count - 1 - i : i);
    }

    int threads_;
    std::int64_t blocks_, block_ = 0;
    bool backwards_;
    std::vector<Words> shared_;
};

}  // namespace satclip::cuda

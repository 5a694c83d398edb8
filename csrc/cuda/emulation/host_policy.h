// A kernel's body as all threads of a block, phase after phase, on the CPU; see bodies/policy.h.
#pragma once

#include <vector>

#include "cuda/bodies/policy.h"

namespace satclip::cuda {

// Emulated mma of one warp. Products are exact; the addends of a step are cut to 26 bits below the largest
// and the sum to 24, both towards zero, as measurements of Ampere and later parts show (Fasi et al. 2021), so
// that rounding here is no better than there.
void emulate_mma_tf32(Sums* c, const Words* a, const Words* b, int half);
void emulate_mma_f16(Sums* c, const Words* a, const Words* b, int half);

class HostPolicy {
  public:
    template <class T>
    struct PerLane {
        T lanes[kWarp];
        T& operator[](int lane) { return lanes[lane]; }
        const T& operator[](int lane) const { return lanes[lane]; }
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
        for_each(threads_, f);
    }
    template <class F>
    void warps(F&& f) const {
        for_each(threads_ / kWarp, f);
    }
    template <class F>
    void lanes(F&& f) const {
        for_each(kWarp, f);
    }
    void barrier() const {}
    template <class T>
    static T read(const T* from) {
        return *from;
    }
    // half: which 8 columns of a pair of operands b.
    static void mma_tf32(PerLane<Sums>& c, const PerLane<Words>& a, const PerLane<Words>& b, int half) {
        emulate_mma_tf32(c.lanes, a.lanes, b.lanes, half);
    }
    static void mma_f16(PerLane<Sums>& c, const PerLane<Words>& a, const PerLane<Words>& b, int half) {
        emulate_mma_f16(c.lanes, a.lanes, b.lanes, half);
    }

  private:
    template <class F>
    void for_each(int count, F&& f) const {
        for (int i = 0; i < count; ++i) f(backwards_ ? count - 1 - i : i);
    }

    int threads_;
    std::int64_t blocks_, block_ = 0;
    bool backwards_;
    std::vector<Words> shared_;
};

}  // namespace satclip::cuda

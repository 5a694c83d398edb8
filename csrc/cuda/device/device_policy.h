// A kernel's body as one thread of a GPU; see bodies/policy.h. For nvcc only.
#pragma once

#include "cuda/bodies/policy.h"

namespace satclip::cuda {

class DevicePolicy {
  public:
    template <class T>
    struct PerLane {
        T value;
        __device__ __forceinline__ T& operator[](int) { return value; }
        __device__ __forceinline__ const T& operator[](int) const { return value; }
    };
    template <class State>
    struct PerWarp {
        State state;
        __device__ __forceinline__ State& operator[](int) { return state; }
    };

    __device__ __forceinline__ std::int64_t block() const { return blockIdx.x; }
    __device__ __forceinline__ std::int64_t blocks() const { return gridDim.x; }
    template <class T>
    __device__ __forceinline__ T* shared() const {
        extern __shared__ Words satclip_shared[];
        return reinterpret_cast<T*>(satclip_shared);
    }
    template <class State>
    __device__ __forceinline__ PerWarp<State> per_warp() const {
        return {};
    }
    // Threads that left a phase early are together again in the next one, whose multiplications are a warp's.
    template <class F>
    __device__ __forceinline__ void threads(F&& f) const {
        f(thread());
        __syncwarp();
    }
    template <class F>
    __device__ __forceinline__ void warps(F&& f) {
        const int index = thread();
        lane_ = index % kWarp;
        f(index / kWarp);
        __syncwarp();
    }
    template <class F>
    __device__ __forceinline__ void lanes(F&& f) const {
        f(lane_);
    }
    __device__ __forceinline__ void barrier() const { __syncthreads(); }

    // Reads of memory that no thread writes while the kernel runs.
    __device__ __forceinline__ static float read(const float* from) { return __ldg(from); }
    __device__ __forceinline__ static double read(const double* from) { return __ldg(from); }
    __device__ __forceinline__ static Pair read(const Pair* from) {
        const float2 pair = __ldg(reinterpret_cast<const float2*>(from));
        return {pair.x, pair.y};
    }
    __device__ __forceinline__ static Words read(const Words* from) {
        const uint4 words = __ldg(reinterpret_cast<const uint4*>(from));
        return {{words.x, words.y, words.z, words.w}};
    }

    __device__ __forceinline__ static void mma_tf32(PerLane<Sums>& c, const PerLane<Words>& a,
                                                    const PerLane<Words>& b, int half) {
        float (&sum)[4] = c.value.value;
        const std::uint32_t (&x)[4] = a.value.word;
        const std::uint32_t* y = b.value.word + 2 * half;
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
    }
    __device__ __forceinline__ static void mma_f16(PerLane<Sums>& c, const PerLane<Words>& a,
                                                   const PerLane<Words>& b, int half) {
        float (&sum)[4] = c.value.value;
        const std::uint32_t (&x)[4] = a.value.word;
        const std::uint32_t* y = b.value.word + 2 * half;
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
    }

  private:
    // Read again in each phase: addresses made of it would otherwise be kept in registers from phase to
    // phase.
    __device__ __forceinline__ static int thread() {
        int index;
        asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
        return index;
    }

    int lane_ = 0;
};

}  // namespace satclip::cuda

// CUDA stream as a Machine of launches.h. For nvcc only.
#pragma once

#include <vector>

#include "cuda/launches.h"
#include "device_policy.h"
#include "runtime.h"

namespace satclip::cuda {

// One block to a multiprocessor has all its registers: 255 for each of 256 threads.
template <class Body>
__global__ void __launch_bounds__(Body::kThreads, 1) launched(const Body body) {
    DevicePolicy policy;
    body(policy);
}

// Bytes of shared memory that a block may have without opting in.
constexpr int kDefaultSharedBytes = 48 << 10;

class DeviceMachine {
  public:
    DeviceMachine(int device, Stream stream)
        : device_(device), current_(device), stream_(reinterpret_cast<cudaStream_t>(stream)) {}

    template <class T>
    class Buffer {
      public:
        Buffer(int device, cudaStream_t stream, std::size_t count)
            : memory_(device, stream, count * sizeof(T)) {}
        T* data() const { return static_cast<T*>(memory_.get()); }

      private:
        StreamMemory memory_;
    };

    template <class T>
    Buffer<T> buffer(std::size_t count) const {
        return {device_, stream_, count};
    }

    // `from` is host memory of any kind, copied when this returns: the caller's may be page-locked, which the
    // device reads when its turn comes, ours is not, and has been read when the call returns.
    template <class T>
    Buffer<T> upload(const T* from, std::size_t count) const {
        const std::vector<T> values(from, from + count);
        Buffer<T> to = buffer<T>(count);
        copy(to.data(), values.data(), count * sizeof(T));
        return to;
    }

    template <class Body>
    void launch(const Body& body, const Blocks& blocks) const {
        if (blocks.count == 0) return;
        // The limit belongs to the kernel, not to this launch: always the same one, or threads and networks
        // would lower each other's.
        if (blocks.shared_bytes > kDefaultSharedBytes)
            check(cudaFuncSetAttribute(launched<Body>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       max_shared_bytes(device_)),
                  "cudaFuncSetAttribute", device_);
        // Not <<<>>>: its errors would only show in the last error, which may be another call's.
        Body argument = body;
        void* arguments[] = {&argument};
        check(cudaLaunchKernel(launched<Body>, dim3(static_cast<unsigned>(blocks.count)),
                               dim3(Body::kThreads), arguments, blocks.shared_bytes, stream_),
              "cudaLaunchKernel", device_);
    }

    std::size_t processors() const {
        int count = 1;
        check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device_),
              "cudaDeviceGetAttribute", device_);
        return static_cast<std::size_t>(count);
    }

    // Memory filled on the machine's stream and copied on a stream of its own, so that kernels go on.
    class Stage {
      public:
        Stage(int device, cudaStream_t stream, std::size_t bytes, bool host)
            : memory_(device, stream, bytes),
              host_(host ? pinned(bytes, device) : nullptr),
              copying_(device),
              filled_(device) {}
        ~Stage() {
            ignore_error(cudaStreamSynchronize(copying_.get()));
        }  // after an exception a copy may be under way
        void* on_machine() const { return memory_.get(); }
        void* on_host() const { return host_.get(); }

      private:
        friend DeviceMachine;
        StreamMemory memory_;
        std::shared_ptr<void> host_;
        OwnStream copying_;
        OwnEvent filled_;
    };

    Stage stage(std::size_t bytes, bool host) const { return {device_, stream_, bytes, host}; }

    void fetch(Stage& stage, std::size_t bytes, void* to) const {
        check(cudaEventRecord(stage.filled_.get(), stream_), "cudaEventRecord", device_);
        check(cudaStreamWaitEvent(stage.copying_.get(), stage.filled_.get(), 0), "cudaStreamWaitEvent",
              device_);
        check(cudaMemcpyAsync(to, stage.on_machine(), bytes, cudaMemcpyDeviceToHost, stage.copying_.get()),
              "cudaMemcpyAsync", device_);
    }

    void await(Stage& stage) const {
        check(cudaStreamSynchronize(stage.copying_.get()), "cudaStreamSynchronize", device_);
    }

    // Pixels of host memory, `stride` floats apart, side by side in device memory.
    void copy_pixels(float* to, const float* from, std::ptrdiff_t stride, std::size_t count,
                     std::size_t bands) const {
        if (count == 0) return;
        if (stride == static_cast<std::ptrdiff_t>(bands))
            return copy(to, from, count * bands * sizeof(float));
        if (stride < static_cast<std::ptrdiff_t>(bands)) {  // backwards or overlapping: no pitch for a copy
            for (std::size_t i = 0; i < count; ++i)
                copy(to + i * bands, from + static_cast<std::ptrdiff_t>(i) * stride, bands * sizeof(float));
            return;
        }
        check(cudaMemcpy2DAsync(to, bands * sizeof(float), from, stride * sizeof(float),
                                bands * sizeof(float), count, cudaMemcpyHostToDevice, stream_),
              "cudaMemcpy2DAsync", device_);
    }

    void finish() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize", device_); }

  private:
    void copy(void* to, const void* from, std::size_t bytes) const {
        if (bytes)
            check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync",
                  device_);
    }

    int device_;
    CurrentDevice current_;
    cudaStream_t stream_;
};

}  // namespace satclip::cuda

// CUDA's runtime with owners and exceptions.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <string>

namespace satclip::cuda {

constexpr int kAnyDevice = -1;

// Throws std::runtime_error naming the call and the device.
void check(cudaError_t, const char* call, int device);

// For calls that cannot be helped: an error is forgotten, so that it is not reported to the next.
inline void quietly(cudaError_t status) {
    if (status != cudaSuccess) cudaGetLastError();
}

int most_shared(int device);  // bytes of shared memory that a block may ask for

// Makes a device the thread's current one while it lives.
class OnDevice {
  public:
    explicit OnDevice(int device);
    ~OnDevice();
    OnDevice(const OnDevice&) = delete;

  private:
    int before_ = -1;  // none when nothing was changed
};

// Device memory in the order of a stream: work queued after it is made may use it, what was queued before it
// is freed has used it.
class Memory {
  public:
    Memory(int device, cudaStream_t stream, std::size_t bytes);
    ~Memory();
    Memory(Memory&&) noexcept;
    Memory(const Memory&) = delete;
    void* get() const { return data_; }

  private:
    int device_;
    cudaStream_t stream_;
    void* data_ = nullptr;
};

// A stream that waits for no other.
class OwnStream {
  public:
    explicit OwnStream(int device);
    ~OwnStream() { quietly(cudaStreamDestroy(stream_)); }
    OwnStream(const OwnStream&) = delete;
    cudaStream_t get() const { return stream_; }

  private:
    cudaStream_t stream_ = nullptr;
};

class OwnEvent {
  public:
    explicit OwnEvent(int device);
    ~OwnEvent() { quietly(cudaEventDestroy(event_)); }
    OwnEvent(const OwnEvent&) = delete;
    cudaEvent_t get() const { return event_; }

  private:
    cudaEvent_t event_ = nullptr;
};

// Page-locked host memory, kept for the next who asks: locking pages takes longer than a copy.
// device: whose context it is made in; without one in that of the thread's current device.
std::shared_ptr<void> pinned(std::size_t bytes, int device = kAnyDevice);
bool is_pinned(const void* memory);

}  // namespace satclip::cuda

// CUDA runtime objects (memory, streams, events) with owners and exceptions.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <string>

namespace satclip::cuda {

constexpr int kAnyDevice = -1;

// Throws std::runtime_error naming the call and the device.
void check(cudaError_t, const char* call, int device);

// For calls whose failure nothing can mend: the error is dropped, so that it is not reported to the next.
inline void ignore_error(cudaError_t status) {
    if (status != cudaSuccess) cudaGetLastError();
}

int max_shared_bytes(int device);  // bytes of shared memory that a block may ask for

// Makes a device the thread's current one while it lives.
class CurrentDevice {
  public:
    explicit CurrentDevice(int device);
    ~CurrentDevice();
    CurrentDevice(const CurrentDevice&) = delete;

  private:
    int before_ = -1;  // none when nothing was changed
};

// Device memory in the order of a stream: work queued after it is made may use it, what was queued before it
// is freed has used it.
class StreamMemory {
  public:
    StreamMemory(int device, cudaStream_t stream, std::size_t bytes);
    ~StreamMemory();
    StreamMemory(StreamMemory&&) noexcept;
    StreamMemory(const StreamMemory&) = delete;
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
    ~OwnStream() { ignore_error(cudaStreamDestroy(stream_)); }
    OwnStream(const OwnStream&) = delete;
    cudaStream_t get() const { return stream_; }

  private:
    cudaStream_t stream_ = nullptr;
};

class OwnEvent {
  public:
    explicit OwnEvent(int device);
    ~OwnEvent() { ignore_error(cudaEventDestroy(event_)); }
    OwnEvent(const OwnEvent&) = delete;
    cudaEvent_t get() const { return event_; }

  private:
    cudaEvent_t event_ = nullptr;
};

// Page-locked host memory from a pool: locking pages takes longer than a copy.
// device: whose context it is allocated in; without one in that of the thread's current device.
std::shared_ptr<void> pinned(std::size_t bytes, int device = kAnyDevice);
bool is_pinned(const void* memory);

}  // namespace satclip::cuda

// CUDA runtime objects with owners, and the devices of this machine.
#include "runtime.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <stdexcept>
#include <vector>

#include "cuda/cuda.h"

namespace satclip::cuda {

void check(cudaError_t status, const char* call, int device) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // an error that was reported is not reported to the next
    const std::string on_device = device < 0 ? "" : " on CUDA device " + std::to_string(device);
    throw std::runtime_error(call + on_device + ": " + cudaGetErrorString(status) + " (" +
                             cudaGetErrorName(status) + ")");
}

int max_shared_bytes(int device) {
    int bytes = 0;
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          "cudaDeviceGetAttribute", device);
    return bytes;
}

CurrentDevice::CurrentDevice(int device) {
    int before = -1;
    check(cudaGetDevice(&before), "cudaGetDevice", device);
    if (before == device) return;
    check(cudaSetDevice(device), "cudaSetDevice", device);
    before_ = before;
}

CurrentDevice::~CurrentDevice() {
    if (before_ >= 0) ignore_error(cudaSetDevice(before_));
}

namespace {

// A pool of our own, so that memory stays between calls without changing the process's default pool. Null
// where the driver has no pools. Never destroyed: the driver may be gone before us.
cudaMemPool_t pool_of(int device) {
    static std::mutex mutex;
    static auto& pools = *new std::map<int, cudaMemPool_t>;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto known_pool = pools.find(device);
    if (known_pool != pools.end()) return known_pool->second;
    int supported = 0;
    check(cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, device),
          "cudaDeviceGetAttribute", device);
    cudaMemPool_t pool = nullptr;
    if (supported) {
        cudaMemPoolProps properties = {};
        properties.allocType = cudaMemAllocationTypePinned;
        properties.location = {cudaMemLocationTypeDevice, device};
        check(cudaMemPoolCreate(&pool, &properties), "cudaMemPoolCreate", device);
        std::uint64_t release_threshold = std::uint64_t{256} << 20;
        check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &release_threshold),
              "cudaMemPoolSetAttribute", device);
    }
    return pools[device] = pool;
}

}  // namespace

StreamMemory::StreamMemory(int device, cudaStream_t stream, std::size_t bytes)
    : device_(device), stream_(stream) {
    if (bytes == 0) return;
    if (cudaMemPool_t pool = pool_of(device))
        check(cudaMallocFromPoolAsync(&data_, bytes, pool, stream), "cudaMallocFromPoolAsync", device);
    else
        check(cudaMalloc(&data_, bytes), "cudaMalloc", device);
}

StreamMemory::~StreamMemory() {
    if (data_ == nullptr) return;
    try {
        const CurrentDevice current(device_);
        if (pool_of(device_))
            ignore_error(cudaFreeAsync(data_, stream_));
        else
            ignore_error(cudaFree(data_));
    } catch (const std::runtime_error&) {  // the driver has gone, and the memory with it
    }
}

StreamMemory::StreamMemory(StreamMemory&& from) noexcept
    : device_(from.device_), stream_(from.stream_), data_(from.data_) {
    from.data_ = nullptr;
}

OwnStream::OwnStream(int device) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate", device);
}

OwnEvent::OwnEvent(int device) {
    check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate", device);
}

namespace {

struct Pinned {
    void* data;
    std::size_t bytes;
};

class PinnedPool {
  public:
    static PinnedPool& instance() {
        static PinnedPool& shelf = *new PinnedPool;  // never destroyed, as above
        return shelf;
    }

    // The smallest that is large enough, or none.
    Pinned take(std::size_t bytes) {
        const std::lock_guard<std::mutex> lock(mutex_);
        auto best = idle_.end();
        for (auto block = idle_.begin(); block != idle_.end(); ++block)
            if (block->bytes >= bytes && (best == idle_.end() || block->bytes < best->bytes)) best = block;
        if (best == idle_.end()) return {nullptr, 0};
        const Pinned memory = *best;
        idle_.erase(best);
        return memory;
    }

    void give(const Pinned& memory) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (idle_.size() < kMaxIdleBlocks && idle_bytes() + memory.bytes <= kMaxIdleBytes) {
                idle_.push_back(memory);
                return;
            }
        }
        ignore_error(cudaFreeHost(memory.data));
    }

  private:
    // Pairs of pieces of 16 callers.
    static constexpr std::size_t kMaxIdleBlocks = 32, kMaxIdleBytes = std::size_t{512} << 20;

    std::size_t idle_bytes() const {
        std::size_t bytes = 0;
        for (const Pinned& memory : idle_) bytes += memory.bytes;
        return bytes;
    }

    std::mutex mutex_;
    std::vector<Pinned> idle_;
};

}  // namespace

std::shared_ptr<void> pinned(std::size_t bytes, int device) {
    Pinned memory = PinnedPool::instance().take(bytes);
    if (memory.data == nullptr) {
        const std::size_t allocated = std::max<std::size_t>(bytes, 1);
        std::optional<CurrentDevice> current;
        if (device != kAnyDevice) current.emplace(device);
        check(cudaHostAlloc(&memory.data, allocated, cudaHostAllocPortable), "cudaHostAlloc", device);
        memory.bytes = allocated;
    }
    return {memory.data, [memory](void*) { PinnedPool::instance().give(memory); }};
}

bool is_pinned(const void* memory) {
    cudaPointerAttributes attributes;
    const cudaError_t status = cudaPointerGetAttributes(&attributes, memory);
    ignore_error(status);
    return status == cudaSuccess && attributes.type == cudaMemoryTypeHost;
}

const char* build() { return SATCLIP_CUDA_ARCHITECTURES; }
const char* missing() { return nullptr; }

std::vector<DeviceName> devices() {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        cudaGetLastError();
        return {};
    }
    std::vector<DeviceName> names;
    for (int device = 0; device < count; ++device) {
        cudaDeviceProp properties;
        if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) {
            cudaGetLastError();
            return {};  // numbers would no longer be devices'
        }
        names.push_back({properties.name, properties.major, properties.minor});
    }
    return names;
}

namespace {

// CUDA's numbers: 12040 is 12.4.
std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

std::string no_devices() {
    int count = 0, driver = 0, runtime = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    ignore_error(status);
    if (status == cudaSuccess && count > 0) return "";
    ignore_error(cudaDriverGetVersion(&driver));
    ignore_error(cudaRuntimeGetVersion(&runtime));
    if (driver == 0) return "no NVIDIA driver was found";
    if (status == cudaErrorInsufficientDriver)
        return "the NVIDIA driver here is for CUDA " + version_text(driver) + ", this build needs one for " +
               version_text(runtime) + ": update the driver";
    if (status == cudaSuccess || status == cudaErrorNoDevice)
        return "the driver shows none: nvidia-smi lists them, CUDA_VISIBLE_DEVICES may hide them";
    return std::string("the driver says: ") + cudaGetErrorString(status);
}

std::shared_ptr<void> allocate(int device, std::size_t bytes) {
    const CurrentDevice current(device);
    void* data = nullptr;
    check(cudaMalloc(&data, std::max<std::size_t>(bytes, 1)), "cudaMalloc", device);
    return {data, [device](void* owned) {
                try {
                    const CurrentDevice back(device);
                    ignore_error(cudaFree(owned));
                } catch (const std::runtime_error&) {  // the driver has gone, and the memory with it
                }
            }};
}

std::shared_ptr<void> allocate_pinned(std::size_t bytes, int device) { return pinned(bytes, device); }

int device_of(const void* memory) {
    cudaPointerAttributes attributes;
    check(cudaPointerGetAttributes(&attributes, memory), "cudaPointerGetAttributes", kAnyDevice);
    return attributes.type == cudaMemoryTypeUnregistered ? -1 : attributes.device;
}

namespace {

cudaEvent_t event_of(const std::shared_ptr<void>& event) {
    return static_cast<OwnEvent*>(event.get())->get();
}

}  // namespace

StreamEvent::StreamEvent(int device, Stream stream) : device_(device) {
    const CurrentDevice current(device);
    event_ = std::make_shared<OwnEvent>(device);
    check(cudaEventRecord(event_of(event_), reinterpret_cast<cudaStream_t>(stream)), "cudaEventRecord",
          device);
}

void StreamEvent::make_wait(Stream stream) const {
    const CurrentDevice current(device_);
    check(cudaStreamWaitEvent(reinterpret_cast<cudaStream_t>(stream), event_of(event_), 0),
          "cudaStreamWaitEvent", device_);
}

void StreamEvent::synchronize() const {
    check(cudaEventSynchronize(event_of(event_)), "cudaEventSynchronize", device_);
}

}  // namespace satclip::cuda

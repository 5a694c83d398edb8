// Stand-in for the CUDA kernels in a build without them.
#include <stdexcept>

#include "cuda.h"

#ifndef SATCLIP_CUDA_REASON  // the build says why
#define SATCLIP_CUDA_REASON "it was made without them"
#endif

namespace satclip::cuda {

namespace {

constexpr const char* kMissing =
    "this build of satclip-engine has no CUDA kernels, because " SATCLIP_CUDA_REASON
    ": install the CUDA toolkit (12 or newer), put nvcc on PATH and reinstall with SATCLIP_CUDA=on";

[[noreturn]] void refuse() { throw std::runtime_error(kMissing); }

}  // namespace

const char* build() { return nullptr; }
const char* missing() { return kMissing; }
std::vector<DeviceName> devices() { return {}; }
std::string no_devices() { return kMissing; }
std::shared_ptr<void> allocate(int, std::size_t) { refuse(); }
std::shared_ptr<void> allocate_pinned(std::size_t, int) { refuse(); }
int device_of(const void*) { refuse(); }
StreamEvent::StreamEvent(int, Stream) { refuse(); }
void StreamEvent::make_wait(Stream) const { refuse(); }
void StreamEvent::synchronize() const { refuse(); }

struct DeviceNetwork::Memory {};
DeviceNetwork::DeviceNetwork(const PackedGrid&, int) { refuse(); }
DeviceNetwork::~DeviceNetwork() = default;
int DeviceNetwork::device() const { refuse(); }
int DeviceNetwork::bands() const { refuse(); }
bool DeviceNetwork::encode_grid(const double*, std::size_t, const double*, std::size_t, const Destination&,
                                Stream, const Control&) const {
    refuse();
}

bool resample(int, const LatticeSource&, int, const std::vector<Stencil>&, const std::vector<Stencil>&,
              const Destination&, Stream, const Control&) {
    refuse();
}

}  // namespace satclip::cuda

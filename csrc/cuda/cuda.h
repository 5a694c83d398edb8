// Interface of the CUDA kernels for the bindings: no CUDA types, so that a build without nvcc has the same
// interface. There, absent.cpp stands for all of it and what cannot be done throws std::runtime_error.
//
// stream: a cudaStream_t as a number; 0 is the legacy default stream. Calls whose results stay on the device
// return when their work is queued; the others when it is done. Failures are std::runtime_error with the call
// and the device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pack_grid.h"

namespace satclip::cuda {

using Stream = std::uintptr_t;

struct DeviceName {
    std::string name;
    int major, minor;  // compute capability
};

const char* build();                // the architectures compiled for, or null
const char* missing();              // what was left out and how to get it, or null
std::vector<DeviceName> devices();  // none without a driver
std::string no_devices();           // why there are none; empty when there are

std::shared_ptr<void> allocate(int device, std::size_t bytes);
std::shared_ptr<void> allocate_pinned(std::size_t bytes, int device);  // on the host; −1: any device
int device_of(const void* memory);                                     // −1 when it is none of a device's

// Event recorded behind all work that a stream has queued by then.
class StreamEvent {
  public:
    StreamEvent(int device, Stream);
    void make_wait(Stream) const;  // the stream's later work waits for it
    void synchronize() const;

  private:
    int device_;
    std::shared_ptr<void> event_;
};

// Destination of a raster: memory of the device or of the host. Scales and offsets lie on the host.
struct Destination {
    PixelStore store;
    bool on_device;
};

// A network in a device's memory; immutable, shared by threads.
class DeviceNetwork {
  public:
    DeviceNetwork(const PackedGrid&, int device);
    ~DeviceNetwork();
    int device() const;
    int bands() const;
    // False when interrupted, which only calls into host memory are.
    bool encode_grid(const double* lat, std::size_t rows, const double* lon, std::size_t columns,
                     const Destination&, Stream, const Control&) const;

  private:
    struct Memory;
    std::unique_ptr<Memory> memory_;
};

struct LatticeSource {
    Lattice lattice;
    std::size_t rows, columns;
    bool on_device;
};

bool resample(int device, const LatticeSource&, int order, const std::vector<Stencil>& rows,
              const std::vector<Stencil>& columns, const Destination&, Stream, const Control&);

}  // namespace satclip::cuda

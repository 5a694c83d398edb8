# nvcc's architectures and flags, and the CUDA sources: cuda_sources, cuda_libraries, SATCLIP_CUDA_ARCHITECTURES.

if(NOT CMAKE_CUDA_ARCHITECTURES AND DEFINED ENV{CUDAARCHS})
    set(CMAKE_CUDA_ARCHITECTURES "$ENV{CUDAARCHS}")
endif()

# Code for the processors of data centres, and PTX of the newest for what comes after; those that this nvcc knows.
if(NOT CMAKE_CUDA_ARCHITECTURES)
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE nvcc_architectures ERROR_QUIET)
    foreach(architecture 80 90 100)
        if(nvcc_architectures MATCHES "compute_${architecture}[^0-9]")
            list(APPEND CMAKE_CUDA_ARCHITECTURES ${architecture}-real)
            set(newest ${architecture})
        endif()
    endforeach()
    if(NOT newest)
        message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} knows none of sm_80, sm_90, sm_100: set CMAKE_CUDA_ARCHITECTURES, "
                            "80 or newer, or SATCLIP_CUDA=off")
    endif()
    list(APPEND CMAKE_CUDA_ARCHITECTURES ${newest}-virtual)
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wno-unknown-pragmas>")

# ptxas -O2 and -O3 prefetch a dense layer's inputs so eagerly that EncodePixels spills (255 registers, 36 bytes); -O1
# keeps 222 to 240 and orders the multiplications as they are written.
if(CMAKE_CUDA_COMPILER_ID STREQUAL "NVIDIA")
    set_source_files_properties(csrc/cuda/device/device_grid.cu PROPERTIES COMPILE_OPTIONS "-Xptxas=-O1")
endif()

string(REPLACE ";" " " architectures "${CMAKE_CUDA_ARCHITECTURES}")

# Linked statically, the runtime needs no library here but the driver's, and that only when it is used.
set(cuda_sources csrc/cuda/device/device_grid.cu csrc/cuda/device/device_resample.cu csrc/cuda/device/runtime.cpp)
set(cuda_libraries CUDA::cudart_static)
set_source_files_properties(csrc/cuda/device/runtime.cpp PROPERTIES
    COMPILE_DEFINITIONS "SATCLIP_CUDA_ARCHITECTURES=\"${architectures}\"")
message(STATUS "CUDA kernels: ${CMAKE_CUDA_COMPILER_VERSION}, ${architectures}")

# Search for an nvcc that compiles here: CMAKE_CUDA_COMPILER, and in cuda_reason what prevents it, or nothing.
# CMake's own check of the language only says that it failed.
set(cuda_reason "")

if(NOT DEFINED CMAKE_CUDA_COMPILER)
    if(DEFINED ENV{CUDACXX})
        set(CMAKE_CUDA_COMPILER "$ENV{CUDACXX}")
    else()
        find_program(SATCLIP_NVCC nvcc DOC "nvcc, where CUDACXX does not name it")
        if(SATCLIP_NVCC)
            set(CMAKE_CUDA_COMPILER "${SATCLIP_NVCC}")
        endif()
    endif()
endif()

# A program that needs what the kernels do: C++17, the standard library's headers, the runtime to link with.
function(satclip_try_nvcc result)
    set(folder "${CMAKE_BINARY_DIR}/nvcc")
    file(WRITE "${folder}/try.cu" "#include <cuda_runtime.h>\n#include <functional>\n#include <map>\n#include <vector>\n"
        "__global__ void fill(int* to) { if constexpr (sizeof(int) == 4) *to = 1; }\n"
        "int main() {\n"
        "    std::map<int, std::function<void(int*)>> calls{{0, [](int* to) { fill<<<1, 1>>>(to); }}};\n"
        "    std::vector<int> values(1);\n"
        "    calls[0](values.data());\n"
        "}\n")
    set(host "${CMAKE_CUDA_HOST_COMPILER}")
    if(NOT host)
        set(host "$ENV{CUDAHOSTCXX}")
    endif()
    if(host)
        set(host "-ccbin=${host}")
    endif()
    separate_arguments(flags NATIVE_COMMAND "${CMAKE_CUDA_FLAGS} $ENV{CUDAFLAGS}")
    execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" ${host} ${flags} -std=c++17 try.cu -o try
        WORKING_DIRECTORY "${folder}" RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(NOT status EQUAL 0)
        message(STATUS "${CMAKE_CUDA_COMPILER} said: ${output}")
    endif()
    set(${result} "${status}" PARENT_SCOPE)
endfunction()

if(NOT CMAKE_CUDA_COMPILER)
    set(cuda_reason "nvcc was not found")
else()
    execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --version OUTPUT_VARIABLE version ERROR_QUIET RESULT_VARIABLE status)
    string(REGEX MATCH "release ([0-9]+)\\.([0-9]+)" version "${version}")
    set(version "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}")
    if(NOT status EQUAL 0 OR version STREQUAL ".")
        set(cuda_reason "${CMAKE_CUDA_COMPILER} is no nvcc that runs here")
    elseif(version VERSION_LESS 12)
        set(cuda_reason "nvcc at ${CMAKE_CUDA_COMPILER} is of CUDA ${version}, which is too old")
    else()
        satclip_try_nvcc(status)
        if(NOT status EQUAL 0)
            set(cuda_reason "nvcc at ${CMAKE_CUDA_COMPILER} cannot compile here, perhaps because of its host compiler, CUDAHOSTCXX names another one")
        endif()
    endif()
endif()

"""A build says what it has; one without CUDA says what it left out; kernels do not spill."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import cuda_resources
import numpy as np
import pytest

from satclip_engine import _C

ROOT = Path(__file__).parents[2]
SENTENCE = "this build of satclip-engine has no CUDA kernels"


def test_a_build_names_its_architectures_or_what_it_left_out():
    assert (_C.cuda_build is None) == (_C.cuda_missing is not None)
    if _C.cuda_build is None:
        assert SENTENCE in _C.cuda_missing
    else:
        assert _C.cuda_build.split()


def test_without_a_gpu_there_are_no_devices_and_calls_say_why():
    devices = _C.cuda_devices()
    for name, (major, _minor) in devices:
        assert name
        assert major >= 3
    if not devices:
        with pytest.raises(RuntimeError, match=rf"on CUDA device 0: |{SENTENCE}"):
            _C.CudaNetwork(1, [np.ones((2, 1)), np.ones((2, 2))], [np.ones(2), np.ones(2)])
        lattice = np.ones((9, 9, 2), np.float32)
        with pytest.raises(RuntimeError, match=rf"on CUDA device 0: |{SENTENCE}"):
            _C.cuda_resample(lattice, [4.0], [4.0], np.empty((1, 1, 2), np.float32))
        with pytest.raises(RuntimeError, match=rf"cudaHostAlloc|{SENTENCE}"):
            _C.cuda_pinned(100)


def test_what_stands_for_the_kernels_throws_one_sentence(tmp_path):
    compiler = shutil.which(sysconfig.get_config_var("CXX").split()[0]) or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    program = tmp_path / "main.cpp"
    program.write_text(
        '#include <cstdio>\n#include <stdexcept>\n#include "cuda/cuda.h"\n'
        "using namespace satclip;\n"
        "int main() {\n"
        "    if (cuda::build() || !cuda::missing() || !cuda::devices().empty()) return 1;\n"
        "    try { cuda::resample(0, {}, 8, {}, {}, {}, 0, {}); }\n"
        "    catch (const std::runtime_error& error) { std::puts(error.what()); }\n"
        "}\n"
    )
    built = tmp_path / "absent"
    source = ROOT / "csrc/cuda/absent.cpp"
    subprocess.run([compiler, "-std=c++17", f"-I{ROOT / 'csrc'}", program, source, "-o", built], check=True)
    said = subprocess.run([built], capture_output=True, text=True, check=True).stdout
    assert said.count("\n") == 1
    assert SENTENCE in said
    assert "SATCLIP_CUDA=on" in said


def test_insisting_on_cuda_without_nvcc_fails(tmp_path):
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    pybind11 = pytest.importorskip("pybind11")
    if cmake is None or ninja is None:
        pytest.skip("needs cmake and ninja")
    configure = [
        cmake,
        f"-S{ROOT}",
        f"-B{tmp_path}",
        "-GNinja",
        "-DSATCLIP_CUDA=on",
        "-DCMAKE_CUDA_COMPILER=NOTFOUND",
        f"-DPYBIND11_DIR={pybind11.get_cmake_dir()}",
    ]
    done = subprocess.run(configure, capture_output=True, text=True)
    assert done.returncode != 0
    assert "nvcc was not found" in done.stderr


def test_no_kernel_spills_a_register():
    if _C.cuda_build is None:
        pytest.skip("CUDA kernels were left out of this build")
    tool = cuda_resources.cuobjdump()
    if tool is None:
        pytest.skip("needs cuobjdump")
    rows = cuda_resources.resources(Path(_C.__file__), tool)
    assert {"ColumnWaves", "RowPanels", "EncodePixels<Exact, false>", "Resample<8, 4>"} <= {
        row.kernel for row in rows
    }
    for row in rows:
        assert (row.stack, row.spill_stores, row.spill_loads) == (0, 0, 0), row
    for row in rows:
        assert (row.tensor > 0) == row.kernel.startswith("EncodePixels"), row

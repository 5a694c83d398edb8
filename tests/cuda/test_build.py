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
    assert bool(devices) == (_C.cuda_no_devices() == "")
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
    output = subprocess.run([built], capture_output=True, text=True, check=True).stdout
    assert output.count("\n") == 1
    assert SENTENCE in output
    assert "SATCLIP_CUDA=on" in output


@pytest.fixture(scope="module")
def without_cuda(tmp_path_factory):
    """A build folder configured without CUDA, and the command: CMake has found its C++ compiler, not nvcc."""
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    pybind11 = pytest.importorskip("pybind11")
    if cmake is None or ninja is None:
        pytest.skip("needs cmake and ninja")
    folder = tmp_path_factory.mktemp("configured") / "build"
    command = [cmake, f"-S{ROOT}", f"-B{folder}", "-GNinja", f"-DPYBIND11_DIR={pybind11.get_cmake_dir()}"]
    subprocess.run([*command, "-DSATCLIP_CUDA=off"], capture_output=True, check=True)
    shutil.copytree(folder, folder.with_name("clean"))
    return folder, [*command, "-USATCLIP_CUDA"]


@pytest.fixture
def configured(without_cuda):
    """configured(*options) → CMake's output when it configures that build anew, and its exit code."""
    folder, command = without_cuda

    def configure(*options: str) -> tuple[str, int]:
        shutil.rmtree(folder)  # a cached CUDA compiler would not be searched again
        shutil.copytree(folder.with_name("clean"), folder)
        process = subprocess.run([*command, *options], capture_output=True, text=True)
        return " ".join((process.stdout + process.stderr).split()), process.returncode  # CMake breaks lines

    return configure


def nvcc_that(folder: Path, version: str, code: int) -> str:
    """A stand-in for nvcc of that version, which compiles with that exit code."""
    program = folder / version / "nvcc"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        f'*--version*) echo "Cuda compilation tools, release {version}, V{version}.1" ;;\n'
        f"*) exit {code} ;;\nesac\n"
    )
    program.chmod(0o755)
    return f"-DCMAKE_CUDA_COMPILER={program}"


def test_insisting_on_cuda_fails_with_the_reason_why_there_is_none(configured, tmp_path):
    for option, reason in [
        ("-DCMAKE_CUDA_COMPILER=NOTFOUND", "nvcc was not found"),
        (nvcc_that(tmp_path, "11.8", 0), "is of CUDA 11.8, which is too old"),
        (nvcc_that(tmp_path, "12.4", 1), "cannot compile here, perhaps because of its host compiler"),
    ]:
        output, code = configured("-DSATCLIP_CUDA=ON", option)
        assert code != 0
        assert reason in output


def test_where_nvcc_cannot_compile_cuda_is_left_out_with_the_reason(configured, without_cuda, tmp_path):
    output, code = configured(nvcc_that(tmp_path, "12.4", 1))
    assert code == 0
    assert "CUDA kernels: left out, nvcc at" in output
    assert "CUDAHOSTCXX names another one" in output
    folder, _ = without_cuda
    assert "CUDAHOSTCXX" in (folder / "build.ninja").read_text(), "and the module says so"


def test_a_misspelt_wish_for_cuda_is_refused(configured):
    output, code = configured("-DSATCLIP_CUDA=of", "-DCMAKE_CUDA_COMPILER=NOTFOUND")
    assert code != 0
    assert "SATCLIP_CUDA must be auto, on or off, not 'of'" in output


@pytest.mark.gpu_tools
def test_no_kernel_spills_a_register():
    if _C.cuda_build is None:
        pytest.skip("CUDA kernels were left out of this build")
    tool = cuda_resources.cuobjdump()
    if tool is None:
        pytest.skip("needs cuobjdump")
    rows = cuda_resources.resources(Path(_C.__file__), tool)
    assert {"FourierBasis", "RowCoefficients", "EncodePixels<Exact, false>", "Resample<8, 4>"} <= {
        row.kernel for row in rows
    }
    for row in rows:
        assert (row.stack, row.spill_stores, row.spill_loads) == (0, 0, 0), row
    for row in rows:
        assert (row.tensor > 0) == row.kernel.startswith("EncodePixels"), row

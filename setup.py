"""The CMake extension and nothing else; everything declarative is in pyproject.toml."""

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11  # not needed to make a source distribution

        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        # Objects are kept between builds, the cache is not: it names tools of an isolated build environment
        # that is gone by the next build.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DSATCLIP_OUTPUT={output}",
            f"-DSATCLIP_VERSION={self.distribution.get_version()}",
            f"-DSATCLIP_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
            f"-DPYBIND11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *([f"-DSATCLIP_CUDA={cuda}"] if (cuda := os.environ.get("SATCLIP_CUDA")) else []),
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


setup(ext_modules=[Extension("satclip_engine._C", sources=[])], cmdclass={"build_ext": CMakeBuild})

"""What is published is what was tested: source distribution → wheel → a working installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHEEL_LIMIT = 20 << 20
# The user's own cache of compiled files, where ccache is installed: it outlives the tests' temporary one.
CACHES = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
CCACHE_FOLDER = os.environ.get("CCACHE_DIR") or str(CACHES / "ccache")


def build_environment(source: Path) -> dict[str, str]:
    """Environment in which CMake compiles through ccache where there is one, wherever the sources lie."""
    if shutil.which("ccache") is None:
        return {**os.environ}
    launchers = {f"CMAKE_{language}_COMPILER_LAUNCHER": "ccache" for language in ("CXX", "CUDA")}
    paths = {"CCACHE_DIR": CCACHE_FOLDER, "CCACHE_BASEDIR": str(source), "CCACHE_NOHASHDIR": "1"}
    return {**os.environ, **launchers, **paths}


def run(*command: str | Path, **kwargs) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=900, **kwargs
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the files that git tracks, so that a forgotten `git add` is noticed."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs a git checkout")
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"
    tracked = run("git", "-C", ROOT, "ls-files", "-z").split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, source)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the unpacked source distribution alone, in pip's isolated build environment.

    As in a checkout built before: what CMake found then lay in an isolated environment that is gone.
    """
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        # Python before 3.11.4 has no filters; the archive is our own.
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (source,) = (path for path in folder.iterdir() if path.is_dir())
    kept = f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    cache = source / "build" / kept / "cmake" / "CMakeCache.txt"
    cache.parent.mkdir(parents=True)
    cache.write_text("CMAKE_MAKE_PROGRAM:FILEPATH=/gone/bin/ninja\n")
    command = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source)
    run(*command, env=build_environment(source))
    (built,) = folder.glob("*.whl")
    return built


def test_the_source_distribution_holds_what_the_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in (
        "CMakeLists.txt",
        "csrc/satclip.h",
        "csrc/cpu/isa/gemm.h",
        "kernels/__init__.py",
        "LICENSE",
    ):
        assert needed in names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_the_wheel_is_small_and_owns_one_top_level_name(wheel):
    assert wheel.stat().st_size < WHEEL_LIMIT
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"satclip_engine"}
    for needed in (
        "satclip_engine/kernels/__init__.py",
        "satclip_engine/training/__init__.py",
        "satclip_engine/training/loop/trainer.py",
        "satclip_engine/data/bluemarble-l10.safetensors",
        "satclip_engine/data/bluemarble-l40.safetensors",
        "satclip_engine/data/published_fold.npz",
        "satclip_engine/py.typed",
    ):
        assert needed in names


def test_the_installed_wheel_computes_away_from_its_sources(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import satclip_engine as se, satclip_engine.kernels, satclip_engine.training\n"
        "assert se.__file__.startswith(__import__('sys').argv[1]), se.__file__\n"
        "print(se.load()([2.35, 48.86]).shape, se.load().backend)"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    out = run(sys.executable, "-P", "-c", code, tmp_path / "site", cwd=tmp_path, env=env)
    assert out.strip() == "(256,) cpu"


def test_the_extension_needs_only_system_libraries(wheel, tmp_path):
    readelf = shutil.which("readelf")
    if readelf is None or not sys.platform.startswith("linux"):
        pytest.skip("needs readelf")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [
            name
            for name in archive.namelist()
            if name.startswith("satclip_engine/_C") and name.endswith(".so")
        ]
        library = archive.extract(name, tmp_path)
    needed = {
        line.split("[")[1].rstrip("]")
        for line in run(readelf, "-d", library).splitlines()
        if "NEEDED" in line
    }
    allowed = {
        "libstdc++.so.6",
        "libm.so.6",
        "libgcc_s.so.1",
        "libc.so.6",
        "libpthread.so.0",
        "ld-linux-x86-64.so.2",
    }
    assert needed <= allowed | {"ld-linux-aarch64.so.1"}

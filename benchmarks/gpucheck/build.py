"""Build of the package in a folder of its own: links to sources, and the compiled module.

Nothing is installed, and packages that only rasters need may be missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from gpucheck.rows import Note, Row

ROOT = Path(__file__).resolve().parents[2]


def build(tree: Path, *, dry: bool) -> None:
    """Make the folder and compile into it, with CUDA; a dry run links what was compiled before."""
    package = tree / "satclip_engine"
    package.mkdir(parents=True, exist_ok=True)
    modules, sources = _split_modules(ROOT / "satclip_engine")
    for source in (*sources, ROOT / "kernels", ROOT / "training", *(modules if dry else [])):
        link = package / source.name
        if not link.is_symlink():
            link.symlink_to(source)
    if not dry:
        _compile(package, tree / "cmake")


def _split_modules(folder: Path) -> tuple[list[Path], list[Path]]:
    """Compiled modules, and the rest."""
    paths = [path for path in folder.iterdir() if path.name != "__pycache__"]
    modules = [path for path in paths if path.suffix == ".so"]
    return modules, [path for path in paths if path not in modules]


def _compile(output: Path, folder: Path) -> None:
    import pybind11

    configure = [
        "cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        f"-DSATCLIP_OUTPUT={output}", f"-DSATCLIP_VERSION={_version()}", "-DSATCLIP_CUDA=on",
        f"-DSATCLIP_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
        f"-DPYBIND11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", str(folder)]):
        subprocess.run(command, check=True)


def _version() -> str:
    names: dict[str, str] = {}
    exec((ROOT / "satclip_engine" / "_version.py").read_text(), names)
    return names["__version__"]


def environment(tree: Path, *, interpreted: bool) -> dict[str, str]:
    """Environment of processes that use that folder's package."""
    paths = [str(tree), str(ROOT / "benchmarks")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    variables.pop("TRITON_INTERPRET", None)
    return variables | {"TRITON_INTERPRET": "1"} if interpreted else variables


def describe(tree: Path, *, dry: bool) -> list[Row]:
    """Instruction sets and CUDA kernels of the compiled module in that folder."""
    program = (
        "import json; from satclip_engine import _C;"
        "print(json.dumps([_C.instruction_sets(), getattr(_C, 'cuda_build', None)]))"
    )
    command, environ = [sys.executable, "-P", "-c", program], environment(tree, interpreted=dry)
    process = subprocess.run(command, env=environ, capture_output=True, text=True)
    if process.returncode:
        errors = process.stderr.strip().splitlines() or ["it cannot be loaded"]
        return [Note("compiled module", errors[-1], ok=False)]
    sets, cuda = json.loads(process.stdout)
    return [
        Note("instruction sets of the CPU", ", ".join(sets)),
        Note("CUDA kernels", cuda or "not built", ok=dry or cuda is not None),
    ]


if __name__ == "__main__":
    build(Path(sys.argv[1]), dry="--dry-run" in sys.argv)

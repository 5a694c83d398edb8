"""What the installed package puts into site-packages, and which way its modules import each other."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import satclip_engine

PACKAGE = Path(satclip_engine.__file__).parent
ROOT = Path(__file__).parents[2]

# The path of the data, from the ground up: a folder or module imports only from its own line and lines above,
# and no modules import each other in a circle.
ORDER = (
    ("_version", "_forks", "errors", "_optional", "data", "device", "files", "progress", "options"),
    ("geo",),
    ("weights",),
    ("reference", "kernels", "_C"),
    ("backends",),
    ("ops", "op", "contrast"),
    ("quantize", "lattice"),
    ("field", "atlas"),
    ("arrays", "encoder"),
    ("nn", "preview", "raster", "xarray"),
    ("bench",),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}

# The same for folders and modules of satclip_engine.training: from images to features, from these to a run.
TRAINING_ORDER = (
    ("locations",),
    ("config", "samples", "prefetch", "torch_defaults"),
    ("sources",),
    ("images", "patches", "raster_patches"),
    ("features",),
    ("loop",),
    ("results",),
    ("inputs", "session"),
)
TRAINING_RANK = {name: rank for rank, names in enumerate(TRAINING_ORDER) for name in names}


def imports_of(path: Path, package: str = "satclip_engine") -> set[str]:
    """Modules and subpackages of `package` that a file imports at run time, also inside functions."""
    own = f"{package}."
    return {name.removeprefix(own).split(".")[0] for name in imported(path) if name.startswith(own)}


def imported(path: Path) -> set[str]:
    """Full names of all that a file imports at run time."""

    class Visitor(ast.NodeVisitor):
        def __init__(self) -> None:
            self.found: set[str] = set()

        def visit_If(self, node: ast.If) -> None:
            # What is under TYPE_CHECKING is never executed.
            body = [] if "TYPE_CHECKING" in ast.unparse(node.test) else node.body
            for child in (*body, *node.orelse):
                self.visit(child)

        def visit_Import(self, node: ast.Import) -> None:
            self.found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, f"{path}: relative import"
            self.found.add(node.module or "")
            self.found.update(f"{node.module}.{alias.name}" for alias in node.names)

    visitor = Visitor()
    visitor.visit(ast.parse(path.read_text()))
    return visitor.found


def unit(path: Path) -> str:
    """The module or subpackage that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parts[-1] != "__init__.py" or path.parent != PACKAGE
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = unit(path)
    assert own in RANK, f"{own} has no place in the order of modules"
    for name in imports_of(path) - {own}:
        if name in RANK:
            assert RANK[name] <= RANK[own], f"{own} imports {name}"
        else:  # a name out of satclip_engine/__init__.py
            entry = own == "cli" and name == "training"  # of the command that trains
            assert entry or name in {"__version__"}, f"{own} imports {name} from the package itself"


TRAINING = ROOT / "training"
TRAINING_FILES = sorted(path for path in TRAINING.rglob("*.py") if path.parent.name != "recipes")
TRAINING_FILES.remove(TRAINING / "__init__.py")


@pytest.mark.parametrize("path", TRAINING_FILES, ids=lambda path: str(path.relative_to(TRAINING)))
def test_imports_within_training_point_one_way(path):
    own = path.relative_to(TRAINING).with_suffix("").parts[0]
    assert own in TRAINING_RANK, f"{own} has no place in the order of modules"
    for name in imports_of(path, "satclip_engine.training") - {own}:
        assert TRAINING_RANK[name] < TRAINING_RANK[own], f"{own} imports {name}"


@pytest.mark.parametrize("folder", ["satclip_engine", "satclip_engine/kernels", "satclip_engine/training"])
def test_no_modules_import_each_other_in_a_circle(folder):
    root = ROOT / folder.removeprefix("satclip_engine/")
    paths = [path for path in root.rglob("*.py") if path != root / "__init__.py"]
    modules = {module_name(path, root, folder): path for path in paths}
    graph = {name: imported(path) & modules.keys() - {name} for name, path in modules.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def module_name(path: Path, root: Path, folder: str) -> str:
    """Name by which a file is imported."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join((*folder.split("/"), *parts)).removesuffix(".__init__")


def test_the_package_never_imports_training():
    for path in FILES:
        if unit(path) != "cli":
            assert "training" not in imports_of(path)


def test_every_package_is_installed():
    roots = {"satclip_engine": PACKAGE, "satclip_engine.kernels": ROOT / "kernels"}
    roots["satclip_engine.training"] = TRAINING
    packages = {
        ".".join((name, *path.parent.relative_to(root).parts))
        for name, root in roots.items()
        for path in root.rglob("__init__.py")
    }
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(settings["tool"]["setuptools"]["packages"]) == packages


@pytest.mark.parametrize("name", ["kernels", "training"])
def test_nothing_but_satclip_engine_is_put_into_site_packages(name):
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import {name}"], cwd="/", capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert f"No module named '{name}'" in done.stderr


def test_kernels_and_training_are_installed_inside_the_package():
    code = "import satclip_engine.kernels, satclip_engine.training"
    subprocess.run([sys.executable, "-I", "-c", code], cwd="/", check=True, timeout=60)


def test_the_version_is_written_once():
    assert satclip_engine.__version__ == metadata.version("satclip-engine")

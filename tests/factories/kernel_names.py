"""Names of the package's kernels: those that its modules start, read from their sources."""

from __future__ import annotations

import ast
from pathlib import Path

import satclip_engine.kernels


def started_anywhere() -> set[str]:
    """Names of all kernels that any module of the package starts."""
    folder = Path(satclip_engine.kernels.__file__).parent
    return {name for path in folder.rglob("*.py") for name in _started(ast.parse(path.read_text()))}


def _started(module: ast.Module) -> set[str]:
    """First arguments of the module's calls of `launch`."""
    calls = [node for node in ast.walk(module) if isinstance(node, ast.Call)]
    first = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "launch"]
    assert all(isinstance(argument, ast.Name) for argument in first), "kernels are started by their own names"
    return {argument.id for argument in first if isinstance(argument, ast.Name)}

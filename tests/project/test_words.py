"""Mechanical rules of the glossary in docs/development.md: first words of docstrings, one class a name."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ("satclip_engine", "kernels", "training") for path in (ROOT / folder).rglob("*.py")
)
QUESTIONS = re.compile(
    r"(?:what|how|where|whether|which|who|whose|whom|why|when|(what|who|wher)ever)\b", re.I
)

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documented(tree: ast.Module) -> Iterator[Documented]:
    """The module, its classes and its functions, however deep."""
    for node in ast.walk(tree):
        if isinstance(node, Documented):
            yield node


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_docstrings_begin_with_a_verb_or_the_noun_they_define(path):
    """Nobody searches for a module by a question word."""
    openings = [
        f"{name_of(path)}:{getattr(node, 'lineno', 1)}: {text.splitlines()[0]}"
        for node in documented(ast.parse(path.read_text()))
        if (text := ast.get_docstring(node)) and QUESTIONS.match(text)
    ]
    assert not openings, "\n".join(openings)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_says_in_its_first_line_what_it_holds(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    if path.name == "__init__.py" and not path.read_text().strip():
        return
    assert text, f"{name_of(path)} has no docstring"


def test_a_class_name_means_one_thing():
    homes: dict[str, list[str]] = defaultdict(list)
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(f"{name_of(path)}:{node.lineno}")
    homonyms = {name: places for name, places in homes.items() if len(places) > 1}
    assert not homonyms, homonyms


GENERIC = re.compile(
    "found|part|at|each|given|kept|here|wanted|said|made|one|some|taken|told|known|seen|away|off"
    "|_BLOCK|_PART|_ENOUGH|_CHECKED|_ROUNDS|_KEPT"
)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_names_say_what_they_hold(path):
    """Locals, parameters and constants: `nearest`, not `found`; `BLOCK_PIXELS`, not `_BLOCK`."""
    generic = [
        f"{name_of(path)}:{node.lineno}: {name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if (name := bound_name(node)) and GENERIC.fullmatch(name)
    ]
    assert not generic, "\n".join(generic)


def bound_name(node: ast.AST) -> str | None:
    """The name that an assignment or a parameter binds."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    return node.arg if isinstance(node, ast.arg) else None

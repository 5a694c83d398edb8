"""Optional libraries, asked for where they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from satclip_engine.errors import MissingExtra


def need(module: str, *, extra: str, why: str) -> ModuleType:
    """Import `module`, or raise MissingExtra with the command that installs it.

    `why` begins the sentence: need("torch", extra="torch", why="reading .ckpt files").
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise MissingExtra(f'{why} needs {name}: pip install "satclip-engine[{extra}]" ({error})') from error

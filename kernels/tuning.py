"""Shapes in which kernels are started, by compute capability: the shipped tables, tuning.json.

    config_for("dense", "sm_90").blocks      # {"BLOCK_N": 128, ...}: constants of the kernel
    config_for("dense", "sm_89")             # the next lower capability that has a row: sm_80

`python -m satclip_engine.kernels.tune` measures candidates on the GPU at hand and writes its rows anew.
Nothing is tuned while working, so that the same device gives the same bits every time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("tuning.json")


@dataclass(frozen=True)
class Config:
    """Constants of a kernel, warps of a program and stages of its software pipeline; the row they are of."""

    blocks: dict[str, Any] = field(default_factory=dict)
    warps: int = 4
    stages: int = 2
    row: str = field(default="", compare=False)

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.blocks.items())), self.warps, self.stages))

    def __getitem__(self, block: str) -> Any:
        return self.blocks[block]


@functools.cache
def table() -> dict[str, dict[str, Config]]:
    """Kernel → capability → Config."""
    read = json.loads(TABLE.read_text())
    return {
        kernel: {name: Config(**row, row=kernel) for name, row in rows.items()}
        for kernel, rows in read.items()
    }


@functools.cache
def config_for(kernel: str, capability: str) -> Config:
    """The row of that capability ("sm_90", "interpreter"), or of the next lower one.

    Raises KeyError for a kernel without rows, RuntimeError below every row.
    """
    rows, usable = table()[kernel], _usable(kernel, capability)
    if not usable:
        raise RuntimeError(f"kernel {kernel} needs {min(rows)} or newer, not {capability}")
    return rows[usable[-1]]


def _usable(kernel: str, capability: str) -> list[str]:
    """The capabilities whose rows serve that one, the best last."""
    rows = table()[kernel]
    if capability in rows:
        return [capability]
    if not capability.startswith("sm_"):
        return []
    # From sm_120 on, graphics cards again have 99 KB of shared memory for a program: what suits sm_80 fits.
    most = 80 if _number(capability) >= 120 else _number(capability)
    compiled = [name for name in rows if name.startswith("sm_") and _number(name) <= most]
    return sorted(compiled, key=_number)


def has_row(kernel: str, capability: str) -> bool:
    """Whether `config_for` finds one."""
    return kernel in table() and bool(_usable(kernel, capability))


_trial: ContextVar[dict[str, Config]] = ContextVar("satclip_trial", default={})  # noqa: B039


@contextlib.contextmanager
def trying(kernel: str, config: Config) -> Iterator[None]:
    """While it lasts that kernel has this configuration, whatever the tables say."""
    token = _trial.set({**_trial.get(), kernel: config})
    try:
        yield
    finally:
        _trial.reset(token)


def tried(kernel: str) -> Config | None:
    """The configuration that `trying` set, or None."""
    config = _trial.get().get(kernel)
    return None if config is None else dataclasses.replace(config, row=kernel)


def _number(capability: str) -> int:
    return int(capability.removeprefix("sm_"))

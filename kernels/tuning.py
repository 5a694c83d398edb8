"""Launch configurations of kernels by compute capability: tuning.json.

    config_for("dense", "sm_90").blocks      # {"BLOCK_N": 128, ...}: constants of the kernel
    config_for("dense", "sm_89")             # the next lower capability that has a row: sm_80

`python -m satclip_engine.kernels.tools.tune` measures candidates on the GPU at hand and writes its rows anew.
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

TUNING_FILE = Path(__file__).with_name("tuning.json")


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
    content = json.loads(TUNING_FILE.read_text())
    return {
        kernel: {name: Config(**row, row=kernel) for name, row in rows.items()}
        for kernel, rows in content.items()
    }


@functools.cache
def config_for(kernel: str, capability: str) -> Config:
    """Look up the row of that capability ("sm_90", "interpreter"), or of the next lower one.

    Raises KeyError for a kernel without rows, RuntimeError below every row.
    """
    rows, usable = table()[kernel], _usable_rows(kernel, capability)
    if not usable:
        raise RuntimeError(f"kernel {kernel} needs {min(rows)} or newer, not {capability}")
    return rows[usable[-1]]


def _usable_rows(kernel: str, capability: str) -> list[str]:
    """Capabilities whose rows serve that one, the best last."""
    rows = table()[kernel]
    if capability in rows:
        return [capability]
    if not capability.startswith("sm_"):
        return []
    # From sm_120 on, graphics cards again have 99 KB of shared memory for a program: what suits sm_80 fits.
    limit = 80 if _number(capability) >= 120 else _number(capability)
    compiled = [name for name in rows if name.startswith("sm_") and _number(name) <= limit]
    return sorted(compiled, key=_number)


def has_row(kernel: str, capability: str) -> bool:
    """True where `config_for` has a row to return."""
    return kernel in table() and bool(_usable_rows(kernel, capability))


_trial: ContextVar[dict[str, Config]] = ContextVar("satclip_trial", default={})  # noqa: B039


@contextlib.contextmanager
def trying(kernel: str, config: Config) -> Iterator[None]:
    """Give that kernel this configuration within the block, whatever tuning.json says."""
    token = _trial.set({**_trial.get(), kernel: config})
    try:
        yield
    finally:
        _trial.reset(token)


def trial_config(kernel: str) -> Config | None:
    """Configuration that `trying` set, or None."""
    config = _trial.get().get(kernel)
    return None if config is None else dataclasses.replace(config, row=kernel)


def _number(capability: str) -> int:
    return int(capability.removeprefix("sm_"))

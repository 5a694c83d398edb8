"""Entry points of the commands. They import under a guard, so that Ctrl-C right after the start ends in one
line, too."""

from __future__ import annotations

import sys


def grid() -> None:
    """`satclip-grid`."""
    try:
        from satclip_engine.cli.grid import main

        main()
    except KeyboardInterrupt:
        _interrupted("satclip-grid")


def bench() -> None:
    """`satclip-bench`."""
    try:
        from satclip_engine.cli.bench import main

        main()
    except KeyboardInterrupt:
        _interrupted("satclip-bench")


def train() -> None:
    """`satclip-train`."""
    try:
        from satclip_engine.cli.train import main

        main()
    except KeyboardInterrupt:
        _interrupted("satclip-train")


def _interrupted(name: str) -> None:
    print(f"{name}: interrupted", file=sys.stderr)
    sys.exit(130)

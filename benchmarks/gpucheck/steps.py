"""The steps, in order, as data; and each as the process that it runs in.

python -m gpucheck.steps parity OUT/parity.jsonl [--dry-run]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from gpucheck.rows import Check, Note, Rows


@dataclass(frozen=True)
class Step:
    """seconds: after which it is stopped. All together have less, see gpu_check.py."""

    name: str
    title: str
    run: Callable[[Rows, bool], None]
    seconds: float


def _compiled(rows: Rows, dry: bool) -> None:
    """Compiles all workloads at once on all cores: what comes after finds them in Triton's cache."""
    from satclip_engine.kernels.tools import workloads
    from satclip_engine.kernels.tools.gpus import GPUS

    if dry:
        rows.add(Note("kernels", f"not compiled in a dry run; {len(workloads.WORKLOADS)} workloads"))
        return
    from gpucheck.speed.contest import here
    from satclip_engine.kernels.tools.report import report

    capability = here(dry).capability
    if capability not in GPUS:
        rows.add(Note("kernels", f"no tables for {capability}: compiled when they are started"))
        return
    found = report([capability])
    spills = sum(kernel.spills for kernel in found.kernels)
    rows.add(Check(f"spills of {len(found.kernels)} kernels on {capability}", float(spills), 0.0))
    for failure in found.failures:
        rows.add(Note("kernel", failure, ok=False))


def _parity(rows: Rows, dry: bool) -> None:
    from gpucheck import parity
    from gpucheck.speed.contest import here

    sizes = parity.DRY if dry else parity.FULL
    parity.run(rows, here(dry).device, sizes)
    parity.repeatable(rows, here(dry).device, sizes)


def _gradients(rows: Rows, dry: bool) -> None:
    from gpucheck import differentiation, parity
    from gpucheck.speed.contest import here

    differentiation.run(rows, here(dry).device, parity.DRY if dry else parity.FULL)


def _sanitizer(rows: Rows, dry: bool) -> None:
    from gpucheck import sanitizer

    sanitizer.run(rows, dry=dry)


def _speed(part: str) -> Callable[[Rows, bool], None]:
    """part: a module of gpucheck.speed."""

    def run(rows: Rows, dry: bool) -> None:
        from gpucheck import machine
        from gpucheck.speed.contest import DRY, FULL, Contest, here

        with machine.Sampler() as sampler:
            import_module(f"gpucheck.speed.{part}").run(Contest(rows, here(dry), DRY if dry else FULL))
        rows.add(Note("power and clocks", sampler.summary()))

    return run


STEPS: tuple[Step, ...] = (
    Step("compiled", "Kernels as compiled for this GPU", _compiled, 40),
    Step("parity", "Parity with the float64 reference", _parity, 60),
    Step("gradients", "Gradients through the operators", _gradients, 30),
    Step("train", "Training", _speed("training"), 110),
    Step("grid", "Grids", _speed("grids"), 45),
    Step("points", "Points", _speed("points"), 40),
    Step("loss", "Contrastive loss", _speed("losses"), 30),
    Step("sanitizer", "Sanitizer", _sanitizer, 90),
)


def main(arguments: list[str]) -> int:
    """One step, in this process."""
    name, path, *rest = arguments
    step = next(step for step in STEPS if step.name == name)
    rows = Rows(Path(path))
    rows.attempt(name, step.run, rows, "--dry-run" in rest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

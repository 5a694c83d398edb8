"""Steps of the check, in order, as data; and each as the process that it runs in.

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
    """A part of the check. seconds: after which it is stopped; all together have less, see gpu_check.py."""

    name: str
    title: str
    run: Callable[[Rows, bool], None]
    seconds: float


def _compiled(rows: Rows, dry: bool) -> None:
    """Compile all kernels at once on all cores: later steps find them in Triton's cache."""
    from satclip_engine.kernels.tools import workloads
    from satclip_engine.kernels.tools.gpus import GPUS

    if dry:
        rows.add(Note("kernels", f"not compiled in a dry run; {len(workloads.WORKLOADS)} workloads"))
        return
    from gpucheck.speed.comparison import accelerator
    from satclip_engine.kernels.tools.report import report

    capability = accelerator(dry).capability
    if capability not in GPUS:
        rows.add(Note("kernels", f"no tables for {capability}: compiled when they are started"))
        return
    compiled = report([capability])
    spills = sum(kernel.spills for kernel in compiled.kernels)
    rows.add(Check(f"spills of {len(compiled.kernels)} kernels on {capability}", float(spills), 0.0))
    for failure in compiled.failures:
        rows.add(Note("kernel", failure, ok=False))


def _parity(rows: Rows, dry: bool) -> None:
    from gpucheck import parity
    from gpucheck.speed.comparison import accelerator

    sizes, device = parity.DRY if dry else parity.FULL, accelerator(dry).device
    parity.run(rows, device, sizes)
    parity.repeatable(rows, device, sizes)


def _gradients(rows: Rows, dry: bool) -> None:
    from gpucheck import differentiation, parity
    from gpucheck.speed.comparison import accelerator

    differentiation.run(rows, accelerator(dry).device, parity.DRY if dry else parity.FULL)


def _sanitizer(rows: Rows, dry: bool) -> None:
    from gpucheck import sanitizer

    sanitizer.run(rows, dry=dry)


def _speed(module: str) -> Callable[[Rows, bool], None]:
    """A step that runs a module of gpucheck.speed."""

    def run(rows: Rows, dry: bool) -> None:
        from gpucheck import machine
        from gpucheck.speed.comparison import DRY, FULL, Comparison, accelerator

        comparison = Comparison(rows, accelerator(dry), DRY if dry else FULL)
        with machine.Sampler() as sampler:
            import_module(f"gpucheck.speed.{module}").run(comparison)
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
    """Run one step, in this process."""
    name, path, *rest = arguments
    step = next(step for step in STEPS if step.name == name)
    rows = Rows(Path(path))
    rows.attempt(name, step.run, rows, "--dry-run" in rest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Markdown tables of a KernelReport, and their comparison with tables written before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from satclip_engine.kernels.tools import baselines
from satclip_engine.kernels.tools.figures import CompiledKernel, KernelReport, KernelTimes
from satclip_engine.kernels.tools.gpus import GPUS, Gpu
from satclip_engine.kernels.tools.workloads import PRECISIONS, SIREN, KernelWorkload

_HEAD = """\
# Kernels as compiled

Made without a GPU by `python -m satclip_engine.kernels.tools.report --markdown docs/kernels-compiled.md`,
with triton {triton}. With `--check` it compiles again and compares kernels, configurations and spills; the
other columns depend on triton's version.

**Code.** Every kernel with its constants in every shipped configuration (kernels/tuning.json), compiled for
the sizes in kernels/tools/workloads.py: registers of a thread, spills (instructions that move registers to
memory and back: there must be none), shared memory of a program, programs on a multiprocessor at once, and
the instructions of the main loop by class. Tensor share: what the main loop's instructions allow of the
tensor cores' peak when enough warps take turns, which is the cycles of its tensor-core instructions divided
by those of the busiest pipe.

**Rooflines.** Work of every workload's kernels and the least time it can take: each pipe at its peak, all at
the same time, every byte moved once. The estimate divides the tensor cores' time by the tensor share, and
counts that programs are dealt out whole.
"""

_CODE = (
    "kernel", "constants", "configuration", "registers", "spills", "shared KiB", "at once", "occupancy",
    "instructions", "loop: tensor", "fp32", "fp64", "integer", "shared", "global", "other", "tensor share",
)  # fmt: skip
_TIMES = (
    "workload", "kernel", "launches", "programs", "waves", "G multiply-adds", "MB", "multiply-adds/byte",
    "bound µs", "limit", "estimate µs",
)  # fmt: skip
_RATIOS = ("", "ms", "of ours, exact", "of ours, fast")
_TRAINING_STEP = """\
**Training step, batch {batch}, L = {degrees}**: encoder and loss, forward and backward, by these estimates;
beside them PyTorch's, whose operations all run at the GPU's peaks (kernels/tools/baselines.py).
"""
BATCH, DEGREES = 8192, 40
_STABLE = ("kernel", "constants", "configuration", "spills")


def markdown(report: KernelReport) -> str:
    """Format all tables, a chapter for each GPU."""
    chapters = [_HEAD.format(**report.versions)]
    for capability in report.rows:
        gpu = GPUS[capability]
        kernels = [_kernel(kernel) for kernel in report.kernels if kernel.capability == capability]
        times = [times for times in report.times if times.capability == capability]
        chapters += [
            f"## {gpu.name} ({capability})\n",
            _table(_CODE, kernels),
            _table(_TIMES, _workloads(times)),
        ]
        chapters += [
            _TRAINING_STEP.format(batch=BATCH, degrees=DEGREES),
            _table(_RATIOS, _baselines(report, gpu)),
        ]
    return "\n".join(chapters)


def differences(before: str, report: KernelReport) -> list[str]:
    """Differences between the stable columns of Markdown written before and those of a report."""
    rows = _stable(before), _stable(markdown(report))
    missing, extra = rows[0] - rows[1], rows[1] - rows[0]
    return [f"is in the table, but not made any more: {_join(row)}" for row in sorted(missing)] + [
        f"is missing in the table: {_join(row)}" for row in sorted(extra)
    ]


def _baselines(report: KernelReport, gpu: Gpu) -> list[list[str]]:
    """Rows of ours by the estimates above and of PyTorch by baselines.py; each divided by ours."""
    ours = {precision: report.seconds(gpu.capability, *training_step(precision)) for precision in PRECISIONS}
    rows = [(f"ours, {precision}", seconds) for precision, seconds in ours.items()]
    for baseline, name in (("eager", "PyTorch eager"), ("compiled", "torch.compile")):
        for tf32 in (False, True):
            seconds = baselines.step_seconds(baseline, BATCH, DEGREES, SIREN, gpu, tf32=tf32)
            rows.append((f"{name}, {'TF32' if tf32 else 'float32'}", seconds))
    return [
        [
            name,
            f"{seconds * 1e3:.2f}",
            *(f"{seconds / own:.1f} ×" if own else "–" for own in ours.values()),
        ]
        for name, seconds in rows
    ]


def training_step(precision: str) -> tuple[KernelWorkload, ...]:
    """Workloads of one step of training."""
    common: dict[str, Any] = {"degrees": DEGREES, "precision": precision}
    return (
        KernelWorkload("forward", BATCH, dropout=0.5, **common),
        KernelWorkload("backward", BATCH, dropout=0.5, **common),
        KernelWorkload("loss", BATCH, BATCH, precision=precision),
    )


def _join(row: tuple[str, ...]) -> str:
    return ", ".join(word for word in row if word)


def _stable(text: str) -> set[tuple[str, ...]]:
    """Rows of the tables of code, by chapter, as far as they do not depend on the compiler."""
    chapter, columns, rows = "", None, set()
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("## "):
            chapter = line
        elif not line.startswith("|"):
            columns = None
        elif set(_STABLE) <= set(cells):
            columns = [cells.index(name) for name in _STABLE]
        elif columns and not cells[0].startswith("-"):
            rows.add((chapter, *(cells[index] for index in columns)))
    return rows


def _kernel(kernel: CompiledKernel) -> list[str]:
    loop = [
        str(kernel.loop.get(group, 0)) for group in ("tensor", "fp32", "fp64", "integer", "shared", "global")
    ]
    rest = sum(kernel.loop.get(group, 0) for group in ("special", "other", "spill"))
    return [
        f"`{kernel.name}`",
        kernel.constants,
        kernel.error or kernel.config,
        str(kernel.registers),
        str(kernel.spills),
        f"{kernel.shared / 1024:.1f}",
        str(kernel.at_once),
        f"{kernel.occupancy:.0%}",
        str(kernel.instructions),
        *loop,
        str(rest),
        f"{kernel.tensor_share:.0%}" if kernel.loop.get("tensor") else "–",
    ]


def _workloads(times: Sequence[KernelTimes]) -> list[list[str]]:
    """Rows of all kernels, and the sum of every workload with more than one."""
    rows = []
    for name in dict.fromkeys(kernel.workload for kernel in times):
        kernels = [kernel for kernel in times if kernel.workload == name]
        rows += [_times(kernel) for kernel in kernels]
        if len(kernels) > 1:
            bound, estimate = (
                sum(getattr(kernel, key) for kernel in kernels) for key in ("bound", "estimate")
            )
            rows.append(
                [f"**{name}**", "all", *[""] * 6, f"**{bound * 1e6:.1f}**", "", f"**{estimate * 1e6:.1f}**"]
            )
    return rows


def _times(times: KernelTimes) -> list[str]:
    return [
        times.workload,
        f"`{times.kernel}`",
        str(times.launches),
        str(times.programs),
        f"{times.waves:.2f}",
        f"{times.multiply_adds / 1e9:.3g}",
        f"{times.bytes / 1e6:.3g}",
        f"{times.multiply_adds / times.bytes:.1f}" if times.bytes else "–",
        f"{times.bound * 1e6:.1f}",
        times.limit,
        f"{times.estimate * 1e6:.1f}",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

"""A Report as Markdown, and the comparison of one with Markdown written before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from satclip_engine.kernels.compiled import rivals
from satclip_engine.kernels.compiled.gpus import GPUS, Gpu
from satclip_engine.kernels.scenes import PRECISIONS, SIREN, Scene

if TYPE_CHECKING:
    from satclip_engine.kernels.report import Code, Report, Step

_HEAD = """\
# Kernels as compiled

Made without a GPU by `python -m satclip_engine.kernels.report --markdown docs/kernels-compiled.md`, with
triton {triton}. With `--check` it compiles again and compares kernels, configurations and spills; the other
columns depend on triton's version.

**Code.** Every kernel with its constants in every shipped configuration (kernels/tuning.json), compiled for
the sizes in kernels/scenes.py: registers of a thread, spills (instructions that move registers to memory and
back: there must be none), shared memory of a program, programs on a multiprocessor at once, and the
instructions of the main loop by class. Tensor share: what the main loop's instructions allow of the tensor
cores' peak when enough warps take turns, which is the cycles of its tensor-core instructions divided by those
of the busiest pipe.

**Rooflines.** Work of every scene's kernels and the least time it can take: each pipe at its peak, all at the
same time, every byte moved once. The estimate divides the tensor cores' time by the tensor share, and counts
that programs are dealt out whole.
"""

_CODE = (
    "kernel", "constants", "configuration", "registers", "spills", "shared KiB", "at once", "occupancy",
    "instructions", "loop: tensor", "fp32", "fp64", "integer", "shared", "global", "other", "tensor share",
)  # fmt: skip
_STEPS = (
    "scene", "kernel", "launches", "programs", "waves", "G multiply-adds", "MB", "multiply-adds/byte",
    "bound µs", "limit", "estimate µs",
)  # fmt: skip
_RATIOS = ("", "ms", "of ours, exact", "of ours, fast")
_GOALS = """\
**Training step, batch {batch}, L = {degrees}**: encoder and loss, forward and backward, by these estimates;
beside them PyTorch's, whose operations all run at the GPU's peaks (kernels/compiled/rivals.py).
"""
BATCH, DEGREES = 8192, 40
_STABLE = ("kernel", "constants", "configuration", "spills")


def markdown(report: Report) -> str:
    """All tables, a chapter for each GPU."""
    parts = [_HEAD.format(**report.versions)]
    for capability in report.rows:
        gpu = GPUS[capability]
        codes = [_code(code) for code in report.codes if code.capability == capability]
        steps = [step for step in report.steps if step.capability == capability]
        parts += [f"## {gpu.name} ({capability})\n", _table(_CODE, codes), _table(_STEPS, _scenes(steps))]
        parts += [_GOALS.format(batch=BATCH, degrees=DEGREES), _table(_RATIOS, _rivals(report, gpu))]
    return "\n".join(parts)


def differences(before: str, report: Report) -> list[str]:
    """How the stable columns of Markdown written before differ from those of a report."""
    rows = _stable(before), _stable(markdown(report))
    missing, extra = rows[0] - rows[1], rows[1] - rows[0]
    return [f"is in the table, but not made any more: {_words(row)}" for row in sorted(missing)] + [
        f"is missing in the table: {_words(row)}" for row in sorted(extra)
    ]


def _rivals(report: Report, gpu: Gpu) -> list[list[str]]:
    """Ours by the estimates above, PyTorch's by rivals.py; each divided by ours."""
    ours = {precision: report.seconds(gpu.capability, *training_step(precision)) for precision in PRECISIONS}
    rows = [(f"ours, {precision}", seconds) for precision, seconds in ours.items()]
    for rival, name in (("eager", "PyTorch eager"), ("compiled", "torch.compile")):
        for tf32 in (False, True):
            seconds = rivals.step(rival, BATCH, DEGREES, SIREN, gpu, tf32=tf32)
            rows.append((f"{name}, {'TF32' if tf32 else 'float32'}", seconds))
    return [
        [
            name,
            f"{seconds * 1e3:.2f}",
            *(f"{seconds / each:.1f} ×" if each else "–" for each in ours.values()),
        ]
        for name, seconds in rows
    ]


def training_step(precision: str) -> tuple[Scene, ...]:
    """The scenes that a step starts."""
    common: dict[str, Any] = {"degrees": DEGREES, "precision": precision}
    return (
        Scene("forward", BATCH, dropout=0.5, **common),
        Scene("backward", BATCH, dropout=0.5, **common),
        Scene("loss", BATCH, BATCH, precision=precision),
    )


def _words(row: tuple[str, ...]) -> str:
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


def _code(code: Code) -> list[str]:
    loop = [
        str(code.loop.get(group, 0)) for group in ("tensor", "fp32", "fp64", "integer", "shared", "global")
    ]
    rest = sum(code.loop.get(group, 0) for group in ("special", "other", "spill"))
    return [
        f"`{code.kernel}`",
        code.constants,
        code.error or code.shape,
        str(code.registers),
        str(code.spills),
        f"{code.shared / 1024:.1f}",
        str(code.at_once),
        f"{code.occupancy:.0%}",
        str(code.instructions),
        *loop,
        str(rest),
        f"{code.tensor_share:.0%}" if code.loop.get("tensor") else "–",
    ]


def _scenes(steps: Sequence[Step]) -> list[list[str]]:
    """A row a step, and the sum of every scene with more than one."""
    rows = []
    for name in dict.fromkeys(step.scene for step in steps):
        parts = [step for step in steps if step.scene == name]
        rows += [_step(step) for step in parts]
        if len(parts) > 1:
            bound, estimate = (sum(getattr(step, key) for step in parts) for key in ("bound", "estimate"))
            rows.append(
                [f"**{name}**", "all", *[""] * 6, f"**{bound * 1e6:.1f}**", "", f"**{estimate * 1e6:.1f}**"]
            )
    return rows


def _step(step: Step) -> list[str]:
    return [
        step.scene,
        f"`{step.kernel}`",
        str(step.launches),
        str(step.programs),
        f"{step.waves:.2f}",
        f"{step.multiply_adds / 1e9:.3g}",
        f"{step.bytes / 1e6:.3g}",
        f"{step.multiply_adds / step.bytes:.1f}" if step.bytes else "–",
        f"{step.bound * 1e6:.1f}",
        step.limit,
        f"{step.estimate * 1e6:.1f}",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

"""Targets of the kernels on an H100, as data, and the measured values that meet them or do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gpucheck.rows import Check, Row, Time
from satclip_engine.bench.catalogue import LAYER_WIDTHS
from satclip_engine.kernels.tools.gpus import H100

_STEP = "L=40, batch 8,192"
_GRID = "grid L=40, 256×3600"


@dataclass(frozen=True)
class Target:
    """A goal. value: the measured one, None where there is none; met by at least `goal`, or by at most it."""

    name: str
    goal: float
    value: Callable[[Sequence[Row]], float | None]
    unit: str = "×"
    at_least: bool = True

    def met(self, value: float) -> bool:
        return value >= self.goal if self.at_least else value <= self.goal


def _ratio(slow: tuple[str, str], fast: tuple[str, str]) -> Callable[[Sequence[Row]], float | None]:
    """Time of one (workload, implementation) divided by that of another."""

    def value(rows: Sequence[Row]) -> float | None:
        times = {(row.case, row.contestant): row.seconds for row in rows if isinstance(row, Time)}
        return times[slow] / times[fast] if slow in times and fast in times else None

    return value


def _hidden_share(implementation: str) -> Callable[[Sequence[Row]], float | None]:
    """The hidden layers' multiply-adds in the time of the whole grid, of the fp16 tensor cores' peak."""

    def value(rows: Sequence[Row]) -> float | None:
        for row in rows:
            if isinstance(row, Time) and (row.case, row.contestant) == (_GRID, implementation):
                hidden = sum(a * b for a, b in pairwise(LAYER_WIDTHS))
                return 100 * row.work * hidden / row.seconds / H100.half
        return None

    return value


def _worst(word: str) -> Callable[[Sequence[Row]], float | None]:
    """The largest error, of its bound, of all comparisons with this word."""

    def value(rows: Sequence[Row]) -> float | None:
        errors = [
            row.error / row.bound for row in rows if isinstance(row, Check) and word in row.name and row.bound
        ]
        return max(errors, default=None)

    return value


def _training(baseline: str, op: str, precision: str) -> Callable[[Sequence[Row]], float | None]:
    return _ratio((f"{op} {_STEP}", baseline), (f"{op} {_STEP}", f"triton {precision}"))


def _forward_share(precision: str) -> Callable[[Sequence[Row]], float | None]:
    """Time of forward and backward, of forward alone."""
    ours = f"triton {precision}"
    return _ratio((f"forward and backward {_STEP}", ours), (f"forward {_STEP}", ours))


TARGETS: tuple[Target, ...] = (
    *(
        Target(f"training step L=40, batch 8192, {precision}: faster than {baseline}", goal, value)
        for baseline, goal in (("PyTorch eager", 5.0), ("torch.compile", 2.0))
        for precision in ("exact", "fast")
        for value in (_training(baseline, "training step", precision),)
    ),
    *(
        Target(f"grid {dtype}, fast: hidden layers, of the fp16 tensor cores' peak", 50.0, value, unit="%")
        for dtype in ("float32", "int8")
        for value in (_hidden_share(f"triton fast {dtype}"),)
    ),
    *(
        # Backward within 2.5 times forward.
        Target(f"encoder forward and backward, {precision}: time of forward", 3.5, value, at_least=False)
        for precision in ("exact", "fast")
        for value in (_forward_share(precision),)
    ),
    Target("exact: largest error, of its bound", 1.0, _worst("exact"), at_least=False),
    Target("fast: largest error, of its bound", 1.0, _worst("fast"), at_least=False),
)

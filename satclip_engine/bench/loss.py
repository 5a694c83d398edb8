"""Contestants of the loss cases: the contrastive loss and its gradients, beside PyTorch's and plain products.

A batch is too large for the float64 reference, so some rows are compared: with log-sum-exps of all logits
from blocks of float32 products, and gradients in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from satclip_engine._optional import need
from satclip_engine.bench.cases import LossCase
from satclip_engine.bench.gemm import torch_threads, yardsticks
from satclip_engine.bench.measure import Contestant, Made
from satclip_engine.bench.workload import relative_error

_SCALE = 14.3  # 1 / 0.07, where CLIP's training begins
_ONCE = 65_536  # pairs above which only all threads are timed, and memory is not measured by another call
_BLOCK = 1024  # rows of logits in memory at once
_CHECKED = 64  # rows whose gradients are compared
_MATRICES = 4.1  # of N × N floats that eager PyTorch holds at most, measured at N = 8192
_SHARE = 2 / 3  # of the free memory that a peer may take

Answer = tuple[float, np.ndarray, np.ndarray, float]  # loss, da, db, dscale


def loss(case: LossCase, threads: tuple[int, ...], compare: frozenset[str]) -> list[Contestant]:
    """Forward and backward; eager PyTorch where its matrices fit. A call that takes minutes is made once."""
    batch = Batch(case.pairs, case.embed)
    entries = []
    for count in sorted(threads, reverse=True):
        most = count == max(threads)
        if case.pairs > _ONCE and not most:
            break
        every = most and case.pairs <= _ONCE
        entries.append(_entry("satclip", case, batch, count, _fused, remember=every, ours=True))
        width = min(case.pairs, 2048)
        shapes = [(case.embed, width), (width, case.embed)]
        products = 2048.0 * sum(a * b for a, b in shapes)
        entries += yardsticks(shapes, count, work=products / case.multiply_adds)
        if "torch" in compare and most:
            missing = _too_large(case)
            entries.append(
                _entry("PyTorch eager", case, batch, count, _eager, remember=every, missing=missing)
            )
    return entries


def _entry(
    name: str,
    case: LossCase,
    batch: Batch,
    threads: int,
    evaluate: Callable[[Any, Any, Any], Any],
    *,
    missing: str | None = None,
    **extra: Any,
) -> Contestant:
    def make(settings: Mapping[str, Any]) -> Made:
        torch = need("torch", extra="torch", why="satclip-bench")
        given = [torch.from_numpy(rows).requires_grad_() for rows in (batch.a, batch.b)]
        given.append(torch.tensor(_SCALE, requires_grad=True))

        def run() -> Answer:
            value = evaluate(*given)
            da, db, dscale = torch.autograd.grad(value, given)
            return float(value.detach()), da.numpy(), db.numpy(), float(dscale)

        return Made(run, batch.error, case.tolerance, before=torch_threads(threads))

    return Contestant(
        name, threads, float(case.pairs), make, multiply_adds=case.multiply_adds, missing=missing, **extra
    )


def _fused(a: Any, b: Any, scale: Any) -> Any:
    from satclip_engine.contrast import contrastive_loss

    return contrastive_loss(a, b, scale, backend="cpu")


def _eager(a: Any, b: Any, scale: Any) -> Any:
    torch = need("torch", extra="torch", why="satclip-bench")
    logits, labels = scale * a @ b.T, torch.arange(len(a))
    entropy = torch.nn.functional.cross_entropy
    return (entropy(logits, labels) + entropy(logits.T, labels)) / 2


def _too_large(case: LossCase) -> str | None:
    needed, free = _MATRICES * 4 * case.pairs**2, _available_memory()
    if free is None or needed < _SHARE * free:
        return None
    return f"it needs {needed / 1e9:.0f} GB of memory, more than two thirds of the free {free / 1e9:.0f} GB"


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


@dataclass(frozen=True, eq=False)
class Batch:
    """Normalised pairs that resemble each other as a trained encoder's do, and what is right for them."""

    pairs: int
    embed: int

    @cached_property
    def a(self) -> np.ndarray:  # (N, E)
        return _normalised(np.random.default_rng(0).standard_normal((self.pairs, self.embed), np.float32))

    @cached_property
    def b(self) -> np.ndarray:  # (N, E)
        noise = np.random.default_rng(1).standard_normal((self.pairs, self.embed), np.float32)
        return _normalised(self.a + 2 * noise / np.sqrt(np.float32(self.embed)))

    @cached_property
    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Log-sum-exp of all rows and of all columns, float64."""
        rows, columns = np.empty(self.pairs), np.full(self.pairs, -np.inf)
        for begin in range(0, self.pairs, _BLOCK):
            exponentials = np.exp(np.float32(_SCALE) * (self.a[begin : begin + _BLOCK] @ self.b.T))
            rows[begin : begin + _BLOCK] = np.log(exponentials.sum(1, dtype=np.float64))
            columns = np.logaddexp(columns, np.log(exponentials.sum(0, dtype=np.float64)))
        return rows, columns

    @cached_property
    def rows(self) -> np.ndarray:
        """Which rows are compared: evenly spread, first and last included."""
        return np.unique(np.linspace(0, self.pairs - 1, _CHECKED).astype(int))

    @cached_property
    def expected(self) -> tuple[float, np.ndarray, np.ndarray]:
        """The loss, and da and db of the rows that are compared."""
        row_lse, column_lse = self.sums
        a, b = self.a.astype(np.float64), self.b.astype(np.float64)
        value = float((row_lse + column_lse - 2 * _SCALE * (a * b).sum(1)).mean() / 2)
        return (
            value,
            self._gradient(a[self.rows], b, row_lse[self.rows], column_lse),
            self._gradient(b[self.rows], a, column_lse[self.rows], row_lse),
        )

    def _gradient(
        self, own: np.ndarray, others: np.ndarray, own_lse: np.ndarray, other_lse: np.ndarray
    ) -> np.ndarray:
        s = _SCALE * own @ others.T
        ds = np.exp(s - own_lse[:, None]) + np.exp(s - other_lse)
        ds[np.arange(len(own)), self.rows] -= 2
        return _SCALE / (2 * self.pairs) * ds @ others

    def error(self, answer: Answer) -> float:
        """The largest relative error of the loss, of da and of db."""
        value, da, db = self.expected
        return max(
            abs(answer[0] - value) / value,
            relative_error(answer[1][self.rows], da),
            relative_error(answer[2][self.rows], db),
        )


def _normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)

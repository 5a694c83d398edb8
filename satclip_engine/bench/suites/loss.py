"""Implementations of the loss workloads: the contrastive loss with gradients, PyTorch's, plain products.

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
from satclip_engine.bench.catalogue import LossWorkload
from satclip_engine.bench.inputs import LOGIT_SCALE, relative_error
from satclip_engine.bench.measure import Implementation, PreparedRun
from satclip_engine.bench.suites.gemm import gemm_rooflines, torch_threads
from satclip_engine.bench.suites.torch_baselines import cross_entropy_loss

_MAX_REPEATED_PAIRS = 65_536  # above them only all threads are timed, and memory needs no second call
_ROOFLINE_ROWS, _ROOFLINE_WIDTH = 2048, 2048  # of logits in a plain product
_BLOCK_ROWS = 1024  # of logits in memory at once
_COMPARED_ROWS = 64  # whose gradients are compared
_EAGER_MATRICES = 4.1  # of N × N floats that eager PyTorch holds at most, measured at N = 8192
_MEMORY_SHARE = 2 / 3  # of the free memory that a baseline may take

Answer = tuple[float, np.ndarray, np.ndarray, float]  # loss, da, db, dscale


def loss(workload: LossWorkload, threads: tuple[int, ...], compare: frozenset[str]) -> list[Implementation]:
    """Forward and backward; eager PyTorch where its matrices fit. A call that takes minutes is made once."""
    batch = PairBatch(workload.pairs, workload.embed)
    is_repeated = workload.pairs <= _MAX_REPEATED_PAIRS
    entries = []
    for count in sorted(threads, reverse=True):
        all_threads = count == max(threads)
        if not (is_repeated or all_threads):
            break
        measure_memory = all_threads and is_repeated
        entries.append(
            _entry("satclip", workload, batch, count, _fused, measure_memory=measure_memory, ours=True)
        )
        entries += _rooflines(workload, count)
        if "torch" in compare and all_threads:
            eager = _entry(
                "PyTorch eager",
                workload,
                batch,
                count,
                cross_entropy_loss,
                missing=_too_large(workload),
                measure_memory=measure_memory,
            )
            entries.append(eager)
    return entries


def _rooflines(workload: LossWorkload, threads: int) -> list[Implementation]:
    width = min(workload.pairs, _ROOFLINE_WIDTH)
    shapes = [(workload.embed, width), (width, workload.embed)]
    products = float(_ROOFLINE_ROWS * sum(a * b for a, b in shapes))
    return gemm_rooflines(shapes, threads, rows=_ROOFLINE_ROWS, work=products / workload.multiply_adds)


def _entry(
    name: str,
    workload: LossWorkload,
    batch: PairBatch,
    threads: int,
    evaluate: Callable[[Any, Any, Any], Any],
    *,
    missing: str | None = None,
    **options: Any,
) -> Implementation:
    def prepare(settings: Mapping[str, Any]) -> PreparedRun:
        torch = need("torch", extra="torch", why="satclip-bench")
        inputs = [torch.from_numpy(rows).requires_grad_() for rows in (batch.a, batch.b)]
        inputs.append(torch.tensor(LOGIT_SCALE, requires_grad=True))

        def run() -> Answer:
            value = evaluate(*inputs)
            da, db, dscale = torch.autograd.grad(value, inputs)
            return float(value.detach()), da.numpy(), db.numpy(), float(dscale)

        return PreparedRun(run, batch.error, workload.tolerance, before=torch_threads(threads))

    return Implementation(
        name,
        threads,
        float(workload.pairs),
        prepare,
        multiply_adds=workload.multiply_adds,
        missing=missing,
        **options,
    )


def _fused(a: Any, b: Any, scale: Any) -> Any:
    from satclip_engine.contrast import contrastive_loss

    return contrastive_loss(a, b, scale, backend="cpu")


def _too_large(workload: LossWorkload) -> str | None:
    """Reason why eager PyTorch's matrices do not fit into memory, or None."""
    needed, free = _EAGER_MATRICES * 4 * workload.pairs**2, _available_memory()
    if free is None or needed < _MEMORY_SHARE * free:
        return None
    return f"it needs {needed / 1e9:.0f} GB of memory, more than two thirds of the free {free / 1e9:.0f} GB"


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Normalised pairs that resemble each other as a trained encoder's do, with their loss and gradients."""

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
        for begin in range(0, self.pairs, _BLOCK_ROWS):
            exponentials = np.exp(np.float32(LOGIT_SCALE) * (self.a[begin : begin + _BLOCK_ROWS] @ self.b.T))
            rows[begin : begin + _BLOCK_ROWS] = np.log(exponentials.sum(1, dtype=np.float64))
            columns = np.logaddexp(columns, np.log(exponentials.sum(0, dtype=np.float64)))
        return rows, columns

    @cached_property
    def rows(self) -> np.ndarray:
        """Numbers of the rows that are compared: evenly spread, first and last included."""
        return np.unique(np.linspace(0, self.pairs - 1, _COMPARED_ROWS).astype(int))

    @cached_property
    def expected(self) -> tuple[float, np.ndarray, np.ndarray]:
        """The loss, and da and db of the rows that are compared."""
        row_lse, column_lse = self.sums
        a, b = self.a.astype(np.float64), self.b.astype(np.float64)
        value = float((row_lse + column_lse - 2 * LOGIT_SCALE * (a * b).sum(1)).mean() / 2)
        return (
            value,
            self._gradient(a[self.rows], b, row_lse[self.rows], column_lse),
            self._gradient(b[self.rows], a, column_lse[self.rows], row_lse),
        )

    def _gradient(
        self, own: np.ndarray, others: np.ndarray, own_lse: np.ndarray, other_lse: np.ndarray
    ) -> np.ndarray:
        s = LOGIT_SCALE * own @ others.T
        ds = np.exp(s - own_lse[:, None]) + np.exp(s - other_lse)
        ds[np.arange(len(own)), self.rows] -= 2
        return LOGIT_SCALE / (2 * self.pairs) * ds @ others

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

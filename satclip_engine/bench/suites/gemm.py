"""GEMM rooflines: the machine's own float32 matrix product, as the measure of everything made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np

from satclip_engine._optional import need
from satclip_engine.backends import available_cores
from satclip_engine.bench.inputs import relative_error
from satclip_engine.bench.measure import Implementation, PreparedRun

_DEFAULT_ROWS = 2048  # measured on 2 cores of a Zen 4: within 5 % of the best from 1024 rows on
_TOLERANCE = 1e-4


def torch_threads(count: int) -> Callable[[], None]:
    """Return a function that sets PyTorch's thread count."""
    return lambda: need("torch", extra="torch", why="satclip-bench").set_num_threads(count)


def gemm_rooflines(
    shapes: Sequence[tuple[int, int]], threads: int, *, rows: int = _DEFAULT_ROWS, work: float | None = None
) -> list[Implementation]:
    """Products of (rows, inputs) and (inputs, outputs) for every shape, by PyTorch's library and by NumPy's.

    work: one call in units of the workload; by default its multiply-adds.
    """
    total = float(rows * sum(a * b for a, b in shapes))
    units = total if work is None else work

    def entry(
        name: str, prepare: Callable[[Mapping[str, Any]], PreparedRun], missing: str | None
    ) -> Implementation:
        return Implementation(
            name, threads, units, prepare, multiply_adds=total / units, roofline=True, missing=missing
        )

    can_limit = threads == available_cores() or find_spec("threadpoolctl") is not None
    reason = None if can_limit else "threadpoolctl is not installed, so its threads cannot be limited"
    return [
        entry("SGEMM (PyTorch)", lambda settings: _torch(shapes, rows, threads), None),
        entry("SGEMM (NumPy)", lambda settings: _numpy(shapes, rows, threads), reason),
    ]


def layer_rooflines(degrees: int, sizes: tuple[int, ...], threads: int) -> list[Implementation]:
    """Matrix products of a network and nothing else; a unit is one point."""
    return gemm_rooflines(list(pairwise((degrees**2, *sizes))), threads, work=float(_DEFAULT_ROWS))


def _operands(shapes: Sequence[tuple[int, int]], rows: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        (
            rng.standard_normal((rows, inputs), np.float32),
            rng.standard_normal((outputs, inputs), np.float32),
        )
        for inputs, outputs in shapes
    ]


def _check(operands: list[tuple[np.ndarray, np.ndarray]], results: list[np.ndarray]) -> float:
    return max(
        relative_error(result[:32], a[:32].astype(np.float64) @ b.T.astype(np.float64))
        for (a, b), result in zip(operands, results, strict=True)
    )


def _torch(shapes: Sequence[tuple[int, int]], rows: int, threads: int) -> PreparedRun:
    torch = need("torch", extra="torch", why="satclip-bench")
    operands = _operands(shapes, rows)
    left = [torch.from_numpy(a) for a, _ in operands]
    right = [torch.from_numpy(b.T.copy()) for _, b in operands]
    results = [torch.empty(rows, outputs) for _, outputs in shapes]

    def run() -> list[np.ndarray]:
        for a, b, out in zip(left, right, results, strict=True):
            torch.mm(a, b, out=out)
        return [out.numpy() for out in results]

    return PreparedRun(
        run, lambda answer: _check(operands, answer), _TOLERANCE, before=torch_threads(threads)
    )


def _numpy(shapes: Sequence[tuple[int, int]], rows: int, threads: int) -> PreparedRun:
    operands = _operands(shapes, rows)
    right = [b.T.copy() for _, b in operands]
    results = [np.empty((rows, outputs), np.float32) for _, outputs in shapes]

    def run() -> list[np.ndarray]:
        for (a, _), b, out in zip(operands, right, results, strict=True):
            np.matmul(a, b, out=out)
        return results

    return PreparedRun(
        run, lambda answer: _check(operands, answer), _TOLERANCE, before=_blas_threads(threads)
    )


def _blas_threads(count: int) -> Callable[[], None]:
    """Return a function that sets the thread count of NumPy's library; without threadpoolctl, nothing."""
    if find_spec("threadpoolctl") is None:
        return lambda: None
    controller = need("threadpoolctl", extra="dev", why="this").ThreadpoolController()
    return lambda: controller.limit(limits=count, user_api="blas")

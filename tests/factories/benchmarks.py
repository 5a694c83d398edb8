"""Small workloads, sleeping implementations and a record, for tests of benchmarks."""

from __future__ import annotations

import dataclasses
import time

from satclip_engine.bench import catalogue, results
from satclip_engine.bench.measure import OK, Implementation, PreparedRun, Timing

EVERYTHING = frozenset(catalogue.COMPARED)

# One small workload of every kind, with all that is compared in it.
SMALL = (
    catalogue.GemmWorkload(64, 40, 24),
    catalogue.HarmonicsWorkload(6, 90),
    catalogue.PointsKernelWorkload(6, 300, (48, 40, 16)),
    catalogue.GridKernelWorkload(6, 6, 24, (48, 40, 16)),
    catalogue.RasterKernelWorkload("pack_tiles", 16, 64, 8, side=32),
    catalogue.RasterKernelWorkload("pack_tiles", 16, 64, 8, dtype="int16", side=32),
    catalogue.RasterKernelWorkload("halve", 16, 64, 8),
    catalogue.PointsWorkload(6, 300, (48, 40, 16)),
    catalogue.GridWorkload(6, 15.0, sizes=(48, 40, 16)),
    catalogue.LossWorkload(150, 40),
    catalogue.WriteWorkload(20.0, bands=3, baselines=True),
    catalogue.WriteWorkload(20.0, bands=3, alone=True),
)


def implementation(name="one", seconds=0.0, error=0.0, calls=None, **options) -> Implementation:
    """Sleeps, then gives an answer that is wrong by `error`."""

    def run_it():
        if calls is not None:
            calls.append(name)
        time.sleep(seconds)
        return error

    return Implementation(name, 1, 100.0, lambda settings: PreparedRun(run_it, abs, 0.5), **options)


def record(**changes) -> dict:
    """A record as files have it."""
    timed = Implementation("PyTorch, float64 basis", 2, 1e5, lambda settings: None, multiply_adds=1.2e6)
    timing = Timing(timed, OK, "a note", 1.2e-6, 1e-5, (3.0, 3.3, 3.1))
    used = {"peak_memory": 1_234_567_890, "working_memory": 123_456_789}
    (measured,) = results.records(catalogue.PointsWorkload(40, 100_000), [timing], [used])
    return {**dataclasses.asdict(measured), "of_gemm": 0.876, "faster": 12.34, **changes}

"""Records of benchmark results, and JSON files of them: one a machine, group by group.

{"machine": {...}, "runs": {"points": {"versions": {...}, "options": {...}, "records": [...]}, ...}}
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from satclip_engine.bench.catalogue import BenchmarkWorkload
from satclip_engine.bench.measure import FAILED, Timing, quartiles, ratio
from satclip_engine.errors import OutputError, UsageError, one_line
from satclip_engine.files import write_atomically

_IDENTITY = ("cpu", "cores", "instruction_sets", "system")  # the memory differs a little from boot to boot


@dataclass(frozen=True)
class BenchmarkRecord:
    """Result of one implementation on one workload. Numbers are None where there are none.

    Fields are named as the keys of the files: `case` is the workload's name, `contestant` the
    implementation's, `yardstick` true for a GEMM roofline, `facts` the details that a run found out.

    rate: units a second, median and quartiles of the rounds; seconds: the same of a call; of_gemm:
    multiply-adds a second as a share of the faster library's product in the same rounds; faster: times that
    this package's first implementation is faster; error: see `reference`. Memory in bytes: of the whole
    process, and added by the call.
    """

    case: str
    parameters: dict[str, Any]
    tags: tuple[str, ...]
    reference: str
    contestant: str
    ours: bool
    yardstick: bool
    threads: int
    dtype: str
    status: str
    note: str
    error: float | None
    tolerance: float | None
    unit: str
    work: float
    rounds: int
    rate: dict[str, float] | None
    seconds: dict[str, float] | None
    multiply_adds_per_second: float | None
    of_gemm: float | None
    faster: float | None
    peak_memory: int | None = None
    working_memory: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def records(
    workload: BenchmarkWorkload, timings: Sequence[Timing], memory: Sequence[dict[str, int] | None]
) -> list[BenchmarkRecord]:
    """One record an implementation, compared with those of as many threads, where there are any."""
    return [_record(workload, timing, timings, used) for timing, used in zip(timings, memory, strict=True)]


def _record(
    workload: BenchmarkWorkload, timing: Timing, timings: Sequence[Timing], memory: dict[str, int] | None
) -> BenchmarkRecord:
    implementation, is_timed = timing.implementation, bool(timing.seconds)
    comparable = [
        other for other in timings if other.seconds and other.implementation.threads == implementation.threads
    ]
    sgemm = _fastest_roofline(comparable)
    first = next((other for other in comparable if other.implementation.ours), None)
    is_counted = is_timed and implementation.multiply_adds > 0
    details = dict(timing.details)
    peak = details.pop("peak_memory", None)
    return BenchmarkRecord(
        case=workload.name,
        parameters=workload.parameters(),
        tags=workload.tags,
        reference=workload.reference,
        contestant=implementation.name,
        ours=implementation.ours,
        yardstick=implementation.roofline,
        threads=implementation.threads,
        dtype=implementation.dtype,
        status=timing.status,
        note=timing.note,
        error=_number(timing.error),
        tolerance=_number(timing.tolerance),
        unit=workload.unit,
        work=implementation.work,
        rounds=len(timing.seconds),
        rate=quartiles(timing.rates) if is_timed else None,
        seconds=quartiles(np.asarray(timing.seconds)) if is_timed else None,
        multiply_adds_per_second=float(np.median(timing.multiply_add_rates)) if is_counted else None,
        of_gemm=ratio(timing.multiply_add_rates, sgemm.multiply_add_rates) if is_counted and sgemm else None,
        faster=ratio(first.rates, timing.rates) if is_timed and first else None,
        peak_memory=(memory or {}).get("peak_memory", peak if is_timed else None),
        working_memory=(memory or {}).get("working_memory"),
        settings=dict(timing.settings),
        facts=details if is_timed else {},
    )


def _fastest_roofline(timings: Sequence[Timing]) -> Timing | None:
    rooflines = [timing for timing in timings if timing.implementation.roofline]
    return max(rooflines, key=lambda timing: float(np.median(timing.multiply_add_rates)), default=None)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def failed(group: Sequence[BenchmarkRecord]) -> list[BenchmarkRecord]:
    """Records that have no right answer, though the implementation is installed."""
    return [record for record in group if record.status == FAILED]


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file of results. Raises UsageError when it is none."""
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{os.fspath(path)}: cannot be read as benchmark results ({one_line(error)})"
        ) from error
    if not isinstance(content, dict) or not {"machine", "runs"} <= content.keys():
        raise UsageError(f"{os.fspath(path)}: holds no benchmark results")
    return content


def check(path: str | os.PathLike[str], machine: dict[str, Any]) -> None:
    """Raise, before anything is measured, what `save` would raise after it."""
    target = Path(path)
    if target.exists():
        other = read(target)["machine"]
        if any(other.get(key) != machine[key] for key in _IDENTITY):
            cpu = other.get("cpu")
            raise UsageError(f"{target}: holds results of another machine ({cpu}): name another with --json")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {target}: there is no folder {target.parent}")


def save(path: str | os.PathLike[str], group: str, machine: dict[str, Any], run: dict[str, Any]) -> None:
    """Put a group's run into a file, in place of an earlier run of that group.

    Raises UsageError when the file is another machine's, OutputError when it cannot be written.
    """
    check(path, machine)
    target = Path(path)
    content = read(target) if target.exists() else {"machine": machine, "runs": {}}
    content["runs"][group] = run
    write_atomically(target, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def as_run(
    group: Sequence[BenchmarkRecord], versions: dict[str, str], options: dict[str, Any]
) -> dict[str, Any]:
    """A group's run, ready for JSON."""
    rounded = [_rounded(asdict(record)) for record in group]
    return {"versions": versions, "options": options, "records": rounded}


def _rounded(value: Any) -> Any:
    """Six significant digits: more is noise."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value

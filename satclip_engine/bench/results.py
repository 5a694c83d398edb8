"""Results as records, and files of them: one JSON a machine, group by group.

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

from satclip_engine.bench.cases import Case, parameters
from satclip_engine.bench.measure import FAILED, Timing, quartiles, ratio
from satclip_engine.errors import OutputError, UsageError
from satclip_engine.files import write_atomically

_IDENTITY = ("cpu", "cores", "instruction_sets", "system")  # the memory differs a little from boot to boot


@dataclass(frozen=True)
class Record:
    """What one contestant did in one case. Numbers are None where there are none.

    rate: units a second, median and quartiles of the rounds; seconds: the same of a call; of_gemm:
    multiply-adds a second as a share of the faster library's product in the same rounds; faster: how many
    times this package's first contestant is faster; error: see `reference`. Memory in bytes: of the whole
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


def records(case: Case, timings: Sequence[Timing], memory: Sequence[dict[str, int] | None]) -> list[Record]:
    """One record a contestant; comparisons are with contestants of as many threads, where there are any."""
    return [_record(case, timing, timings, used) for timing, used in zip(timings, memory, strict=True)]


def _record(case: Case, timing: Timing, timings: Sequence[Timing], memory: dict[str, int] | None) -> Record:
    one = timing.contestant
    timed = bool(timing.seconds)
    sgemm = _first(timings, one.threads, lambda other: other.contestant.yardstick)
    first = _first(timings, one.threads, lambda other: other.contestant.ours, best=False)
    counted = timed and one.multiply_adds > 0
    facts = dict(timing.facts)
    peak = facts.pop("peak_memory", None)
    return Record(
        case=case.name,
        parameters=parameters(case),
        tags=case.tags,
        reference=case.reference,
        contestant=one.name,
        ours=one.ours,
        yardstick=one.yardstick,
        threads=one.threads,
        dtype=one.dtype,
        status=timing.status,
        note=timing.note,
        error=_number(timing.error),
        tolerance=_number(timing.tolerance),
        unit=case.unit,
        work=one.work,
        rounds=len(timing.seconds),
        rate=quartiles(timing.rates) if timed else None,
        seconds=quartiles(np.asarray(timing.seconds)) if timed else None,
        multiply_adds_per_second=float(np.median(timing.multiply_add_rates)) if counted else None,
        of_gemm=ratio(timing.multiply_add_rates, sgemm.multiply_add_rates) if counted and sgemm else None,
        faster=ratio(first.rates, timing.rates) if timed and first else None,
        peak_memory=(memory or {}).get("peak_memory", peak if timed else None),
        working_memory=(memory or {}).get("working_memory"),
        settings=dict(timing.settings),
        facts=facts if timed else {},
    )


def _first(timings: Sequence[Timing], threads: int, wanted: Any, *, best: bool = True) -> Timing | None:
    """Whom to compare with: the fastest wanted one of that many threads, or the first in the list."""
    found = [
        other for other in timings if other.seconds and other.contestant.threads == threads and wanted(other)
    ]
    if not found:
        return None
    return max(found, key=lambda other: float(np.median(other.multiply_add_rates))) if best else found[0]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def failed(group: Sequence[Record]) -> list[Record]:
    """Those that gave no right answer, though they are installed."""
    return [record for record in group if record.status == FAILED]


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file of results. Raises UsageError when it is none."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{os.fspath(path)}: cannot be read as benchmark results ({error})") from error
    if not isinstance(content, dict) or not {"machine", "runs"} <= content.keys():
        raise UsageError(f"{os.fspath(path)}: holds no benchmark results")
    return content


def check(path: str | os.PathLike[str], machine: dict[str, Any]) -> None:
    """Raise, before anything is measured, what `save` would raise after it."""
    target = Path(path)
    if target.exists():
        held = read(target)["machine"]
        if any(held.get(key) != machine[key] for key in _IDENTITY):
            raise UsageError(f"{target}: holds results of another machine ({held.get('cpu')})")
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


def as_run(done: Sequence[Record], versions: dict[str, str], options: dict[str, Any]) -> dict[str, Any]:
    """A group's run, ready for JSON."""
    return {"versions": versions, "options": options, "records": [_rounded(asdict(one)) for one in done]}


def _rounded(value: Any) -> Any:
    """Six significant digits: more is noise."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value

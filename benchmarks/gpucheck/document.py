"""Report of a check: Markdown for people, the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpucheck.rows import Check, Note, Row, Time
from gpucheck.targets import TARGETS


@dataclass(frozen=True)
class Outcome:
    """A step as it ended. fault: reason why it did not come to its end."""

    name: str
    title: str
    rows: list[Row]
    seconds: float
    fault: str = ""

    @property
    def ok(self) -> bool:
        return not self.fault and all(row.ok for row in self.rows)


def as_json(machine: dict[str, str], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All outcomes, ready for JSON."""
    steps = [
        {
            "name": outcome.name,
            "ok": outcome.ok,
            "seconds": outcome.seconds,
            "fault": outcome.fault,
            "rows": [{"kind": type(row).__name__, "ok": row.ok, **asdict(row)} for row in outcome.rows],
        }
        for outcome in outcomes
    ]
    return {"machine": machine, "steps": steps, "targets": _targets(outcomes)}


def markdown(machine: dict[str, str], outcomes: Sequence[Outcome], *, dry: bool) -> str:
    """Machine, steps, targets, then every step."""
    lines = ["# GPU check\n"]
    if dry:
        lines.append("**A dry run**: tiny sizes, interpreted on the CPU. Times mean nothing.\n")
    lines.append(_table(("", ""), list(machine.items())))
    lines.append(_table(("step", "", "seconds", "rows"), [_summary(outcome) for outcome in outcomes]))
    lines += [
        "## Targets\n",
        _table(("target", "goal", "measured", "met"), [_target(row) for row in _targets(outcomes)]),
    ]
    for outcome in outcomes:
        lines += [f"## {outcome.title}\n", *_rows(outcome)]
    return "\n".join(lines)


def _summary(outcome: Outcome) -> tuple[str, ...]:
    failed = sum(not row.ok for row in outcome.rows)
    state = outcome.fault or (f"{failed} failed" if failed else "passed")
    return outcome.name, state, f"{outcome.seconds:.0f}", str(len(outcome.rows))


def _targets(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    rows = [row for outcome in outcomes for row in outcome.rows]
    targets = []
    for target in TARGETS:
        value = target.value(rows)
        targets.append(
            {
                "target": target.name,
                "goal": target.goal,
                "unit": target.unit,
                "at_least": target.at_least,
                "value": value,
                "met": None if value is None else target.met(value),
            }
        )
    return targets


def _target(row: dict[str, Any]) -> tuple[str, ...]:
    sign = "≥" if row["at_least"] else "≤"
    value = "–" if row["value"] is None else f"{row['value']:.2f} {row['unit']}"
    met = {None: "not measured", True: "yes", False: "**no**"}[row["met"]]
    return row["target"], f"{sign} {row['goal']:g} {row['unit']}", value, met


def _rows(outcome: Outcome) -> list[str]:
    blocks = [f"**{outcome.fault}**\n"] if outcome.fault else []
    notes = [
        f"- {'' if row.ok else '**failed** '}{row.name}: {row.text}"
        for row in outcome.rows
        if isinstance(row, Note)
    ]
    checks = [row for row in outcome.rows if isinstance(row, Check)]
    if notes:
        blocks.append("\n".join(notes) + "\n")
    if checks:
        lines = [
            (row.name, f"{row.error:.2g}", f"{row.bound:.2g}", row.note or ("yes" if row.ok else "**no**"))
            for row in checks
        ]
        blocks.append(_table(("check", "error", "bound", "within"), lines))
    for workload in dict.fromkeys(row.case for row in outcome.rows if isinstance(row, Time)):
        times = [row for row in outcome.rows if isinstance(row, Time) and row.case == workload]
        blocks += [f"### {workload}\n", _table(_TIMES, [_time(row, times[0]) for row in times])]
    return blocks


_TIMES = (
    "", "ms", "quartiles", "units/s", "T multiply-adds/s", "time of the first", "of the roofline", "peak MB",
    "error", "rounds",
)  # fmt: skip


def _time(row: Time, first: Time) -> tuple[str, ...]:
    return (
        f"{row.contestant} ({row.note})" if row.note else row.contestant,
        f"{row.seconds * 1e3:.3f}",
        f"{row.q1 * 1e3:.3f}–{row.q3 * 1e3:.3f}",
        f"{row.work / row.seconds:.3g} {row.unit}",
        f"{(row.multiply_adds or 0) / row.seconds / 1e12:.2f}",
        f"{row.seconds / first.seconds:.2f}×",
        f"{row.floor / row.seconds:.0%}" if row.floor else "",
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}",
        "" if row.error is None else f"{row.error:.1e}",
        str(row.rounds),
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

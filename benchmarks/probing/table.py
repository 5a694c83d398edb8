"""Tables of results as Markdown, and all numbers as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from probing.run import SPLITS, Result
from probing.targets import TARGETS, TITLES

HEADINGS = {
    "mlp": "MLP probe",
    "linear": "Linear probe (ridge regression; logistic regression for classes)",
}


def summary(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds (0 for one seed) of each row, target, split and probe."""
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    for result in results:
        groups.setdefault((result.row, result.target, result.split, result.probe), []).append(result.score)
    return [
        dict(zip(("row", "target", "split", "probe"), key, strict=True))
        | {
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
            "seeds": len(values),
        }
        for key, values in groups.items()
    ]


def markdown(results: Sequence[Result]) -> str:
    """A table a probe: R² or accuracy, random/block split, mean over seeds; then their deviations."""
    keys = ("probe", "row", "target", "split")
    means = {tuple(mean[key] for key in keys): mean for mean in summary(results)}
    seeds = len({result.seed for result in results})
    blocks = []
    for probe in (name for name in HEADINGS if any(result.probe == name for result in results)):
        blocks.append(f"### {HEADINGS[probe]}: random/block split, mean of {seeds} seed{'s' * (seeds > 1)}\n")
        own = {key[1:]: mean for key, mean in means.items() if key[0] == probe}
        blocks.append(_table(results, {key: mean["mean"] for key, mean in own.items()}))
        if seeds > 1:
            deviations = {key: mean["deviation"] for key, mean in own.items()}
            blocks += ["Standard deviation over seeds:\n", _table(results, deviations)]
    return "\n".join(blocks)


def _table(results: Sequence[Result], values: dict[tuple[str, str, str], float]) -> str:
    rows = list(dict.fromkeys(result.row for result in results))
    targets = [name for name in TARGETS if any(result.target == name for result in results)]
    lines = [["encoder", *(TITLES[name] for name in targets)], ["---"] * (len(targets) + 1)]
    for row in rows:
        cells = ["/".join(short(values[row, target, split]) for split in SPLITS) for target in targets]
        lines.append([row, *cells])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def short(value: float) -> str:
    """Two decimals without a zero before the point: .92, −.20, 1.00."""
    digits = f"{round(value, 2) + 0.0:.2f}".replace("-", "−")  # + 0.0: no minus before a zero
    return digits.replace("0.", ".", 1) if digits.lstrip("−").startswith("0.") else digits


def record(
    results: Sequence[Result], machine: dict[str, Any], versions: dict[str, str], options: dict[str, Any]
) -> dict[str, Any]:
    """All numbers, ready for JSON."""
    rounded = [asdict(result) | {"score": round(result.score, 6)} for result in results]
    means = [mean | {key: round(mean[key], 6) for key in ("mean", "deviation")} for mean in summary(results)]
    return {"machine": machine, "versions": versions, "options": options, "summary": means, "scores": rounded}

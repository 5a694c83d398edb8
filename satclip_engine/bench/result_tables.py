"""Tables of records: boxed on a terminal, aligned text in a pipe, Markdown in a document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from satclip_engine.bench.machine import label
from satclip_engine.bench.measure import ABSENT
from satclip_engine.errors import UsageError

_BYTES = {"int8": 1, "int16": 2, "float16": 2, "float32": 4}

Row = Mapping[str, Any]  # a BenchmarkRecord as a dictionary, as files have it


@dataclass(frozen=True)
class Column:
    """A title and the text of a record's cell."""

    title: str
    text: Callable[[Row], str]
    right: bool = True


def number(value: float | None, unit: str = "") -> str:
    """Three digits and a prefix: 117 k, 1.48 G."""
    if value is None:
        return ""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return f"{_digits(value / factor)} {prefix}{unit}"
    return f"{_digits(value)} {unit}".rstrip()


def _digits(value: float) -> str:
    decimals = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{decimals}f}"


def _rate(row: Row) -> str:
    if row["rate"] is None:
        return "absent" if row["status"] == ABSENT else row["status"]
    return number(row["rate"]["median"], "B/s" if row["unit"] == "bytes read" else "/s")


def _raw(row: Row) -> str:
    """Bytes of the values before compression, a second."""
    return number(row["rate"]["median"] * _BYTES[row["dtype"]], "B/s") if row["rate"] else ""


def _spread(row: Row) -> str:
    """Half the distance of the quartiles."""
    if row["rate"] is None or row["rounds"] < 3:
        return ""
    return f"±{50 * (row['rate']['q3'] - row['rate']['q1']) / row['rate']['median']:.0f} %"


def _error(row: Row) -> str:
    return "" if row["error"] is None else f"{row['error']:.2g}"


def _of_gemm(row: Row) -> str:
    return "" if row["of_gemm"] is None else f"{100 * row['of_gemm']:.0f} %"


def _faster(row: Row) -> str:
    return "" if row["faster"] is None or row["yardstick"] else f"{_digits(row['faster'])} ×"


def _memory(row: Row) -> str:
    """Bytes of the whole process, and those that the call added."""
    if row["peak_memory"] is None:
        return ""
    added = row["working_memory"]
    return number(row["peak_memory"], "B") + ("" if added is None else f" (+{number(added, 'B')})")


def _detail(name: str, form: Callable[[Any], str]) -> Callable[[Row], str]:
    return lambda row: form(row["facts"][name]) if name in row["facts"] else ""


_NAME = Column("", lambda row: row["contestant"], right=False)
_THREADS = Column("threads", lambda row: str(row["threads"]))
_COMPUTED = (
    _NAME,
    _THREADS,
    Column("rate", _rate),
    Column("spread", _spread),
    Column("of SGEMM", _of_gemm),
    Column("satclip is", _faster),
    Column("error", _error),
    Column("memory (added)", _memory),
)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "kernels": _COMPUTED[:-1],
    "points": _COMPUTED,
    "grid": _COMPUTED,
    "lattice": (*_COMPUTED[:4], *_COMPUTED[5:7]),
    "loss": _COMPUTED,
    "train": _COMPUTED,
    "write": (
        _NAME,
        Column("wall", lambda row: f"{row['seconds']['median']:.1f} s" if row["seconds"] else _rate(row)),
        Column("CPU", _detail("cpu_seconds", lambda value: f"{value:.1f} s")),
        Column("cores busy", _detail("cores_busy", lambda value: f"{100 * value:.0f} %")),
        Column("raw data", _raw),
        Column("file", _detail("file_bytes", lambda value: number(value, "B"))),
        Column("peak memory", _memory),
        Column("error", _error),
    ),
}


def cells(group: str, rows: Iterable[Row]) -> list[list[str]]:
    """Texts of a group's columns, a list a record."""
    return [[column.text(row) for column in COLUMNS[group]] for row in rows]


def notes(rows: Iterable[Row]) -> list[str]:
    """Notes on single implementations, below the table."""
    return list(dict.fromkeys(f"{row['contestant']}: {row['note']}" for row in rows if row["note"]))


def as_text(group: str, rows: Sequence[Row]) -> str:
    """A workload as aligned text, with its name above."""
    titles = [column.title for column in COLUMNS[group]]
    lines = [titles, *cells(group, rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(titles))]
    shown = [
        "  ".join(
            text.rjust(width) if column.right else text.ljust(width)
            for text, width, column in zip(line, widths, COLUMNS[group], strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([_title(rows[0]), *shown, *notes(rows), ""])


def as_rich(group: str, rows: Sequence[Row]) -> Any:
    """A workload as a rich table."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=_title(rows[0]), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in COLUMNS[group]:
        table.add_column(column.title, justify="right" if column.right else "left", no_wrap=column.right)
    for row, texts in zip(rows, cells(group, rows), strict=True):
        table.add_row(*texts, style=_style(row))
    table.caption = "\n".join(notes(rows)) or None
    return table


def _style(row: Row) -> str:
    if row["status"] == "failed":
        return "red"
    if row["rate"] is None:
        return "dim"
    return "green" if row["ours"] else ""


def as_markdown(group: str, rows: Sequence[Row]) -> str:
    """Markdown tables of a group's workloads, below each other."""
    return "\n\n".join(_markdown_table(group, records) for records in _by_workload(rows))


def _by_workload(rows: Iterable[Row]) -> list[list[Row]]:
    return [list(records) for _, records in groupby(rows, key=lambda row: row["case"])]


def _markdown_table(group: str, rows: Sequence[Row]) -> str:
    lines = [[column.title for column in COLUMNS[group]]]
    lines.append(["---:" if column.right else "---" for column in COLUMNS[group]])
    lines += cells(group, rows)
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    remarks = "".join(f"\n\n{note}." for note in notes(rows))
    return f"**{_title(rows[0])}**\n\n{table}{remarks}"


def _title(row: Row) -> str:
    return f"{row['case']}  (error: {row['reference']})"


def blocks(content: Mapping[str, Any]) -> dict[str, str]:
    """Markdown of a file of results by name: a table for each group, `machine`, and `summary`."""
    runs = content["runs"]
    tables = {group: as_markdown(group, run["records"]) for group, run in runs.items()}
    return {**tables, "machine": _machine(content), "summary": summary(content)}


def _machine(content: Mapping[str, Any]) -> str:
    versions: dict[str, str] = {}
    for run in content["runs"].values():
        versions |= run["versions"]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    memory = content["machine"]["memory_bytes"]
    size = f", {number(memory, 'B')} of memory" if memory else ""
    quick = any(run["options"].get("quick") for run in content["runs"].values())
    warning = " Quick workloads: a first look, not the measurement." if quick else ""
    return f"{label(content['machine'])}{size}; {content['machine']['system']}; {listed}.{warning}"


def summary(content: Mapping[str, Any]) -> str:
    """Table of the numbers that matter most: this package with all cores, and the others beside it."""
    lines: list[str] = []
    threads: set[int] = set()
    for group in ("points", "grid", "lattice", "loss", "train", "write"):
        for rows in _by_workload(content["runs"].get(group, {}).get("records", [])):
            if line := _summary_line(group, rows):
                lines.append(line)
                threads.add(_most_threads(rows))
    counts = " or ".join(map(str, sorted(threads)))
    noun = "thread" if threads == {1} else "threads"
    head = [
        f"| what, with {counts} {noun} | measured | times faster than, in the same run |",
        "| --- | --- | --- |",
    ]
    return "\n".join([*head, *lines] if lines else [])


def _most_threads(rows: Sequence[Row]) -> int:
    return max(row["threads"] for row in rows)


def _summary_line(group: str, rows: Sequence[Row]) -> str:
    # The matrix product alone does not always gain from threads, so the share of it is that of one.
    single = [_of_gemm(row) for row in rows if row["ours"] and row["threads"] == 1]
    most = _most_threads(rows)
    rows = [row for row in rows if row["threads"] == most and row["rate"]]
    if not rows or not rows[0]["ours"]:
        return ""
    first, others = rows[0], [row for row in rows[1:] if not row["yardstick"]]
    beside = [f"{_digits(row['faster'])} × {row['contestant']}" for row in others]
    if group in ("points", "loss", "train") and single and single[0]:
        beside.append(f"{single[0]} of SGEMM (1 thread)")
    title = first["case"]
    if group == "write":
        title += ", without preview" if first["peak_memory"] else ""
        measured = f"{first['seconds']['median']:.1f} s"
        if first["peak_memory"]:
            measured += f", {_memory(first)} at most"
        else:
            measured = f"{_raw(first)} of raw data"
    else:
        measured = f"{number(first['rate']['median'])} {first['unit']}/s".replace("  ", " ")
    return f"| {title} | {measured} | {'; '.join(beside)} |"


def fill(document: str, content: Mapping[str, Any]) -> str:
    """Replace everything between `<!-- bench NAME -->` and `<!-- /bench -->` of a document by that block.

    Raises UsageError for a NAME that the results do not have or a block that does not end.
    """
    available = blocks(content)
    head, *sections = document.split("<!-- bench ")
    pieces = [head]
    for section in sections:
        name, arrow, body = section.partition(" -->")
        _, end, after = body.partition("<!-- /bench -->")
        if not arrow or not end:
            raise UsageError(f"the block {name.split()[0]!r} has no end: <!-- /bench --> is missing")
        if name not in available:
            choices = ", ".join(sorted(available))
            raise UsageError(f"the results have no block {name!r}: choose from {choices}")
        pieces.append(f"<!-- bench {name} -->\n\n{available[name]}\n\n<!-- /bench -->{after}")
    return "".join(pieces)

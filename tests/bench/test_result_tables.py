"""Tables: what a terminal shows, and numbers in documents, come from results."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from factories.benchmarks import EVERYTHING, record

from satclip_engine.bench import catalogue, result_tables, results
from satclip_engine.bench.measure import ABSENT, FAILED, OK, Timing
from satclip_engine.bench.suites import write
from satclip_engine.cli.bench import main
from satclip_engine.errors import UsageError

ROOT = Path(__file__).parents[2]


def test_tables_fit_a_terminal_of_100_columns():
    from rich.console import Console

    absent = {"rate": None, "seconds": None, "status": ABSENT, "of_gemm": None, "faster": None}
    shown = io.StringIO()
    rows = [record(), record(**absent)]
    Console(file=shown, width=100, force_terminal=True, color_system=None).print(
        result_tables.as_rich("points", rows)
    )
    plain = result_tables.as_text("points", rows)
    for text in (shown.getvalue(), plain):
        assert "PyTorch, float64 basis" in text
        assert "1.23 GB (+123 MB)" in text
        assert "absent" in text
        assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.50 B"),
        (999.6, "1.00 kB"),
        (12345, "12.3 kB"),
        (4.56e9, "4.56 GB"),
        (None, ""),
        (150e6, "150 MB"),
    ],
)
def test_numbers_have_three_digits_and_a_prefix(value, text):
    assert result_tables.number(value, "B") == text


CONTENT = {
    "machine": {
        "cpu": "A processor",
        "cores": 2,
        "instruction_sets": ["avx2"],
        "memory_bytes": 16e9,
        "system": "Linux x86_64",
    },
    "runs": {"points": {"versions": {"numpy": "2.0"}, "options": {}, "records": [record()]}},
}


def test_the_summary_names_its_threads_and_takes_the_share_of_sgemm_from_one():
    ours = {"contestant": "satclip", "ours": True, "yardstick": False}
    rows = [
        record(**ours, threads=2, of_gemm=1.42),
        record(threads=2, faster=1.5),
        record(**ours, threads=1, of_gemm=1.17),
    ]
    raster = record(**ours, threads=2, case="global raster", unit="values")
    content = {"runs": {"points": {"records": rows}, "write": {"records": [raster]}}}
    title, _, points, whole = result_tables.summary(content).splitlines()
    assert title.startswith("| what, with 2 threads |")
    assert points.endswith("| 1.50 × PyTorch, float64 basis; 117 % of SGEMM (1 thread) |")
    assert whole.startswith("| global raster, without preview |")
    assert "SGEMM" not in result_tables.summary({"runs": {"points": {"records": rows[:2]}}})


def test_documents_are_filled_from_results_and_keep_their_words():
    document = "# Title\n\n<!-- bench points -->\nold\n<!-- /bench -->\n\nWords.\n"
    filled = result_tables.fill(document, CONTENT)
    assert filled.startswith("# Title\n\n<!-- bench points -->\n")
    assert filled.endswith("<!-- /bench -->\n\nWords.\n")
    assert "| 32.3 k/s |" in filled
    assert "old" not in filled
    assert result_tables.fill(filled, CONTENT) == filled


@pytest.mark.parametrize(
    "document", ["<!-- bench points -->\nold\n", "<!-- bench nothing --><!-- /bench -->"]
)
def test_a_block_that_cannot_be_filled_is_named(document):
    with pytest.raises(UsageError, match=r"points|nothing"):
        result_tables.fill(document, CONTENT)


def test_files_are_compared_by_time_though_their_types_differ_in_size():
    workload = catalogue.WriteWorkload(1.0, bands=2, baselines=True)
    entries = write.write(workload, (2,), EVERYTHING)
    assert {entry.work for entry in entries} == {360 * 180 * 2.0}
    timings = [
        Timing(entry, OK, error=0.1, tolerance=0.51, seconds=(float(2**n),))
        for n, entry in enumerate(entries)
    ]
    rows = [dataclasses.asdict(record) for record in results.records(workload, timings, [None] * 3)]
    assert [row["faster"] for row in rows] == [1.0, 2.0, 4.0]
    raw = [line[4] for line in result_tables.cells("write", rows)]
    assert raw == ["130 kB/s", "64.8 kB/s", "130 kB/s"]


def test_report_updates_documents_in_place(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(CONTENT))
    document = tmp_path / "page.md"
    document.write_text("<!-- bench machine -->\n<!-- /bench -->\n")
    result = CliRunner().invoke(main, ["report", str(tmp_path / "results.json"), "--update", str(document)])
    assert result.exit_code == 0, result.output
    assert "A processor, 2 cores, avx2, 16.0 GB of memory" in document.read_text()
    assert "32.3 k/s" in CliRunner().invoke(main, ["report", str(tmp_path / "results.json")]).stdout


def documents() -> list[Path]:
    return [
        path
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
        if path.is_file() and "<!-- bench " in path.read_text()
    ]


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_every_number_in_a_document_is_from_the_kept_results(document):
    text = document.read_text()

    def filled(file: Path) -> str:
        try:
            return result_tables.fill(text, results.read(file))
        except UsageError:  # this machine has not run all that the document tells
            return ""

    assert any(filled(file) == text for file in (ROOT / "benchmarks" / "results").glob("*.json"))


def test_kept_results_hold_no_failure():
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        for group in results.read(file)["runs"].values():
            assert [record["note"] for record in group["records"] if record["status"] == FAILED] == []

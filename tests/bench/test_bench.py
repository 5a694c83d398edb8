"""Benchmarks: wrong answers get no time, contestants take turns, numbers in documents come from results."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from satclip_engine import reference
from satclip_engine.bench import cases, machine, memory, peers, results, run, tables, workload, write
from satclip_engine.bench.measure import ABSENT, FAILED, OK, Contestant, Made, Timing, compete, ratio
from satclip_engine.cli.bench import main
from satclip_engine.errors import OutputError, UsageError

ROOT = Path(__file__).parents[2]
EVERYTHING = frozenset(cases.COMPARED)

# One small case of every kind, with all that is compared in it.
SMALL = (
    cases.GemmCase(64, 40, 24),
    cases.HarmonicsCase(6, 90),
    cases.PointsKernelCase(6, 300, (48, 40, 16)),
    cases.GridKernelCase(6, 6, 24, (48, 40, 16)),
    cases.RasterKernelCase("pack_tiles", 16, 64, 8, side=32),
    cases.RasterKernelCase("pack_tiles", 16, 64, 8, dtype="int16", side=32),
    cases.RasterKernelCase("halve", 16, 64, 8),
    cases.PointsCase(6, 300, (48, 40, 16)),
    cases.GridCase(6, 15.0, sizes=(48, 40, 16)),
    cases.LossCase(150, 40),
    cases.WriteCase(20.0, bands=3, peers=True),
    cases.WriteCase(20.0, bands=3, alone=True),
)


def contestant(name="one", seconds=0.0, error=0.0, calls=None, **extra) -> Contestant:
    """Sleeps, then gives an answer that is wrong by `error`."""

    def run_it():
        if calls is not None:
            calls.append(name)
        time.sleep(seconds)
        return error

    return Contestant(name, 1, 100.0, lambda settings: Made(run_it, abs, 0.5), **extra)


# What is measured


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("group", cases.GROUPS)
def test_every_case_of_a_group_has_its_own_name_and_a_satclip_contestant(group, quick):
    found = cases.cases(group, quick=quick)
    assert found
    assert len({case.name for case in found}) == len(found)
    for case in found:
        assert type(case) in run.CONTESTANTS
        assert json.loads(json.dumps(cases.parameters(case)))


def test_a_name_follows_from_the_parameters():
    case = cases.PointsCase(40, 100_000)
    assert case.name == "points L=40, N=100,000"
    assert dataclasses.replace(case, degrees=10).name == "points L=10, N=100,000"


def test_every_peer_can_be_chosen():
    assert {peer.key for peer in peers.PEERS} <= EVERYTHING


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_all_contestants_of_a_case_give_the_right_answer(case):
    found = run.CONTESTANTS[type(case)](case, (1,), EVERYTHING)
    timings = compete(found, repeat=1, budget=0.01)
    assert [t.note for t in timings if t.status == FAILED] == []
    assert any(t.contestant.ours or t.contestant.yardstick for t in timings if t.status == OK)
    for timing in timings:
        if timing.contestant.ours:
            assert timing.status == OK
            assert timing.error <= case.tolerance


def test_a_contestant_is_found_again_by_another_process():
    case = cases.cases("points", quick=True)[0]
    assert run.find("points", case.name, "satclip", 1, quick=True).ours
    with pytest.raises(LookupError, match="no contestant 'nobody'"):
        run.find("points", case.name, "nobody", 1, quick=True)


# Answers before times


def test_a_wrong_answer_gets_no_time():
    right, wrong = compete([contestant("right"), contestant("wrong", error=0.6)], repeat=2, budget=0.1)
    assert right.status == OK
    assert len(right.seconds) == 2
    assert wrong.status == FAILED
    assert wrong.seconds == ()
    assert "error 0.6, tolerance 0.5" in wrong.note


def test_an_answer_that_is_not_a_number_is_wrong():
    (timing,) = compete([contestant(error=float("nan"))], repeat=2, budget=0.1)
    assert timing.status == FAILED


def test_a_contestant_that_breaks_does_not_end_the_run():
    def broken(settings):
        raise MemoryError("too much")

    first, second = compete([Contestant("broken", 1, 1.0, broken), contestant()], repeat=1, budget=0.1)
    assert (first.status, first.note) == (FAILED, "MemoryError: too much")
    assert second.status == OK


def test_what_is_not_installed_is_named_and_left_out():
    (timing,) = compete([contestant(missing="it is not installed")], repeat=1, budget=0.1)
    assert (timing.status, timing.note, timing.seconds) == (ABSENT, "it is not installed", ())


def test_a_poisoned_embedding_is_an_infinite_error():
    layers, places = workload.siren(4, (12, 8, 5)), workload.scattered(50)
    expected = workload.Expected(layers, places)
    answer = reference.encode(places, layers)
    assert expected.error(answer) < 1e-15
    answer[-1, 2] = np.nan
    assert expected.error(answer) == float("inf")
    assert expected.error(answer[:, :3]) == float("inf")


# Turns


def test_contestants_take_turns_and_each_round_begins_with_another_one():
    calls: list[str] = []
    compete([contestant(name, 0.001, calls=calls) for name in "abc"], repeat=3, budget=1.0)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"


@pytest.mark.parametrize(
    ("budget", "warm_up", "calls", "rounds"),
    [(0.01, True, 1, 1), (0.05, True, 2, 1), (0.05, False, 1, 1), (0.15, False, 2, 2), (9.0, True, 4, 3)],
)
def test_slow_contestants_get_few_rounds(budget, warm_up, calls, rounds):
    called: list[str] = []
    slow = contestant(seconds=0.1, calls=called)
    (timing,) = compete([slow], repeat=3, budget=budget, warm_up=warm_up)
    assert (len(called), len(timing.seconds)) == (calls, rounds)
    assert min(timing.seconds) >= 0.1


def test_a_ratio_is_the_median_of_rounds_that_both_took_part_in():
    # The machine slows down by half in the third round: a ratio of medians would not be 2.
    assert ratio(np.array([8.0, 8.0, 4.0]), np.array([4.0, 4.0, 2.0, 0.1])) == 2.0
    assert np.isnan(ratio(np.array([]), np.array([1.0])))


def test_records_compare_contestants_of_as_many_threads():
    def timing(name, threads, seconds, **extra):
        one = Contestant(name, threads, 100.0, lambda settings: None, multiply_adds=10.0, **extra)
        return Timing(one, OK, error=0.0, tolerance=1.0, seconds=seconds)

    timings = [
        timing("satclip", 2, (1.0,) * 3, ours=True),
        timing("product", 2, (0.8,) * 3, yardstick=True),
        timing("slower product", 2, (1.6,) * 3, yardstick=True),
        timing("peer", 2, (3.0,) * 3),
        timing("satclip", 1, (2.0,) * 3, ours=True),
        timing("peer", 1, (4.0,) * 3),
    ]
    ours, _, _, peer, alone, peer_alone = results.records(SMALL[7], timings, [None] * 6)
    assert ours.rate == {"median": 100.0, "q1": 100.0, "q3": 100.0}
    assert ours.of_gemm == pytest.approx(0.8)
    assert peer.faster == pytest.approx(3.0)
    assert alone.of_gemm is None
    assert peer_alone.faster == pytest.approx(2.0)


# Peers


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
@pytest.mark.parametrize("block", [None, 64])
def test_a_peer_computes_the_reference_function(peer, block):
    if peer.missing:
        pytest.skip(peer.missing)
    layers, places = workload.siren(12, (40, 40, 20)), workload.scattered(150)
    answer = peer.build(layers, block)(places)
    assert answer.shape == (150, 20)
    # At L = 12 none of them suffers from cancellation: float32 rounding is all that is left.
    bound = 1e-9 if peer.dtype == "float64" else 5e-5
    assert workload.Expected(layers, places).error(answer, within=peer.within) < bound


@pytest.mark.parametrize("degrees", [1, 2, 3, 40])
def test_the_blocked_recurrence_equals_the_reference(degrees):
    torch = pytest.importorskip("torch")
    places = workload.scattered(80)
    values = peers.harmonics(torch.from_numpy(places), degrees, torch.float64).T.numpy()
    assert np.abs(values - reference.harmonics(places, degrees)).max() < 1e-12


def test_expanded_polynomials_have_the_known_coefficients():
    # P(4, 2)'' = (105 x² − 15) / 2
    norm, terms = peers.polynomial(4, 2)
    assert dict(terms) == {2: 52.5, 0: -7.5}
    assert norm == pytest.approx(np.sqrt(2 * 9 / (4 * np.pi) * 2 / 720))


# Memory


@pytest.mark.skipif(memory.status("VmHWM") is None, reason="no /proc here")
def test_peak_memory_is_the_process_s_own():
    ballast = np.ones(40_000_000)  # 320 MB that a child's resource usage would inherit
    idle = write.run_process([sys.executable, "-c", "import time; time.sleep(0.2)"])
    busy = write.run_process([sys.executable, "-c", "import time; x = b'1' * 10**8; time.sleep(0.2)"])
    assert idle.peak_memory < 50_000_000 < 100_000_000 < busy.peak_memory < ballast.nbytes
    assert idle.wall >= 0.2


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="no such thing"):
        write.run_process([sys.executable, "-c", "raise SystemExit('no such thing')"])


@pytest.mark.skipif(memory.status("VmHWM") is None, reason="no /proc here")
def test_the_memory_of_a_contestant_is_measured_in_its_own_process():
    case = cases.cases("points", quick=True)[0]
    used = memory.measured("points", case.name, "satclip", 1, {}, quick=True)
    assert used is not None
    output = 4 * case.places * case.sizes[-1]
    assert output <= used["working_memory"] < 4 * output
    assert used["working_memory"] < used["peak_memory"] < 400_000_000


# Files


def test_a_raster_with_other_pixels_is_a_wrong_answer(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    case = cases.WriteCase(20.0, bands=3, alone=True)
    made = write._alone(case, tmp_path / "world.tif", 1, "int8")
    made.run()
    assert write.read_back(case, tmp_path / "world.tif") <= case.tolerance
    assert write.read_back(dataclasses.replace(case, bands=2), tmp_path / "world.tif") == float("inf")
    with rasterio.open(tmp_path / "world.tif") as source:
        pixels, profile, scales = source.read(), source.profile, source.scales
    with rasterio.open(tmp_path / "shifted.tif", "w", **{**profile, "driver": "GTiff"}) as target:
        target.write(np.roll(pixels, 1, axis=2))
        target.scales = scales
    assert write.read_back(case, tmp_path / "shifted.tif") > 1


def test_a_replayed_field_is_the_field_of_the_encoder():
    from satclip_engine.encoder import load
    from satclip_engine.geo.grid import make_grid

    encoder, grid = load("default", threads=1).select([0, 5]), make_grid(resolution=30)
    replay = write.Replaying(encoder, grid)
    rows, cols = slice(1, 4), np.array([0, 3, 11])
    assert np.array_equal(replay.network.encode_pixels(grid, rows, cols), encoder.evaluate(grid, rows, cols))
    assert replay.band_names == encoder.band_names
    other = make_grid(resolution=45)
    assert np.array_equal(replay.network.encode_pixels(other), encoder.evaluate(other))


# Results, tables, the command


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(cases, "CASES", SMALL)


def invoke(*words: str):
    return CliRunner().invoke(main, list(words))


def test_a_group_runs_from_the_command_to_a_file(tiny, tmp_path):
    path = tmp_path / "results.json"
    for group in ("points", "grid"):
        done = invoke(group, "--threads", "1", "--repeat", "1", "--no-memory", "--json", str(path))
        assert done.exit_code == 0, done.output
        assert "satclip" in done.stdout
        assert "\x1b" not in done.stdout
    content = results.read(path)
    assert content["machine"] == machine.machine()
    assert list(content["runs"]) == ["points", "grid"]
    record = content["runs"]["points"]["records"][0]
    assert record["contestant"] == "satclip"
    assert record["error"] <= record["tolerance"]
    assert record["rate"]["q1"] <= record["rate"]["median"] <= record["rate"]["q3"]
    assert content["runs"]["points"]["versions"]["numpy"] == np.__version__


def test_a_wrong_answer_makes_the_exit_status_1_and_shows_no_time(monkeypatch):
    case = cases.PointsCase(3, 10)
    monkeypatch.setattr(cases, "CASES", (case,))
    wrong = contestant("satclip", error=1.0, ours=True)
    monkeypatch.setitem(run.CONTESTANTS, cases.PointsCase, lambda *given: [wrong, contestant("peer")])
    done = invoke("points", "--threads", "1", "--no-memory")
    assert done.exit_code == 1
    assert "satclip-bench points: 1 of 2 failed; points L=3, N=10: satclip: wrong answer" in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("satclip ")]
    assert "failed" in line
    assert "/s" not in line


def test_results_of_another_machine_are_left_alone(tiny, tmp_path):
    path = tmp_path / "results.json"
    content = {"machine": {**machine.machine(), "cpu": "another"}, "runs": {}}
    path.write_text(json.dumps(content))
    done = invoke("points", "--json", str(path))
    assert done.exit_code == 2
    assert "another machine" in done.stderr
    assert json.loads(path.read_text()) == content


def test_a_missing_folder_is_named_before_anything_runs(tmp_path):
    with pytest.raises(OutputError, match="there is no folder"):
        results.check(tmp_path / "no" / "results.json", machine.machine())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["points", "--compare", "everyone"], "none of all, none, torch"),
        (["points", "--threads", "0"], "--threads"),
        (["lines"], "No such command"),
        ([], "Missing command"),
    ],
)
def test_unusable_options_are_one_line_and_status_2(words, said):
    done = invoke(*words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_needs_nothing_heavy():
    program = (
        "import sys, satclip_engine.cli.bench; print({'torch', 'numpy', 'rich', 'scipy'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"


def record(**changes) -> dict:
    """A record as files have it."""
    one = Contestant("PyTorch, float64 basis", 2, 1e5, lambda settings: None, multiply_adds=1.2e6)
    timing = Timing(one, OK, "a note", 1.2e-6, 1e-5, (3.0, 3.3, 3.1))
    used = {"peak_memory": 1_234_567_890, "working_memory": 123_456_789}
    (made,) = results.records(cases.PointsCase(40, 100_000), [timing], [used])
    return {**dataclasses.asdict(made), "of_gemm": 0.876, "faster": 12.34, **changes}


def test_tables_fit_a_terminal_of_100_columns():
    from rich.console import Console

    absent = {"rate": None, "seconds": None, "status": ABSENT, "of_gemm": None, "faster": None}
    shown = io.StringIO()
    rows = [record(), record(**absent)]
    Console(file=shown, width=100, force_terminal=True, color_system=None).print(
        tables.as_rich("points", rows)
    )
    plain = tables.as_text("points", rows)
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
    assert tables.number(value, "B") == text


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
    title, _, points, whole = tables.summary(content).splitlines()
    assert title.startswith("| what, with 2 threads |")
    assert points.endswith("| 1.50 × PyTorch, float64 basis; 117 % of SGEMM (1 thread) |")
    assert whole.startswith("| global raster, without preview |")
    assert "SGEMM" not in tables.summary({"runs": {"points": {"records": rows[:2]}}})


def test_documents_are_filled_from_results_and_keep_their_words():
    document = "# Title\n\n<!-- bench points -->\nold\n<!-- /bench -->\n\nWords.\n"
    filled = tables.fill(document, CONTENT)
    assert filled.startswith("# Title\n\n<!-- bench points -->\n")
    assert filled.endswith("<!-- /bench -->\n\nWords.\n")
    assert "| 32.3 k/s |" in filled
    assert "old" not in filled
    assert tables.fill(filled, CONTENT) == filled


@pytest.mark.parametrize(
    "document", ["<!-- bench points -->\nold\n", "<!-- bench nothing --><!-- /bench -->"]
)
def test_a_block_that_cannot_be_filled_is_named(document):
    with pytest.raises(UsageError, match=r"points|nothing"):
        tables.fill(document, CONTENT)


def test_files_are_compared_by_time_though_their_types_differ_in_size():
    case = cases.WriteCase(1.0, bands=2, peers=True)
    found = write.write(case, (2,), EVERYTHING)
    assert {one.work for one in found} == {360 * 180 * 2.0}
    timings = [
        Timing(one, OK, error=0.1, tolerance=0.51, seconds=(float(2**n),)) for n, one in enumerate(found)
    ]
    rows = [dataclasses.asdict(one) for one in results.records(case, timings, [None] * 3)]
    assert [row["faster"] for row in rows] == [1.0, 2.0, 4.0]
    raw = [line[4] for line in tables.cells("write", rows)]
    assert raw == ["130 kB/s", "64.8 kB/s", "130 kB/s"]


def test_report_updates_documents_in_place(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(CONTENT))
    document = tmp_path / "page.md"
    document.write_text("<!-- bench machine -->\n<!-- /bench -->\n")
    done = invoke("report", str(tmp_path / "results.json"), "--update", str(document))
    assert done.exit_code == 0, done.output
    assert "A processor, 2 cores, avx2, 16.0 GB of memory" in document.read_text()
    assert "32.3 k/s" in invoke("report", str(tmp_path / "results.json")).stdout


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
            return tables.fill(text, results.read(file))
        except UsageError:  # this machine has not run all that the document tells
            return ""

    assert any(filled(file) == text for file in (ROOT / "benchmarks" / "results").glob("*.json"))


def test_kept_results_hold_no_failure():
    for kept in (ROOT / "benchmarks" / "results").glob("*.json"):
        for group in results.read(kept)["runs"].values():
            assert [one["note"] for one in group["records"] if one["status"] == FAILED] == []

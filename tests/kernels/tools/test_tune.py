"""Tuning, with times that are made up: what is measured, what is dropped, what is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from satclip_engine.kernels import launch as launching  # noqa: E402
from satclip_engine.kernels import tuning  # noqa: E402
from satclip_engine.kernels.launch import Launch, Work, launch, select_config  # noqa: E402
from satclip_engine.kernels.tools import tune, workloads  # noqa: E402
from satclip_engine.kernels.tools.candidates import Candidates  # noqa: E402
from satclip_engine.kernels.tools.compiler import Binary  # noqa: E402
from satclip_engine.kernels.tools.gpus import H100  # noqa: E402
from satclip_engine.kernels.tools.sass import Program  # noqa: E402
from satclip_engine.kernels.tools.tune import TuningResult  # noqa: E402
from satclip_engine.kernels.tools.workloads import KernelWorkload  # noqa: E402
from satclip_engine.kernels.tuning import Config, trying  # noqa: E402

pytestmark = pytest.mark.gpu_tools

CPU = torch.device("cpu")
WORKLOAD = KernelWorkload("doubled", 40)
PRESENT = Config({"BLOCK": 16}, row="doubled")


class DoublingKernel:
    """A kernel in Python that doubles: wrongly with blocks of 13, and with blocks of 7 not at all."""

    __name__ = "_doubled"

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def start(x: Any, y: Any, BLOCK: int, num_warps: int, num_stages: int) -> None:
            if BLOCK == 7:
                raise RuntimeError("out of resources")
            y.copy_(3 * x if BLOCK == 13 else 2 * x)

        return start


def run_doubled(workload: KernelWorkload, inputs: Any) -> tuple[Any, ...]:
    x = inputs.random(workload.rows)
    y = torch.empty_like(x)
    configuration = select_config("doubled", x.device)
    launch(DoublingKernel(), (1,), configuration, Work(bytes=8 * workload.rows), x=x, y=y)
    return (y,)


@pytest.fixture(autouse=True)
def doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A workload and a row of the tables for the kernel."""
    monkeypatch.setitem(workloads.OPS, "doubled", run_doubled)
    for module in (tune, launching):
        monkeypatch.setattr(module, "config_for", table)


def table(row: str, capability: str) -> Config:
    """The shipped tables, with a row for the kernel."""
    return PRESENT if row == "doubled" else tuning.config_for(row, capability)


def timer(seconds: dict[int, float]) -> tune.Timer:
    """Times by block size."""

    def timed(launches: Sequence[Launch]) -> float:
        assert [launch.name for launch in launches] == ["_doubled"]
        return seconds[launches[0].config["BLOCK"]]

    return timed


def configs(*blocks: int) -> list[Config]:
    return [Config({"BLOCK": block}) for block in blocks]


def test_the_fastest_right_configuration_wins(capsys: pytest.CaptureFixture[str]) -> None:
    times = timer({16: 2.0, 32: 1.5, 64: 1.2, 13: 0.1})
    result = tune.tune("doubled", [WORKLOAD], configs(32, 64, 13, 7), CPU, times)
    assert result.best["BLOCK"] == 64
    assert (result.before, result.after) == (2.0, 1.2)
    assert result.improves
    assert "BLOCK=7" in capsys.readouterr().err


def test_what_is_hardly_faster_changes_nothing() -> None:
    result = tune.tune("doubled", [WORKLOAD], configs(32), CPU, timer({16: 2.0, 32: 1.99}))
    assert not result.improves
    assert "stays" in str(result)


def test_workloads_that_use_a_row_are_found() -> None:
    other = KernelWorkload("harmonics", 3, degrees=2)
    assert tune.users("doubled", "sm_90", (other, WORKLOAD)) == [WORKLOAD]


def test_a_tried_configuration_holds_only_while_it_is_tried() -> None:
    with trying("doubled", Config({"BLOCK": 64})):
        assert select_config("doubled", CPU)["BLOCK"] == 64
        with trying("other", Config({"BLOCK": 8})):
            assert select_config("doubled", CPU)["BLOCK"] == 64
    assert select_config("doubled", CPU) is PRESENT


def binary(registers: int, spills: int = 0) -> Binary:
    return Binary(registers, 0, spills, 1024, Program(()))


def test_candidates_that_spill_fail_or_do_not_fit_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    binaries = {16: binary(32), 32: binary(64), 64: binary(255, 9), 13: RuntimeError("no"), 128: binary(255)}

    class Request:
        def __init__(self, launch: Launch, capability: str) -> None:
            self.key = launch.config["BLOCK"]

    monkeypatch.setattr(tune, "compile_request", Request)
    monkeypatch.setattr(
        tune, "compile_all", lambda requests: {request.key: binaries[request.key] for request in requests}
    )
    monkeypatch.setattr(tune, "tensor_share", lambda loop, gpu: 0.0)
    candidates = [*configs(64, 13, 32), Config({"BLOCK": 128}, warps=32)]
    ranking = tune.rank("doubled", [WORKLOAD], candidates, H100)
    assert [candidate.config["BLOCK"] for candidate in ranking if candidate.sound] == [32]
    assert {candidate.config["BLOCK"] for candidate in ranking if not candidate.sound} == {64, 13, 128}
    assert "no" in str(next(candidate for candidate in ranking if candidate.error))


def test_only_improved_rows_are_written_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    row = {"blocks": {"BLOCK": 16}, "warps": 4, "stages": 2}
    path.write_text(json.dumps({"a": {"sm_80": row, "sm_90": row}, "b": {"sm_80": row}}))
    better = Config({"BLOCK": 64}, 8, 3)
    tune.write(
        [TuningResult("a", PRESENT, better, 2.0, 1.0), TuningResult("b", PRESENT, PRESENT, 1.0, 1.0)],
        "sm_90",
        path,
    )
    expected = {"blocks": {"BLOCK": 64}, "warps": 8, "stages": 3}
    assert json.loads(path.read_text()) == {"a": {"sm_80": row, "sm_90": expected}, "b": {"sm_80": row}}
    assert [file.name for file in tmp_path.iterdir()] == ["tuning.json"]


def test_the_table_keeps_its_form_when_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(tuning.TUNING_FILE.read_text())
    tune.write([], "sm_90", path)
    assert path.read_text().strip() == tuning.TUNING_FILE.read_text().strip()


def test_candidates_are_every_combination() -> None:
    result = list(Candidates({"A": (1, 2), "B": (3,)}, warps=(4, 8), stages=(2,)))
    assert [(config.blocks, config.warps) for config in result] == [
        ({"A": a, "B": 3}, warps) for a in (1, 2) for warps in (4, 8)
    ]


def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tune.main([]) == 1
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err
    monkeypatch.setattr(tune, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 1
    assert "no GPU here" in capsys.readouterr().err


def test_a_row_without_candidates_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tune.main(["nothing"])
    assert "no candidates for nothing" in capsys.readouterr().err

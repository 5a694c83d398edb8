"""Workloads: every kernel and every row of the tables occurs, compiled and interpreted."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from factories.kernel_names import started_anywhere  # noqa: E402

from satclip_engine.kernels.launch import recording  # noqa: E402
from satclip_engine.kernels.tools import workloads  # noqa: E402
from satclip_engine.kernels.tools.candidates import CANDIDATES  # noqa: E402
from satclip_engine.kernels.tuning import table  # noqa: E402

pytestmark = [pytest.mark.triton, pytest.mark.gpu_tools]


@pytest.fixture(scope="module")
def interpreted() -> tuple[set[str], set[str]]:
    """Kernels and rows that the small workloads start, run by the interpreter."""
    names, rows = set(), set()
    for workload in workloads.SMALL_WORKLOADS:
        with recording("interpreter", executes=True) as record:
            results = workloads.run(workload, "cpu")
        assert all(torch.isfinite(result.double()).all() for result in results), workload.name
        names |= {launch.name for launch in record.launches}
        rows |= record.rows
    return names, rows


def test_the_interpreter_runs_every_kernel(interpreted: tuple[set[str], set[str]]) -> None:
    assert interpreted[0] == started_anywhere()


def test_the_interpreter_runs_every_row_of_the_tables(interpreted: tuple[set[str], set[str]]) -> None:
    assert interpreted[1] == {kernel for kernel, rows in table().items() if "interpreter" in rows}


def test_every_row_of_the_tables_can_be_tuned() -> None:
    assert set(CANDIDATES) == set(table())
    for kernel, candidates in CANDIDATES.items():
        blocks = {name for config in candidates for name in config.blocks}
        assert blocks == set(next(iter(table()[kernel].values())).blocks), kernel


def test_workloads_have_names_of_their_own() -> None:
    every = (*workloads.WORKLOADS, *workloads.EDGE_WORKLOADS)
    assert len({workload.name for workload in every}) == len(every)


def test_what_is_recorded_without_memory_is_what_is_started() -> None:
    workload = workloads.SMALL_WORKLOADS[0]
    with recording("interpreter", executes=True) as record:
        workloads.run(workload, "cpu")
    recorded = workloads.record_launches(workload, "interpreter")
    assert [(launch.name, launch.grid, launch.config) for launch in recorded.launches] == [
        (launch.name, launch.grid, launch.config) for launch in record.launches
    ]
    assert all(
        value.is_meta
        for launch in recorded.launches
        for value in launch.arguments.values()
        if torch.is_tensor(value)
    )

"""Scenes: every kernel and every row of the tables occurs, compiled and interpreted."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from factories.kernel_names import started_anywhere  # noqa: E402

from satclip_engine.kernels import scenes  # noqa: E402
from satclip_engine.kernels.candidates import CANDIDATES  # noqa: E402
from satclip_engine.kernels.launch import recording  # noqa: E402
from satclip_engine.kernels.tuning import table  # noqa: E402


@pytest.fixture(scope="module")
def interpreted() -> tuple[set[str], set[str]]:
    """Kernels and rows that the small scenes start, run by the interpreter."""
    names, rows = set(), set()
    for scene in scenes.SMALL_SCENES:
        with recording("interpreter", starts=True) as record:
            results = scenes.run(scene, "cpu")
        assert all(torch.isfinite(each.double()).all() for each in results), scene.name
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


def test_scenes_have_names_of_their_own() -> None:
    every = (*scenes.SCENES, *scenes.ODD_SCENES)
    assert len({scene.name for scene in every}) == len(every)


def test_what_is_recorded_without_memory_is_what_is_started() -> None:
    scene = scenes.SMALL_SCENES[0]
    with recording("interpreter", starts=True) as record:
        scenes.run(scene, "cpu")
    recorded = scenes.recorded(scene, "interpreter")
    assert [(each.name, each.grid, each.config) for each in recorded.launches] == [
        (each.name, each.grid, each.config) for each in record.launches
    ]
    assert all(
        value.is_meta
        for each in recorded.launches
        for value in each.arguments.values()
        if torch.is_tensor(value)
    )

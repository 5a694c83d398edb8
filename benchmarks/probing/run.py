"""All rows on all targets, in a pool of processes with one thread each."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass

from probing.features import Row
from probing.score import score
from probing.splits import block_split, random_split
from probing.targets import Target

SPLITS = ("random", "block")
Key = tuple[str, str, int, str, str]  # row, target, seed, split, probe
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Result:
    """One score: R² or a share of right answers."""

    row: str
    target: str
    split: str
    probe: str
    seed: int
    score: float

    @property
    def key(self) -> Key:
        """What it is the score of."""
        return self.row, self.target, self.seed, self.split, self.probe


def measure(
    rows: Sequence[Row],
    targets: Sequence[Target],
    probes: Sequence[str],
    seeds: Sequence[int],
    *,
    jobs: int = 1,
    done: Callable[[list[Result]], None] = lambda results: None,
    known: Sequence[Result] = (),
) -> list[Result]:
    """Scores of every row, target, seed, split and probe, in that order; `done` hears of each row on
    each target, in whatever order they end.

    known: results of an earlier run; what they hold is not measured again.

    A result depends on its seed alone, not on `jobs` or on what else is measured.
    """
    work = [(row, target) for row in rows for target in targets]
    held = {one.key: one for one in known}
    context = multiprocessing.get_context("spawn")  # a fork after PyTorch has computed may hang
    with _one_thread(), ProcessPoolExecutor(jobs, context) as pool:
        waiting = {
            pool.submit(scores, row, target, probes, _missing(held, row, target, probes, seeds)): place
            for place, (row, target) in enumerate(work)
        }
        found: dict[int, list[Result]] = {}
        try:
            for future in as_completed(waiting):
                place = waiting[future]
                row, target = work[place]
                held |= {one.key: one for one in future.result()}
                found[place] = [held[key] for key in _keys(row, target, probes, seeds)]
                done(found[place])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [result for place in range(len(work)) for result in found[place]]


def _keys(row: Row, target: Target, probes: Sequence[str], seeds: Sequence[int]) -> Iterator[Key]:
    for seed, split, probe in itertools.product(seeds, SPLITS, probes):
        yield row.name, target.name, seed, split, probe


def _missing(
    held: Mapping[Key, Result], row: Row, target: Target, probes: Sequence[str], seeds: Sequence[int]
) -> list[int]:
    """The seeds whose results are not all there."""
    return [seed for seed in seeds if any(key not in held for key in _keys(row, target, probes, [seed]))]


def scores(row: Row, target: Target, probes: Sequence[str], seeds: Sequence[int]) -> list[Result]:
    """Of one row on one target."""
    found = []
    splits = (random_split(len(target.values)), block_split(target.lonlat))
    for seed in seeds:
        features = row.features(target.lonlat, seed)
        for split in splits:
            for probe in probes:
                value = score(features, target.values, split, probe, seed)
                found.append(Result(row.name, target.name, split.name, probe, seed, value))
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started meanwhile have libraries of linear algebra that compute in one thread."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

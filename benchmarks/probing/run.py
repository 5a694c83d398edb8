"""Scores of all rows on all targets, in a pool of processes with one thread each."""

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
        """Row, target, seed, split and probe that it is the score of."""
        return self.row, self.target, self.seed, self.split, self.probe


def measure(
    rows: Sequence[Row],
    targets: Sequence[Target],
    probes: Sequence[str],
    seeds: Sequence[int],
    *,
    jobs: int = 1,
    report: Callable[[list[Result]], None] = lambda results: None,
    earlier: Sequence[Result] = (),
) -> list[Result]:
    """Scores of every row, target, seed, split and probe, in that order; `report` is called
    with each row on each target, in the order in which they end.

    earlier: results of an earlier run, which are not measured again.

    A result depends on its seed alone, not on `jobs` or on what else is measured.
    """
    work = [(row, target) for row in rows for target in targets]
    results = {result.key: result for result in earlier}
    context = multiprocessing.get_context("spawn")  # a fork after PyTorch has computed may hang
    with _one_thread(), ProcessPoolExecutor(jobs, context) as pool:
        futures = {
            pool.submit(scores, row, target, probes, _missing(results, row, target, probes, seeds)): index
            for index, (row, target) in enumerate(work)
        }
        ordered: dict[int, list[Result]] = {}
        try:
            for future in as_completed(futures):
                index = futures[future]
                row, target = work[index]
                results |= {result.key: result for result in future.result()}
                ordered[index] = [results[key] for key in _keys(row, target, probes, seeds)]
                report(ordered[index])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [result for index in range(len(work)) for result in ordered[index]]


def _keys(row: Row, target: Target, probes: Sequence[str], seeds: Sequence[int]) -> Iterator[Key]:
    for seed, split, probe in itertools.product(seeds, SPLITS, probes):
        yield row.name, target.name, seed, split, probe


def _missing(
    results: Mapping[Key, Result], row: Row, target: Target, probes: Sequence[str], seeds: Sequence[int]
) -> list[int]:
    """The seeds whose results are not all there."""
    return [seed for seed in seeds if any(key not in results for key in _keys(row, target, probes, [seed]))]


def scores(row: Row, target: Target, probes: Sequence[str], seeds: Sequence[int]) -> list[Result]:
    """Scores of one row on one target."""
    results = []
    splits = (random_split(len(target.values)), block_split(target.lonlat))
    for seed in seeds:
        features = row.features(target.lonlat, seed)
        for split in splits:
            for probe in probes:
                value = score(features, target.values, split, probe, seed)
                results.append(Result(row.name, target.name, split.name, probe, seed, value))
    return results


@contextmanager
def _one_thread() -> Iterator[None]:
    """Make libraries of linear algebra compute in one thread, in processes started meanwhile."""
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

"""Time of a lazy grid: its making, its first pixel (which waits for the plan), further ones, a second array.

    python benchmarks/lazy_grids.py

Medians over fresh encoders, after the libraries are imported; beside them a pixel of `exact=True`, which
needs no plan. Prints Markdown; docs/python.md quotes it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import click

from satclip_engine.bench.machine import label, machine, versions
from satclip_engine.cli._command import EXIT_CODES, Command
from satclip_engine.encoder import Encoder, load

GRIDS: dict[str, dict[str, Any]] = {
    "globe, 0.5°": {"resolution": 0.5},
    "globe, 0.0001°": {"resolution": 0.0001},
    "UTM tile, 10 m": {"resolution": 10, "crs": "EPSG:32633", "bounds": (3e5, 5e6, 4e5, 5.1e6)},
}
COLUMNS = ("array", "first pixel", "next pixel", "second array", "evaluated pixel")


@click.command(cls=Command, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--weights", default="default", show_default=True, metavar="SOURCE")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Fresh encoders.")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of a failure.")
def main(weights: str, repeats: int, verbose: bool) -> None:
    """Time lazy grids from a fresh encoder to further pixels, in milliseconds."""
    times(load(weights), GRIDS["globe, 0.5°"])  # imports what all of them need
    encoder = load(weights)
    programs = ", ".join(f"{name} {version}" for name, version in versions().items())
    click.echo(f"{label(machine())}; {programs}; {encoder.threads} threads, float32, {weights}\n")
    click.echo(f"| milliseconds | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name, grid in GRIDS.items():
        runs = [times(load(weights), grid) for _ in range(repeats)]
        cells = (f"{1e3 * statistics.median(column):.3g}" for column in zip(*runs, strict=True))
        click.echo(f"| {name} | {' | '.join(cells)} |")


def times(encoder: Encoder, grid: dict[str, Any]) -> tuple[float, ...]:
    """Seconds of every column, for an encoder that has made no plan yet."""
    encoder([[0.0, 0.0]])  # its network is laid out
    array, construct = timed(lambda: encoder.grid(**grid))
    _, first = timed(lambda: array[:, 100, 100].values)
    further = [timed(lambda k=k: array[:, 100 + k, 100 + k].values)[1] for k in range(1, 20)]
    _, second = timed(lambda: encoder.grid(**grid))
    exact = encoder.grid(**grid, exact=True)
    evaluated = [timed(lambda k=k: exact[:, 100 + k, 100 + k].values)[1] for k in range(20)]
    return construct, first, statistics.median(further), second, statistics.median(evaluated)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and its seconds."""
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


if __name__ == "__main__":
    main()

"""Command satclip-bench: speed and memory on this machine beside baselines, checked before timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from satclip_engine import __version__
from satclip_engine.bench.catalogue import COMPARED, GROUPS
from satclip_engine.cli._command import EXIT_CODES, Command
from satclip_engine.errors import SatclipError, UsageError

HELP = {
    "kernels": "Each compiled kernel alone, one thread, every instruction set that runs here.",
    "points": "Embeddings of many points, beside PyTorch and the machine's own matrix product.",
    "grid": "Embeddings of rasters in memory, beside the same pixels as points.",
    "lattice": "Fine rasters and many points reconstructed from a lattice, beside evaluating them.",
    "loss": "The contrastive loss with its gradients, beside PyTorch and the machine's own matrix product.",
    "train": "A training step and the encoder's part of it, beside PyTorch, eager and compiled.",
    "write": "satclip-grid as a process of its own, beside GDAL's COG driver; and the writer alone.",
}


class Group(Command, click.Group):
    """Group of commands with the exit statuses of all of ours."""


class CompareType(click.ParamType):
    """A comma-separated list of baselines, `all` or `none`."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[str]:
        if isinstance(value, frozenset):
            return value
        words = {word.strip() for word in str(value).lower().split(",") if word.strip()}
        if words <= {"all"}:
            return frozenset(COMPARED)
        if words == {"none"}:
            return frozenset()
        if unknown := sorted(words - set(COMPARED)):
            self.fail(f"{unknown[0]!r} is none of all, none, {', '.join(COMPARED)}", param, ctx)
        return frozenset(words)


@click.group(
    cls=Group,
    name="satclip-bench",
    epilog=EXIT_CODES,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def main() -> None:
    """Measure speed and memory on this machine.

    Every answer is checked against the float64 reference before its time counts; implementations take turns,
    so that whatever else the machine does hits all of them. A wrong answer shows no time and makes the exit
    status 1.
    """


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that all groups of workloads take."""
    for option in reversed(
        (
            click.option(
                "--compare",
                type=CompareType(),
                default="all",
                show_default=True,
                metavar="LIST",
                help=f"Baselines: {', '.join(COMPARED)}; all or none. What is not installed is left out.",
            ),
            click.option(
                "--json",
                "json_file",
                type=click.Path(dir_okay=False, path_type=Path),
                metavar="FILE",
                help="Keep the results; one file holds one machine's groups.",
            ),
            click.option(
                "--threads", type=click.IntRange(min=1), metavar="N", help="Threads.  [default: all cores]"
            ),
            click.option(
                "--repeat",
                type=click.IntRange(min=1),
                metavar="N",
                help="Rounds at most.  [default: 3 to 15]",
            ),
            click.option("--quick", is_flag=True, help="Small workloads, for a first look."),
            click.option("--no-memory", is_flag=True, help="Leave out peak memory."),
            click.option("-v", "--verbose", is_flag=True, help="Show the traceback of a failure."),
            click.option("-q", "--quiet", is_flag=True, help="No progress."),
        )
    ):
        command = option(command)
    return command


def _command(group: str) -> None:
    @click.command(f"satclip-bench {group}", cls=Command, help=HELP[group], short_help=HELP[group])
    @_options
    def command(**options: Any) -> None:
        _run(group, **options)

    main.add_command(command, name=group)


for _group in GROUPS:
    _command(_group)


def _run(
    group: str,
    *,
    compare: frozenset[str],
    json_file: Path | None,
    threads: int | None,
    repeat: int | None,
    quick: bool,
    no_memory: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    from dataclasses import asdict

    from satclip_engine.backends import available_cores
    from satclip_engine.bench import result_tables, results
    from satclip_engine.bench.machine import label, machine, versions
    from satclip_engine.bench.run import run

    described = machine()
    if json_file is not None:
        results.check(json_file, described)
    cores = threads or available_cores()
    measured: list[results.BenchmarkRecord] = []
    with _terminal(quiet) as (show, progress):
        show(label(described))
        for _, records in run(
            group,
            threads=cores,
            quick=quick,
            repeat=repeat,
            compare=compare,
            memory=not no_memory,
            progress=progress,
        ):
            rows = [asdict(record) for record in records]
            show(result_tables.as_text(group, rows), lambda rows=rows: result_tables.as_rich(group, rows))
            measured += records
    if json_file is not None:
        options = {"threads": cores, "quick": quick, "repeat": repeat, "compare": sorted(compare)}
        results.save(json_file, group, described, results.as_run(measured, versions(), options))
    if broken := results.failed(measured):
        first = broken[0]
        raise SatclipError(
            f"{len(broken)} of {len(measured)} failed; {first.case}: {first.contestant}: {first.note}"
        )


@click.command("satclip-bench report", cls=Command, short_help="Kept results as Markdown tables.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--update",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    metavar="DOCUMENT",
    help="Put the tables between <!-- bench NAME --> and <!-- /bench --> of a Markdown file.  Repeatable.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of a failure.")
def report(file: Path, update: tuple[Path, ...], verbose: bool) -> None:
    """Print kept results as Markdown tables, or put them into documents."""
    from satclip_engine.bench import result_tables, results
    from satclip_engine.files import write_atomically

    content = results.read(file)
    if not update:
        click.echo(
            "\n\n".join(f"## {name}\n\n{text}" for name, text in result_tables.blocks(content).items())
        )
    for document in update:
        try:
            text = result_tables.fill(document.read_text(encoding="utf-8"), content)
            write_atomically(document.resolve(), text.encode())
        except UsageError as error:
            raise UsageError(f"{document}: {error}") from error


main.add_command(report, name="report")


@contextmanager
def _terminal(quiet: bool) -> Iterator[tuple[Callable[..., None], Callable[[str], None]]]:
    """Functions that show a result on stdout, and progress on stderr."""
    from rich.console import Console

    console, errors = Console(), Console(stderr=True)

    def show(text: str, rich: Callable[[], Any] | None = None) -> None:
        if console.is_terminal and rich is not None:
            console.print(rich())
        else:
            click.echo(text)

    if quiet or not errors.is_terminal:
        yield show, lambda text: None
        return
    with errors.status("starting") as status:
        yield show, status.update


if __name__ == "__main__":
    main()

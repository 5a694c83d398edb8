"""Cost of reading a raster over HTTP, by order of its bands, reader and GDAL's settings.

    python benchmarks/remote_pixel.py --environments readers

A server on loopback counts requests and bytes. Three versions of GDAL (in rasterio's wheels), rio-tiler and
async-tiff are installed into environments of their own. Every reading begins in a new process, with nothing
in any cache. Two rasters of all 256 bands are read: the globe at 0.25°, and a stand-in for one of 17000 ×
17000 pixels of 0.005° (10 GB as `tile`), whose header and index are whole while most of its tiles are holes.
Prints Markdown; docs/raster.md quotes it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from satclip_engine.bench.machine import label, machine, versions
from satclip_engine.bench.remote import RangeServer, write_stand_in
from satclip_engine.cli._command import EXIT_CODES, Command
from satclip_engine.encoder import Encoder, load
from satclip_engine.geo.grid import make_grid
from satclip_engine.options import INTERLEAVES
from satclip_engine.raster.tiling import choose_blocksize, make_tiling
from satclip_engine.raster.write import write_raster

READER = Path(__file__).with_name("remote_reader.py")
LARGE_SHAPE, LARGE_PIXEL, LARGE_CORNER = (17000, 17000), 0.005, (5.0, 48.0)  # degrees; west, north
LARGE_PIXELS = ((8600, 8700), (3000, 14000))  # row and column of those read
GLOBE_PIXELS = ((164, 729), (440, 1120))
RASTERS = {"globe": ((-180.0, 90.0), 0.25, GLOBE_PIXELS), "large": (LARGE_CORNER, LARGE_PIXEL, LARGE_PIXELS)}
WINDOW = (8192, 8192, 512)  # row, column and side of a window, in pixels
EMPTY_DIR = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
SETTINGS = {
    "no settings": {},
    "`EMPTY_DIR`": EMPTY_DIR,
    "and `GDAL_INGESTED_BYTES_AT_OPEN=131072`": {**EMPTY_DIR, "GDAL_INGESTED_BYTES_AT_OPEN": "131072"},
    "and `CPL_VSIL_CURL_CHUNK_SIZE=131072`": {**EMPTY_DIR, "CPL_VSIL_CURL_CHUNK_SIZE": "131072"},
    "and `CPL_VSIL_CURL_CHUNK_SIZE=1048576`": {**EMPTY_DIR, "CPL_VSIL_CURL_CHUNK_SIZE": "1048576"},
    "and `VSI_CACHE=TRUE`": {**EMPTY_DIR, "VSI_CACHE": "TRUE"},
    "and `GDAL_HTTP_MERGE_CONSECUTIVE_RANGES=NO`": {**EMPTY_DIR, "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "NO"},
}


@dataclass(frozen=True)
class Reader:
    """A library that reads rasters, and the packages that an environment of its own needs."""

    kind: str  # of remote_reader.py
    packages: tuple[str, ...]
    newer: bool = False  # needs a Python newer than 3.11


READERS = {
    "GDAL 3.6": Reader("gdal", ("rasterio==1.3.8", "numpy<2")),
    "GDAL 3.10": Reader("gdal", ("rasterio==1.4.4",)),
    "GDAL 3.12": Reader("gdal", ("rasterio>=1.5,<1.6",), newer=True),
    "rio-tiler (GDAL 3.12)": Reader("rio-tiler", ("rio-tiler>=9",), newer=True),
    "async-tiff": Reader("async-tiff", ("async-tiff>=0.7",), newer=True),
}


@click.command(cls=Command, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--environments", type=click.Path(path_type=Path), help="Folder of the readers' environments.")
@click.option("--folder", type=click.Path(path_type=Path), help="Folder of the rasters.")
@click.option("--newer-python", default="python3.12", show_default=True, help="For readers that need it.")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of a failure.")
def main(environments: Path | None, folder: Path | None, newer_python: str, verbose: bool) -> None:
    """Count requests and bytes of remote readings, and time local ones."""
    with tempfile.TemporaryDirectory() as scratch:
        environments = environments or Path(scratch) / "environments"
        folder = folder or Path(scratch) / "rasters"
        folder.mkdir(exist_ok=True, parents=True)
        pythons = {name: _environment(environments, name, newer_python) for name in READERS}
        encoder = load("default")
        programs = ", ".join(f"{name} {version}" for name, version in versions().items())
        click.echo(f"{label(machine())}; {programs}; {encoder.threads} threads, int8, zstd\n")
        _whole_globe(encoder, folder, pythons["GDAL 3.10"])
        for order in INTERLEAVES:
            _large(encoder, folder, order)
        with RangeServer(folder) as server:
            for raster, steps in RASTERS.items():
                _readers(server, pythons, raster, _pixel_steps(*steps))
            _settings(server, pythons)
            _bands(server, pythons)


def _environment(folder: Path, name: str, newer_python: str) -> Path:
    """The Python of a reader's environment, which is made unless it is there."""
    reader, home = READERS[name], folder / name.split(" (")[0].replace(" ", "-")
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([newer_python if reader.newer else sys.executable, "-m", "venv", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *reader.packages], check=True)
    return python


def _readings(
    python: Path,
    kind: str,
    url: str,
    steps: list[dict[str, Any]],
    server: RangeServer | None,
    **settings: str,
) -> list[dict[str, Any]]:
    """What every step gives in a new process: seconds, and of a server's file requests and bytes."""
    quiet = {"CPL_LOG": os.devnull, "PYTHONWARNINGS": "ignore"}
    command = [python, READER, kind, url, json.dumps(steps)]
    environment = {**os.environ, **quiet, **settings}
    outcomes = []
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        for _ in steps:
            if server is not None:
                server.reset()
            outcome = json.loads(process.stdout.readline())
            if server is not None:
                outcome["requests"], outcome["bytes"] = server.cost
            outcomes.append(outcome)
            process.stdin.write("\n")
            process.stdin.flush()
    return outcomes


def _cell(outcome: dict[str, Any]) -> str:
    if "error" in outcome:
        return str(outcome["error"].split(":")[0])
    return f"{outcome['requests']}, {_amount(outcome['bytes'])}"


def _amount(count: float) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 1e6 else f"{count / 1e3:.3g} kB"


def _table(head: list[str], rows: list[list[str]]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        click.echo(f"| {' | '.join(row)} |")
    click.echo()


def _whole_globe(encoder: Encoder, folder: Path, python: Path) -> None:
    """Size and time of a raster that is written and read on this machine."""
    rows = []
    band = [
        {"do": "whole", "bands": [1]},
        {"do": "window", "bands": [1, 2, 3], "row": 64, "column": 64, "side": 512},
    ]
    pixels = [{"do": "window", "bands": list(range(1, 257)), "row": 64, "column": 64, "side": 256}]
    for order in INTERLEAVES:
        path = folder / f"globe-{order}.tif"
        reports = [
            write_raster(encoder, path, make_grid(resolution=0.25), interleave=order, overwrite=True)
            for _ in range(3)
        ]
        report = min(reports, key=lambda report: sum(report.cpu_seconds.values()))
        timed = [_local(python, path, [step]) for step in (*band, *pixels)]
        rows.append(
            [
                f"`{order}`",
                f"{report.blocksize}",
                _amount(report.bytes),
                f"{sum(report.cpu_seconds.values()):.1f} s",
                *(f"{1e3 * seconds:.0f} ms" for seconds in timed),
            ]
        )
    click.echo("Globe at 0.25°, read from disk by GDAL 3.10 (CPU time, opening included)\n")
    read = ("one band", "3 bands × 512²", "256 bands × 256²")
    _table(["order", "tile", "file", "CPU time of writing", *read], rows)


def _local(python: Path, path: Path, steps: list[dict[str, Any]]) -> float:
    """CPU time of reading a file from disk, the best of three."""
    runs = [_readings(python, "gdal", str(path), steps, None) for _ in range(3)]
    return min(float(run[0]["cpu_seconds"]) for run in runs)


def _large(encoder: Encoder, folder: Path, order: str) -> None:
    """Make the stand-in of a large raster."""
    planes = 1 if order == "pixel" else encoder.embed_dim
    blocksize = choose_blocksize(LARGE_SHAPE, planes, 16 if order == "pixel" else 64)
    tiling = make_tiling(
        LARGE_SHAPE,
        encoder.embed_dim,
        1,
        blocksize,
        threads=1,
        memory=1 << 40,
        mirrored=False,
        interleave=order,
    )
    west, north = LARGE_CORNER
    bounds = (west, north - 512 * LARGE_PIXEL, west + 512 * LARGE_PIXEL, north)
    grid = make_grid(resolution=LARGE_PIXEL, bounds=bounds)
    source = folder / "source.tif"
    write_raster(encoder, source, grid, interleave=order, blocksize=blocksize, overwrite=True)
    row, column, side = WINDOW
    tiles = {(0, r // blocksize, c // blocksize) for r, c in LARGE_PIXELS}
    tiles |= {
        (0, r // blocksize, c // blocksize)
        for r in range(row, row + side, blocksize)
        for c in range(column, column + side, blocksize)
    }
    for number, level in enumerate(tiling.levels):
        if max(level.height, level.width) <= 1100:
            tiles |= {(number, r, c) for r in range(level.tiles_down) for c in range(level.tiles_across)}
    size = write_stand_in(source, folder / f"large-{order}.tif", tiling, sorted(tiles))
    source.unlink()
    click.echo(f"`{order}`: {size / 1e9:.1f} GB in tiles of {blocksize} pixels, {tiling.entries:,} entries\n")


def _pixel_steps(
    corner: tuple[float, float], step: float, pixels: tuple[tuple[int, int], ...]
) -> list[dict[str, Any]]:
    west, north = corner
    return [
        {
            "do": "pixel",
            "row": row,
            "column": column,
            "lonlat": [west + (column + 0.5) * step, north - (row + 0.5) * step],
        }
        for row, column in pixels
    ]


def _readers(server: RangeServer, pythons: dict[str, Path], raster: str, steps: list[dict[str, Any]]) -> None:
    """All bands of a pixel: opening included, and a further one."""
    rows = []
    for name, reader in READERS.items():
        cells = []
        for order in INTERLEAVES:
            url = server.url(f"{raster}-{order}.tif")
            cells += map(_cell, _readings(pythons[name], reader.kind, url, steps, server, **EMPTY_DIR))
        rows.append([name, *cells])
    click.echo(f"{raster}, all bands of a pixel: requests (HEAD among them) and bytes, with `EMPTY_DIR`\n")
    columns = [f"`{order}`, {which}" for order in INTERLEAVES for which in ("cold", "second")]
    _table(["reader", *columns], rows)


def _settings(server: RangeServer, pythons: dict[str, Path]) -> None:
    rows, steps = [], _pixel_steps(*RASTERS["large"])[:1]
    for words, settings in SETTINGS.items():
        cells = []
        for name in ("GDAL 3.6", "GDAL 3.10", "GDAL 3.12"):
            for order in ("tile", "pixel"):
                url = server.url(f"large-{order}.tif")
                cells.append(_cell(_readings(pythons[name], "gdal", url, steps, server, **settings)[0]))
        rows.append([words, *cells])
    click.echo("The same, cold, with other settings of GDAL\n")
    _table(
        ["settings", *(f"{v}, `{order}`" for v in ("3.6", "3.10", "3.12") for order in ("tile", "pixel"))],
        rows,
    )


def _bands(server: RangeServer, pythons: dict[str, Path]) -> None:
    """Bands as a map shows them: a window at full resolution, and the raster from an overview."""
    row, column, side = WINDOW
    window = {"do": "window", "row": row, "column": column, "side": side}
    overview = {"do": "overview", "bands": [1], "shape": [531, 531]}
    steps = {
        "one band × 512²": {**window, "bands": [1]},
        "3 bands × 512²": {**window, "bands": [1, 2, 3]},
        "one band, overview 531²": overview,
    }
    rows = []
    for name in ("GDAL 3.6", "GDAL 3.10", "GDAL 3.12"):
        for order in INTERLEAVES:
            url = server.url(f"large-{order}.tif")
            cells = []
            for step in steps.values():
                (outcome,) = _readings(pythons[name], "gdal", url, [step], server, **EMPTY_DIR)
                cells.append(f"{_cell(outcome)}, {outcome['seconds']:.2g} s")
            rows.append([name, f"`{order}`", *cells])
    click.echo("Large raster, bands of a map, cold: requests, bytes, seconds on loopback, with `EMPTY_DIR`\n")
    _table(["reader", "order", *steps], rows)


if __name__ == "__main__":
    main()

"""Cost of a window by resolution and by roughness of the field: reconstructed, and evaluated.

    python benchmarks/lattice_costs.py --svg docs/images/lattice-costs.svg --json lattice-costs.json

An untrained L = 40 network (512, 512, 256) whose first layer is multiplied by 1, 5, 20 and 60 makes int8
codes of a window of 20° × 15°, at an eighth of a quantisation step. A time is the whole call's, planning and
measuring the error included; the product grid's follows from its rate, measured in the same run. Prints
Markdown.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from satclip_engine import backends
from satclip_engine.backends.protocols import Call, Quantise
from satclip_engine.bench.catalogue import LAYER_WIDTHS
from satclip_engine.bench.inputs import siren
from satclip_engine.bench.machine import label, machine, versions
from satclip_engine.cli._command import EXIT_CODES, Command
from satclip_engine.geo.grid import make_grid
from satclip_engine.lattice.plan import make_plan
from satclip_engine.lattice.prepared import PreparedLattice
from satclip_engine.lattice.sampling import region_of
from satclip_engine.lattice.tolerance import moments, tolerance_of
from satclip_engine.weights import Layers

RESOLUTIONS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
GAINS = (1, 5, 20, 60)
BOUNDS = (5.0, 40.0, 25.0, 55.0)
COLOURS = ("#1b7837", "#2166ac", "#b35806", "#b2182b")


@click.command(cls=Command, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--threads", type=click.IntRange(min=1), default=backends.available_cores(), show_default=True)
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Draw the figure.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="All numbers.")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of a failure.")
def main(threads: int, svg: Path | None, json_file: Path | None, verbose: bool) -> None:
    """Measure the cost of a window by resolution and roughness."""
    rows = [measure(gain, resolution, threads) for gain in GAINS for resolution in RESOLUTIONS]
    click.echo("| gain | resolution | pixels | path | nodes | seconds | product grid | error, σ |")
    click.echo("| ---: | ---: | ---: | --- | --- | ---: | ---: | ---: |")
    for row in rows:
        lattice = row["path"] == "lattice"
        nodes = f"every {row['spacing']:.2g}°, order {row['order']}" if lattice else ""
        error = f"{row['max_sigma']:.1g}" if lattice else ""
        click.echo(
            f"| ×{row['gain']} | {row['resolution']:g}° | {row['pixels']:,} | {row['path']} | {nodes} "
            f"| {row['seconds']:.2f} | {row['exact_seconds']:.2f} | {error} |"
        )
    content = {"machine": machine(), "versions": versions(), "threads": threads, "rows": rows}
    if json_file:
        json_file.write_text(json.dumps(content, indent=1) + "\n")
    if svg:
        svg.write_text(figure(rows, f"{label(machine())}, {threads} threads"))


def rough(gain: float) -> Layers:
    """The untrained network with its first layer's weights multiplied."""
    layers = siren(40, LAYER_WIDTHS)
    return replace(layers, weights=(layers.weights[0] * gain, *layers.weights[1:]))


def measure(gain: float, resolution: float, threads: int) -> dict[str, Any]:
    """The window at one resolution: seconds of all of it, and what the product grid would take."""
    network = backends.resolve("cpu").prepare(rough(gain), threads)
    grid = make_grid(resolution=resolution, bounds=BOUNDS)
    field = moments(network, threads)
    step = 7 * field.sigma / 254
    codes = Call(quantise=Quantise((1 / step).astype(np.float32), np.zeros(len(step), np.float32)))
    out = np.ones((*grid.shape, len(step)), np.int8)
    lat, lon = grid.lat(), grid.lon()
    some_lat = lat[:: max(1, lat.size * lon.size // 100_000)]
    values = np.ones((some_lat.size, lon.size, len(step)), np.float32)
    network.encode_grid(some_lat, lon, out=values)
    started = time.perf_counter()
    network.encode_grid(some_lat, lon, out=values)
    exact = (time.perf_counter() - started) / (some_lat.size * lon.size) * lat.size * lon.size
    del values
    best, plan = math.inf, None
    for _ in range(2):
        started = time.perf_counter()
        tolerance = tolerance_of(field, None, step=step, dtype="int8")
        plan, prepared = make_plan(network, region_of(grid), tolerance, threads=threads)
        if isinstance(prepared, PreparedLattice):
            prepared.encode_grid(lat, lon, out, codes)
            best = min(best, time.perf_counter() - started)
    certificate = plan.certificate
    return {
        "gain": gain,
        "resolution": resolution,
        "pixels": lat.size * lon.size,
        "path": plan.path,
        "spacing": plan.spacing if certificate else None,
        "order": plan.order,
        "seconds": best if certificate else exact,
        "exact_seconds": exact,
        "max_sigma": certificate.max_sigma if certificate else None,
    }


def figure(rows: list[dict[str, Any]], where: str) -> str:
    """Seconds against resolution, both logarithmic, as SVG."""
    left, top, width, height = 70, 50, 560, 360
    low, high = -2.0, math.log10(max(row["exact_seconds"] for row in rows) * 1.5)
    first, last = (math.log10(r) for r in (RESOLUTIONS[0], RESOLUTIONS[-1]))

    def xy(resolution: float, seconds: float) -> tuple[float, float]:
        x = left + width * (math.log10(resolution) - first) / (last - first)
        return x, top + height * (high - max(low, math.log10(seconds))) / (high - low)

    def line(points: list[tuple[float, float]], style: str) -> str:
        return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="none" {style}/>'

    elements = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 150}" height="{top + height + 62}" '
        'font-family="sans-serif" font-size="13" fill="#222">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="24" font-size="16">Seconds for a window of 20° × 15°, 256 bands, int8</text>',
        f'<text x="{left}" y="{top + height + 54}" fill="#666" font-size="11">{where}</text>',
    ]
    for power in range(int(low), math.floor(high) + 1):
        _, y = xy(RESOLUTIONS[0], 10.0**power)
        elements.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        elements.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g} s</text>')
    for resolution in RESOLUTIONS:
        x, _ = xy(resolution, 1.0)
        elements.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + height}" stroke="#eee"/>')
        elements.append(
            f'<text x="{x:.1f}" y="{top + height + 20}" text-anchor="middle">{resolution:g}°</text>'
        )
    exact = [
        xy(r, float(np.median([row["exact_seconds"] for row in rows if row["resolution"] == r])))
        for r in RESOLUTIONS
    ]
    elements.append(line(exact, 'stroke="#888" stroke-width="2" stroke-dasharray="6 4"'))
    labels = [(exact[-1][1], "product grid", "#666")]
    for gain, colour in zip(GAINS, COLOURS, strict=True):
        own = [row for row in rows if row["gain"] == gain]
        points = [xy(row["resolution"], row["seconds"]) for row in own]
        elements.append(line(points, f'stroke="{colour}" stroke-width="2.5"'))
        for (x, y), row in zip(points, own, strict=True):
            fill = colour if row["path"] == "lattice" else "white"
            elements.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}"/>')
        labels.append((points[-1][1], f"first layer × {gain}", colour))
    below = -math.inf
    for y, text, colour in sorted(labels):
        below = max(y + 4, below + 16)
        elements.append(f'<text x="{left + width + 12}" y="{below:.1f}" fill="{colour}">{text}</text>')
    elements.append(
        f'<text x="{left + 10}" y="{top + 18}" fill="#666">filled: from a lattice; open: product grid</text>'
    )
    return "\n".join([*elements, "</svg>\n"])


if __name__ == "__main__":
    main()

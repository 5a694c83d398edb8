"""Check of lattice certificates at fresh random pixels.

    python benchmarks/reconstruction_check.py --positions 100000

Thirty random networks, smooth and rough, are planned for six rasters. Where the plan interpolates, values are
compared with exact ones at fresh random pixels: the largest error over the certificate's bound, and the share
of pixels beyond it, of what is stated. Elsewhere they must be exact, bit for bit. Prints Markdown.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np

from satclip_engine.cli._command import EXIT_CODES, Command
from satclip_engine.encoder import Encoder, load
from satclip_engine.geo.grid import Grid, make_grid
from satclip_engine.lattice import plan as planning
from satclip_engine.lattice.cost import Rates
from satclip_engine.lattice.transform import ApproximatedGrid
from satclip_engine.weights import LocationWeights

MODELS = 30
WINDOWS: dict[str, dict[str, Any]] = {
    "global": {"resolution": 0.1},
    "polar": {"resolution": 2000, "bounds": (-1.5e6, -1.5e6, 1.5e6, 1.5e6), "crs": "EPSG:3413"},
    "antimeridian": {"resolution": 0.005, "bounds": (176, -22, 186, -12)},
    "UTM": {"resolution": 100, "bounds": (4e5, 5e6, 5.5e5, 5.15e6), "crs": "EPSG:32633"},
    "Web Mercator": {"resolution": 2000, "bounds": (-1.5e6, 4e6, 1.5e6, 7e6), "crs": "EPSG:3857"},
    "10 m": {"resolution": 10, "bounds": (6e5, 8e6, 6.15e5, 8.015e6), "crs": "EPSG:32733"},
}
TOLERANCES = (None, 1e-3, 1e-2)  # the models' in turn
# Of a network of the published size on one core. The small ones here are faster than any interpolation, and
# no lattice would ever be chosen for them.
RATES = Rates(points=6e4, grid=1.2e5, resample=9e6, gather=1.5e6)


@dataclass(frozen=True)
class Outcome:
    """Errors of one network and window. All but the path are of interpolated ones."""

    window: str
    interpolates: bool
    of_bound: float = 0.0  # largest error over the certificate's bound
    of_tolerance: float = 0.0  # and over the tolerance
    beyond: float = 0.0  # share of pixels with an error larger than the bound
    of_band: float = 0.0  # and with a band's error larger than the band's own
    stated: float = 0.0  # what the certificate allows of them


def random_encoder(
    degrees: int, gain: float, hidden: int, width: int, bands: int, *, seed: int = 0, threads: int = 2
) -> Encoder:
    """A network as SatCLIP's start, but for the gain of its first layer."""
    random, tensors = np.random.default_rng(seed), {}
    widths = [degrees**2, *[width] * hidden, bands]
    for layer, (into, out) in enumerate(itertools.pairwise(widths)):
        scale = gain / into if layer == 0 else (6 / into) ** 0.5
        name = f"layers.{layer}" if layer < hidden else "last_layer"
        tensors[f"{name}.weight"] = random.uniform(-scale, scale, (out, into))
        tensors[f"{name}.bias"] = random.uniform(-0.1, 0.1, out)
    return load(LocationWeights(tensors, "orthonormal"), threads=threads)


def numbered_encoder(number: int) -> Encoder:
    """Network 0 to 29: every L, gain and depth with others than the number before."""
    random = np.random.default_rng(number)
    return random_encoder(
        degrees=round(3 * 20 ** (number * 7 % MODELS / (MODELS - 1))),
        gain=60 ** (number * 11 % MODELS / (MODELS - 1)),
        hidden=1 + number // 10,
        width=int(random.integers(16, 49)),
        bands=int(random.integers(4, 13)),
        seed=number,
    )


@functools.cache
def pixels_of(window: str) -> tuple[Grid, Grid | ApproximatedGrid]:
    """The pixels of a window, exactly and as a lattice places them."""
    grid = make_grid(**WINDOWS[window])
    return grid, grid if grid.separable else ApproximatedGrid(grid)


def check(number: int, window: str, positions: int) -> Outcome:
    """Compare a network's values by its plan with exact ones."""
    exact = numbered_encoder(number)
    grid, smooth = pixels_of(window)
    with mock.patch.object(planning, "rates_of", return_value=RATES):
        plan, network = exact.choose(grid, tolerance=TOLERANCES[number % len(TOLERANCES)])
    random = np.random.default_rng([number, positions])
    certificate = plan.certificate
    rows, columns = (slice(k, k + 16) for k in random.integers(0, np.subtract(grid.shape, 16)))
    located = smooth if plan.interpolates else grid
    delivered, truth = network.encode_pixels(located, rows, columns), exact.evaluate(grid, rows, columns)
    if certificate is None:
        assert np.array_equal(delivered, truth), f"{window}: not the exact values"
        return Outcome(window, False)
    pixels = [random.integers(0, size, positions) for size in grid.shape]
    lonlat = located.pixel_lonlat(*pixels)
    if positions * plan.order**2 < plan.nodes // 16:
        values = planning.reconstruct_alone(exact.network, plan.zones, lonlat, exact.threads)
    else:
        values = network.encode(lonlat)
    error = np.abs(values - exact.network.encode(grid.pixel_lonlat(*pixels)))
    largest = np.maximum(error.max(axis=0), np.abs(delivered - truth).max(axis=(0, 1)))
    of_bound = (largest / certificate.sigma).max() / certificate.max_sigma
    of_tolerance = (largest / plan.tolerance.bands).max()
    beyond = np.mean((error / certificate.sigma).max(axis=1) > certificate.max_sigma)
    of_band = np.mean(error > certificate.max_error, axis=0).max()
    shares = map(float, (of_bound, of_tolerance, beyond, of_band))
    return Outcome(window, True, *shares, certificate.fraction)


def row(outcomes: Sequence[Outcome]) -> str:
    """A window's line of the table."""
    interpolated = [outcome for outcome in outcomes if outcome.interpolates]
    exact = len(outcomes) - len(interpolated)
    cells = [outcomes[0].window, str(len(outcomes)), f"{len(interpolated)} / {exact}"]
    cells += [f"{max(getattr(o, name) for o in interpolated):.2f}" for name in ("of_bound", "of_tolerance")]
    for name in ("beyond", "of_band"):
        worst = max(interpolated, key=lambda outcome: getattr(outcome, name) / outcome.stated)
        cells.append(f"{100 * getattr(worst, name):.2g} % of {100 * worst.stated:.2g} %")
    return "| " + " | ".join(cells) + " |"


@click.command(cls=Command, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--positions", default=100_000, show_default=True, help="Fresh pixels of every case.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write the table here too.")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of a failure.")
def main(positions: int, markdown: Path | None, verbose: bool) -> None:
    """Compare thirty networks on six rasters with what their certificates say."""
    heads = "window | cases | lattice / exact | error / bound | error / tolerance | beyond | of a band"
    lines = [f"| {heads} |", "|" + " --- |" * (heads.count("|") + 1)]
    for window in WINDOWS:
        lines.append(row([check(number, window, positions) for number in range(MODELS)]))
    click.echo("\n".join(lines))
    if markdown:
        markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

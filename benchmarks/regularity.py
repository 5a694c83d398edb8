"""Lattice spacing that a field needs.

    python benchmarks/regularity.py default mine.safetensors --tolerance 1e-3

The spacing of a lattice of longitudes and latitudes from which 8-point Lagrange interpolation in both
directions gives every band back within the tolerance: a root mean square error in units of the band's own
deviation over the globe. The cost of a fine raster made from a lattice falls with the square of the spacing,
so this is what the first layer's gain costs (`satclip-train --max-gain`). Prints Markdown.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

import click
import numpy as np

from satclip_engine.bench.machine import versions
from satclip_engine.cli._command import EXIT_CODES, Command
from satclip_engine.encoder import Encoder, load

TAPS = 8  # of the interpolation, in each direction
WIDEST_DEGREES, FINEST_DEGREES = 40.0, 0.05  # between which the spacing is sought
MAX_LATITUDE = 60.0  # positions lie below it: nearer to the poles meridians crowd
DEGREE_KM = 111.195  # of a degree of latitude


@click.command(cls=Command, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("weights", nargs=-1, required=True, metavar="NAME|FILE...")
@click.option("--tolerance", default=1e-3, show_default=True, help="In deviations of a band.")
@click.option("--places", "points", default=400, show_default=True, help="Positions that are interpolated.")
@click.option("--seed", default=0, show_default=True, help="Of the positions.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="All numbers.")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of a failure.")
def main(
    weights: tuple[str, ...], tolerance: float, points: int, seed: int, json_file: Path | None, verbose: bool
) -> None:
    """Measure how coarse a lattice may be from which a field is reconstructed."""
    fields = []
    click.echo("| weights | gain of the first layer | lattice spacing | nodes of the globe |")
    click.echo("| --- | --- | --- | --- |")
    for name in weights:
        encoder = load(name)
        degrees = spacing(encoder, tolerance, points, seed)
        result = {"weights": PurePath(name).name, "gain": gain(encoder), "spacing_degrees": degrees}
        fields.append(result)
        cells = [result["weights"], f"{result['gain']:.2f}", f"{degrees:.2f}° ({degrees * DEGREE_KM:.0f} km)"]
        click.echo("| " + " | ".join([*cells, f"{360 / degrees * 180 / degrees:,.0f}"]) + " |")
    if json_file:
        options = {"tolerance": tolerance, "places": points, "seed": seed, "points": TAPS}
        content: dict[str, Any] = {"versions": versions(), "options": options, "fields": fields}
        json_file.write_text(json.dumps(content, indent=1) + "\n")


def spacing(encoder: Encoder, tolerance: float, points: int = 400, seed: int = 0) -> float:
    """Degrees: the widest of a geometric series of spacings whose error, and that of all finer ones, is
    within the tolerance, refined by interpolating the logarithm of the error."""
    rng = np.random.default_rng(seed)
    height = np.sin(np.radians(MAX_LATITUDE))
    globe = np.stack([rng.uniform(-180, 180, 4096), np.degrees(np.arcsin(rng.uniform(-1, 1, 4096)))], axis=1)
    deviation = np.asarray(encoder(globe)).std(axis=0)
    lonlat = np.stack(
        [rng.uniform(-180, 180, points), np.degrees(np.arcsin(rng.uniform(-height, height, points)))], axis=1
    )
    fractions = rng.uniform(0, 1, (points, 2))
    exact = np.asarray(encoder(lonlat), np.float64)
    steps = np.geomspace(FINEST_DEGREES, WIDEST_DEGREES, 28)
    errors = []
    for step in steps:
        errors.append(_error(encoder, lonlat, fractions, exact, deviation, step))
        if errors[-1] > 10 * tolerance:
            break
    above = next((i for i, error in enumerate(errors) if error > tolerance), None)
    if above == 0:
        raise click.ClickException(f"even {FINEST_DEGREES}° is too wide for a tolerance of {tolerance:g}")
    if above is None:
        return float(steps[len(errors) - 1])
    low, high = np.log(errors[above - 1]), np.log(errors[above])
    share = (np.log(tolerance) - low) / (high - low)
    return float(steps[above - 1] * (steps[above] / steps[above - 1]) ** share)


def _error(
    encoder: Encoder,
    lonlat: np.ndarray,
    fractions: np.ndarray,
    exact: np.ndarray,
    deviation: np.ndarray,
    step: float,
) -> float:
    """Root mean square over points and bands of what interpolation from nodes `step` degrees apart misses."""
    nodes = np.arange(TAPS) - (TAPS // 2 - 1)
    lon = lonlat[:, :1] + (nodes - fractions[:, :1]) * step  # (n, P)
    lat = lonlat[:, 1:] + (nodes - fractions[:, 1:]) * step
    across, down = lagrange(fractions[:, 0]), lagrange(fractions[:, 1])
    grid = np.stack(np.broadcast_arrays(lon[:, None, :], lat[:, :, None]), axis=-1)
    nodal = np.asarray(encoder(_over_the_poles(grid).reshape(-1, 2))).reshape(*grid.shape[:3], -1)
    values = np.einsum("nj,ni,njic->nc", down, across, nodal, optimize=True)
    return float(np.sqrt((((values - exact) / deviation) ** 2).mean()))


def lagrange(fraction: np.ndarray) -> np.ndarray:  # (n,) -> (n, P)
    """Weights of the nodes −P/2 + 1 … P/2 at a position between nodes 0 and 1."""
    nodes = np.arange(TAPS) - (TAPS // 2 - 1)
    weights = np.ones((len(fraction), TAPS))
    for index, node in enumerate(nodes):
        for other in np.delete(nodes, index):
            weights[:, index] *= (fraction - other) / (node - other)
    return weights


def _over_the_poles(grid: np.ndarray) -> np.ndarray:
    """Move nodes beyond a pole to the other side."""
    lon, lat = grid[..., 0], grid[..., 1]
    beyond = np.abs(lat) > 90
    lat = np.where(beyond, np.copysign(180, lat) - lat, lat)
    return np.stack([np.where(beyond, lon + 180, lon), lat], axis=-1)


def gain(encoder: Encoder) -> float:
    """Norm of a unit's first weights, in multiples of that at the published start; the units' mean square."""
    weights = encoder.weights.converted("orthonormal")
    first = np.asarray(weights.tensors["layers.0.weight"], np.float64)
    start = 1 / (np.sqrt(3) * np.sqrt(first.shape[1]))
    return float(np.sqrt((np.linalg.norm(first, axis=1) ** 2).mean()) / start)


if __name__ == "__main__":
    main()

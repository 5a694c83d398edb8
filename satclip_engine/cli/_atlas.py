"""`satclip-grid --atlas`: the lattice of the whole Earth as a file, and what is said of it."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from satclip_engine import __version__
from satclip_engine.cli._report import weights_name
from satclip_engine.errors import OutputError
from satclip_engine.progress import duration_text, progress_for, size_text

if TYPE_CHECKING:
    from satclip_engine.cli.grid import Options
    from satclip_engine.encoder import Encoder

DTYPE = "int16"
# Options that say something about an atlas; the others describe a raster.
TAKEN: tuple[str, ...] = (
    "atlas",
    "weights",
    "harmonics",
    "dtype",
    "bands",
    "threads",
    "tolerance",
    "device",
    "backend",
)
TAKEN += ("precision", "overwrite", "as_json", "verbose", "quiet")


def check_options(context: click.Context) -> None:
    """Refuse what describes a raster. Raises click.UsageError."""
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)
        if given and name not in TAKEN:
            what = "OUTPUT" if name == "output" else max(parameter.opts, key=len)
            raise click.UsageError(
                f"--atlas writes a lattice of the whole Earth, no raster: leave out {what}"
            )


def run(options: Options, encoder: Encoder, *, dtype_given: bool) -> None:
    """Write the atlas and report."""
    from satclip_engine.atlas.write import TOLERANCE, write_atlas

    assert options.atlas is not None
    started = time.perf_counter()
    progress = progress_for(quiet=options.quiet, unit="nodes")
    try:
        report = write_atlas(
            encoder,
            options.atlas,
            tolerance=TOLERANCE if options.tolerance is None else options.tolerance,
            dtype=options.dtype if dtype_given else DTYPE,
            overwrite=options.overwrite,
            threads=options.threads,
            progress=progress,
        )
    except OutputError as error:
        raise OutputError(re.sub(r"\buse overwrite\b", "use --overwrite", str(error))) from error
    finally:
        progress.finish()
    if options.as_json:
        content: dict[str, Any] = {**report.as_dict(), "version": __version__}
        click.echo(json.dumps(content, indent=2))
        return
    found, weights = report.certificate, encoder.weights
    lines = [
        ("size", f"{size_text(report.bytes)}, {report.dtype}, {report.chunks} chunks"),
        ("lattice", f"every {report.spacing:.3g}° at order {report.order}, {report.nodes:,} nodes"),
        ("bands", f"{report.bands} of {weights.embed_dim}"),
        ("weights", f"{weights_name(encoder)} {weights.sha256[:8]}, {weights.harmonics} harmonics"),
        (
            "error",
            f"{found.max_sigma:.2g} σ at most, rms {found.rms_sigma:.1g} σ, "
            f"cosine at least 1 - {1 - found.min_cosine:.1g},",
        ),
        (
            "",
            f"at {found.positions + found.further:,} positions; beyond that at most "
            f"{100 * found.fraction:.2g} % of the Earth",
        ),
        ("time", duration_text(time.perf_counter() - started)),
        ("use", f'se.load("{report.path}"), or satclip-grid OUTPUT --weights {report.path}'),
    ]
    click.echo("\n".join([str(report.path), *(f"  {name:<8} {text}" for name, text in lines)]))

"""`satclip-grid --atlas`: write the lattice of the whole Earth as a file, and report."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from satclip_engine import __version__
from satclip_engine.cli._command import show
from satclip_engine.cli._report import for_programs, summary, weights_name
from satclip_engine.progress import duration_text, progress_for, size_text

if TYPE_CHECKING:
    from satclip_engine.cli._options import CommandLine
    from satclip_engine.encoder import Encoder

DTYPE = "int16"
# Options that say something about an atlas; the others describe a raster.
ATLAS_OPTIONS = (
    *("atlas", "weights", "harmonics", "convention", "dtype", "bands", "threads", "tolerance", "device"),
    *("backend", "precision", "overwrite", "as_json", "verbose", "quiet"),
)


def check_options(context: click.Context) -> None:
    """Refuse what describes a raster. Raises click.UsageError."""
    for parameter in context.command.params:
        name = parameter.name or ""
        is_given = context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)
        if is_given and name not in ATLAS_OPTIONS:
            option = "OUTPUT" if name == "output" else max(parameter.opts, key=len)
            raise click.UsageError(
                f"--atlas writes a lattice of the whole Earth, no raster: leave out {option}"
            )


def run(options: CommandLine, encoder: Encoder, *, dtype_given: bool) -> None:
    """Write the atlas and report."""
    from satclip_engine.atlas.write import DEFAULT_TOLERANCE, write_atlas

    assert options.atlas is not None
    started, raster = time.perf_counter(), options.raster
    progress = progress_for(quiet=options.quiet, unit="nodes")
    try:
        report = write_atlas(
            encoder,
            options.atlas,
            tolerance=DEFAULT_TOLERANCE if raster.tolerance is None else raster.tolerance,
            dtype=raster.dtype if dtype_given else DTYPE,
            overwrite=raster.overwrite,
            threads=raster.threads,
            progress=progress,
        )
    finally:
        progress.finish()
    if options.as_json:
        content: dict[str, Any] = {**report.as_dict(), "version": __version__}
        click.echo(for_programs(content, options.as_json))
        return
    certificate, weights = report.certificate, encoder.weights
    lines = [
        ("size", f"{size_text(report.bytes)}, {report.dtype}, {report.chunks} chunks"),
        ("lattice", f"every {report.spacing:.3g}° at order {report.order}, {report.nodes:,} nodes"),
        ("bands", f"{report.bands} of {weights.embed_dim}"),
        ("weights", f"{weights_name(encoder)} {weights.sha256[:8]}, {weights.harmonics} harmonics"),
        (
            "error",
            f"{certificate.max_sigma:.2g} σ at most, rms {certificate.rms_sigma:.1g} σ, "
            f"cosine at least 1 - {1 - certificate.min_cosine:.1g},",
        ),
        (
            "",
            f"at {certificate.positions + certificate.further:,} positions; beyond that at most "
            f"{100 * certificate.fraction:.2g} % of the Earth",
        ),
        ("time", duration_text(time.perf_counter() - started)),
        ("use", f'se.load("{report.path}"), or satclip-grid OUTPUT --weights {report.path}'),
    ]
    show(summary(str(report.path), lines))

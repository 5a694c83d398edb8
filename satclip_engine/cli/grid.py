"""`satclip-grid`: a raster of location embeddings as a Cloud-Optimized GeoTIFF, and a picture of it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from satclip_engine import __version__
from satclip_engine.cli._command import EXIT_CODES, Command, Terminated, say_line, show
from satclip_engine.cli._options import CommandLine, json_option, raster_options
from satclip_engine.cli._types import Bands, BandsType, DeviceType, FileType, ResolutionType, SourceType
from satclip_engine.errors import Argument, OutputError, SatclipError, UsageError
from satclip_engine.options import BACKENDS, CONVENTIONS, HARMONICS, PRECISIONS, option_fields

if TYPE_CHECKING:
    from satclip_engine.arrays.pca import GlobalPCA
    from satclip_engine.encoder import Encoder
    from satclip_engine.geo.grid import Grid
    from satclip_engine.progress import Progress
    from satclip_engine.raster.write import Report

HELP = """Write a raster of location embeddings: every pixel becomes the vector that the encoder gives its
centre.

OUTPUT (.tif) is a Cloud-Optimized GeoTIFF with one band for each dimension of the embedding. Beside it lies
a picture of the same name (.png) of the first three principal components. Without options: the globe in
pixels of 0.25 degrees, all bands, one byte a value.

\b
Examples:
  satclip-grid world.tif
  satclip-grid europe.tif --bounds -12 34 42 72 --resolution 0.05
  satclip-grid fiji.tif --bounds 174 -23 184 -14 --resolution 0.02
  satclip-grid utm33.tif --crs EPSG:32633 --resolution 1000 \\
      --bounds 300000 5000000 700000 5400000
  satclip-grid utm33.tif --crs EPSG:32633 --resolution 100 \\
      --bounds 10 45 12 47 --bounds-crs EPSG:4326
  satclip-grid basin.tif --bounds 5.13 43.2 9.87 47.61 --resolution 30s --snap
  satclip-grid same.tif --like landcover.tif --dtype uint8
  satclip-grid rgb.tif --bands pca:3 --resolution 0.1
  satclip-grid few.tif --bands 1,5,9-12 --weights satclip-vit16-l40.ckpt
  satclip-grid fine.tif --bounds 5 45 8 48 --resolution 0.001 --plan
  satclip-grid one.tif --bounds 5 45 6 46 --resolution 0.01 --range window
  satclip-grid points.tif --resolution 0.05 --interleave pixel
  satclip-grid --atlas earth.zarr --weights satclip-vit16-l40.ckpt
  satclip-grid nile.tif --bounds 29 22 35 32 --resolution 0.01 --weights earth.zarr

Integer values carry a scale and an offset for each band in GDAL's own tags; QGIS, and rioxarray with
mask_and_scale=True, give back real values. All rasters of the same weights have the same ones, so that
tiles can be put together.

A raster finer than the field is interpolated from a coarse lattice of it, up to a hundred times as fast. How
far that is off is measured in every run, reported, and written into the file's tags; --exact never
interpolates.
"""

EPILOG = f"""A run that was stopped leaves nothing under OUTPUT's name. What it had finished lies in the
hidden
folder .OUTPUT.satclip-spool beside it; the same command with --resume continues from there and ends with the
same bytes, and a run without --resume starts over.

{EXIT_CODES}"""


@click.command(
    cls=Command,
    name="satclip-grid",
    help=HELP,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=False,
)
@click.argument(
    "output", required=False, metavar="OUTPUT", type=FileType((".tif", ".tiff"), "a GeoTIFF's name")
)
@click.option(
    "--weights",
    type=SourceType("default", "default-l10"),
    default="default",
    show_default=True,
    metavar="SOURCE",
    help="default, default-l10, a .ckpt or .safetensors file, hf://org/name[/file], or an atlas (.zarr).",
)
@click.option(
    "--harmonics",
    type=click.Choice(HARMONICS, case_sensitive=False),
    help="Spherical harmonics: exact, or as the published code evaluates them.  "
    "[default: what the weights were trained with]",
)
@click.option(
    "--convention",
    type=click.Choice(CONVENTIONS),
    help="How the harmonics of weights are scaled whose file does not say it: a bare state dictionary.",
)
@click.option(
    "--resolution",
    type=ResolutionType(),
    metavar="SIZE",
    help="Pixel size in units of the CRS, one number or X,Y; also 1/12, 30s or 5min (of arc), 1km.  "
    "[default: 0.25 for degrees; required for a projected CRS]",
)
@click.option(
    "--bounds",
    type=float,
    nargs=4,
    metavar="W S E N",
    help="Edges in units of the CRS; E > 180 crosses the antimeridian.  "
    "[default: the globe, or the CRS's area of use]",
)
@click.option(
    "--bounds-crs",
    metavar="CRS",
    help="CRS of --bounds, if another one; the raster surrounds them in whole pixels, as with --snap.",
)
@click.option(
    "--snap",
    "align",
    is_flag=True,
    help="Widen --bounds outward to multiples of the resolution, as gdalwarp -tap does.",
)
@click.option(
    "--crs",
    metavar="CRS",
    help="EPSG code, PROJ string or WKT; with --like, of a raster that has none.  [default: EPSG:4326]",
)
@click.option(
    "--like",
    type=SourceType(),
    metavar="RASTER",
    help="Take the pixels of a raster; excludes resolution and bounds.",
)
@raster_options("dtype")
@click.option(
    "--bands",
    type=BandsType(),
    default="all",
    show_default=True,
    metavar="all|LIST|pca:K",
    help="Dimensions of the embedding (1-64 or 1,5,9-12, from 1), or its first K principal components.",
)
@raster_options(
    *("range", "scale", "compress", "interleave", "blocksize", "threads", "memory", "tolerance", "exact")
)
@click.option(
    "--device",
    type=DeviceType(),
    default="cpu",
    show_default=True,
    metavar="cpu|cuda[:N]",
    help="Device that computes embeddings; tiles are packed and compressed on the CPU.",
)
@click.option(
    "--backend",
    type=click.Choice(BACKENDS, case_sensitive=False),
    default="auto",
    show_default=True,
    help="Implementation of the encoder.  auto: the fastest on the device.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS, case_sensitive=False),
    default="exact",
    show_default=True,
    help="Of a GPU: exact float32, or 16-bit products after the first layer.",
)
@raster_options("overwrite", "resume")
@click.option(
    "--preview",
    type=FileType((".png",), "a preview's name"),
    metavar="PNG",
    help="Name of the picture.  [default: OUTPUT with .png]",
)
@click.option("--no-preview", is_flag=True, help="Draw no picture.")
@click.option(
    "--atlas",
    type=click.Path(path_type=Path),
    metavar="ZARR",
    help="In place of OUTPUT: write the lattice of the whole Earth, from which points and rasters are made "
    "without the weights (--weights ZARR).  [--dtype int16, --tolerance 1e-3]",
)
@click.option(
    "--plan",
    is_flag=True,
    help="Say how it would be computed and why, time, memory and disk it would take, and stop there.",
)
@json_option
@click.option("-v", "--verbose", is_flag=True, help="Say more; show the traceback of a failure.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.version_option(__version__, message="%(prog)s %(version)s")
def main(**parameters: Any) -> None:
    # The help text is HELP.
    options, context = CommandLine.of(parameters), click.get_current_context()
    if options.atlas is not None:
        from satclip_engine.cli import _atlas

        _atlas.check_options(context)
        dtype_given = context.get_parameter_source("dtype") != ParameterSource.DEFAULT
        encoder, _ = _select(_load(options), options.bands)
        _atlas.run(options, encoder, dtype_given=dtype_given)
        return
    if options.output is None and not options.plan:
        raise click.MissingParameter(ctx=context, param=context.command.params[0])
    _check_paths(options)
    run(options)


def run(options: CommandLine) -> None:
    """Check everything cheap, write the raster, draw the preview, report."""
    from satclip_engine.cli import _report
    from satclip_engine.progress import progress_for
    from satclip_engine.raster.report import peak_memory

    started = time.perf_counter()
    grid = _grid(options)
    whole = _load(options)
    encoder, fit = _select(whole, options.bands)
    progress = progress_for(quiet=options.quiet)
    if options.plan:
        _show_plan(options, encoder, grid, progress)
        return
    if options.verbose:
        say_line(f"satclip-grid: {encoder!r}")
    try:
        tags = _report.provenance(options, encoder, fit)
        report = _write(options, encoder, grid, tags, progress)
        preview = _preview(options, whole, grid, report, progress)
        report = replace(report, peak_memory=peak_memory())  # drawing took memory too
    finally:
        progress.finish()
    seconds = time.perf_counter() - started
    result = _report.Result(options, encoder, grid, report, fit, preview, seconds)
    click.echo(_report.as_json(result)) if options.as_json else show(_report.as_text(result))


def _show_plan(options: CommandLine, encoder: Encoder, grid: Grid, progress: Progress) -> None:
    from satclip_engine.cli import _plan

    try:
        forecast = _plan.forecast(options, encoder, grid, progress)
    finally:
        progress.finish()
    click.echo(_plan.as_json(forecast)) if options.as_json else show(_plan.as_text(forecast))


def _load(options: CommandLine) -> Encoder:
    from satclip_engine.encoder import load

    return load(
        options.weights,
        harmonics=options.harmonics,
        convention=options.convention,
        backend=options.backend,
        device=str(options.device),
        threads=options.raster.threads,
        precision=options.precision,
    )


def _check_paths(options: CommandLine) -> None:
    """Refuse now, before any work, what could not be written at the end."""
    from satclip_engine.preview.write import check_preview_path
    from satclip_engine.raster.output import check_path

    output, preview, raster = options.output, options.preview_path, options.raster
    if options.plan:
        return
    like = None if options.like is None else Path(options.like)
    for written, word in ((output, "OUTPUT"), (preview, "the preview")):
        if like is not None and written is not None and _is_same_file(like, written):
            raise UsageError(
                f"{like} is {word} itself, which would replace it: give another name", argument="like"
            )
    check_path(output, replaceable=raster.overwrite or raster.resume)
    if preview is not None:
        finished = raster.resume and output.exists()  # then a preview is the finished run's own, and kept
        check_preview_path(preview, overwrite=raster.overwrite or finished)


def _is_same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except (OSError, ValueError):  # one of them is missing, or no file
        return False


def _grid(options: CommandLine) -> Grid:
    from satclip_engine.geo.grid import make_grid, outside_area_of_use

    grid = make_grid(
        resolution=options.resolution,
        bounds=options.bounds,
        crs=options.crs,
        like=options.like,
        bounds_crs=options.bounds_crs,
        align=options.align,
    )
    if options.bounds is not None and (note := outside_area_of_use(grid)):
        warnings.warn(note, UserWarning, stacklevel=1)
    return grid


def _select(whole: Encoder, bands: Bands) -> tuple[Encoder, GlobalPCA | None]:
    """The encoder of the chosen bands, and the components' fit when they are principal components."""
    from satclip_engine.arrays.pca import pca_head

    if bands.pca:
        return pca_head(whole, bands.pca)
    return (whole if bands.numbers == "all" else whole.select(bands.numbers)), None


def _write(
    options: CommandLine, encoder: Encoder, grid: Grid, tags: dict[str, str], progress: Progress
) -> Report:
    from satclip_engine.raster.write import write_raster

    written = {name: getattr(options.raster, name) for name in option_fields()}
    with _saying_how_to_resume(options.output):
        return write_raster(encoder, options.output, grid, **written, tags=tags, progress=progress)


@contextmanager
def _saying_how_to_resume(output: Path) -> Iterator[None]:
    """Tell whoever stops a run that it can be resumed, if it can."""
    from satclip_engine.raster.spool import read_state, spool_folder

    try:
        yield
    except KeyboardInterrupt as error:
        folder = spool_folder(output)
        if read_state(folder) is None:  # nothing is finished yet
            raise
        raise type(error)(
            f"{_word(error)}; what is finished lies in {folder}: the same command with --resume continues "
            "from there"
        ) from error


def _word(error: KeyboardInterrupt) -> str:
    return "terminated" if isinstance(error, Terminated) else "interrupted"


def _preview(
    options: CommandLine, whole: Encoder, grid: Grid, report: Report, progress: Progress
) -> Path | None:
    """Draw the picture unless none is wanted or the run found raster and picture finished; its path."""
    from satclip_engine.cli import _report
    from satclip_engine.preview.write import write_preview

    path, raster = options.preview_path, options.raster
    if path is None or (_report.was_complete(report) and path.exists() and not raster.overwrite):
        return path
    progress.stage("drawing the preview")
    with _saying_the_raster_is_complete(options.output):
        return write_preview(
            whole,
            path,
            grid=grid,
            title=_report.preview_title(whole),
            source=_report.preview_source(whole, grid),
            overwrite=raster.overwrite or raster.resume,  # the checks at the start refused a stranger's
        )


@contextmanager
def _saying_the_raster_is_complete(output: Path) -> Iterator[None]:
    """Tell whoever's picture fails or is stopped that the raster needs no second run."""
    complete = f"{output} is complete and right, but its picture is not: "
    advice = (
        "; ",
        Argument("resume", True),
        " in place of ",
        Argument("overwrite"),
        " draws the picture alone",
    )
    try:
        yield
    except SatclipError as error:
        raise OutputError(complete, *error.message) from error
    except (MemoryError, OSError) as error:
        raise OutputError(complete, str(error) or "there is not enough memory", *advice) from error
    except KeyboardInterrupt as error:
        raise type(error)(f"{complete}{_word(error)}; the same command with --resume draws it") from error

"""`satclip-grid`: a raster of location embeddings as a Cloud-Optimized GeoTIFF, and a picture of it."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from satclip_engine import __version__
from satclip_engine.cli._command import EXIT_CODES, Command, Terminated
from satclip_engine.cli._types import Bands, BandsType, DeviceType, FileType, MemoryType, ResolutionType
from satclip_engine.errors import OutputError, UsageError

if TYPE_CHECKING:
    from satclip_engine.device import Device
    from satclip_engine.encoder import Encoder
    from satclip_engine.grid import Grid
    from satclip_engine.pca import GlobalPCA
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
  satclip-grid same.tif --like landcover.tif --dtype int16
  satclip-grid rgb.tif --bands pca:3 --resolution 0.1
  satclip-grid few.tif --bands 1,5,9-12 --weights satclip-vit16-l40.ckpt
  satclip-grid fine.tif --bounds 5 45 8 48 --resolution 0.001 --plan
  satclip-grid --atlas earth.zarr --weights satclip-vit16-l40.ckpt
  satclip-grid nile.tif --bounds 29 22 35 32 --resolution 0.01 --weights earth.zarr

Integer values carry a scale and an offset for each band in GDAL's own tags; QGIS, and rioxarray with
mask_and_scale=True, give back real values.

A raster finer than the field is interpolated from a coarse lattice of it, up to a hundred times as fast. How
far that is off is measured in every run, reported, and written into the file's tags; --exact never
interpolates.
"""

EPILOG = f"""A run that was stopped leaves nothing under OUTPUT's name. What it had finished lies in the
hidden
folder .OUTPUT.satclip-spool beside it; the same command with --resume goes on from there and ends with the
same bytes, and a run without --resume begins anew.

{EXIT_CODES}"""

DTYPES = ("int8", "int16", "float16", "float32")
COMPRESSIONS = ("zstd", "deflate", "lerc", "none")
BACKENDS = ("auto", "triton", "cuda", "cpu", "reference")
PRECISIONS = ("exact", "fast")


@dataclass(frozen=True)
class Options:
    """The command line, parsed."""

    output: Path  # without one, an atlas is written
    atlas: Path | None
    weights: str
    harmonics: Literal["exact", "published"] | None
    resolution: float | tuple[float, float] | None
    bounds: tuple[float, float, float, float] | None
    crs: str | None
    like: str | None
    dtype: str
    bands: Bands
    compress: str
    blocksize: int | None
    threads: int | None
    memory: int
    tolerance: float | None
    exact: bool
    device: Device
    backend: str
    precision: str
    overwrite: bool
    resume: bool
    preview: Path | None
    no_preview: bool
    plan: bool
    as_json: bool
    verbose: bool
    quiet: bool

    @property
    def written(self) -> dict[str, Any]:
        """How the raster is written, as `write_raster` and a request for one take it."""
        names = ("dtype", "compress", "blocksize", "threads", "memory", "exact", "tolerance")
        return {name: getattr(self, name) for name in names}

    @property
    def preview_path(self) -> Path | None:
        """Where the picture goes; None when none is wanted."""
        return None if self.no_preview else self.preview or self.output.with_suffix(".png")


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
    default="default",
    show_default=True,
    metavar="SOURCE",
    help="default, default-l10, a .ckpt or .safetensors file, hf://org/name[/file], or an atlas (.zarr).",
)
@click.option(
    "--harmonics",
    type=click.Choice(("exact", "published")),
    help="Spherical harmonics: exact, or as the published code evaluates them.  "
    "[default: what the weights were trained with]",
)
@click.option(
    "--resolution",
    type=ResolutionType(),
    metavar="SIZE",
    help="Pixel size in units of the CRS, one number or X,Y.  "
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
@click.option("--crs", metavar="CRS", help="EPSG code, PROJ string or WKT.  [default: EPSG:4326]")
@click.option(
    "--like", metavar="RASTER", help="Take the pixels of a raster; excludes the three options above."
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="int8",
    show_default=True,
    help="Type of the values. int8 needs GDAL 3.7 or newer to be read right (builds of QGIS 3.32 and newer "
    "have it); take int16 for older ones.",
)
@click.option(
    "--bands",
    type=BandsType(),
    default="all",
    show_default=True,
    metavar="all|LIST|pca:K",
    help="Dimensions of the embedding (1-64 or 1,5,9-12, from 1), or its first K principal components.",
)
@click.option(
    "--compress",
    type=click.Choice(COMPRESSIONS),
    default="zstd",
    show_default=True,
    help="Compression of the tiles.",
)
@click.option(
    "--blocksize",
    type=int,
    metavar="N",
    help="Side of the internal tiles in pixels, a multiple of 16.  [default: by size and bands]",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads.  [default: all cores]")
@click.option(
    "--memory",
    type=MemoryType(),
    default="1GB",
    show_default=True,
    metavar="SIZE",
    help="Working memory to stay within.",
)
@click.option(
    "--tolerance",
    type=float,
    metavar="T",
    help="How far interpolated values may be off, in standard deviations of each band over the globe.  "
    "[default: an eighth of a step of integers; 1e-4 for floats]",
)
@click.option("--exact", is_flag=True, help="Evaluate every pixel, never interpolate.")
@click.option(
    "--device",
    type=DeviceType(),
    default="cpu",
    show_default=True,
    metavar="cpu|cuda[:N]",
    help="Where embeddings are computed; tiles are packed and compressed on the CPU.",
)
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="What computes.  auto: the fastest on the device.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="exact",
    show_default=True,
    help="Of a GPU: exact float32, or 16-bit products after the first layer.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT and its preview.")
@click.option("--resume", is_flag=True, help="Go on with a run of the same command that was stopped.")
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
@click.option("--plan", is_flag=True, help="Say how it would be computed, how long and why, and stop there.")
@click.option("--json", "as_json", is_flag=True, help="Report on stdout as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Say more; show the traceback of a failure.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.version_option(__version__, message="%(prog)s %(version)s")
def main(**given: Any) -> None:
    # The help text is HELP.
    options, context = Options(**given), click.get_current_context()
    if options.atlas is not None:
        from satclip_engine.cli import _atlas

        _atlas.check_options(context)
        dtype_given = context.get_parameter_source("dtype") != ParameterSource.DEFAULT
        encoder, _ = _select(_load(options), options.bands)
        with _naming("atlas", "tolerance", "dtype", "threads"):
            _atlas.run(options, encoder, dtype_given=dtype_given)
        return
    if options.output is None:
        raise click.MissingParameter(ctx=context, param=context.command.params[0])
    _check_exclusive(options)
    _check_paths(options)
    run(options)


def run(options: Options) -> None:
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
        click.echo(f"satclip-grid: {encoder!r}", err=True)
    try:
        tags = _report.provenance(options, encoder, fit)
        report = _write(options, encoder, grid, tags, progress)
        preview = _preview(options, whole, grid, report, progress)
        report = replace(report, peak_memory=peak_memory())  # drawing took memory too
    finally:
        progress.finish()
    show = _report.as_json if options.as_json else _report.as_text
    seconds = time.perf_counter() - started
    click.echo(show(_report.Result(options, encoder, grid, report, fit, preview, seconds)))


def _show_plan(options: Options, encoder: Encoder, grid: Grid, progress: Progress) -> None:
    from satclip_engine.cli import _plan

    try:
        with _naming("blocksize", "memory", "dtype", "compress", "threads", "resolution", "tolerance"):
            outlook = _plan.look(options, encoder, grid, progress)
    finally:
        progress.finish()
    click.echo(_plan.as_json(outlook) if options.as_json else _plan.as_text(outlook))


def _load(options: Options) -> Encoder:
    from satclip_engine.encoder import load

    with _naming("device", "backend"):
        return load(
            options.weights,
            harmonics=options.harmonics,
            backend=options.backend,
            device=str(options.device),
            threads=options.threads,
            precision=options.precision,
        )


def _check_exclusive(options: Options) -> None:
    if options.overwrite and options.resume:
        raise click.UsageError("--overwrite begins anew and --resume goes on: give one of them")
    if options.exact and options.tolerance is not None:
        raise click.UsageError("--exact never interpolates and --tolerance is for that: give one of them")
    if options.preview and options.no_preview:
        raise click.UsageError("--preview and --no-preview exclude each other: give one of them")
    if options.verbose and options.quiet:
        raise click.UsageError("-v and -q exclude each other: give one of them")
    if options.like is not None:
        fixed = {"--resolution": options.resolution, "--bounds": options.bounds, "--crs": options.crs}
        if taken := [name for name, value in fixed.items() if value is not None]:
            raise click.UsageError(f"--like already fixes the grid: leave out {' and '.join(taken)}")


def _check_paths(options: Options) -> None:
    """Refuse now, before any work, what could not be written at the end."""
    from satclip_engine.raster.preview import check_preview_path

    output, preview = options.output, options.preview_path
    if options.plan:
        return
    if not output.parent.is_dir():
        raise OutputError(f"cannot write {output}: there is no folder {output.parent}")
    if output.is_dir():
        raise OutputError(f"cannot write {output}: it is a folder")
    like = None if options.like is None else Path(options.like)
    if like is not None and output.exists() and like.exists() and output.samefile(like):
        raise UsageError(f"--like: {like} is OUTPUT itself, which would replace it: give another name")
    if output.exists() and not (options.overwrite or options.resume):
        raise OutputError(f"{output} exists already: remove it, choose another name, or use --overwrite")
    if preview is not None:
        finished = options.resume and output.exists()  # then a preview is the finished run's own, and kept
        check_preview_path(preview, overwrite=options.overwrite or finished)


def _grid(options: Options) -> Grid:
    from satclip_engine.grid import make_grid, outside_area_of_use

    mentioned = ("resolution", "crs") if options.bounds is None else ("resolution", "crs", "bounds")
    with _naming("like") if options.like is not None else _naming(*mentioned):
        grid = make_grid(
            resolution=options.resolution, bounds=options.bounds, crs=options.crs, like=options.like
        )
    if options.bounds is not None and (note := outside_area_of_use(grid)):
        warnings.warn(note, UserWarning, stacklevel=1)
    return grid


@contextmanager
def _naming(*options: str) -> Iterator[None]:
    """Put before the library's words for a wrong value the option it came from: the only one, or the first
    one that the words mention."""
    try:
        yield
    except UsageError as error:
        words = re.findall(r"[a-z]+", str(error).lower())
        named = options if len(options) == 1 else [word for word in words if word in options]
        said = re.sub(r"\b(give) (crs)\b", r"\1 --\2", str(error)).replace("exact=True", "--exact")
        name = named[0] if named else ""
        if name and re.match(rf"{name}\b", said):
            raise UsageError(f"--{said}") from error
        raise UsageError(f"--{name}: {said}" if name else said) from error


def _select(whole: Encoder, bands: Bands) -> tuple[Encoder, GlobalPCA | None]:
    """The encoder of the wanted bands, and the components' fit when they are principal components."""
    from satclip_engine.pca import pca_head

    with _naming("bands"):
        if bands.pca:
            return pca_head(whole, bands.pca)
        return (whole if bands.numbers == "all" else whole.select(bands.numbers)), None


def _write(
    options: Options, encoder: Encoder, grid: Grid, tags: dict[str, str], progress: Progress
) -> Report:
    from satclip_engine.raster.write import write_raster

    with (
        _speaking_of_options(options),
        _naming("blocksize", "memory", "dtype", "compress", "threads", "resolution", "tolerance"),
    ):
        return write_raster(
            encoder,
            options.output,
            grid,
            **options.written,
            overwrite=options.overwrite,
            resume=options.resume,
            tags=tags,
            progress=progress,
        )


@contextmanager
def _speaking_of_options(options: Options) -> Iterator[None]:
    """Say --resume where the library says resume, and tell whoever stops a run whether it can go on."""
    from satclip_engine.raster.spool import read_state, spool_folder

    try:
        yield
    except OutputError as error:
        said = re.sub(r"\b(use|with|without) (overwrite|resume)\b", r"\1 --\2", str(error))
        raise OutputError(said) from error
    except KeyboardInterrupt as error:
        folder = spool_folder(options.output)
        if read_state(folder) is None:  # nothing has been kept yet
            raise
        word = "terminated" if isinstance(error, Terminated) else "interrupted"
        raise type(error)(
            f"{word}; what is finished lies in {folder}: the same command with --resume goes on from here"
        ) from error


def _preview(options: Options, whole: Encoder, grid: Grid, report: Report, progress: Progress) -> Path | None:
    """Draw the picture unless none is wanted or the run found raster and picture finished; its path."""
    from satclip_engine.cli import _report
    from satclip_engine.raster.preview import write_preview

    path = options.preview_path
    if path is None or (_report.was_complete(report) and path.exists() and not options.overwrite):
        return path
    progress.stage("drawing the preview")
    try:
        return write_preview(
            whole,
            path,
            grid=grid,
            title=_report.preview_title(whole),
            source=_report.preview_source(whole, grid),
            overwrite=options.overwrite or options.resume,  # the checks at the start refused a stranger's
        )
    except OutputError as error:
        raise OutputError(f"{options.output} is complete, but its picture is not: {error}") from error

"""`satclip-train`: trains a location encoder on images and their locations."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from satclip_engine import __version__
from satclip_engine._optional import need
from satclip_engine.cli._command import EXIT_CODES, Command, Terminated, say_line, show
from satclip_engine.errors import SatclipError
from satclip_engine.progress import duration_text, progress_for, size_text
from satclip_engine.training.config import TrainConfig, flag_of, read_toml, respelled, setting_type, settings

if TYPE_CHECKING:
    from satclip_engine.training.loop.distributed import ProcessContext
    from satclip_engine.training.session import RunResult

HELP = """Train a location encoder on images and the locations where they were taken.

DATA is a folder in the S2-100K layout (index.csv, images/), a CSV or GeoParquet that lists images, a folder
of georeferenced images, a folder of features that an earlier run made, or one large raster (or its GDAL name,
such as netcdf:FILE:variable), from which patches are cut; --from-raster says that it is one. Images pass
through a frozen encoder once; training then reads features only. With --unfreeze the encoder is trained too,
and images pass through it at every step.

\b
Examples:
  satclip-train s2-100k --out run --image-encoder resnet50 --image-weights moco.pth
  satclip-train s2-100k --out run --legendre-polys 10 --epochs 100 --schedule cosine
  satclip-train s2-100k --out run --image-encoder resnet18 --unfreeze --image-lr 1e-5
  satclip-train --from-raster world.tif --patch 16 --count 100000 --out run
  satclip-train s2-100k --out run --resume
  torchrun --nproc-per-node 4 -m satclip_engine.cli.train s2-100k --out run

DIR receives last.ckpt and best.ckpt in the published layout, best.safetensors, log.csv and training.png.
Settings come from --config, a TOML file with the names of the published configuration; flags override it.
"""

EPILOG = f"""A run that is stopped (Ctrl-C, SIGTERM) saves its state in DIR first; one that is killed loses at
most what came after its last checkpoint. The same command with --resume resumes it from there.

{EXIT_CODES}"""


class NumbersType(click.ParamType):
    """A list such as 1,2,3 as a tuple of whole numbers."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(int(number) for number in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 1,2,3", param, ctx)


def setting_options(command: Any) -> Any:
    """Add an option for every setting that has one, in the order of TrainConfig."""
    for name in reversed(list(settings())):
        if flag_of(name) is not None:
            command = _option(name)(command)
    return command


def _option(name: str) -> Any:
    """Option of a setting; without a value it leaves the file's or the default."""
    entry, value_type, flag = settings()[name], setting_type(name), str(flag_of(name))
    common: dict[str, Any] = {"default": None, "help": _help(name)}
    if value_type.scalar is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, **common)
    if entry.metadata["choices"]:
        return click.option(flag, name, type=click.Choice(entry.metadata["choices"]), **common)
    if value_type.is_list and entry.metadata["size"]:
        metavar = "W S E N" if name == "bounds" else None
        return click.option(
            flag, name, type=value_type.scalar, nargs=entry.metadata["size"], metavar=metavar, **common
        )
    if value_type.is_list:
        return click.option(flag, name, type=NumbersType(), metavar="LIST", **common)
    metavar = {int: "N", float: "X", str: "TEXT"}[value_type.scalar]
    return click.option(
        flag, name, type=value_type.scalar, metavar="FILE" if name == "image_weights" else metavar, **common
    )


def _help(name: str) -> str:
    entry = settings()[name]
    text: str = entry.metadata["help"]
    default = entry.metadata["otherwise"] if entry.default is None else entry.default
    if default is None or "[" in text:
        return text
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    if isinstance(default, bool):
        shown = "yes" if default else "no"
    return f"{text}  [default: {shown}]"


@click.command(
    cls=Command,
    name="satclip-train",
    help=HELP,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=False,
)
@click.argument("data", required=False, type=click.Path())
@click.option(
    "--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder of the run."
)
@click.option("--config", metavar="TOML", type=click.Path(path_type=Path), help="File with settings.")
@click.option(
    "--from-raster",
    metavar="RASTER",
    type=click.Path(),
    help="Cut patches from it; instead of DATA.",
)
@click.option(
    "--features",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of the feature cache.  [default: features in --out]",
)
@click.option(
    "--rebuild-features",
    is_flag=True,
    help="Replace the feature cache, when it is of something else or damaged.",
)
@setting_options
@click.option("--resume", is_flag=True, help="Resume the run in DIR, or start it.")
@click.option("--overwrite", is_flag=True, help="Start over: replace the run in DIR; features are kept.")
@click.option("--json", "as_json", is_flag=True, help="Report on stdout as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Say more; show the traceback of a failure.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.version_option(__version__, message="%(prog)s %(version)s")
def main(
    data: str | None,
    out: Path,
    config: Path | None,
    from_raster: str | None,
    features: Path | None,
    rebuild_features: bool,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    # The help text is HELP.
    if overwrite and resume:
        raise click.UsageError("--overwrite and --resume are mutually exclusive: give one of them")
    if verbose and quiet:
        raise click.UsageError("-v and -q are mutually exclusive: give one of them")
    if (data is None) == (from_raster is None):
        raise click.UsageError("give either DATA or --from-raster")
    need("torch", extra="train", why="satclip-train")
    from satclip_engine.training.loop.interrupts import RunStopped
    from satclip_engine.training.session import resolve_settings

    run_settings = resolve_settings(out, resume=resume, overwrite=overwrite, file=config, flags=flags)
    if run_settings.unfreeze and (features is not None or rebuild_features):
        option = "--rebuild-features" if features is None else "--features"
        raise click.UsageError(f"--unfreeze makes no features: leave out {option}")
    typed = {name for name, value in flags.items() if value is not None}
    request = _RunRequest(
        data or str(from_raster),
        from_raster is not None,
        out,
        features or out / "features",
        rebuild_features,
        resume,
        resume or overwrite,
        frozenset(typed | set({} if config is None else read_toml(config))),
    )
    try:
        result = _run(run_settings, request, quiet=quiet, verbose=verbose)
    except RunStopped as stopped:
        terminated = stopped.signal == signal.SIGTERM
        raise (Terminated if terminated else KeyboardInterrupt)(str(stopped)) from stopped
    except SatclipError as error:
        named = respelled(error, str(config or ""), {} if config is None else read_toml(config), flags)
        if named is error:
            raise
        raise named from error
    if result is not None:
        click.echo(_as_json(result)) if as_json else show(_as_text(result, out))


@dataclass(frozen=True)
class _RunRequest:
    """Paths of a run, flags for its files, and the settings that were asked for now."""

    data: str  # a path or GDAL name
    is_raster: bool
    out: Path
    features: Path
    rebuild_features: bool
    resume: bool
    replace_run: bool  # or go on with it
    asked: frozenset[str]


def _run(config: TrainConfig, request: _RunRequest, *, quiet: bool, verbose: bool) -> RunResult | None:
    """Make features, then train; the result in the main process, None in the others."""
    from satclip_engine.training.loop.distributed import join_processes
    from satclip_engine.training.loop.model import check_backend
    from satclip_engine.training.session import check_folder, held_run

    with join_processes(config.device) as processes:
        check_backend(config, processes.device)
        if not processes.is_main:
            warnings.simplefilter("ignore")
        with held_run(request.out, is_main=processes.is_main):
            if processes.is_main:  # nobody else has begun a run there meanwhile
                check_folder(request.out, replace_run=request.replace_run)
            result = _run_held(config, request, processes, quiet=quiet, verbose=verbose)
    return result if processes.is_main else None


def _run_held(
    config: TrainConfig, request: _RunRequest, processes: ProcessContext, *, quiet: bool, verbose: bool
) -> RunResult:
    """Make features, then train, in a folder that no other run writes to."""
    from satclip_engine.training.inputs import training_inputs
    from satclip_engine.training.results.display import display_for
    from satclip_engine.training.session import train

    quiet = quiet or not processes.is_main
    inputs = training_inputs(
        request.data,
        request.is_raster,
        config,
        request.features,
        processes,
        asked=request.asked,
        rebuild_features=request.rebuild_features,
        progress=progress_for(quiet=quiet, command="satclip-train", unit="images"),
    )
    if verbose and processes.is_main:
        say_line(f"satclip-train: {inputs.description}")
    return train(
        inputs.config or config,
        inputs.features,
        request.out,
        image_encoder=inputs.image_encoder,
        resume=request.resume,
        processes=processes,
        display=display_for(sys.stderr, quiet=quiet),
        notes={
            "data": os.path.basename(os.path.abspath(request.data)),
            "version": __version__,
            **inputs.notes,
        },
    )


def _as_text(result: RunResult, out: Path) -> str:
    """The summary for people."""
    outcome, best = result.outcome, result.outcome.best
    head = f"{out} is complete already" if result.was_complete else str(out)
    early = ", stopped early" if outcome.stopped_early else ""
    lines = [
        (
            "trained",
            f"{outcome.last.step} steps of {outcome.batch_size} samples, {outcome.epochs:.4g} epochs, "
            f"{duration_text(outcome.seconds)}{early}",
        )
    ]
    if best.scores is not None:
        scores = best.scores
        kind = "held-out" if outcome.held_out else "training"
        lines += [
            (
                "best",
                f"epoch {best.epoch}, step {best.step}: loss {scores.loss:.4f} on {scores.samples} {kind} "
                f"samples, by chance {scores.chance:.4f}",
            ),
            ("location→image", f"R@1 {100 * scores.place_r1:.1f} %, R@10 {100 * scores.place_r10:.1f} %"),
            ("image→location", f"R@1 {100 * scores.image_r1:.1f} %, R@10 {100 * scores.image_r10:.1f} %"),
        ]
    sizes = (f"{path.name} ({size_text(os.path.getsize(path))})" for path in result.files)
    lines.append(("wrote", ", ".join(sizes)))
    return "\n".join([head, *(f"  {name:<14} {text}" for name, text in lines)])


def _as_json(result: RunResult) -> str:
    outcome = result.outcome
    best = outcome.best.scores
    scores = None if best is None else {**vars(best), "chance": best.chance}
    content = {
        "steps": outcome.last.step,
        "epochs": outcome.last.epoch,
        "batch": outcome.batch_size,
        "seconds": outcome.seconds,
        "stopped_early": outcome.stopped_early,
        "held_out": outcome.held_out,
        "best": {"epoch": outcome.best.epoch, "step": outcome.best.step, "scores": scores},
        "files": [str(path) for path in result.files],
        "was_complete": result.was_complete,
        "version": __version__,
    }
    return json.dumps(content, indent=2)


if __name__ == "__main__":
    main()

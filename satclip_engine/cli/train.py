"""`satclip-train`: a location encoder from places and images, in checkpoints of the published layout."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from satclip_engine import __version__
from satclip_engine._optional import need
from satclip_engine.cli._command import EXIT_CODES, Command, Terminated
from satclip_engine.progress import duration_text, progress_for, size_text
from satclip_engine.training.config import TrainConfig, flag_of, kind_of, settings

if TYPE_CHECKING:
    from satclip_engine.training.session import Done

HELP = """Train a location encoder on images and the places where they were taken.

DATA is a folder in the S2-100K layout (index.csv, images/), a CSV or GeoParquet that lists images, a folder
of georeferenced images, or a folder of features that an earlier run made. --from-raster cuts patches from one
large raster instead. Images pass through a frozen encoder once; training then reads features only. With
--unfreeze the encoder is trained too, and images pass through it at every step.

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
most what came after its last checkpoint. The same command with --resume goes on from there.

{EXIT_CODES}"""


class NumbersType(click.ParamType):
    """1,2,3 as a tuple of whole numbers."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 1,2,3", param, ctx)


def setting_options(command: Any) -> Any:
    """An option for every setting that has one, in the order of TrainConfig."""
    for name in reversed(list(settings())):
        if flag_of(name) is not None:
            command = _option(name)(command)
    return command


def _option(name: str) -> Any:
    """The option of a setting; without a value it leaves the file's or the default."""
    entry, kind, flag = settings()[name], kind_of(name), str(flag_of(name))
    about: dict[str, Any] = {"default": None, "help": _help(name)}
    if kind.of is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, **about)
    if entry.metadata["choices"]:
        return click.option(flag, name, type=click.Choice(entry.metadata["choices"]), **about)
    if kind.many and entry.metadata["size"]:
        metavar = "W S E N" if name == "bounds" else None
        return click.option(flag, name, type=kind.of, nargs=entry.metadata["size"], metavar=metavar, **about)
    if kind.many:
        return click.option(flag, name, type=NumbersType(), metavar="LIST", **about)
    metavar = {int: "N", float: "X", str: "TEXT"}[kind.of]
    return click.option(
        flag, name, type=kind.of, metavar="FILE" if name == "image_weights" else metavar, **about
    )


def _help(name: str) -> str:
    entry = settings()[name]
    text: str = entry.metadata["help"]
    default = entry.default
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
@click.argument("data", required=False, type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder of the run."
)
@click.option("--config", metavar="TOML", type=click.Path(path_type=Path), help="File with settings.")
@click.option(
    "--from-raster",
    metavar="RASTER",
    type=click.Path(path_type=Path),
    help="Cut patches from it; instead of DATA.",
)
@click.option(
    "--features",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of the feature cache.  [default: features in --out]",
)
@setting_options
@click.option("--resume", is_flag=True, help="Go on with the run in DIR, or begin it.")
@click.option("--overwrite", is_flag=True, help="Replace the run in DIR; features are kept.")
@click.option("--json", "as_json", is_flag=True, help="Report on stdout as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Say more; show the traceback of a failure.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.version_option(__version__, message="%(prog)s %(version)s")
def main(
    data: Path | None,
    out: Path,
    config: Path | None,
    from_raster: Path | None,
    features: Path | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    # The help text is HELP.
    if overwrite and resume:
        raise click.UsageError("--overwrite begins anew and --resume goes on: give one of them")
    if verbose and quiet:
        raise click.UsageError("-v and -q exclude each other: give one of them")
    if (data is None) == (from_raster is None):
        raise click.UsageError("give DATA or --from-raster, one of them")
    need("torch", extra="train", why="satclip-train")
    from satclip_engine.training.interrupts import Stopped
    from satclip_engine.training.session import settle

    settled = settle(out, resume=resume, overwrite=overwrite, file=config, flags=flags)
    if settled.unfreeze and features is not None:
        raise click.UsageError("--unfreeze makes no features: leave out --features")
    try:
        done = _run(
            settled, data or from_raster, from_raster is not None, out, features, resume, quiet, verbose
        )
    except Stopped as stopped:
        raise (Terminated if stopped.signal == signal.SIGTERM else KeyboardInterrupt)(
            str(stopped)
        ) from stopped
    if done is not None:
        click.echo(_as_json(done) if as_json else _as_text(done, out))


def _run(
    config: TrainConfig,
    data: Path | None,
    is_raster: bool,
    out: Path,
    features: Path | None,
    resume: bool,
    quiet: bool,
    verbose: bool,
) -> Done | None:
    """Features, then training; the result in the first process, None in the others."""
    from satclip_engine.training.display import display_for
    from satclip_engine.training.model import check_backend
    from satclip_engine.training.prepare import prepared
    from satclip_engine.training.ranks import joined
    from satclip_engine.training.session import train

    assert data is not None
    with joined(config.device) as ranks:
        check_backend(config, ranks.device)
        if not ranks.first:
            warnings.simplefilter("ignore")
        quiet = quiet or not ranks.first
        progress = progress_for(quiet=quiet, command="satclip-train", unit="images")
        cache = features or out / "features"
        material = prepared(data, is_raster, config, cache, ranks, progress=progress)
        if verbose and ranks.first:
            click.echo(f"satclip-train: {material.about}", err=True)
        done = train(
            config,
            material.features,
            out,
            visual=material.visual,
            resume=resume,
            ranks=ranks,
            display=display_for(sys.stderr, quiet=quiet),
            notes={"data": data.absolute().name, "version": __version__, **material.notes},
        )
    return done if ranks.first else None


def _as_text(done: Done, out: Path) -> str:
    """The summary for people."""
    outcome, best = done.outcome, done.outcome.best
    head = f"{out} is complete already" if done.was_complete else str(out)
    ended = ", stopped early" if outcome.early else ""
    lines = [
        (
            "trained",
            f"{outcome.last.step} steps of {outcome.batch} samples, {outcome.last.epoch} epochs, "
            f"{duration_text(outcome.seconds)}{ended}",
        )
    ]
    if best.scores is not None:
        scores = best.scores
        where = "held-out" if outcome.held_out else "training"
        lines += [
            ("best", f"epoch {best.epoch}, loss {scores.loss:.4f} on {scores.samples} {where} samples"),
            ("place→image", f"R@1 {100 * scores.place_r1:.1f} %, R@10 {100 * scores.place_r10:.1f} %"),
            ("image→place", f"R@1 {100 * scores.image_r1:.1f} %, R@10 {100 * scores.image_r10:.1f} %"),
        ]
    sizes = (f"{path.name} ({size_text(os.path.getsize(path))})" for path in done.files)
    lines.append(("wrote", ", ".join(sizes)))
    return "\n".join([head, *(f"  {name:<12} {text}" for name, text in lines)])


def _as_json(done: Done) -> str:
    outcome = done.outcome
    scores = None if outcome.best.scores is None else dict(vars(outcome.best.scores))
    content = {
        "steps": outcome.last.step,
        "epochs": outcome.last.epoch,
        "batch": outcome.batch,
        "seconds": outcome.seconds,
        "stopped_early": outcome.early,
        "held_out": outcome.held_out,
        "best": {"epoch": outcome.best.epoch, "step": outcome.best.step, "scores": scores},
        "files": [str(path) for path in done.files],
        "was_complete": done.was_complete,
        "version": __version__,
    }
    return json.dumps(content, indent=2)


if __name__ == "__main__":
    main()

"""The command line of `satclip-grid` as one value, and click's options of the raster's file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import click

from satclip_engine.cli._command import JSON_FULL
from satclip_engine.cli._types import Bands, MemoryType, SourceType
from satclip_engine.device import Device
from satclip_engine.options import RANGES, RasterOptions, option_fields

_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str}


@dataclass(frozen=True)
class CommandLine:
    """The command line, parsed."""

    output: Path  # without one, an atlas is written, or a raster only planned
    atlas: Path | None
    weights: str
    harmonics: Literal["exact", "published"] | None
    convention: Literal["analytic", "closed-form", "orthonormal"] | None
    resolution: float | str | tuple[float, float] | None
    bounds: tuple[float, float, float, float] | None
    bounds_crs: str | None
    align: bool
    crs: str | None
    like: str | None
    bands: Bands
    device: Device
    backend: str
    precision: str
    raster: RasterOptions
    preview: Path | None
    no_preview: bool
    plan: bool
    as_json: str | None  # "short", "full"
    verbose: bool
    quiet: bool

    @classmethod
    def of(cls, parameters: dict[str, Any]) -> CommandLine:
        """From click's `parameters`. Raises UsageError for options that exclude each other."""
        raster = RasterOptions(**{name: parameters[name] for name in option_fields()})
        own = {entry.name: parameters[entry.name] for entry in fields(cls) if entry.name in parameters}
        options = cls(**own, raster=raster)
        if options.preview and options.no_preview:
            raise click.UsageError("--preview and --no-preview are mutually exclusive: give one of them")
        if options.verbose and options.quiet:
            raise click.UsageError("-v and -q are mutually exclusive: give one of them")
        return options

    @property
    def preview_path(self) -> Path | None:
        """Path of the picture; None when none is wanted."""
        if self.no_preview or not self.output:
            return None
        return self.preview or self.output.with_suffix(".png")


def json_option(command: Any) -> Any:
    """click's options --json and --json=full, one parameter `as_json`: None, "short" or "full"."""
    full = click.option(JSON_FULL, "as_json", flag_value="full", hidden=True)
    short = click.option(
        "--json",
        "as_json",
        flag_value="short",
        help="Report on stdout as JSON; --json=full with the numbers of every band.",
    )
    return short(full(command))


def raster_options(*names: str) -> Callable[[Any], Any]:
    """click's options of these fields of RasterOptions."""

    def decorate(command: Any) -> Any:
        for name in reversed(names):
            command = _option(name)(command)
        return command

    return decorate


def _option(name: str) -> Any:
    """click's option of a field."""
    entry = option_fields()[name]
    about, kind = entry.metadata, str(entry.type).removesuffix(" | None")
    if kind == "bool":
        return click.option(f"--{name}", is_flag=True, help=about["help"])
    value_type: Any = _TYPES[kind]
    if about["choices"]:
        value_type = click.Choice(about["choices"], case_sensitive=False)
    elif about["least"] is not None:
        value_type = click.IntRange(min=about["least"])
    elif name == "memory":
        value_type = MemoryType()
    elif name == "range":
        value_type = SourceType(*RANGES)
    return click.option(
        f"--{name}",
        type=value_type,
        default=about["shown"] or entry.default,
        show_default=entry.default is not None,
        metavar=about["metavar"],
        help=about["help"],
    )

"""Option values, parsed once into what the library takes. Nothing here imports a library but click."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from satclip_engine.device import Device, parse_device
from satclip_engine.errors import UsageError

_SIZE_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _SIZE_UNITS |= {_letter: 1000**_power, f"{_letter}B": 1000**_power, f"{_letter}IB": 1024**_power}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+://|/vsi[a-z0-9_]+/", re.IGNORECASE)
_PIXEL = re.compile(r"[\d.][\w./+-]*\s*[\w\s\"'°′″-]*")
_PCA = re.compile(r"pca:(\d+)", re.IGNORECASE)
_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


@dataclass(frozen=True)
class Bands:
    """Bands to write: all of them, a list of band numbers, or the first `pca` principal components."""

    numbers: str = "all"  # "all" or a list such as 1,5,9-12, counted from 1
    pca: int = 0  # 0: no principal components

    def __str__(self) -> str:
        return f"pca:{self.pca}" if self.pca else self.numbers


class BandsType(click.ParamType):
    """`all`, `1-64`, `1,5,9-12` or `pca:K`; numbers are checked when the weights are read."""

    name = "bands"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Bands:
        if isinstance(value, Bands):
            return value
        text = re.sub(r"\s+", "", str(value)).lower()
        if text == "all":
            return Bands()
        if (match := _PCA.fullmatch(text)) and int(match[1]) > 0:
            return Bands(pca=int(match[1]))
        if _LIST.fullmatch(text):
            return Bands(text)
        self.fail(f"{value!r} is none of all, 1-64, 1,5,9-12 or pca:3", param, ctx)


class ResolutionType(click.ParamType):
    """A pixel's size: one number, or two (x,y) where pixels are not square.

    Text of fractions and units (1/12, 30s) is left to whoever knows the CRS.
    """

    name = "resolution"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        texts = value.split(",")
        try:
            sizes = tuple(float(size) for size in texts)
        except ValueError:
            sizes = ()
        if len(texts) > 2 or not (sizes or all(_PIXEL.fullmatch(text.strip()) for text in texts)):
            self.fail(
                f"{value!r} is not a pixel's size such as 0.25, 1/12 or 30s, or 0.5,0.25 for x and y",
                param,
                ctx,
            )
        return value if not sizes else sizes[0] if len(sizes) == 1 else sizes


class MemoryType(click.ParamType):
    """A number of bytes with a unit: 500MB, 1GB, 2GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if match is None or match[2].upper() not in _SIZE_UNITS:
            self.fail(f"{value!r} is not a size such as 500MB, 1GB or 2GiB", param, ctx)
        return int(float(match[1]) * _SIZE_UNITS[match[2].upper()])


class DeviceType(click.ParamType):
    """`cpu`, `cuda` or `cuda:N`; its presence is checked when it is to compute."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Device:
        try:
            return parse_device(value)
        except UsageError:
            self.fail(f"{value!r} is none of cpu, cuda and cuda:N", param, ctx)


class SourceType(click.ParamType):
    """A name out of a few, or a file's; shells complete both."""

    name = "source"

    def __init__(self, *names: str) -> None:
        self.names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Names in capitals are names too."""
        text = str(value)
        return text.lower() if text.lower() in self.names else text

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names that begin so, and files."""
        names = [CompletionItem(name) for name in self.names if name.startswith(incomplete)]
        return names if names and incomplete else [*names, CompletionItem(incomplete, type="file")]


class FileType(click.ParamType):
    """A path to be written, with one of the given suffixes."""

    name = "file"

    def __init__(self, suffixes: tuple[str, ...], what: str) -> None:
        self.suffixes, self.what = suffixes, what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if _REMOTE.match(str(value)):
            self.fail(f"{value}: files are written to local folders; copy it there afterwards", param, ctx)
        if path.suffix.lower() == ".zarr":
            self.fail(
                f"{value}: Zarr output is not available in this version; give a name ending in .tif",
                param,
                ctx,
            )
        if path.suffix.lower() not in self.suffixes:
            self.fail(f"{value}: {self.what} ends in {' or '.join(self.suffixes)}", param, ctx)
        return path

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Files."""
        return [CompletionItem(incomplete, type="file")]

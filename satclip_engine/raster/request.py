"""What is asked of `write_raster`, checked before anything is computed or written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from satclip_engine._version import __version__
from satclip_engine.backends import grids_only
from satclip_engine.errors import UsageError
from satclip_engine.lattice.tolerance import check_tolerance
from satclip_engine.quantize import SampleType, sample_type
from satclip_engine.raster.codec import Codec
from satclip_engine.raster.codec import codec as codec_named
from satclip_engine.raster.geotiff_keys import geo_tags
from satclip_engine.raster.output import DIGEST, check_path
from satclip_engine.raster.tiff import Tag
from satclip_engine.raster.tiling import BLOCKSIZES, Plan, check_blocksize, choose_blocksize, make_plan

if TYPE_CHECKING:
    from satclip_engine.encoder import Encoder
    from satclip_engine.geo.grid import Grid


class Progress(Protocol):
    """What is told while a raster is written, always from the calling thread."""

    def start(self, total_pixels: int) -> None: ...

    def advance(self, pixels: int) -> None: ...

    def stage(self, text: str) -> None: ...

    def finish(self) -> None: ...


class Silent:
    """No progress."""

    def start(self, total_pixels: int) -> None: ...

    def advance(self, pixels: int) -> None: ...

    def stage(self, text: str) -> None: ...

    def finish(self) -> None: ...


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `write_raster`, as given."""

    dtype: str = "int8"
    compress: str = "zstd"
    blocksize: int | None = None
    threads: int | None = None
    memory: int = 1 << 30
    exact: bool = False
    tolerance: float | None = None
    overwrite: bool = False
    resume: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True)
class Request:
    """An encoder, a grid, a path and how to write; made by `check_request`."""

    encoder: Encoder
    grid: Grid
    path: Path
    options: Options
    sample: SampleType
    codec: Codec
    geo: list[Tag]
    blocksize: int
    threads: int
    notes: tuple[str, ...]

    @property
    def state(self) -> dict[str, Any]:
        """What decides the pixels; a run goes on only from the same."""
        encoder, grid = self.encoder, self.grid
        return {
            "software": __version__,
            "rows": grid.shape[0],
            "columns": grid.shape[1],
            "transform": [float(v) for v in grid.transform[:6]],
            "crs": _digest(grid.crs.to_wkt()),
            "weights": DIGEST + encoder.weights.sha256,
            "harmonics": encoder.weights.harmonics,
            "function": DIGEST + encoder.sha256,
            "bands": encoder.embed_dim,
            "band names": _digest(json.dumps(encoder.band_names)),
            "backend": encoder.backend,
            "instruction set": encoder.isa,  # with a GPU's architecture and precision
            "reconstruction": _reconstruction(encoder, self.options),
            "dtype": self.sample.name,
            "compress": self.codec.name,
            "level": self.codec.level,
            "blocksize": self.blocksize,
        }

    def plan(self, span: int | None = None, *, kept: int = 0) -> Plan:
        """How the work is cut; `span` is given when superblocks are on disk already.

        kept: bytes of the memory allowed that workers share.
        """
        return make_plan(
            self.grid.shape,
            self.encoder.embed_dim,
            self.sample.bytes,
            self.blocksize,
            threads=self.threads,
            memory=self.options.memory - kept,
            mirrored=self.grid.separable,
            compressed=self.codec.leaves,
            span=span,
            hints=self.encoder.hints,
        )


def _reconstruction(encoder: Encoder, options: Options) -> str:
    """What was asked for; an encoder that has a plan of its own keeps that."""
    if options.exact:
        return "exact"
    if encoder.plan is not None:
        return encoder.plan.token
    return "default" if options.tolerance is None else f"{float(options.tolerance)!r} σ"


def _check_made_by(encoder: Encoder, grid: Any) -> None:
    """Refuse the embedding of another encoder as a grid: its values would silently be replaced."""
    function = getattr(grid, "attrs", {}).get("function_sha256")
    if function is None:
        return
    bands = grid.coords["band"].values if "band" in grid.coords else encoder.band_names
    if function == encoder.sha256 and list(np.atleast_1d(bands)) == encoder.band_names:
        return
    raise UsageError(
        "the grid is an embedding made by another encoder or selection of bands: pass the encoder that made "
        'it, such as enc.select("1-3") or what with_head returned, or a plain grid (make_grid)'
    )


def _digest(text: str) -> str:
    return DIGEST + hashlib.sha256(text.encode()).hexdigest()


def check_request(encoder: Encoder, path: Path, grid: Any, options: Options) -> Request:
    """Raises UsageError for arguments that cannot be used, OutputError for a path that cannot be written."""
    from satclip_engine.geo.grid import make_grid

    if options.overwrite and options.resume:
        raise UsageError("overwrite begins anew and resume goes on: give one of them")
    if options.exact and options.tolerance is not None:
        raise UsageError("exact never interpolates and tolerance is for interpolating: give one of them")
    check_tolerance(options.tolerance)
    if encoder.plan is not None:
        encoder.check(exact=options.exact, tolerance=options.tolerance)
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"threads must be a positive whole number, not {options.threads!r}")
    _check_made_by(encoder, grid)
    check_path(path, replaceable=options.overwrite or options.resume)
    chosen, sample, bands = make_grid(like=grid), sample_type(options.dtype), encoder.embed_dim
    if not chosen.separable and (reason := grids_only(encoder.backend)) is not None:
        raise UsageError(reason)
    codec = codec_named(options.compress, sample)
    if bands > 65535:
        raise UsageError(f"a TIFF has at most 65535 bands, not {bands}")
    blocksize, notes = options.blocksize, []
    if blocksize is None:
        blocksize = choose_blocksize(chosen.shape, bands)
        if blocksize > BLOCKSIZES[0]:
            notes.append(
                f"tiles are {blocksize} pixels wide, not {BLOCKSIZES[0]}, to keep the file's index small"
            )
    check_blocksize(blocksize, chosen.shape, bands)
    threads, geo = options.threads or encoder.threads, geo_tags(chosen)
    request = Request(encoder, chosen, path, options, sample, codec, geo, blocksize, threads, ())
    working = request.plan().threads
    if working < threads:
        notes.append(f"{working} of {threads} threads work: more would take more memory than allowed")
    return dataclasses.replace(request, notes=tuple(notes))

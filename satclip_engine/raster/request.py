"""Request for a raster: the arguments of `write_raster`, checked before anything is computed or written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from satclip_engine._version import __version__
from satclip_engine.arrays.ranges import RangeRule, range_rule
from satclip_engine.backends import grids_only
from satclip_engine.errors import UsageError
from satclip_engine.lattice.tolerance import check_tolerance
from satclip_engine.options import INTERLEAVES, RasterOptions, check_text, checked_threads, identifying
from satclip_engine.quantize import SampleType, sample_type
from satclip_engine.raster.codec import Codec, codec_for
from satclip_engine.raster.geotiff_keys import geo_tags
from satclip_engine.raster.output import DIGEST, check_path
from satclip_engine.raster.tiff import Tag
from satclip_engine.raster.tiling import (
    Tiling,
    check_blocksize,
    choose_blocksize,
    make_tiling,
    preferred_blocksize,
)

if TYPE_CHECKING:
    from satclip_engine.encoder import Encoder
    from satclip_engine.geo.grid import Grid

MAX_BANDS = 65535  # of a TIFF


@dataclass(frozen=True)
class Request:
    """An encoder, a grid, a path and how to write; made by `check_request`."""

    encoder: Encoder
    grid: Grid
    path: Path
    options: RasterOptions  # with the blocksize that was chosen
    rule: RangeRule
    codec: Codec
    geo: list[Tag]
    blocksize: int
    threads: int
    tiling: Tiling  # while workers share no memory
    notes: tuple[str, ...]

    @property
    def sample(self) -> SampleType:
        return self.rule.sample

    @property
    def state(self) -> dict[str, Any]:
        """Everything that decides the pixels; a run is resumed only with the same."""
        encoder, grid = self.encoder, self.grid
        state = {
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
            "range": self.rule.token,
        }
        for name in identifying():
            state[name] = getattr(self.options, name)
            if name == "compress":
                state["level"] = self.codec.level
        return state

    def tiling_beside(self, shared: int, span: int | None = None) -> Tiling:
        """The tiling when workers share so many bytes; `span` is given when metatiles are on disk already."""
        if not shared and span is None:
            return self.tiling
        return _tiling(
            self.encoder,
            self.grid,
            self.sample,
            self.codec,
            self.blocksize,
            interleave=self.options.interleave,
            threads=self.threads,
            memory=self.options.memory - shared,
            span=span,
        )


def _tiling(
    encoder: Encoder, grid: Grid, sample: SampleType, codec: Codec, blocksize: int, **limits: Any
) -> Tiling:
    return make_tiling(
        grid.shape,
        encoder.embed_dim,
        sample.bytes,
        blocksize,
        mirrored=grid.separable,
        compressed=codec.leaves,
        hints=encoder.hints,
        **limits,
    )


def _reconstruction(encoder: Encoder, options: RasterOptions) -> str:
    """Identifies how pixels are computed: as asked for, unless the encoder has a plan of its own."""
    own_plan = None if options.exact else encoder.plan
    return options.reconstruction if own_plan is None else own_plan.token


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
        'it, such as enc.select("1-3") or what with_head returned, or a plain grid (make_grid)',
        argument="grid",
    )


def _digest(text: str) -> str:
    return DIGEST + hashlib.sha256(text.encode()).hexdigest()


def check_request(encoder: Encoder, path: Path, grid: Any, options: RasterOptions) -> Request:
    """Raises UsageError for arguments that cannot be used, OutputError for a path that cannot be written."""
    check_tolerance(options.tolerance)
    if encoder.plan is not None:
        encoder.check(exact=options.exact, tolerance=options.tolerance)
    threads = checked_threads(options.threads) or encoder.threads
    _check_made_by(encoder, grid)
    check_path(path, replaceable=options.overwrite or options.resume)
    for name in encoder.band_names:
        check_text(name, f"the band name {name!r}", "enc")
    pixels = _grid(encoder, grid)
    sample, bands = sample_type(options.dtype), encoder.embed_dim
    rule = range_rule(options.range, options.scale, sample, encoder.band_names)
    codec = codec_for(options.compress, sample)
    if bands > MAX_BANDS:
        raise UsageError(f"a TIFF has at most {MAX_BANDS} bands, not {bands}", argument="bands")
    if options.interleave not in INTERLEAVES:
        raise UsageError(
            f"interleave must be one of {', '.join(INTERLEAVES)}, not {options.interleave!r}",
            argument="interleave",
        )
    blocksize, notes = _blocksize(options, pixels.shape, bands, sample)
    tiling = _tiling(
        encoder,
        pixels,
        sample,
        codec,
        blocksize,
        interleave=options.interleave,
        threads=threads,
        memory=options.memory,
    )
    if tiling.threads < threads:
        notes.append(f"{tiling.threads} of {threads} threads work: more would take more memory than allowed")
    return Request(
        encoder,
        pixels,
        path,
        dataclasses.replace(options, blocksize=blocksize),
        rule,
        codec,
        geo_tags(pixels),
        blocksize,
        threads,
        tiling,
        tuple(notes),
    )


def _blocksize(
    options: RasterOptions, shape: tuple[int, int], bands: int, sample: SampleType
) -> tuple[int, list[str]]:
    """The side of tiles, asked for or chosen, and notes on the choice. Raises UsageError."""
    interleaved = options.interleave == "pixel" and bands > 1
    planes = 1 if interleaved else bands
    preferred = preferred_blocksize(bands * sample.bytes, interleaved=interleaved)
    blocksize = choose_blocksize(shape, planes, preferred) if options.blocksize is None else options.blocksize
    check_blocksize(blocksize, shape, planes)
    if options.blocksize is not None or blocksize <= preferred:
        return blocksize, []
    return blocksize, [f"tiles are {blocksize} pixels wide, not {preferred}, to keep the file's index small"]


def _grid(encoder: Encoder, grid: Any) -> Grid:
    """The Grid of what was given as one. Raises UsageError where there is none that the encoder computes."""
    from satclip_engine.geo.grid import make_grid

    try:
        pixels = make_grid(like=grid)
    except UsageError as error:
        error.argument = "grid"
        raise
    if not pixels.separable and (reason := grids_only(encoder.backend)) is not None:
        raise UsageError(reason, argument="backend")
    return pixels

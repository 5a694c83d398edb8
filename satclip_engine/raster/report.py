"""Report of a finished raster: contents, errors, time and memory."""

from __future__ import annotations

import dataclasses
import resource
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from satclip_engine.quantize import MAX_CLIPPED, QuantisationStatistics, Quantiser


@dataclass(frozen=True)
class Clipping:
    """Values beyond the largest code; with floats beyond the largest number."""

    fraction: float = 0.0  # of the worst band's values
    values: int = 0  # of all bands
    bands: list[str] = field(default_factory=list)  # where the fraction exceeds what is meant to be possible
    excess: float = 0.0  # by how much a value lies outside its band's range at most, in the band's unit
    excess_codes: float = 0.0  # the same in steps of the code

    @property
    def notes(self) -> list[str]:
        """Warnings for the user: none while clipping is as rare as promised."""
        if not self.bands:
            return []
        shown = ", ".join(self.bands[:8]) + (" …" if len(self.bands) > 8 else "")
        return [f"up to {self.fraction:.2g} of a band's values lie beyond its codes, in {shown}"]


@dataclass(frozen=True)
class Report:
    """The result of `write_raster`. Sizes in bytes, times in seconds."""

    path: Path
    shape: tuple[int, int]  # rows, columns
    bands: int
    dtype: str
    compress: str
    blocksize: int
    interleave: str
    overviews: list[int]  # how many times smaller each is
    bytes: int  # of the file
    raw_bytes: int  # of its pixels before compression, overviews not counted
    seconds: float
    peak_memory: int  # of the process, from its start
    threads: int
    device: str  # that computed: cpu, cuda:0
    precision: str  # the least accuracy asked for: exact, fast
    resumed_from: float  # part of the pixels that an earlier run had computed; 1 when the file was complete
    valid_pixels: int | None = None  # None when the file was complete, as for the zeros below
    pixels_per_second: float = 0.0  # of those computed in this run
    busy: float = 0.0  # CPU seconds of workers ÷ (threads × seconds of their work): 1 when nobody waits
    cpu_seconds: dict[str, float] = field(default_factory=dict)  # of all workers, by kind of work
    stage_seconds: dict[str, float] = field(default_factory=dict)  # survey, tiles, assemble
    disk_estimate: int = 0  # announced at the start: file and spool together
    clipping: Clipping = field(default_factory=Clipping)
    max_quantisation_error: float = 0.0  # of any value of any band, clipped ones included, in the band's unit
    quantisation: dict[str, Any] | None = None  # where ranges come from, and the scales; None of floats
    reconstruction: dict[str, Any] | None = (
        None  # how pixels were computed, why, and the error if interpolated
    )
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "path": str(self.path), "shape": list(self.shape)}


def clipping(quantiser: Quantiser, statistics: QuantisationStatistics, names: list[str]) -> Clipping:
    """Summarise what was clipped, from the statistics of all pixels."""
    if statistics.valid == 0:
        return Clipping()
    fractions = statistics.clipped / statistics.valid
    scale = np.ones(len(names)) if quantiser.scale is None else quantiser.scale
    return Clipping(
        fraction=float(fractions.max()),
        values=int(statistics.clipped.sum()),
        bands=[name for name, fraction in zip(names, fractions, strict=True) if fraction > MAX_CLIPPED],
        excess=float((statistics.overshoot * scale).max()),
        excess_codes=float(statistics.overshoot.max()) if quantiser.scale is not None else 0.0,
    )


def largest_error(quantiser: Quantiser, statistics: QuantisationStatistics) -> float:
    """Half a step of the coarsest band, or what clipping took from a value where that is more. Floats: 0."""
    if quantiser.scale is None:
        return 0.0
    return float((np.maximum(0.5, statistics.overshoot) * quantiser.scale).max())


def peak_memory() -> int:
    """Most memory that this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

"""Encoders with the plan of one job, and encoders whose rasters another network evaluates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from satclip_engine.backends.protocols import CALL, Call, Prepared
from satclip_engine.encoder import Encoder
from satclip_engine.lattice.choose import approximated
from satclip_engine.lattice.plan import Plan


@dataclass(frozen=True, eq=False)
class Planned:
    """A job's plan and what computes by it."""

    encoder: Encoder
    pixels_or_points: Any
    plan: Plan
    network: Prepared

    def evaluate(self, rows=None, cols=None, threads: int | None = None) -> np.ndarray:
        """Pixels of the job's raster, as the plan has them."""
        pixels = approximated(self.network, self.pixels_or_points)
        return self.network.encode_pixels(pixels, rows, cols, call=Call(threads))


def planned(encoder: Encoder, pixels_or_points: Any, **options: Any) -> Planned:
    """The best plan for a grid's pixels or for points."""
    return Planned(encoder, pixels_or_points, *encoder.choose(pixels_or_points, **options))


class OtherNetwork(Prepared):
    """Passes everything to a network; subclasses change what comes back."""

    def __init__(self, network: Prepared) -> None:
        self.describe_as(network)
        self.inner, self.hints = network, network.hints

    def encode(self, lonlat, out=None, call=CALL):
        return self.inner.encode(lonlat, out, call)

    def encode_grid(self, lat, lon, out=None, call=CALL):
        return self.inner.encode_grid(lat, lon, out, call)

    def encode_pixels(self, pixels, rows=None, cols=None, out=None, call=CALL):
        return self.inner.encode_pixels(pixels, rows, cols, out, call)


class WithNetwork:
    """An encoder whose rasters another network evaluates."""

    def __init__(self, encoder: Encoder, network: Prepared) -> None:
        self._encoder, self.network = encoder, network

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

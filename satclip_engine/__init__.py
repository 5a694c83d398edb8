"""Every place on Earth as a vector: SatCLIP location embeddings from fused kernels.

    import satclip_engine as se
    enc = se.load("default")
    enc([[2.35, 48.86]])                      # (1, 256) float32; longitude first, degrees
    enc.grid(resolution=0.5)                  # xarray.DataArray (band, y, x), computed where it is indexed
    se.write_raster(enc, "world.tif", se.make_grid(resolution=0.25))

Importing this package imports NumPy alone; everything else comes when it is first needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from satclip_engine._version import __version__
from satclip_engine.errors import MissingExtra, OutputError, SatclipError, UsageError, WeightsError

if TYPE_CHECKING:
    from satclip_engine.atlas.write import write_atlas
    from satclip_engine.encoder import Encoder, load
    from satclip_engine.geo.grid import Grid, make_grid
    from satclip_engine.raster.write import write_raster
    from satclip_engine.weights import LocationWeights, read_weights

# Public name → module that has it.
_LAZY = {
    "Encoder": "satclip_engine.encoder",
    "Grid": "satclip_engine.geo.grid",
    "LocationWeights": "satclip_engine.weights",
    "load": "satclip_engine.encoder",
    "make_grid": "satclip_engine.geo.grid",
    "read_weights": "satclip_engine.weights",
    "write_atlas": "satclip_engine.atlas.write",
    "write_raster": "satclip_engine.raster.write",
}

__all__ = [
    "Encoder",
    "Grid",
    "LocationWeights",
    "MissingExtra",
    "OutputError",
    "SatclipError",
    "UsageError",
    "WeightsError",
    "__version__",
    "load",
    "make_grid",
    "read_weights",
    "write_atlas",
    "write_raster",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The implementations of the encoder: one table, best first, and one file for each backend."""

from satclip_engine.backends.protocols import Backend, Prepared
from satclip_engine.backends.table import NAMES, TABLE, grids_only, resolve
from satclip_engine.device import available_cores

__all__ = ["NAMES", "TABLE", "Backend", "Prepared", "available_cores", "grids_only", "resolve"]

"""The implementations of the encoder: one table, best first, and one file for each backend."""

from satclip_engine.backends.protocols import Backend, Prepared, TrainingBackend
from satclip_engine.backends.table import (
    NAMES,
    TABLE,
    TRAINING,
    TRAINING_NAMES,
    float32_only,
    grids_only,
    resolve,
    resolve_for,
)
from satclip_engine.device import available_cores

__all__ = [
    "NAMES",
    "TABLE",
    "TRAINING",
    "TRAINING_NAMES",
    "Backend",
    "Prepared",
    "TrainingBackend",
    "available_cores",
    "float32_only",
    "grids_only",
    "resolve",
    "resolve_for",
]

"""What tests of lattices share: choices as for a large network, and a field that is smooth."""

from __future__ import annotations

import pytest
from factories.lattice import steady_rates
from reconstruction_check import random_encoder

from satclip_engine.encoder import Encoder

__all__ = ["smooth", "steady_rates"]


@pytest.fixture(scope="session")
def smooth() -> Encoder:
    """Seven bands whose lattice has nodes every degree or so."""
    return random_encoder(8, 3.0, hidden=1, width=24, bands=7, seed=4)

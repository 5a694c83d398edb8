"""Fixtures of tests that choose lattices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from reconstruction_check import RATES

from satclip_engine.lattice import choose, plan


@pytest.fixture(scope="module", autouse=True)
def steady_rates() -> Iterator[None]:
    """Lattices are chosen as for a network of the published size: these are so small that none would pay."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (plan, choose):
            patch.setattr(module, "rates_of", lambda network: RATES)
        yield

"""Fixtures of the tests of benchmarks."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _short_choice_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose baselines' block sizes in moments: which one is fastest is of no interest here."""
    monkeypatch.setattr("satclip_engine.bench.suites.torch_baselines._CHOICE_SECONDS", 0.02)

"""Fixtures for the tests of training."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from made_training import S2


@pytest.fixture
def s2(tmp_path) -> Path:
    """A copy of the four Sentinel-2 patches that a test may damage."""
    return Path(shutil.copytree(S2, tmp_path / "s2"))

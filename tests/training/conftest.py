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


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr("satclip_engine.raster.preview.MAP_WIDTH", 200)
    monkeypatch.setattr("satclip_engine.raster.preview.MAP_HEIGHT", 200)
    monkeypatch.setattr("satclip_engine.pca.SAMPLE_DEGREES", 10.0)

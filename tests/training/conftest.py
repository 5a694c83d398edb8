"""Fixtures of the tests of training."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr("satclip_engine.raster.preview.MAP_WIDTH", 200)
    monkeypatch.setattr("satclip_engine.raster.preview.MAP_HEIGHT", 200)
    monkeypatch.setattr("satclip_engine.pca.SAMPLE_DEGREES", 10.0)

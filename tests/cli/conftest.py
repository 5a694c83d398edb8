"""Fixtures of the tests of commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from satclip_engine.weights import LocationWeights


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> str:
    """A checkpoint of six bands that computes in no time."""
    rng = np.random.default_rng(7)
    tensors = {
        "layers.0.weight": rng.normal(size=(16, 36)) * 0.02,
        "layers.0.bias": rng.normal(size=16) * 0.1,
        "last_layer.weight": rng.normal(size=(6, 16)),
        "last_layer.bias": rng.normal(size=6),
    }
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    LocationWeights(tensors, "orthonormal").save(path)
    return str(path)


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr("satclip_engine.preview.write.MAP_WIDTH", 200)
    monkeypatch.setattr("satclip_engine.preview.write.MAP_HEIGHT", 200)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder

"""Fixtures for the tests of training."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from factories.training import S2


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    """timm as the trainer imports it, whatever torch its torchvision was compiled for."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    from satclip_engine.training.images.timm_encoder import import_timm

    return import_timm("this test")


@pytest.fixture(scope="session")
def torchvision(timm) -> ModuleType:
    return pytest.importorskip("torchvision")


@pytest.fixture
def s2(tmp_path) -> Path:
    """A copy of the four Sentinel-2 patches that a test may damage."""
    return Path(shutil.copytree(S2, tmp_path / "s2"))


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr("satclip_engine.preview.write.MAP_WIDTH", 200)
    monkeypatch.setattr("satclip_engine.preview.write.MAP_HEIGHT", 200)
    monkeypatch.setattr("satclip_engine.arrays.pca.SAMPLE_DEGREES", 10.0)

"""Fixtures for the tests of training."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import pytest
from factories.training import S2


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision's Python part, also where its compiled operators do not load.

    torchvision on PyPI is compiled for PyPI's torch. Beside a CPU build of torch its operators are missing,
    and its import ends at the first one whose shape function it registers. Declared, they let the import go
    on; neither timm nor these tests call any.
    """
    torch = pytest.importorskip("torch")
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor"
            )
    import torchvision

    return torchvision


@pytest.fixture(scope="session")
def timm(torchvision) -> ModuleType:
    return pytest.importorskip("timm")


@pytest.fixture
def s2(tmp_path) -> Path:
    """A copy of the four Sentinel-2 patches that a test may damage."""
    return Path(shutil.copytree(S2, tmp_path / "s2"))


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr("satclip_engine.preview.write.MAP_WIDTH", 200)
    monkeypatch.setattr("satclip_engine.preview.write.MAP_HEIGHT", 200)
    monkeypatch.setattr("satclip_engine.arrays.pca.SAMPLE_DEGREES", 10.0)

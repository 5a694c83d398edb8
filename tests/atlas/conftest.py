"""What tests of atlases share: choices as for a large network, an encoder, and an atlas made of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from factories.atlas import rough_weights
from factories.lattice import steady_rates

from satclip_engine.atlas.write import write_atlas
from satclip_engine.encoder import Encoder, load

__all__ = ["steady_rates"]


@pytest.fixture(scope="session")
def exact() -> Encoder:
    """What the tests' atlas is made of."""
    return load(rough_weights(), threads=2)


@pytest.fixture(scope="session")
def atlas_path(exact: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas to read."""
    pytest.importorskip("zarr")
    target = tmp_path_factory.mktemp("atlas") / "earth.zarr"
    write_atlas(exact, target)
    return target


@pytest.fixture(scope="session")
def atlas(atlas_path: Path) -> Encoder:
    """What answers from it."""
    return load(atlas_path, threads=2)


@pytest.fixture
def copied(atlas_path: Path, tmp_path: Path) -> Path:
    """An atlas to do damage to."""
    return Path(shutil.copytree(atlas_path, tmp_path / "copy.zarr"))

"""What tests of lattices share: choices as for a large network, and a field that is smooth."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_atlas import rough_weights
from reconstruction_check import RATES, random_encoder

from satclip_engine.encoder import Encoder, load
from satclip_engine.lattice import plan, use
from satclip_engine.lattice.atlas import write_atlas


@pytest.fixture(scope="module", autouse=True)
def steady_rates() -> Iterator[None]:
    """Lattices are chosen as for a network of the published size: these are so small that none would pay."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (plan, use):
            patch.setattr(module, "rates_of", lambda network: RATES)
        yield


@pytest.fixture(scope="session")
def smooth() -> Encoder:
    """Seven bands whose lattice has nodes every degree or so."""
    return random_encoder(8, 3.0, hidden=1, width=24, bands=7, seed=4)


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

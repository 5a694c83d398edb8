"""What importing and a first use load, and what they leave alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

import satclip_engine as se

HEAVY = (
    "torch",
    "xarray",
    "pandas",
    "rasterio",
    "rioxarray",
    "odc",
    "pyproj",
    "dask",
    "imagecodecs",
    "PIL",
    "rich",
    "zarr",
    "fsspec",
    "aiohttp",
)


def loaded_after(code: str) -> set[str]:
    """The heavy libraries that a fresh interpreter has loaded after running `code`."""
    check = f"import sys\n{code}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_package_loads_numpy_at_most():
    assert loaded_after("import satclip_engine") == set()
    assert loaded_after("import satclip_engine.encoder, satclip_engine.geo.grid") == set()


def test_importing_the_package_takes_no_longer_than_it_must():
    loaded_after(
        "before = set(sys.modules)\nimport satclip_engine\n"
        "assert not {'dataclasses', 'inspect'} & (set(sys.modules) - before)"
    )
    loaded_after("import satclip_engine.cli.grid\nassert 'satclip_engine.progress' not in sys.modules")


def test_embedding_places_needs_none_of_the_heavy_libraries():
    assert loaded_after("import satclip_engine as se\nse.load('default')([[2.25, 48.5]])") == set()


def test_a_grid_is_computed_without_torch():
    loaded = loaded_after("import satclip_engine as se\nse.load('default').grid(resolution=90).values")
    assert "xarray" in loaded
    assert "torch" not in loaded


@pytest.mark.parametrize("name", se.__all__)
def test_every_public_name_exists(name):
    assert getattr(se, name) is not None
    assert name in dir(se)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        se.no_such_name  # noqa: B018


def test_training_loads_the_heavy_libraries_only_when_they_are_used():
    modules = ("patches", "raster_patches", "images", "images.augment", "features")
    code = "\n".join(f"import satclip_engine.training.{name}" for name in modules)
    assert loaded_after(code) == set()

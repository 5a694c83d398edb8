"""Rasters interpolated from a lattice: the error in the tags holds, and the bytes depend on nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from rio_cogeo import cog_validate

from satclip_engine.encoder import load
from satclip_engine.errors import OutputError, UsageError
from satclip_engine.geo.grid import make_grid
from satclip_engine.options import INTERLEAVES
from satclip_engine.raster.spool import spool_folder
from satclip_engine.raster.write import write_raster
from satclip_engine.weights import LocationWeights

GRIDS = {
    "window": {"resolution": 0.02, "bounds": (5, 40, 13, 48)},
    "antimeridian": {"resolution": 0.02, "bounds": (176, -22, 184, -14)},
    "pole": {"resolution": 0.125, "bounds": (-180, 80, 180, 90)},
    "utm": {"crs": "EPSG:32633", "resolution": 250, "bounds": (300000, 5000000, 400000, 5100000)},
}


@pytest.fixture(scope="module")
def weights() -> LocationWeights:
    """Wide enough that evaluating a pixel costs far more than interpolating its twelve bands."""
    rng = np.random.default_rng(11)
    degrees, hidden, bands = 8, 384, 12
    tensors = {
        "layers.0.weight": rng.normal(size=(hidden, degrees**2)) * 0.01,
        "layers.0.bias": rng.normal(size=hidden) * 0.05,
        "layers.1.weight": rng.normal(size=(hidden, hidden)) * 0.08,
        "layers.1.bias": rng.normal(size=hidden) * 0.1,
        "last_layer.weight": rng.normal(size=(bands, hidden)) * 0.1,
        "last_layer.bias": rng.normal(size=bands),
    }
    return LocationWeights(tensors, "orthonormal")


def write(weights, path, grid, threads=2, **options):
    return write_raster(load(weights, threads=threads), path, make_grid(**grid), blocksize=64, **options)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_what_the_tags_say_of_the_error_holds_at_every_pixel(weights, tmp_path, grid, dtype):
    path, encoder = tmp_path / "out.tif", load(weights)
    report = write(weights, path, grid, dtype=dtype, compress="none")
    assert cog_validate(path, strict=True, quiet=True)[0]
    assert report.reconstruction["path"] == "lattice", report.reconstruction["reason"]
    exact = encoder.evaluate(make_grid(**grid))
    with rasterio.open(path) as raster:
        tags = raster.tags()
        largest = np.array([float(raster.tags(k)["RECONSTRUCTION_MAX_ERROR"]) for k in raster.indexes])
        scales, offsets = np.array(raster.scales), np.array(raster.offsets)
        found = raster.read().transpose(1, 2, 0) * scales + offsets
    found = np.where(np.isnan(exact), exact, found)
    rounding = scales / 2 if dtype == "int8" else np.abs(exact) * 2e-7
    off = np.maximum(np.abs(found - exact) - rounding, 0) / encoder.moments.sigma
    bound, fraction = (float(tags[f"reconstruction_{name}"]) for name in ("max_sigma", "fraction_beyond"))
    beyond = (off.max(axis=-1) > bound * (1 + 1e-4) + 2e-6).mean()
    assert beyond <= fraction
    assert off.max() < (1e-4 if dtype == "float32" else 1e-2)
    assert largest.shape == (12,)
    np.testing.assert_allclose((largest / encoder.moments.sigma).max(), bound, rtol=1e-4)
    assert int(tags["reconstruction_positions"]) >= 2048


@pytest.mark.parametrize("interleave", INTERLEAVES)
def test_bytes_depend_on_neither_threads_nor_memory_nor_interruptions(weights, tmp_path, interleave):
    grid = GRIDS["antimeridian"]
    whole = tmp_path / "whole.tif"
    write(weights, whole, grid, interleave=interleave)
    other = tmp_path / "other.tif"
    write(weights, other, grid, threads=1, memory=6_000_000, interleave=interleave)
    assert other.read_bytes() == whole.read_bytes()

    class Stop:
        def __init__(self):
            self.pixels = 0

        def start(self, total): ...
        def stage(self, text): ...
        def finish(self): ...
        def advance(self, pixels):
            self.pixels += pixels
            if self.pixels > 60_000:
                raise KeyboardInterrupt

    path = tmp_path / "part.tif"
    with pytest.raises(KeyboardInterrupt):
        write(weights, path, grid, threads=1, memory=6_000_000, interleave=interleave, progress=Stop())
    state = json.loads((spool_folder(path) / "state.json").read_text())
    assert state["reconstruction"]["path"] == "lattice"
    report = write(weights, path, grid, interleave=interleave, resume=True)
    assert 0 < report.resumed_from < 1
    assert path.read_bytes() == whole.read_bytes()


def test_exact_is_exact_and_says_nothing_of_a_reconstruction(weights, tmp_path):
    path, grid = tmp_path / "out.tif", GRIDS["window"]
    report = write(weights, path, grid, dtype="float32", exact=True)
    assert report.reconstruction is None
    with rasterio.open(path) as raster:
        found = {key: value for key, value in raster.tags().items() if key.startswith("reconstruction")}
        assert found == {"reconstruction": "none: every pixel is evaluated"}
        np.testing.assert_array_equal(
            raster.read().transpose(1, 2, 0), load(weights).evaluate(make_grid(**grid))
        )


def test_another_tolerance_does_not_go_on(weights, tmp_path):
    path, grid = tmp_path / "out.tif", GRIDS["window"]
    write(weights, path, grid, tolerance=1e-2)
    with pytest.raises(OutputError, match=r"reconstruction was 0\.01 σ, is now 0\.001 σ"):
        write(weights, path, grid, tolerance=1e-3, resume=True)
    assert write(weights, path, grid, tolerance=1e-2, resume=True).resumed_from == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exact": True, "tolerance": 1e-3}, "exact and tolerance are mutually exclusive"),
        ({"tolerance": 1e-9}, "the floor is"),
        ({"tolerance": 0.0}, "must be positive"),
        ({"tolerance": float("nan")}, "must be positive"),
    ],
)
def test_tolerances_that_cannot_be_are_refused_and_leave_nothing(weights, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        write(weights, tmp_path / "out.tif", GRIDS["window"], **options)
    assert list(tmp_path.iterdir()) == []

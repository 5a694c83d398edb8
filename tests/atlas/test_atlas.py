"""An atlas answers as the network does, within its certificate and without it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from factories.atlas import PARIS, places

import satclip_engine as se
from satclip_engine.atlas.write import write_atlas
from satclip_engine.errors import UsageError, WeightsError

pytest.importorskip("zarr")


@pytest.mark.parametrize(("dtype", "tolerance"), [("int16", 1e-3), ("float16", 1e-2), ("float32", 1e-4)])
def test_answers_lie_within_the_certificate(exact, tmp_path, dtype, tolerance):
    report = write_atlas(exact, tmp_path / "earth.zarr", dtype=dtype, tolerance=tolerance)
    atlas, where = se.load(tmp_path / "earth.zarr"), places(20_000)
    found = report.certificate
    assert found.max_sigma <= tolerance
    assert report.nodes * exact.embed_dim * np.dtype(dtype).itemsize > 0.8 * report.bytes
    off = np.abs(atlas(where) - exact(where, exact=True)) / found.sigma
    assert off.max() <= tolerance
    assert (off.max(axis=1) > found.max_sigma).mean() <= found.fraction
    assert np.sqrt(np.square(off).mean()) == pytest.approx(found.rms_sigma, rel=0.1)
    assert atlas.plan.certificate.as_dict() == found.as_dict()


def test_it_says_what_it_was_made_of(exact, atlas):
    assert atlas.backend == "atlas"
    assert atlas.band_names == exact.band_names
    assert atlas.embed_dim == 8
    for name in ("sha256", "harmonics", "degrees", "L", "capacity", "hidden_layers", "embed_dim"):
        assert getattr(atlas.weights, name) == getattr(exact.weights, name)
    assert atlas.weights.provenance.source == "memory (earth.zarr)"
    assert "earth.zarr" in repr(atlas)
    assert atlas.sha256 != exact.sha256
    attributes = atlas.grid(resolution=30).attrs
    assert attributes["weights_sha256"] == exact.weights.sha256
    assert attributes["function_sha256"] == atlas.sha256
    assert "no band errs by more than" in attributes["reconstruction"]


def test_a_pole_has_no_longitude(atlas):
    for lat in (-90.0, 90.0):
        found = atlas([[lon, lat] for lon in (-180.0, -17.3, 0.0, 99.0, 180.0, 361.0)])
        assert (found == found[0]).all()


def test_turns_do_not_matter(atlas):
    where = places(2000)
    np.testing.assert_array_equal(atlas(where), atlas(where + np.array([360.0, 0.0])))
    np.testing.assert_array_equal(atlas([[180.0, 12.0]]), atlas([[-180.0, 12.0]]))


def test_bits_depend_on_nothing_but_the_place(atlas_path, atlas):
    where = places(3000)
    whole = atlas(where)
    np.testing.assert_array_equal(np.concatenate([atlas(part) for part in np.array_split(where, 7)]), whole)
    np.testing.assert_array_equal(se.load(atlas_path, threads=1)(where[::-1])[::-1], whole)
    grid = atlas.grid(resolution=1.5)
    np.testing.assert_array_equal(grid[:, 30:40, 50:90].values, grid.values[:, 30:40, 50:90])
    lonlat = np.stack(np.meshgrid(grid.x.values[50:90], grid.y.values[30:40]), axis=-1)
    single = atlas(lonlat).transpose(2, 0, 1)
    np.testing.assert_allclose(single, grid.values[:, 30:40, 50:90], rtol=0, atol=2e-6)


def test_places_that_are_none_give_nan_or_are_refused(atlas):
    found = atlas([[np.nan, 0.0], [0.0, np.inf], [0.0, 0.0]])
    assert np.isnan(found[:2]).all()
    assert np.isfinite(found[2]).all()
    with pytest.raises(UsageError, match="latitude"):
        atlas([[0.0, 90.5]])
    assert atlas(np.empty((0, 2))).shape == (0, 8)


def test_threads_may_share_it(atlas_path):
    atlas, where = se.load(atlas_path, threads=1), [places(500, seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(atlas, where))
    for there, values in zip(where, found, strict=True):
        np.testing.assert_array_equal(values, atlas(there))


# Rasters


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:3413"])
def test_grids_in_any_crs(exact, atlas, crs):
    size = {"EPSG:4326": 2.0}.get(crs, 200_000.0)
    bounds = None if crs != "EPSG:3413" else (-4e6, -4e6, 4e6, 4e6)
    how = {"resolution": size, "crs": crs, "bounds": bounds}
    found, expected = atlas.grid(**how), exact.grid(**how, exact=True)
    off = np.abs(found.values - expected.values) / atlas.plan.certificate.sigma[:, None, None]
    assert np.nanmax(off) <= 1e-3
    assert (np.isnan(found.values) == np.isnan(expected.values)).all()


def test_a_dask_array_has_the_same_bits(atlas):
    pytest.importorskip("dask")
    lazy = atlas.grid(resolution=3, chunks={"y": 17, "x": 40})
    np.testing.assert_array_equal(lazy.compute().values, atlas.grid(resolution=3).values)


def test_an_xarray_object_is_embedded(exact, atlas):
    import satclip_engine.xarray  # noqa: F401

    scene = exact.grid(resolution=5)[0]
    found = scene.satclip.embed(atlas)
    np.testing.assert_array_equal(found.values, atlas.grid(resolution=5).values)


@pytest.mark.parametrize("interleave", ["tile", "pixel"])
def test_a_raster_is_written(atlas, tmp_path, interleave):
    import rasterio

    target = tmp_path / "world.tif"
    some, grid = atlas.select("1-3"), se.make_grid(resolution=2)
    se.write_raster(some, target, grid, dtype="float32", interleave=interleave)
    with rasterio.open(target) as dataset:
        found, tags = dataset.read(), dataset.tags()
    np.testing.assert_array_equal(found, atlas.select("1-3").grid(resolution=2).values)
    assert "no band errs" in tags["reconstruction"]


def test_a_tensor_is_answered_with_one(atlas):
    torch = pytest.importorskip("torch")
    found = atlas(torch.tensor(PARIS, dtype=torch.float64))
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), atlas(PARIS))


# Bands and heads


def test_selected_bands_have_the_same_bits(atlas):
    some, where = atlas.select([6, 1, 1]), places(500)
    np.testing.assert_array_equal(some(where), atlas(where)[:, [6, 1, 1]])
    assert some.band_names == ["e007", "e002", "e002"]
    assert some.sha256 != atlas.sha256
    assert some.plan.certificate.sigma.shape == (3,)
    np.testing.assert_array_equal(some.select([1])(where), atlas(where)[:, [1]])


def test_a_head_is_folded_into_the_nodes(exact, atlas):
    random, where = np.random.default_rng(3), places(20_000)
    weight, bias = random.normal(size=(4, 8)), random.normal(size=4)
    expected, found = exact.with_head(weight, bias), atlas.with_head(weight, bias, names=list("abcd"))
    assert found.band_names == list("abcd")
    off = np.abs(found(where) - expected(where, exact=True))
    certificate = found.plan.certificate
    assert (off <= certificate.max_error * 1.05).all()
    assert (certificate.max_error < 8 * off.max(axis=0)).all()  # the bound says something
    np.testing.assert_allclose(np.sqrt(np.square(off).mean(axis=0)), certificate.rms_error, rtol=0.15)
    np.testing.assert_allclose(certificate.sigma, expected.moments.sigma, rtol=0.03)
    assert "by a bound" in certificate.statement
    json.dumps(found.plan.summary(), allow_nan=False)
    assert "reconstruction_min_cosine" not in certificate.tags()
    np.testing.assert_array_equal(found(where[:100]), found(where)[:100])


def test_heads_and_selections_follow_each_other(atlas):
    random, where = np.random.default_rng(3), places(300)
    first, second = random.normal(size=(4, 3)), random.normal(size=(2, 2))
    chained = (
        atlas.select([5, 0, 5]).with_head(first, names=list("abcd")).select(["b", "d"]).with_head(second)
    )
    expected = (atlas(where)[:, [5, 0, 5]].astype(np.float64) @ first.T)[:, [1, 3]] @ second.T
    np.testing.assert_allclose(chained(where), expected, rtol=0, atol=1e-5)
    assert chained.sha256 != atlas.with_head(np.eye(8)).sha256


@pytest.mark.parametrize("weight", [np.ones((2, 7)), np.ones(8), np.full((1, 8), np.nan)])
def test_a_head_of_another_shape_is_refused(atlas, weight):
    with pytest.raises(UsageError, match="head"):
        atlas.with_head(weight)


# Pickles and processes


def test_it_pickles_by_its_place(atlas):
    where = places(200)
    for encoder in (atlas, atlas.select("2,3"), atlas.with_head(np.ones((1, 8)))):
        content = pickle.dumps(encoder)
        assert len(content) < 20_000
        again = pickle.loads(content)
        assert again.sha256 == encoder.sha256
        assert again.band_names == encoder.band_names
        np.testing.assert_array_equal(again(where), encoder(where))


def test_another_atlas_in_the_same_place_is_noticed(exact, copied):
    content = pickle.dumps(se.load(copied))
    write_atlas(exact.select("1-2"), copied, overwrite=True, tolerance=1e-2)
    with pytest.raises(WeightsError, match="another atlas"):
        pickle.loads(content)


def test_it_needs_neither_torch_nor_weights(atlas_path, atlas):
    code = (
        "import sys, satclip_engine as se\n"
        "from satclip_engine import weights\n"
        "weights.read_weights = None\n"
        f"print(se.load({str(atlas_path)!r})({PARIS})[0].tolist())\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.float32(json.loads(done.stdout)), atlas(PARIS)[0])

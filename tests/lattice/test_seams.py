"""No seams: a pixel of a reconstructed raster has the same bits in whatever piece it is computed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from affine import Affine
from factories.planned import planned
from odc.geo.geobox import GeoBox

from satclip_engine.backends.protocols import Call, Quantise
from satclip_engine.geo.grid import Grid, make_grid
from satclip_engine.lattice.choose import approximated

dask = pytest.importorskip("dask")

GRIDS = {
    "global": make_grid(resolution=0.5),
    "antimeridian": make_grid(resolution=0.05, bounds=(172, -40, 188, -20)),
    "UTM": make_grid(crs="EPSG:32633", bounds=(4e5, 5e6, 5.29e5, 5.099e6), resolution=300),
    "Web Mercator": make_grid(crs="EPSG:3857", bounds=(-5e5, 5e6, 1e5, 5.6e6), resolution=1500),
    "over the north pole": make_grid(crs="EPSG:3413", bounds=(-3e5, -4e5, 4e5, 4e5), resolution=2000),
    "over the south pole": make_grid(crs="EPSG:3031", bounds=(-4e5, -3e5, 4e5, 4e5), resolution=2000),
    # Its first rows lie beyond the pole, its last column but one is its first; pixels lie on both poles.
    "poles on pixels": Grid.from_geobox(
        GeoBox((367, 742), Affine(0.5, 0, -185.25, 0, -0.5, 90.25 + 2), "EPSG:4326")
    ),
}


@pytest.fixture(scope="module", params=GRIDS)
def scene(request, smooth):
    """(grid, its plan and network, the whole raster as (band, y, x))."""
    grid = GRIDS[request.param]
    memory = np.full((*grid.shape, 7), 7, np.float32)
    array = smooth.grid(geobox=grid, out=memory)
    job = planned(smooth, grid)
    assert job.plan.path == "lattice"
    assert "reconstruction" in array.attrs
    return grid, job, memory.transpose(2, 0, 1)


def test_the_whole_raster_is_the_field(scene, smooth):
    grid, job, whole = scene
    exact = smooth.grid(geobox=grid, exact=True).values
    assert np.array_equal(np.isnan(whole), np.isnan(exact))
    assert not np.array_equal(whole, exact, equal_nan=True), "nothing was interpolated"
    off = np.nanmax(np.abs(whole - exact), axis=(1, 2)) / job.plan.tolerance.bands
    assert off.max() < 3  # the certificate's 0.5 % of pixels may be beyond the tolerance, but not far


def test_any_window_has_the_bits_of_the_whole(scene, smooth):
    grid, _, whole = scene
    random, (height, width) = np.random.default_rng(0), grid.shape
    windows = [
        np.s_[:, 3:150, width - 200 :],
        np.s_[:, ::-3, 5::7],
        np.s_[:, height - 1, :],
        np.s_[:, :, 0],
        np.s_[3, 7, 11],
        np.s_[[5, 1], 20:150, 30:160],  # so many pixels that a network of two bands is made
        np.s_[1::2, 20:150, 30:160],
        np.s_[:, 5:5, :],
        np.s_[:, random.integers(0, height, 30), 0:60],
    ]
    for window in windows:
        found = smooth.grid(geobox=grid)[window].values
        assert np.array_equal(found, whole[window], equal_nan=True), window


def test_single_pixels_have_the_bits_of_the_whole(scene, smooth):
    xarray = pytest.importorskip("xarray")
    grid, job, whole = scene
    random = np.random.default_rng(1)
    rows, cols = (random.integers(0, size, 300) for size in grid.shape)
    points = smooth.grid(geobox=grid).isel(
        y=xarray.DataArray(rows, dims="p"), x=xarray.DataArray(cols, dims="p")
    )
    assert np.array_equal(points.values, whole[:, rows, cols], equal_nan=True)
    found = job.network.encode_single_pixels(approximated(job.network, grid), rows, cols)
    assert np.array_equal(found.T, whole[:, rows, cols], equal_nan=True)


@pytest.mark.parametrize("chunks", [64, 97, "auto", {"band": 3, "y": 200, "x": 130}])
def test_any_chunks_have_the_bits_of_the_whole(scene, smooth, chunks):
    grid, _, whole = scene
    array = smooth.grid(geobox=grid, chunks=chunks)
    with dask.config.set(scheduler="threads", num_workers=3):
        assert np.array_equal(array.values, whole, equal_nan=True)
    assert "reconstruction" in array.attrs


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_has_the_bits_of_the_whole(scene, threads):
    grid, job, whole = scene
    encoder = pickle.loads(pickle.dumps(job.encoder))
    network = encoder.prepare(job.plan)  # without the nodes that others evaluated
    found = network.encode_pixels(approximated(network, grid), call=Call(threads))
    assert np.array_equal(found.transpose(2, 0, 1), whole, equal_nan=True)


def test_pickled_arrays_have_the_bits_of_the_whole(scene, smooth):
    grid, _, whole = scene
    for array in (smooth.grid(geobox=grid), smooth.grid(geobox=grid, chunks=200)):
        again = pickle.loads(pickle.dumps(array[:, 100:160, 90:190]))
        assert np.array_equal(again.values, whole[:, 100:160, 90:190], equal_nan=True)
        assert again.attrs["reconstruction"] == array.attrs["reconstruction"]


@pytest.mark.parametrize("dtype", ["int8", "int16"])
@pytest.mark.parametrize("tolerance", [None, 1e-3])
def test_integers_are_the_floats_of_their_plan_quantised(scene, smooth, dtype, tolerance):
    grid = scene[0]
    scale, offset = np.linspace(0.01, 0.02, 7, dtype=np.float32), np.linspace(-0.1, 0.2, 7, dtype=np.float32)
    array = smooth.grid(geobox=grid, dtype=dtype, scale_offset=(scale, offset), tolerance=tolerance)
    assert "reconstruction" in array.attrs
    job = planned(smooth, grid, tolerance=tolerance, step=scale.astype(float), dtype=dtype)
    assert job.plan.path == "lattice"
    floats = job.evaluate().transpose(2, 0, 1)
    if tolerance is not None:
        assert np.array_equal(floats, smooth.grid(geobox=grid, tolerance=tolerance).values, equal_nan=True)
    inverse_scale = (1 / scale.astype(float)).astype(np.float32)
    quantise = Quantise(inverse_scale[:, None, None], offset[:, None, None])
    assert np.array_equal(array.values, quantise.codes(floats, np.dtype(dtype)))
    missing = int(np.iinfo(dtype).min)
    assert np.array_equal(array.values[0] == missing, np.isnan(floats[0]))


def test_exact_integers_are_the_exact_floats_quantised(smooth):
    grid, scale, offset = GRIDS["UTM"], np.float32(0.01), np.float32(0.1)
    array = smooth.grid(geobox=grid, dtype="int8", scale_offset=(scale, offset), exact=True)
    floats = smooth.grid(geobox=grid, exact=True).values
    assert "reconstruction" not in array.attrs
    assert np.array_equal(array.values, Quantise(1 / scale, offset).codes(floats, np.dtype("int8")))


def test_a_pole_has_one_value_on_all_longitudes(smooth):
    grid = GRIDS["poles on pixels"]
    whole = smooth.grid(geobox=grid).values
    for row, lat in ((4, 90.0), (364, -90.0)):
        assert grid.lat(np.array([row]))[0] == lat
        assert (whole[:, row] == whole[:, row, :1]).all()
    assert np.isnan(whole[:, :4]).all()
    assert np.isnan(whole[:, 365:]).all()
    lon = np.random.default_rng(0).uniform(-180, 180, 150_000)
    for lat in (-90.0, 90.0):
        values = smooth(np.stack([lon, np.full(lon.size, lat)], axis=-1))
        assert (values == values[0]).all()


def test_columns_a_turn_apart_have_the_same_bits(smooth):
    grid = GRIDS["poles on pixels"]
    whole, lon = smooth.grid(geobox=grid).values, grid.lon()
    for column in range(22):
        assert lon[column + 720] == lon[column] + 360
        assert np.array_equal(whole[:, :, column], whole[:, :, column + 720], equal_nan=True)

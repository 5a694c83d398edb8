"""Arrays that may be interpolated: their plan is made when values are first asked for, once, and is kept."""

from __future__ import annotations

import gc
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray as xr

import satclip_engine.xarray
from satclip_engine.encoder import load
from satclip_engine.errors import UsageError
from satclip_engine.geo.grid import make_grid
from satclip_engine.lattice import choose, nodes

GRIDS = {
    "degrees": {"resolution": 0.05, "bounds": (0, 40, 20, 60)},
    "UTM": {"crs": "EPSG:32633", "resolution": 300, "bounds": (4e5, 5e6, 5.29e5, 5.099e6)},
}


@pytest.fixture
def fresh(smooth):
    """An encoder that has made no plan."""
    return load(smooth.weights, threads=2)


@pytest.fixture
def plans(monkeypatch):
    """The rasters for which a plan was made."""
    made, make = [], choose.make_plan
    monkeypatch.setattr(choose, "make_plan", lambda *a, **k: made.append(a[1]) or make(*a, **k))
    return made


@pytest.mark.parametrize("case", GRIDS)
@pytest.mark.parametrize("chunks", [None, 100])
def test_an_array_is_there_before_its_plan(fresh, plans, case, chunks):
    pytest.importorskip("dask")
    array = fresh.grid(**GRIDS[case], chunks=chunks)
    repr(array)
    array[:, 3:60, 5:9].transpose("y", "x", "band")
    array.copy(deep=True)
    assert array.sel(x=array.x[7]).sizes["y"] == array.sizes["y"]
    assert not plans
    assert "reconstruction" not in array.attrs
    array[:, 0, 0].values  # noqa: B018
    array[0].values  # noqa: B018
    assert len(plans) == 1
    assert "no band errs by more than" in array.attrs["reconstruction"]


def test_arrays_of_rasters_of_any_size_are_there_at_once(fresh):
    fresh.grid(resolution=30)
    for grid in ({"resolution": 0.5}, {"resolution": 0.0001}, GRIDS["UTM"]):
        started = time.process_time()  # of all threads; other processes do not count
        fresh.grid(**grid)
        assert time.process_time() - started < 0.2  # a tenth of that on an idle machine


@pytest.mark.parametrize("case", GRIDS)
def test_a_pixel_has_the_same_bits_whatever_was_asked_for_before(smooth, case):
    whole = load(smooth.weights, threads=2).grid(**GRIDS[case], tolerance=1e-3).values
    for first in (np.s_[:, 7, 9], np.s_[2:4, 50:180, 100:230], np.s_[:, ::50, ::50]):
        array = load(smooth.weights, threads=1).grid(**GRIDS[case], tolerance=1e-3)
        assert np.array_equal(array[first].values, whole[first])
        assert np.array_equal(array[:, 100:120, 40:90].values, whole[:, 100:120, 40:90])


def test_a_second_array_of_the_raster_takes_the_plan_of_the_first(fresh, plans):
    one = fresh.grid(**GRIDS["degrees"])
    window = one[:, 3:5, 8:9].values
    two = fresh.grid(make_grid(**GRIDS["degrees"]))
    assert two.attrs == one.attrs
    assert np.array_equal(two[:, 3:5, 8:9].values, window)
    assert len(plans) == 1
    fresh.grid(**GRIDS["degrees"], bands="2-3")[:, 0, 0].values  # noqa: B018
    fresh.grid(**GRIDS["degrees"], bands="2-3")[:, 0, 1].values  # noqa: B018
    assert len(plans) == 2, "of the selection"


def test_threads_that_look_at_once_wait_for_one_plan(fresh, plans):
    array = fresh.grid(**GRIDS["degrees"])
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda k: array[:, k].values, range(6)))
    assert len(plans) == 1
    assert np.array_equal(np.stack(found, axis=1), array[:, :6].values)


def test_a_plan_asked_for_beforehand_is_in_the_attributes_from_the_start(fresh, plans):
    plan = fresh.plan_grid(**GRIDS["UTM"])
    assert plan.path == "lattice"
    array = fresh.grid(**GRIDS["UTM"])
    assert array.attrs.items() >= plan.attributes().items()
    assert np.array_equal(array.reconstruction_max_error, plan.certificate.max_error)
    assert len(plans) == 1
    assert fresh.plan_grid(resolution=10).reason == "fewer than 100,000 points"
    with pytest.raises(UsageError, match="mutually exclusive"):
        fresh.plan_grid(resolution=10, exact=True, tolerance=1e-3)


@pytest.mark.parametrize("chunks", [None, 100])
def test_arrays_made_before_the_plan_and_after_it_say_the_same(fresh, chunks):
    pytest.importorskip("dask")
    array = fresh.grid(**GRIDS["degrees"], chunks=chunks)
    array[:, :4, :4].compute()
    for other in (array[:, 3:9, 1:7], array.copy(), fresh.grid(**GRIDS["degrees"], chunks=chunks)):
        assert other.attrs["reconstruction"] == array.attrs["reconstruction"]


def test_files_written_before_the_plan_say_where_their_error_is(fresh, tmp_path):
    array = fresh.grid(**GRIDS["degrees"])
    array[:, :4, :4].to_netcdf(tmp_path / "window.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "window.nc", engine="h5netcdf") as read:
        assert "reconstruction_max_error" in read.embedding.attrs["comment"]
        certificate = fresh.plan_grid(**GRIDS["degrees"]).certificate
        assert np.array_equal(read.reconstruction_max_error, certificate.max_error)
    assert "no band errs by more than" in array.attrs["reconstruction"]
    assert "comment" not in array.attrs
    assert "comment" not in fresh.grid(**GRIDS["degrees"]).attrs
    commented = load(fresh.weights, threads=2).grid(**GRIDS["degrees"]).assign_attrs(comment="mine")
    commented.load()
    assert commented.attrs["comment"] == "mine"


def test_errors_of_bands_are_coordinates_that_wait_for_the_plan(fresh, plans):
    array = fresh.grid(**GRIDS["degrees"])
    errors = array[[4, 2]].reconstruction_max_error
    assert not plans
    expected = fresh.plan_grid(**GRIDS["degrees"]).certificate
    assert np.array_equal(errors, expected.max_error[[4, 2]])
    assert np.array_equal(array.reconstruction_rms_error, expected.rms_error)
    assert "reconstruction_max_error" not in fresh.grid(**GRIDS["degrees"], exact=True).coords


def test_what_turns_out_to_be_exact_errs_by_nothing(fresh, monkeypatch):
    exact = load(fresh.weights, threads=2).grid(**GRIDS["degrees"], exact=True).values
    array = fresh.grid(**GRIDS["degrees"])
    monkeypatch.setattr("satclip_engine.lattice.plan._MAX_COST_RATIO", 0.0)
    assert np.array_equal(array.values, exact)
    assert "reconstruction" not in array.attrs
    assert (array.reconstruction_max_error == 0).all()


def test_pickles_carry_the_plan(fresh, plans):
    array = fresh.grid(**GRIDS["UTM"])
    content = pickle.dumps(array)
    assert len(plans) == 1
    again = pickle.loads(content)
    assert again.attrs["reconstruction"] == array.attrs["reconstruction"]
    assert np.array_equal(again[:, 30:40, 50:90].values, array[:, 30:40, 50:90].values)
    assert len(plans) == 1


def test_names_of_dask_arrays_follow_without_a_plan(smooth, plans):
    pytest.importorskip("dask")

    def name(**options):
        return load(smooth.weights, threads=2).grid(**GRIDS["UTM"], chunks=100, **options).data.name

    assert name() == name()
    assert len({name(), name(tolerance=1e-3), name(exact=True), name(bands="1-3")}) == 4
    assert not plans
    encoder = load(smooth.weights, threads=2)
    encoder.plan_grid(**GRIDS["UTM"], chunks=100)
    assert encoder.grid(**GRIDS["UTM"], chunks=100).data.name == name()


def test_embedding_a_lazy_scene_is_lazy(fresh, plans):
    scene = xr.DataArray(
        np.zeros((400, 400), np.int8), dims=("lat", "lon"),
        coords={"lat": np.linspace(60, 40, 400), "lon": np.linspace(0, 20, 400)},
    )  # fmt: skip
    array = scene.satclip.embed(fresh)
    window = array[:, 2:4, 3:5]
    assert not plans
    values = window.values
    assert len(plans) == 1
    assert "reconstruction" in array.attrs
    assert np.array_equal(array.values[:, 2:4, 3:5], values)
    assert satclip_engine.xarray.locate(scene).shape == (400, 400)


def test_a_tolerance_below_the_floor_is_refused_before_anything_is_asked_for(fresh):
    with pytest.raises(UsageError, match="below what float32 can keep"):
        fresh.grid(**GRIDS["degrees"], tolerance=1e-9)


def test_nodes_go_with_the_last_array_and_plans_stay(fresh, plans):
    arrays = [fresh.grid(**GRIDS["degrees"]) for _ in range(2)]
    values = [array[:, 40:60, 30:90].values for array in arrays]
    gc.collect()
    before = nodes._SHARED.bytes
    del arrays[0]
    gc.collect()
    assert nodes._SHARED.bytes == before
    del arrays[0]
    gc.collect()
    assert nodes._SHARED.bytes < before
    again = fresh.grid(**GRIDS["degrees"])
    assert "reconstruction" in again.attrs
    assert np.array_equal(again[:, 40:60, 30:90].values, values[0])
    assert len(plans) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, UsageError])
def test_planning_that_fails_leaves_nothing_behind(fresh, plans, monkeypatch, error):
    array = fresh.grid(**GRIDS["UTM"])
    with monkeypatch.context() as patched:

        def fail(*arguments, **options):
            raise error("now")

        patched.setattr(choose, "make_plan", fail)
        with pytest.raises(error):
            array[:, 0, 0].values  # noqa: B018
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: array[:, 0, 0].values).result(60).shape == (fresh.embed_dim,)
    assert len(plans) == 1

"""`.satclip.embed()`: the embedding of an object's own places, with its coordinates, lazy as it is."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import rasterio
import rioxarray
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_zeros
from rasterio.control import GroundControlPoint

import satclip_engine.xarray
from satclip_engine.errors import UsageError
from satclip_engine.xarray import embed, locate

ROTATED = GeoBox((9, 14), Affine.translation(10, 50) * Affine.rotation(20) * Affine.scale(0.2, -0.2), 4326)


def by_points(enc, lon, lat):
    """The embedding of broadcast longitudes and latitudes, band first."""
    lon, lat = np.broadcast_arrays(np.asarray(lon, float), np.asarray(lat, float))
    return np.moveaxis(enc(np.stack([lon, lat], axis=-1)), -1, 0)


def assert_close(array, expected):
    assert array.shape == expected.shape
    assert np.allclose(array.values, expected, rtol=0, atol=1e-5, equal_nan=True)


def lonlat_grid(lat, lon, dims=("lat", "lon")):
    """A time series on latitudes × longitudes, without any CRS."""
    return xr.DataArray(
        np.zeros((2, len(lat), len(lon))),
        dims=("time", *dims),
        coords={"time": [10, 20], dims[0]: lat, dims[1]: lon},
    )


GRIDS = {
    "degrees": {"resolution": 10},
    "UTM": {"crs": "EPSG:32633", "resolution": 10_000, "bounds": (300_000, 5_000_000, 450_000, 5_100_000)},
    "polar": {"crs": "EPSG:3031", "resolution": 500_000},
    "Equal Earth": {"crs": "EPSG:8857", "resolution": 2_000_000},
    "rotated": {"like": ROTATED},
    "south up": {"like": GeoBox((8, 11), Affine(5, 0, -20, 0, 5, -10), "EPSG:4326")},
    "one pixel": {"crs": "EPSG:3857", "resolution": 10, "bounds": (0, 0, 10, 10)},
}


@pytest.mark.parametrize("case", GRIDS)
def test_a_raster_file_is_embedded_on_its_own_pixels(tiny, case, tmp_path):
    grid = tiny.grid(**GRIDS[case])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rioxarray notes that it keeps a rotated transform
        grid.rio.to_raster(tmp_path / "a.tif")
        scene = rioxarray.open_rasterio(tmp_path / "a.tif")
    array = scene.satclip.embed(tiny)
    assert array.dims == ("band", "y", "x")
    assert array.band.values.tolist() == tiny.band_names
    assert np.array_equal(array.values, grid.values, equal_nan=True)
    for name in set(scene.coords) - {"band"}:
        assert array.coords[name].identical(scene.coords[name].drop_vars("band", errors="ignore")), name
    assert array.rio.crs == scene.rio.crs
    assert array.rio.transform() == scene.rio.transform()


@pytest.mark.parametrize("case", GRIDS)
def test_an_embedding_embeds_as_itself(tiny, case):
    grid = tiny.grid(**GRIDS[case])
    assert np.array_equal(grid.satclip.embed(tiny).values, grid.values, equal_nan=True)
    assert np.array_equal(tiny.grid(like=grid).values, grid.values, equal_nan=True)


def test_a_dataset_is_embedded_too(tiny):
    grid = tiny.grid(resolution=10)
    dataset = grid.to_dataset(dim="band")
    array = dataset.satclip.embed(tiny)
    assert isinstance(array, xr.DataArray)
    assert np.array_equal(array.values, grid.values)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("case", ["degrees", "UTM", "rotated"])
def test_any_part_of_a_raster_is_embedded_where_it_lies(tiny, case, data):
    """The stored transform speaks of the whole raster; the labels of the part win."""
    grid = tiny.grid(**GRIDS[case])
    part = {}
    for dim in ("y", "x"):
        size = grid.sizes[dim]
        first = data.draw(st.integers(0, size - 1))
        part[dim] = slice(first, data.draw(st.integers(first + 1, size)), data.draw(st.integers(1, 3)))
    window = grid.isel(part)
    assert_close(window.satclip.embed(tiny), window.values)


def test_longitudes_and_latitudes_without_a_crs_are_enough(tiny):
    lat, lon = np.linspace(90, -90, 19), np.arange(0, 360, 20.0)
    array = lonlat_grid(lat, lon).satclip.embed(tiny)
    assert array.dims == ("band", "lat", "lon")
    assert set(array.coords) == {"band", "lat", "lon"}
    assert_close(array, by_points(tiny, lon, lat[:, None]))


LATITUDES = {
    "ascending": np.arange(-80, 81, 10.0),
    "descending": np.arange(80, -81, -10.0),
    "gaussian": np.degrees(np.arcsin(np.polynomial.legendre.leggauss(16)[0])),
    "shuffled": np.array([3.0, -50, 70, 12]),
    "one": np.array([48.5]),
    "whole numbers": np.arange(-3, 4),
    "float32": np.arange(-3, 4, dtype=np.float32) / 7,
}


@pytest.mark.parametrize("case", LATITUDES)
def test_axes_may_be_irregular_and_run_either_way(tiny, case):
    lat, lon = LATITUDES[case], np.array([5.0, 190.0, -170.0, 12.25])
    expected = by_points(tiny, lon, lat.astype(float)[:, None])
    plain = lonlat_grid(lat, lon, dims=("latitude", "longitude"))
    assert_close(plain.satclip.embed(tiny), expected)
    assert_close(plain.rio.write_crs(4326).satclip.embed(tiny), expected)
    assert_close(plain.transpose().satclip.embed(tiny).transpose("band", ...), expected)


def test_axes_are_known_by_the_words_of_cf(tiny):
    lat, lon = np.array([1.0, 2.0]), np.array([3.0, 4.0, 7.0])
    expected = by_points(tiny, lon, lat[:, None])
    for north, east in (
        ({"standard_name": "latitude"}, {"standard_name": "longitude"}),
        ({"units": "degrees_north"}, {"units": "degrees_east"}),
        ({"units": "degrees latitude"}, {"units": "degrees longitude"}),
        ({"units": "degree_N"}, {"units": "degreeE"}),
    ):
        obj = lonlat_grid(lat, lon, dims=("v", "u"))
        obj.v.attrs.update(north)
        obj.u.attrs.update(east)
        array = obj.satclip.embed(tiny)
        assert array.dims == ("band", "v", "u")
        assert_close(array, expected)


def test_curvilinear_coordinates_are_free_points(tiny):
    row, col = np.indices((5, 6))
    lon, lat = 170 + 4.0 * col + row, 50 - 2.0 * row + 0.3 * col
    lon[4, 5] = lat[4, 5] = np.nan
    swath = xr.DataArray(
        np.zeros((5, 6)), dims=("j", "i"), coords={"nav_lat": (("j", "i"), lat), "nav_lon": (("j", "i"), lon)}
    )
    array = swath.satclip.embed(tiny)
    assert array.dims == ("band", "j", "i")
    assert set(array.coords) == {"band", "nav_lat", "nav_lon"}
    assert np.isnan(array.values[:, 4, 5]).all()
    assert_close(array, by_points(tiny, lon, lat))
    crossed = swath.assign_coords(nav_lon=(("i", "j"), lon.T))
    assert_close(crossed.satclip.embed(tiny).transpose("band", "j", "i"), by_points(tiny, lon, lat))
    assert_close(swath.chunk(3).satclip.embed(tiny), by_points(tiny, lon, lat))


def test_a_rotated_pole_grid_is_placed_by_its_two_dimensional_coordinates(tiny):
    row, col = np.indices((4, 3))
    obj = xr.Dataset(
        {"t": (("rlat", "rlon"), np.zeros((4, 3)))},
        coords={
            "rlat": ("rlat", np.arange(4.0), {"standard_name": "grid_latitude", "units": "degrees"}),
            "rlon": ("rlon", np.arange(3.0), {"standard_name": "grid_longitude", "units": "degrees"}),
            "lat": (("rlat", "rlon"), 50.0 + row), "lon": (("rlat", "rlon"), 10.0 + col),
        },
    )  # fmt: skip
    array = obj.satclip.embed(tiny)
    assert array.dims == ("band", "rlat", "rlon")
    assert set(array.coords) == {"band", "rlat", "rlon", "lat", "lon"}
    assert_close(array, by_points(tiny, 10.0 + col, 50.0 + row))


def test_stations_along_one_dimension_are_points(tiny):
    lon, lat = np.linspace(-170, 170, 7), np.linspace(-60, 60, 7)
    stations = xr.Dataset(
        {"t": (("time", "station"), np.zeros((2, 7)))},
        coords={"lon": ("station", lon), "lat": ("station", lat), "station": list("abcdefg"), "time": [1, 2]},
    )
    array = stations.satclip.embed(tiny)
    assert array.dims == ("band", "station")
    assert array.station.values.tolist() == list("abcdefg")
    assert_close(array, by_points(tiny, lon, lat))
    lazy = stations.satclip.embed(tiny, chunks={"station": 3})
    assert lazy.chunks == ((8,), (3, 3, 1))
    assert_close(lazy, by_points(tiny, lon, lat))
    assert stations.chunk(station=4).satclip.embed(tiny).chunks == ((8,), (4, 3))
    assert_close(stations.isel(station=2).satclip.embed(tiny), by_points(tiny, lon[2], lat[2]))


def test_stations_may_have_names(tiny):
    """rioxarray takes a Dataset's variable `name` for the name of a DataArray."""
    stations = xr.Dataset(
        {"t": ("station", [1.0, 2])},
        coords={"lon": ("station", [1.0, 2]), "lat": ("station", [3.0, 4]), "name": ("station", ["a", "b"])},
    )
    array = stations.satclip.embed(tiny)
    assert_close(array, by_points(tiny, [1, 2], [3, 4]))
    assert array["name"].values.tolist() == ["a", "b"]


def test_a_swath_that_moves_with_time_keeps_all_its_dimensions(tiny):
    lon, lat = np.random.default_rng(1).uniform(-80, 80, (2, 2, 3, 4))
    coords = {"lon": (("time", "y", "x"), lon), "lat": (("time", "y", "x"), lat)}
    swath = xr.DataArray(np.zeros((2, 3, 4)), dims=("time", "y", "x"), coords=coords)
    array = swath.satclip.embed(tiny)
    assert array.dims == ("band", "time", "y", "x")
    assert_close(array, by_points(tiny, lon, lat))


def test_a_meridian_and_a_single_place(tiny):
    lat, lon = np.array([1.0, 2.0, 5.0]), np.array([3.0, 4.0])
    obj = lonlat_grid(lat, lon)
    assert_close(obj.isel(lon=1).satclip.embed(tiny), by_points(tiny, 4.0, lat))
    assert_close(obj.isel(lon=1, lat=0).satclip.embed(tiny), by_points(tiny, 4.0, 1.0))


def test_irregular_axes_of_a_projected_crs_go_through_it(tiny):
    grid = tiny.grid(**GRIDS["UTM"])
    part = grid.isel(x=[0, 1, 5], y=[2, 7, 3])
    assert_close(part.satclip.embed(tiny), part.values)
    assert_close(grid.isel(x=[4]).satclip.embed(tiny), grid.isel(x=[4]).values)
    assert_close(grid.isel(x=[4], y=[2]).satclip.embed(tiny), grid.isel(x=[4], y=[2]).values)


def test_a_dask_backed_object_gives_the_same_spatial_chunks(tiny):
    grid = tiny.grid(resolution=10)
    for obj in (grid.chunk(y=7, x=20, band=1), grid.chunk(y=7, x=20).to_dataset(name="a")):
        array = obj.satclip.embed(tiny)
        assert array.chunks == ((8,), (7, 7, 4), (20, 16))
        assert np.array_equal(array.values, grid.values)
    assert grid.satclip.embed(tiny).chunks is None
    assert grid.satclip.embed(tiny, chunks=9).chunks == ((8,), (9, 9), (9,) * 4)
    plain = lonlat_grid(np.arange(8.0), np.arange(6.0)).chunk(time=1, lat=5)
    assert plain.satclip.embed(tiny).chunks == ((8,), (5, 3), (6,))
    assert plain.satclip.embed(tiny, chunks={"lon": 4}).chunks == ((8,), (8,), (4, 2))
    with pytest.raises(UsageError, match="lat, lon"):
        plain.satclip.embed(tiny, chunks={"y": 4})


def test_the_accessor_has_the_functions_documentation(tiny):
    assert "spatial_ref" in xr.DataArray.satclip.embed.__doc__


def test_the_source_is_an_encoder_or_what_load_takes(tiny, tiny_weights):
    obj = lonlat_grid(np.arange(3.0), np.arange(4.0))
    expected = obj.satclip.embed(tiny)
    assert np.array_equal(obj.satclip.embed(tiny_weights, backend="cpu", threads=1).values, expected.values)
    assert np.array_equal(embed(obj, tiny, bands="2-3").values, expected.values[1:3])
    assert embed(obj, tiny, bands="2-3").band.values.tolist() == ["e002", "e003"]
    with pytest.raises(UsageError, match="already loaded"):
        obj.satclip.embed(tiny, backend="cpu")


def test_a_crs_in_the_attributes_is_found_and_passed_on(tiny):
    obj = xr.DataArray(
        np.zeros((2, 3)), dims=("y", "x"), coords={"x": [500_005.0, 500_015, 500_025], "y": [95.0, 85]},
        attrs={"crs": "EPSG:32633"},
    )  # fmt: skip
    array = obj.satclip.embed(tiny)
    assert array.rio.crs.to_epsg() == 32633
    expected = tiny.grid(crs="EPSG:32633", resolution=10, bounds=(500_000, 80, 500_030, 100))
    assert np.array_equal(array.values, expected.values)


def test_other_dimensions_their_indexes_and_scalars_go(tiny):
    grid = tiny.grid(resolution=30)
    times = xr.DataArray(pd.date_range("2020-01-01", periods=3), dims="time")
    obj = grid.isel(band=0).expand_dims(time=times).assign_coords(
        season=("time", [1, 2, 3]), orbit=7, height=(("y", "x"), np.zeros((6, 12)))
    )  # fmt: skip
    array = obj.satclip.embed(tiny)
    assert array.dims == ("band", "y", "x")
    assert set(array.coords) == {"band", "y", "x", "spatial_ref", "height"}
    assert array.sel(y=44, x=46, method="nearest").band.size == 8


NOWHERE = {
    "no coordinates": xr.DataArray(np.zeros((2, 3)), dims=("a", "b")),
    "x and y without a CRS": xr.DataArray(
        np.zeros((2, 3)), dims=("y", "x"), coords={"x": [1.0, 2, 3], "y": [1.0, 2]}
    ),
    "longitude alone": xr.DataArray(np.zeros(3), dims="lon", coords={"lon": [1.0, 2, 3]}),
    "names of places": xr.DataArray(
        np.zeros(2), dims="p", coords={"lon": ("p", ["a", "b"]), "lat": ("p", ["c", "d"])}
    ),
}


@pytest.mark.parametrize("case", NOWHERE)
def test_an_object_that_does_not_say_where_it_is_is_refused(tiny, case):
    with pytest.raises(UsageError, match="does not say where it is"):
        NOWHERE[case].satclip.embed(tiny)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4807", "ESRI:54008"])
def test_labels_that_count_pixels_are_no_coordinates(tiny, crs, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            tmp_path / "p.tif", "w", driver="GTiff", width=9, height=7, count=1, dtype="uint8"
        ) as f:
            f.write(np.zeros((1, 7, 9), np.uint8))
        scene = rioxarray.open_rasterio(tmp_path / "p.tif").rio.write_crs(crs)
    assert scene.x.values[:2].tolist() == [0.5, 1.5]
    angles = scene.copy()
    angles.x.attrs["units"] = angles.y.attrs["units"] = "radian"
    for pixels in (scene, scene.isel(x=slice(3, None), y=slice(1, 5)), angles):
        with pytest.raises(UsageError, match=r"no georeference: its x and y count pixels.*decode_coords"):
            pixels.satclip.embed(tiny)
    located = scene.assign_coords(y=50.0 - np.arange(7))
    assert located.satclip.embed(tiny).shape == (8, 7, 9)


def test_longitudes_among_the_data_variables_are_pointed_out(tiny):
    lon, lat = np.random.default_rng(2).uniform(-80, 80, (2, 3, 4))
    swath = xr.Dataset({"Longitude": (("j", "i"), lon), "Latitude": (("j", "i"), lat)})
    with pytest.raises(UsageError, match=r"use obj\.set_coords\(\['Longitude', 'Latitude'\]\) first"):
        swath.satclip.embed(tiny)
    assert_close(swath.set_coords(["Longitude", "Latitude"]).satclip.embed(tiny), by_points(tiny, lon, lat))


def test_labels_outside_a_projection_are_no_places(tiny):
    """PROJ gives beside the outline of an Equal Earth map longitudes beyond 180°."""
    x, y = [-17e6, 0, 16e6, 17e6], [8e6, 0.0, 3e6]
    obj = xr.DataArray(np.zeros((3, 4)), dims=("y", "x"), coords={"x": x, "y": y}).rio.write_crs(8857)
    missing = np.isnan(obj.satclip.embed(tiny).isel(band=0).values)
    assert missing.tolist() == [[True, False, True, True], [False] * 4, [True, False, False, True]]


def test_a_latitude_beyond_a_pole_is_refused(tiny):
    with pytest.raises(UsageError, match=r"row 2: latitude 91\.0 is outside"):
        lonlat_grid(np.array([89.0, 90, 91]), np.arange(3.0)).satclip.embed(tiny)
    stations = xr.DataArray(
        np.zeros(2), dims="p", coords={"lon": ("p", [1.0, 2.0]), "lat": ("p", [3.0, -95.0])}
    )
    with pytest.raises(UsageError, match="outside"):
        stations.satclip.embed(tiny)


def test_a_latitude_beyond_a_pole_by_rounding_is_the_pole(tiny):
    north = np.nextafter(np.float32(90), np.float32(91))
    lat, lon = np.array([0, 45, north], np.float32), np.arange(3.0)
    expected = by_points(tiny, lon, np.array([0.0, 45, 90])[:, None])
    assert_close(lonlat_grid(lat, lon).satclip.embed(tiny), expected)
    assert_close(lonlat_grid(lat, lon, dims=("y", "x")).rio.write_crs(4326).satclip.embed(tiny), expected)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_ground_control_points_are_refused(tiny, tmp_path):
    corners = [GroundControlPoint(r, c, 10 + c, 50 - r) for r, c in ((0, 0), (0, 4), (4, 0))]
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=4, height=4, count=1, dtype="uint8"
    ) as file:
        file.gcps = (corners, rasterio.crs.CRS.from_epsg(4326))
        file.write(np.zeros((1, 4, 4), np.uint8))
    scene = rioxarray.open_rasterio(tmp_path / "a.tif")
    with pytest.raises(UsageError, match="ground control points"):
        scene.satclip.embed(tiny)


def test_a_huge_lazy_raster_is_embedded_without_computing_it(tiny):
    huge = tiny.grid(resolution=0.0001)
    array = huge.satclip.embed(tiny)
    assert array.shape == (8, 1_800_000, 3_600_000)
    pixel = array.isel(x=1_234_567, y=765_432)
    assert np.array_equal(pixel.values, huge.isel(x=1_234_567, y=765_432).values)
    assert isinstance(locate(huge).pixels, satclip_engine.geo.grid.Grid)


@pytest.mark.parametrize("case", ["degrees", "UTM", "Equal Earth"])
def test_rioxarray_reads_crs_transform_and_nodata_of_a_grid(tiny, case, tmp_path):
    grid = tiny.grid(**GRIDS[case])
    assert np.isnan(grid.rio.encoded_nodata)
    assert grid.rio.crs is not None
    grid.rio.to_raster(tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as file:
        assert np.array_equal(file.read(), grid.values, equal_nan=True)
        assert file.transform == grid.rio.transform()
        assert np.isnan(file.nodata)
    back = rioxarray.open_rasterio(tmp_path / "a.tif")
    assert np.array_equal(back.x, grid.x)
    assert np.array_equal(back.y, grid.y)
    assert grid.rio.reproject("EPSG:3857", shape=(5, 5)).shape == (8, 5, 5)


def test_a_grid_can_be_stored_as_netcdf_and_as_zarr(tiny, tmp_path):
    """Attributes and coordinates are plain values, band names a tuple of them, and nobody warns."""
    grid = tiny.grid(resolution=30)
    for name, value in grid.attrs.items():
        entries = value if name == "long_name" else (value,)
        assert all(isinstance(entry, (str, int, float)) for entry in entries)
    again = xr.DataArray.from_dict(grid.to_dict())
    assert np.array_equal(again.values, grid.values)
    for array in (grid, tiny.grid(resolution=30, dtype="int8")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            array.to_netcdf(tmp_path / f"{array.dtype}.nc", engine="h5netcdf")
            array.to_zarr(tmp_path / f"{array.dtype}.zarr", consolidated=False)
        for read in (
            xr.open_dataset(tmp_path / f"{array.dtype}.nc", engine="h5netcdf", mask_and_scale=False),
            xr.open_zarr(tmp_path / f"{array.dtype}.zarr", consolidated=False, mask_and_scale=False),
        ):
            assert np.array_equal(read.embedding.values, array.values)
            assert read.band.values.tolist() == tiny.band_names
            assert tuple(read.embedding.attrs["long_name"]) == tuple(tiny.band_names)
            read.close()
    assert (grid.x.attrs["standard_name"], grid.y.attrs["units"]) == ("longitude", "degrees_north")
    assert tiny.grid(**GRIDS["UTM"]).x.attrs["standard_name"] == "projection_x_coordinate"


def written(array, path):
    """Names, scales and offsets of an array's bands in the file that rioxarray makes of it."""
    array.rio.to_raster(path)
    with rasterio.open(path) as raster:
        return raster.descriptions, raster.scales, raster.offsets


SELECTIONS = {
    "all": (lambda a: a, range(8)),
    "bands": (lambda a: a.isel(band=[4, 1]), [4, 1]),
    "names": (lambda a: a.sel(band=["e007", "e002"]), [6, 1]),
    "one band": (lambda a: a.isel(band=2), [2]),
    "one of many": (lambda a: a.isel(band=[5]), [5]),
    "reversed": (lambda a: a[::-1], range(7, -1, -1)),
    "sorted": (lambda a: a.sortby("band", ascending=False), range(7, -1, -1)),
    "reindexed": (lambda a: a.reindex(band=a.band.values[::-1]), range(7, -1, -1)),
    "dropped": (lambda a: a.drop_isel(band=[0, 3]), [1, 2, 4, 5, 6, 7]),
    "masked": (lambda a: a.isel(band=np.arange(8) % 2 == 0), [0, 2, 4, 6]),
    "twice": (lambda a: a[::-1].isel(x=slice(2), band=[0, 3]), [7, 4]),
    "transposed": (lambda a: a.transpose("y", "x", "band")[..., [3, 0]].transpose("band", "y", "x"), [3, 0]),
    "copied": (lambda a: a.copy(deep=True).load()[::-1], range(7, -1, -1)),
    "pickled": (lambda a: pickle.loads(pickle.dumps(a))[[2, 0]], [2, 0]),
    "rolled": (lambda a: a.roll(band=2, roll_coords=True), [6, 7, 0, 1, 2, 3, 4, 5]),
    "in a dataset": (lambda a: xr.Dataset({"a": a}).isel(band=[3, 1])["a"], [3, 1]),
}


@pytest.mark.parametrize("case", SELECTIONS)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_band_names_and_scales_go_along_with_selected_bands(tiny, tmp_path, dtype, case):
    select, bands = SELECTIONS[case]
    array = tiny.grid(resolution=30, dtype=dtype)
    selected = select(array)
    names, scales, offsets = written(selected, tmp_path / "a.tif")
    assert names == tuple(tiny.band_names[band] for band in bands)
    if dtype == "int8":
        assert scales == tuple(array.scale.values[list(bands)])
        assert offsets == tuple(array.offset.values[list(bands)])
        np.testing.assert_array_equal(np.atleast_1d(selected.scale), scales)


VALUES = [
    lambda a: a + 1,
    lambda a: -a,
    lambda a: 2 * a,
    lambda a: a / a.std(),
    lambda a: a / np.sqrt((a.astype("float32") ** 2).sum("band")),
    lambda a: a - a.mean(("y", "x")),
]


@pytest.mark.parametrize("values", VALUES)
def test_values_computed_from_an_embedding_keep_names_and_lose_scales(tiny, tmp_path, values):
    for dtype in ("float32", "int16"):
        array = values(tiny.grid(resolution=30, dtype=dtype)).astype("float32")
        assert written(array, tmp_path / "a.tif")[:2] == (tuple(tiny.band_names), (1.0,) * 8)
    array = values(tiny.grid(resolution=30))[[6, 2]]
    assert written(array, tmp_path / "a.tif")[0] == ("e007", "e003")


def test_points_that_mix_bands_have_no_band_names(tiny):
    points = xr.DataArray([1, 2], dims="p")
    array = tiny.grid(resolution=30, dtype="int8")
    assert array.isel(x=points, y=points).attrs["long_name"] == tuple(tiny.band_names)
    mixed = array.isel(band=points, y=points)
    assert mixed.attrs["long_name"] == "location embedding"
    assert mixed.encoding["scales"] is None
    assert array.reindex(band=["e003", "none of them"]).encoding["scales"] is None
    assert array.shift(band=1, fill_value=-128).encoding["scales"] is None


@pytest.mark.parametrize("reduced", [lambda a: a.mean("band"), lambda a: a.max(["band"], keep_attrs=True)])
def test_what_bands_are_reduced_to_is_written_under_the_general_name(tiny, tmp_path, reduced):
    array = reduced(tiny.grid(resolution=30))
    assert written(array, tmp_path / "a.tif")[0] == ("location embedding",)


@pytest.mark.parametrize("case", ["UTM", "polar", "degrees", "rotated"])
def test_a_grid_merges_with_the_scene_whose_pixels_it_has(tiny, case, tmp_path):
    grid = tiny.grid(**GRIDS[case])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grid.isel(band=0).rio.to_raster(tmp_path / "s.tif")
        scene = rioxarray.open_rasterio(tmp_path / "s.tif").isel(band=0, drop=True).rename("scene")
    embedding = tiny.grid(like=scene)
    assert embedding.spatial_ref.item() == scene.spatial_ref.item()
    together = xr.Dataset({"scene": scene, "embedding": embedding})
    assert dict(together.sizes) == {"y": grid.sizes["y"], "x": grid.sizes["x"], "band": 8}
    assert together.rio.crs == scene.rio.crs
    own = scene.satclip.embed(tiny)
    for parts in ([scene, embedding], [own, embedding.rename("grid")]):
        assert xr.merge(parts, compat="equals", join="exact").rio.crs == scene.rio.crs
    stacked = xr.concat([scene.expand_dims(band=["scene"]), embedding], "band", join="exact")
    assert stacked.spatial_ref.ndim == 0
    assert stacked.sizes["band"] == 9


def _zeros(x: np.ndarray, y: np.ndarray) -> xr.DataArray:
    array = xr.DataArray(np.zeros((y.size, x.size)), dims=("y", "x"), coords={"y": y, "x": x}, name="scene")
    return array.rio.write_crs("EPSG:4326")


SCENES = {
    "cut": lambda: _zeros(0.05 + 0.1 * np.arange(100), 49.95 - 0.1 * np.arange(60)).rio.clip_box(
        2, 45, 5, 48
    ),
    "coarsened": lambda: (
        _zeros(0.05 + 0.1 * np.arange(60), 49.95 - 0.1 * np.arange(60)).coarsen(x=2, y=2).mean()
    ),
    "float32 labels": lambda: _zeros(*(np.arange(9, dtype="f4") * step + 45.05 for step in (0.1, -0.1))),
    "of odc-geo": lambda: xr_zeros(GeoBox((9, 14), Affine(10, 0, 3e5, 0, -10, 5e6), 32633)).rename("scene"),
}


@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize("case", SCENES)
def test_a_grid_has_the_very_labels_of_its_scene(tiny, case, dtype):
    scene = SCENES[case]()
    embedding = tiny.grid(like=scene) if dtype is None else tiny.grid(like=scene, dtype=dtype)
    xr.merge([scene, embedding], join="exact", compat="equals")
    assert embedding.rio.crs == scene.rio.crs
    assert embedding.x.attrs["axis"] == "X"
    assert_close(tiny.grid(like=scene), scene.satclip.embed(tiny))
    assert embedding[[3, 1]].attrs["long_name"] == ("e004", "e002")


def test_a_wide_grid_merges_with_its_scene_and_the_widest_have_indexes(tiny):
    like = GeoBox((4, 200_000), Affine(10, 0, 3e5, 0, -10, 5e6), "EPSG:32633")
    wide = tiny.grid(like=like)
    scene = xr.DataArray(
        np.zeros((4, 200_000), np.int8), {"y": wide.y.values, "x": wide.x.values}, ("y", "x"), name="scene"
    )
    assert xr.merge([scene, wide], join="exact", compat="equals").sizes["x"] == 200_000
    assert wide.isel(band=0, drop=True).reindex_like(scene[:, :5]).sizes["x"] == 5
    widest = tiny.grid(resolution=0.0002)
    assert len(widest.indexes["x"]) == 1_800_000
    assert np.array_equal(widest.indexes["x"][[0, -1]], widest.x[[0, -1]])

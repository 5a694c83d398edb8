"""Coordinates in their own units: files in the layouts of well-known products lie where pyproj says."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pyproj
import pytest
import rasterio
import xarray as xr
from affine import Affine
from factories.cf_files import (
    GEOSTATIONARY,
    LAYOUTS,
    RASTERS,
    era5,
    goes,
    goes_packing,
    modis,
    osi_saf,
    roms,
    wrf,
)
from odc.geo.geobox import GeoBox

import satclip_engine.xarray  # noqa: F401
from satclip_engine.errors import UsageError
from satclip_engine.geo.grid import make_grid
from satclip_engine.geo.units import to_crs_unit, to_degrees
from satclip_engine.xarray import locate

CRS_UNITS = {
    ("km", 3411): 1000, ("kilometers", 3411): 1000, ("1000 m", 3411): 1000, ("10^3 m", 3411): 1000,
    ("1000m", 3411): 1000, ("[km]", 3411): 1000,
    ("100 km", 3411): 1e5, ("1e3 meter", 3411): 1000, ("Metre", 3411): 1, ("cm", 3411): 0.01,
    ("foot", 3411): 0.3048, ("US survey foot", 3411): 1200 / 3937, ("us-ft", 3411): 1200 / 3937,
    ("US survey foot", 2263): 1, ("ft", 2263): 1, ("m", 2263): 3937 / 1200, ("mile", 3411): 1609.344,
    ("degrees", 4326): 1, ("radian", 4326): 180 / np.pi, ("arcmin", 4326): 1 / 60, ("gon", 4807): 1,
    ("degrees", 4807): 10 / 9, ("arcsec", 4326): 1 / 3600, ("degrees_east", 4326): 1, ("degW", 4326): -1,
}  # fmt: skip
NO_CRS_UNITS = [
    ("degrees", 3411), ("rad", 3411), ("1", 3411), ("pixel", 3411), ("kilom", 3411), ("kkm", 3411),
    ("m", 4326), ("km", 4326), ("1", 4326), ("degrees_north", 4326), ("s", 4326), ("kmeter", 3411),
]  # fmt: skip


def test_units_are_understood_as_cf_udunits_and_proj_write_them():
    for (units, code), factor in CRS_UNITS.items():
        own = to_crs_unit(units, pyproj.CRS(code), axis="x")
        assert own == pytest.approx(factor, rel=1e-14), (units, code)
    for units, factor in {
        "rad": 35786023.0,
        "mrad": 35786.023,
        "µrad": 35.786023,
        "km": 1000,
        "m": 1,
    }.items():
        assert to_crs_unit(units, GEOSTATIONARY, axis="y") == pytest.approx(factor, rel=1e-14)
    for units, code in NO_CRS_UNITS:
        assert to_crs_unit(units, pyproj.CRS(code), axis="x") is None, (units, code)
    for units in (
        "degree_N",
        "degreesN",
        "degrees",
        "Degrees North",
        "deg. N",
        "degrees (north)",
        "decimal degrees",
        "°N",
        "º N",
        "[degrees]",
        "deg.",
        "dec. degrees",
    ):
        assert to_degrees(units, axis="y") == 1
    assert to_degrees("degrees_south", axis="y") == -1
    assert to_degrees("degrees_east", axis="y") is None


def located(obj):
    """Longitudes and latitudes of an object's own pixels, and their dimensions."""
    place = locate(obj)
    return place.pixels.lonlat().reshape(*place.shape, 2), place.dims


def assert_near(lonlat, product, degrees=1e-6):
    """The same points, of longitudes by whole turns; missing ones are missing in both."""
    missing = np.isnan(product.lon)
    assert np.array_equal(np.isnan(lonlat[..., 0]), missing)
    turn = np.remainder(lonlat[..., 0] - product.lon + 180, 360) - 180
    off = np.hypot(turn * np.cos(np.radians(product.lat)), lonlat[..., 1] - product.lat)
    assert off[~missing].max() < degrees


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_products_pixels_lie_where_pyproj_says(case):
    product = LAYOUTS[case]()
    lonlat, dims = located(product.array())
    coordinates = {"ERA5": ("latitude", "longitude")}
    assert dims == coordinates.get(case, product.dataset[product.variable].dims)
    assert_near(lonlat, product, 1e-5 if case == "WRF" else 1e-6)


@pytest.mark.parametrize("case", RASTERS)
def test_like_an_object_takes_its_labels_in_their_units(case):
    product = LAYOUTS[case]()
    for obj in (product.array(), product.dataset.set_coords("crs")):
        assert_near(make_grid(like=obj).lonlat(), product)


def test_a_float32_axis_of_small_angles_is_evenly_spaced():
    x = np.linspace(-0.151858, 0.151858, 10848).astype(np.float32)
    axes = {"x": ("x", x, {"units": "rad"}), "y": ("y", x[::-1].copy(), {"units": "rad"})}
    disk = xr.DataArray(da.zeros((x.size, x.size), chunks=-1), dims=("y", "x"), coords=axes).rio.write_crs(
        GEOSTATIONARY
    )
    assert make_grid(like=disk).shape == (10848, 10848)


def test_the_embedding_keeps_the_objects_own_labels(tiny):
    product = osi_saf()
    array = product.array().satclip.embed(tiny)
    for name in ("xc", "yc", "lon", "lat", "crs"):
        assert array[name].variable.identical(product.dataset[name].variable)
    points = np.stack([product.lon, product.lat], axis=-1)
    assert np.allclose(array.values, np.moveaxis(tiny(points), -1, 0), rtol=0, atol=1e-5, equal_nan=True)


REFUSED = {
    "an unknown unit": ({"units": "furlong"}, {}, ("'xc'", "'furlong'", "metres")),
    "no unit of length": ({"units": "1"}, {}, ("'xc'", "'1'")),
    "degrees of a projection": ({"units": "degrees_east"}, {}, ("'xc'", "'degrees_east'")),
    "an axis of the other direction": (
        {"standard_name": "projection_y_coordinate"},
        {},
        ("'xc'", "not the x"),
    ),
    "a longitude": ({"standard_name": "longitude"}, {}, ("'xc'", "'longitude'")),
    "km that are called m": ({"units": "m"}, {}, ("contradict", "'lon' and 'lat'", "units of xc and yc")),
    "km beside no unit": ({"units": ""}, {}, ("'xc' has no units, while 'yc' is in 'km'",)),
    "a longitude in metres": ({}, {"lon": "m"}, ("'lon'", "'m'", "longitude")),
    "a latitude in nothing": ({}, {"lat": "1"}, ("'lat'", "'1'", "latitude")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_or_contradicts_is_refused_by_name(case):
    attributes, units, fragments = REFUSED[case]
    obj = osi_saf().array()
    obj.xc.attrs.update(attributes)
    for name, unit in units.items():
        obj[name].attrs["units"] = unit
    p = xr.DataArray([0, 3, 9, 11], dims="p")
    for call in (locate, lambda obj: make_grid(like=obj), lambda obj: locate(obj.isel(xc=p, yc=p))):
        with pytest.raises(UsageError) as caught:
            call(obj)
        message = str(caught.value)
        assert "\n" not in message
        for fragment in fragments:
            assert fragment in message


def test_labels_without_a_unit_are_not_taken_for_metres_where_that_cannot_be():
    disk = goes().array()
    for names in (["x", "y"], ["y"]):
        part = disk.copy(deep=True)
        for name in names:
            del part[name].attrs["units"]
        with pytest.raises(UsageError, match=f"'{names[0]}' has no units"):
            locate(part)
    ice = osi_saf(beside=False).array()
    del ice.yc.attrs["units"]
    with pytest.raises(UsageError, match="'yc' has no units, while 'xc' is in 'km'"):
        locate(ice)


@pytest.mark.parametrize(
    "case", ["OSI SAF, km", "OSI SAF, km, without 2-d coordinates", "GOES, radians", "MODIS, metres"]
)
def test_samples_of_a_product_lie_where_its_pixels_do(case):
    product = LAYOUTS[case]()
    obj = product.array()
    y, x = obj.dims
    lon, lat = (xr.DataArray(values, dims=obj.dims) for values in (product.lon, product.lat))
    p = xr.DataArray([0, 3, 9, 11], dims="p")
    for sample in (
        lambda obj: obj.isel({x: p, y: p}),
        lambda obj: obj.isel({y: 7}),
        lambda obj: obj.isel({x: 8, y: 7}),
        lambda obj: obj.stack(z=(y, x)),
    ):
        lonlat, dims = located(sample(obj))
        expected = np.stack([sample(lon).values, sample(lat).values], axis=-1)
        np.testing.assert_allclose(lonlat, expected, rtol=0, atol=1e-6)
        assert dims == sample(lon).dims


def test_a_crs_that_was_not_decoded_is_pointed_out():
    dataset = osi_saf(beside=False).dataset
    for obj in (dataset, dataset["value"]):
        with pytest.raises(UsageError, match=r'does not say where it is.*decode_coords="all"'):
            locate(obj)


@pytest.mark.parametrize("units", ["m", "1", "furlong", "degrees_north"])
def test_longitudes_that_are_no_angles_are_refused(units):
    obj = xr.DataArray(np.zeros(2), dims="p").assign_coords(
        lon=("p", [0.1, 0.2], {"units": units}), lat=("p", [0.8, 0.9], {"units": "radian"})
    )
    with pytest.raises(UsageError, match=f"'lon' is in '{units}'"):
        locate(obj)


def test_longitudes_in_radians_minutes_and_grads_are_converted():
    for units, unit in (("radian", 180 / np.pi), ("rad", 180 / np.pi), ("arcmin", 1 / 60), ("gon", 0.9)):
        obj = xr.DataArray(np.zeros((3, 2)), dims=("lat", "lon")).assign_coords(
            lon=("lon", np.array([10.0, -170]) / unit, {"units": units}),
            lat=("lat", np.array([50.0, 0, -90]) / unit, {"units": units}),
        )
        np.testing.assert_allclose(locate(obj).pixels.lonlat()[:, :, 0], [[10, -170]] * 3, rtol=1e-14)
        np.testing.assert_allclose(locate(obj).pixels.lonlat()[..., 1].T, [[50, 0, -90]] * 2, rtol=1e-14)


def test_a_rotated_pole_with_its_crs_needs_no_other_coordinates():
    crs = pyproj.CRS.from_cf(
        {
            "grid_mapping_name": "rotated_latitude_longitude",
            "grid_north_pole_latitude": 39.25,
            "grid_north_pole_longitude": -162.0,
        }
    )
    rlon, rlat = np.arange(-20.0, 20, 4), np.arange(-15.0, 16, 3)
    lon, lat = pyproj.Transformer.from_crs(crs, 4326, always_xy=True).transform(*np.meshgrid(rlon, rlat))
    for units, unit in (("degrees", 1.0), ("radians", np.pi / 180)):
        obj = xr.DataArray(np.zeros(lon.shape), dims=("rlat", "rlon")).assign_coords(
            rlon=("rlon", rlon * unit, {"standard_name": "grid_longitude", "units": units}),
            rlat=("rlat", rlat * unit, {"standard_name": "grid_latitude", "units": units}),
        )
        lonlat = locate(obj.rio.write_crs(crs)).pixels.lonlat()
        np.testing.assert_allclose(lonlat, np.stack([lon, lat], axis=-1), rtol=0, atol=1e-7)
        with pytest.raises(UsageError, match=r"'rlon' has the standard_name 'grid_longitude'"):
            locate(obj.rio.write_crs(4326))


def test_a_dataset_with_several_kinds_of_points_is_asked_which():
    with pytest.raises(UsageError, match=r"several longitudes \(lon_rho, lon_u\)"):
        locate(roms().dataset)


P, Q = xr.DataArray([0, 5, 11, 5], dims="p"), xr.DataArray([9, 3, 0, 3], dims="p")
SAMPLES = {
    "points": lambda obj: obj.isel(x=P, y=Q),
    "points of two dimensions": lambda obj: obj.isel(x=P.expand_dims(k=2), y=Q),
    "transect": lambda obj: obj.isel(y=3),
    "oblique transect": lambda obj: obj.isel(x=P[:3], y=Q[:3]),
    "column": lambda obj: obj.isel(x=3),
    "pixel": lambda obj: obj.isel(x=4, y=2),
    "stacked": lambda obj: obj.stack(z=("y", "x")),
    "lazily": lambda obj: obj.chunk(y=3).isel(x=P, y=Q),
}
BY_LABEL = {
    "nearest": lambda obj: obj.sel(x=obj.x[P].variable + 1e-3, y=obj.y[Q].variable, method="nearest"),
    "interpolated": lambda obj: obj.interp(x=obj.x[P].variable, y=obj.y[Q].variable),
}
SCENES = {
    "degrees": {"resolution": 1, "bounds": (5, 40, 17, 50)},
    "NAD27": {"resolution": 1, "bounds": (-100, 40, -88, 50), "crs": 4267},
    "UTM": {"crs": 32633, "resolution": 10_000, "bounds": (300_000, 5_000_000, 420_000, 5_100_000)},
    "km": {"crs": 32633, "resolution": 10_000, "bounds": (300_000, 5_000_000, 420_000, 5_100_000)},
    "rotated": {"like": GeoBox((10, 12), Affine(0.2, 0.1, 10, 0.1, -0.2, 50), 4326)},
}


@pytest.mark.parametrize("case", SCENES)
def test_samples_of_a_raster_with_a_crs_lie_where_its_pixels_do(tiny, case):
    grid = tiny.grid(**SCENES[case], exact=True)
    place = locate(grid).pixels.lonlat()
    scene = grid.isel(band=0).drop_vars("band")
    if case == "km":
        scene = scene.assign_coords({d: (d, scene[d].values / 1000, {"units": "km"}) for d in ("x", "y")})
    lon, lat = scene.copy(data=place[..., 0]), scene.copy(data=place[..., 1])
    for name, sample in (SAMPLES if case == "rotated" else SAMPLES | BY_LABEL).items():
        part, part_lon, part_lat = (sample(values) for values in (scene, lon, lat))
        array = part.satclip.embed(tiny)
        expected = tiny(np.stack([part_lon.values, part_lat.values], axis=-1))
        array = array.transpose("band", *part.dims)
        np.testing.assert_allclose(
            array.values, np.moveaxis(expected, -1, 0), rtol=0, atol=1e-5, err_msg=name
        )
        for coordinate in part.coords:
            own = part[coordinate].variable
            assert array[coordinate].variable.transpose(*own.dims).identical(own), (name, coordinate)
        if name == "stacked":
            assert array.indexes["z"].equals(part.indexes["z"])


def test_pixels_stacked_with_their_bands_are_points_too(tiny):
    scene = tiny.grid(resolution=10, bands="1-3", exact=True)
    stacked = scene.stack(z=("band", "y", "x"))
    array = stacked.satclip.embed(tiny)
    assert array.dims == ("band", "z")
    expected = tiny(np.stack([stacked.x.values, stacked.y.values], axis=-1)).T
    np.testing.assert_allclose(array.values, expected, rtol=0, atol=1e-5)
    picked = scene.isel(band=P[:2] % 3, x=P[:2], y=Q[:2])
    expected = tiny(np.stack([picked.x.values, picked.y.values], axis=-1)).T
    np.testing.assert_allclose(picked.satclip.embed(tiny).values, expected, rtol=0, atol=1e-5)


def test_points_of_a_raster_too_long_to_store_its_labels(tiny):
    huge = tiny.grid(resolution=0.001, bounds=(0, 0, 80, 80))
    p = xr.DataArray([10.0, 70.5, 33.3], dims="p")
    sample = huge.sel(x=p, y=p + 5, method="nearest")
    expected = tiny(np.stack([sample.x.values, sample.y.values], axis=-1)).T
    np.testing.assert_allclose(sample.satclip.embed(tiny).values, expected, rtol=0, atol=1e-5)
    assert "spatial_ref" in sample.satclip.embed(tiny).coords


@pytest.mark.parametrize("case", RASTERS)
def test_like_a_netcdf_file_lies_where_pyproj_says_whatever_gdal_makes_of_its_units(case, tmp_path):
    product = LAYOUTS[case]()
    assert_near(make_grid(like=product.write(tmp_path / "a.nc")).lonlat(), product)


@pytest.mark.parametrize("packing", [goes_packing(), goes_packing(add_offset=False)], ids=["offset", "none"])
@pytest.mark.parametrize("wkt", [True, False])
def test_like_a_goes_file_with_packed_labels_lies_where_pyproj_says(wkt, packing, tmp_path):
    product = goes(wkt=wkt)
    name = product.write(tmp_path / "a.nc", **packing)
    with rasterio.open(name) as file:
        rows = file.read(1)  # their numbers; GDAL turns some over
    first = np.argsort(rows[:, 0])
    assert_near(make_grid(like=name).lonlat()[first], product, degrees=1e-5)


def test_like_a_zarr_store_takes_its_labels_in_their_units(tmp_path):
    product = osi_saf()
    product.dataset.to_zarr(tmp_path / "a.zarr", zarr_format=2)
    assert_near(make_grid(like=f'ZARR:"{tmp_path}/a.zarr":/value').lonlat(), product)
    with pytest.raises(
        UsageError, match=r"holds \d rasters; name one of them, such as ZARR:.*a\.zarr:/value$"
    ):
        make_grid(like=tmp_path / "a.zarr")


def test_a_netcdf_file_whose_coordinates_contradict_is_refused(tmp_path):
    for units in ("m", None):
        with pytest.raises(UsageError, match=r"a\.nc.* 'lon' and 'lat' contradict each other"):
            make_grid(like=osi_saf(units).write(tmp_path / "a.nc"))
    with pytest.raises(UsageError, match=r"a\.nc.*'xc' is in 'furlong', which is no unit of CRS .* metres"):
        make_grid(like=osi_saf("furlong").write(tmp_path / "a.nc"))


def test_a_netcdf_file_without_axes_is_sent_to_xarray(tmp_path):
    with pytest.raises(UsageError, match=r"a\.nc.* no georeference .*open it with xarray"):
        make_grid(like=wrf().write(tmp_path / "a.nc"))


def test_a_gaussian_grid_is_not_taken_for_an_even_one_as_gdal_does(tmp_path):
    lat = np.degrees(np.arcsin(np.polynomial.legendre.leggauss(40)[0]))[::-1]
    axes = {
        "lat": ("lat", lat, {"units": "degrees_north"}),
        "lon": ("lon", np.arange(0, 360, 4.5), {"units": "degrees_east"}),
    }
    values = xr.Dataset({"t": (("lat", "lon"), np.zeros((40, 80)))}, axes)
    values.to_netcdf(tmp_path / "a.nc", engine="scipy")
    with pytest.raises(UsageError, match=r"a\.nc: its labels lat are not evenly spaced.*xarray"):
        make_grid(like=tmp_path / "a.nc", crs=4326)
    np.testing.assert_array_equal(locate(values).pixels.lat(), lat)


def test_a_file_without_a_crs_is_given_one(tmp_path):
    product = era5()
    name = product.write(tmp_path / "a.nc")
    with pytest.raises(UsageError, match=r"a\.nc.* no CRS.* crs='EPSG:4326'"):
        make_grid(like=name)
    grid = make_grid(like=name, crs="EPSG:4326")
    assert_near(grid.lonlat(), product)
    assert grid.lat().tolist() == product.dataset.latitude.values.tolist()
    with rasterio.open(name) as file:
        assert make_grid(like=file, crs=4326) == grid
    with pytest.raises(UsageError, match="'longitude' is in 'degrees_east', which is no unit of CRS"):
        make_grid(like=name, crs="EPSG:32633")
    assert_near(make_grid(like=product.array().isel(time=0), crs=4326).lonlat(), product)
    radians = product.dataset.assign_coords(
        {name: (name, np.radians(product.dataset[name].values, dtype=float), {"units": "radian"})
         for name in ("latitude", "longitude")}
    )  # fmt: skip
    radians.to_netcdf(tmp_path / "b.nc", engine="scipy")
    assert_near(make_grid(like=tmp_path / "b.nc", crs=4326).lonlat(), product, degrees=1e-5)


def test_coordinates_that_are_not_their_crss_are_refused():
    metres = xr.DataArray(np.zeros((3, 4)), dims=("y", "x")).assign_coords(
        x=3e5 + 1000.0 * np.arange(4), y=5e6 - 1000.0 * np.arange(3)
    )
    degrees = metres.assign_coords(x=np.arange(10.0, 14), y=np.arange(47.0, 50))
    for obj, crs, message in (
        (
            metres,
            4326,
            r"rows lie beyond the poles \(y from 4997500 to 5000500\): they are not in CRS 'WGS 84'",
        ),
        (degrees, 32633, r"bounds 9\.5 46\.5 13\.5 49\.5 look like degrees, and CRS .* metres"),
        (degrees.isel(x=[0, 1, 3]), 32633, r"look like degrees, and its CRS .* metres"),
    ):
        with pytest.raises(UsageError, match=message):
            locate(obj.rio.write_crs(crs))


def test_a_file_with_another_crs_than_the_one_given_is_refused(tmp_path):
    name = modis().write(tmp_path / "a.nc")
    assert make_grid(like=name, crs=make_grid(like=name).crs.proj) == make_grid(like=name)
    with pytest.raises(UsageError, match=r"its CRS is .*, not 'WGS 84': leave out crs"):
        make_grid(like=name, crs="EPSG:4326")
    grid = make_grid(resolution=10)
    for like in (grid, grid.geobox, tiny_scene(grid)):
        with pytest.raises(UsageError, match="has CRS 'WGS 84', not"):
            make_grid(like=like, crs="EPSG:3857")


def tiny_scene(grid):
    return xr.DataArray(
        np.zeros(grid.shape), dims=("y", "x"), coords={"y": grid.axis("y"), "x": grid.axis("x")}
    ).rio.write_crs(4326)


def test_a_profile_of_rasterio_describes_a_raster():
    grid = make_grid(resolution=10_000, crs=32633, bounds=(300_000, 5_000_000, 420_000, 5_100_000))
    profile = {"driver": "GTiff", "dtype": "uint8", "crs": rasterio.crs.CRS.from_epsg(32633)}
    profile |= {"transform": grid.transform, "width": 12, "height": 10}
    assert make_grid(like=profile).geobox == grid.geobox
    assert make_grid(like={**profile, "crs": None}, crs=32633).geobox == grid.geobox
    with pytest.raises(UsageError, match="has no CRS"):
        make_grid(like={**profile, "crs": None})
    with pytest.raises(UsageError, match="no width"):
        make_grid(like={**profile, "width": None})


def test_axes_of_rasters_are_known_by_more_names_than_x_and_y():
    product = modis()
    obj = product.array()
    for label in (obj.XDim, obj.YDim):
        del label.attrs["standard_name"]
    for x, y in (("XDim", "YDim"), ("xdim", "ydim"), ("easting", "northing")):
        renamed = obj if x == "XDim" else obj.rename({"XDim": x, "YDim": y})
        lonlat, dims = located(renamed)
        assert dims == (y, x)
        assert_near(lonlat, product)
        assert_near(make_grid(like=renamed).lonlat(), product)


def test_grads_that_rioxarray_calls_degrees_are_refused():
    x, y = 5.0 + 0.1 * np.arange(9), 50.0 - 0.1 * np.arange(7)
    paris = xr.DataArray(np.zeros((7, 9)), dims=("y", "x"), coords={"y": y, "x": x}).rio.write_crs(4807)
    named = paris.rio.write_transform().rio.write_coordinate_system()
    assert named.x.attrs["units"] == "degrees_east"
    with pytest.raises(
        UsageError, match="'x' is in 'degrees_east', and the transform has the same numbers in grads"
    ):
        locate(named)
    named.x.attrs["units"] = named.y.attrs["units"] = "grad"
    np.testing.assert_array_equal(located(named)[0], located(paris)[0])

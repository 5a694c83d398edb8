"""Points in the forms that people have them in, and what is said of those that cannot be points."""

from __future__ import annotations

from collections import namedtuple

import geopandas
import numpy as np
import pandas as pd
import pyarrow
import pyproj
import pytest
import shapely
import torch
import xarray as xr

from satclip_engine.errors import UsageError
from satclip_engine.geo.lonlat import as_lonlat, as_points_tensor

LON, LAT = np.array([2.35, -70.6, 179.9]), np.array([48.86, -33.4, -17.7])
POINTS = np.stack([LON, LAT], axis=-1)
Site = namedtuple("Site", "lat lon")

NAMED = {
    "pandas": lambda: pd.DataFrame({"lat_dd": LAT, "lon_dd": LON}),
    "pandas with levels of columns": lambda: pd.DataFrame({("at", "lat"): LAT, ("at", "lon"): LON}),
    "pandas, in the index": lambda: pd.DataFrame({"lat": LAT, "lon": LON, "t": 1, "p": 2}).set_index(
        ["lat", "lon"]
    ),
    "pandas, more columns": lambda: pd.DataFrame({"Latitude (deg)": LAT, "id": 1, "Longitude (deg)": LON}),
    "pyarrow": lambda: pyarrow.table({"stop_lat": LAT, "stop_lon": LON}),
    "pyarrow batch": lambda: pyarrow.record_batch({"lat": LAT, "lon": LON}),
    "records": lambda: [{"name": "a", "lat": lat, "lon": lon} for lon, lat in POINTS.tolist()],
    "mapping": lambda: {"lat": LAT.tolist(), "lon": LON.tolist()},
    "structured array": lambda: np.array(
        list(zip(LAT, LON, strict=True)), dtype=[("lat", float), ("lon", float)]
    ),
    "named tuples": lambda: [Site(lat, lon) for lon, lat in POINTS],
    "labelled array": lambda: xr.DataArray(
        POINTS[:, ::-1], dims=("p", "axis"), coords={"axis": ["latitude", "longitude"]}
    ),
    "Dataset": lambda: xr.Dataset({"t": ("p", [1, 2, 3]), "latitude": ("p", LAT), "longitude": ("p", LON)}),
    "Dataset in radians": lambda: xr.Dataset(
        coords={
            "clat": ("cell", np.radians(LAT), {"units": "radian", "standard_name": "latitude"}),
            "clon": ("cell", np.radians(LON), {"units": "radian", "standard_name": "longitude"}),
        }
    ),
}


@pytest.mark.parametrize("form", NAMED)
def test_latitude_first_is_no_matter_where_there_are_names(form):
    np.testing.assert_allclose(as_lonlat(NAMED[form]()), POINTS, rtol=0, atol=1e-13)


def test_one_row_of_a_table_is_one_point_by_its_names():
    table = pd.DataFrame({"lat": LAT, "lon": LON})
    np.testing.assert_array_equal(as_lonlat(table.assign(name="a").iloc[1]), POINTS[1])
    for row in (table.iloc[1], next(table.iloc[1:].itertuples(index=False)), {"lat": LAT[1], "lon": LON[1]}):
        np.testing.assert_array_equal(as_lonlat(row), POINTS[1])
    np.testing.assert_array_equal(as_lonlat(pd.Series(POINTS[1])), POINTS[1])


def frame(crs=4326, **columns):
    points = geopandas.points_from_xy(LON, LAT)
    return geopandas.GeoDataFrame(columns, geometry=points, crs=4326).to_crs(crs)


GEOMETRIES = {
    "GeoDataFrame": frame,
    "GeoDataFrame with other columns": lambda: frame(x=[0, 0, 0], y=[9, 9, 9]),
    "projected GeoDataFrame": lambda: frame(3857),
    "GeoDataFrame with a renamed geometry": lambda: frame(8857).rename_geometry("site"),
    "GeoSeries": lambda: frame(8857).geometry,
    "geometry array": lambda: frame(3857).geometry.values,
    "without a CRS": lambda: geopandas.GeoSeries.from_xy(LON, LAT),
    "list of points": lambda: [shapely.Point(lon, lat) for lon, lat in POINTS],
    "array of points": lambda: shapely.points(POINTS),
    "points with heights": lambda: shapely.points(LON, LAT, [1.0, 2.0, 3.0]),
    "Series of points": lambda: pd.Series(list(shapely.points(POINTS))),
}


@pytest.mark.parametrize("form", GEOMETRIES)
def test_geometries_are_taken_to_degrees_by_their_own_crs(form):
    np.testing.assert_allclose(as_lonlat(GEOMETRIES[form]()), POINTS, rtol=0, atol=1e-7)


def test_the_axis_order_of_a_geographic_crs_is_no_matter():
    frame_nad83 = frame().set_crs(4269, allow_override=True)  # latitude first, says the authority
    x, y = pyproj.Transformer.from_crs(4269, 4326, always_xy=True).transform(LON, LAT)
    np.testing.assert_allclose(as_lonlat(frame_nad83), np.stack([x, y], axis=-1), rtol=0, atol=1e-12)


def test_one_shapely_point_is_one_point():
    np.testing.assert_array_equal(as_lonlat(shapely.Point(2.35, 48.86)), [2.35, 48.86])


def test_coordinates_that_lost_their_crs_are_given_it():
    projected = frame(3857)
    coordinates = projected.get_coordinates()
    np.testing.assert_allclose(as_lonlat(coordinates, projected.crs), POINTS, rtol=0, atol=1e-9)
    with pytest.raises(UsageError, match=r"looks projected.* crs"):
        as_lonlat(coordinates)


def test_missing_and_empty_geometries_are_nan():
    series = geopandas.GeoSeries([None, shapely.Point(1, 2), shapely.Point()], crs=4326)
    np.testing.assert_array_equal(as_lonlat(series), [[np.nan] * 2, [1, 2], [np.nan] * 2])
    np.testing.assert_array_equal(as_lonlat([None, shapely.Point(1, 2)]), [[np.nan] * 2, [1, 2]])


@pytest.mark.parametrize(
    "shape", [shapely.box(0, 0, 1, 1), shapely.LineString([(0, 0), (1, 1)]), shapely.MultiPoint([(0, 0)])]
)
def test_geometries_that_are_no_points_are_refused_by_kind_and_row(shape):
    with pytest.raises(UsageError, match=f"row 1: a {shape.geom_type} is no point.*representative_point"):
        as_lonlat(geopandas.GeoSeries([shapely.Point(0, 0), shape]))


def test_geometries_among_other_things_are_refused():
    with pytest.raises(TypeError, match="geometries among other things"):
        as_lonlat([shapely.Point(1, 2), (3, 4), 5])


def test_points_outside_the_domain_of_their_crs_are_nan():
    lonlat = as_lonlat([[0.0, 0.0], [17e6, 8e6], [5e5, 5e6]], "EPSG:8857")  # a corner of Equal Earth's map
    assert np.isfinite(lonlat).all(axis=1).tolist() == [True, False, True]


def test_degrees_are_no_coordinates_of_a_projection():
    with pytest.raises(UsageError, match=r"look like degrees.*leave out crs"):
        as_lonlat(POINTS[:1], "EPSG:32631")
    with pytest.raises(UsageError, match="'lat' and 'lon' are degrees, and crs is projected"):
        as_lonlat({"lat": LAT, "lon": LON}, 3857)
    with pytest.raises(UsageError, match="in WGS 84 / Pseudo-Mercator, not WGS 84: leave out crs"):
        as_lonlat(frame(3857), 4326)


def test_a_latitude_beyond_a_pole_by_rounding_is_the_pole():
    float32 = np.nextafter(np.float32(90), np.float32(91))
    for points in ([[10, 90.0000001]], np.array([[10, float32]]), np.array([[10, -float32]])):
        assert as_lonlat(points).tolist() == [[10, np.copysign(90, points[0][1])]]
        assert as_points_tensor(torch.tensor(np.asarray(points))).tolist() == as_lonlat(points).tolist()
    tensor = as_points_tensor(torch.tensor([[[1.0, float32]], [[np.inf, np.nan]], [[2.0, np.inf]]]))
    np.testing.assert_array_equal(tensor, [[[1, 90]], [[np.inf, np.nan]], [[2, np.inf]]])
    with pytest.raises(UsageError, match=r"index \(1, 0\): latitude 91"):
        as_points_tensor(torch.tensor([[[1.0, float32]], [[100.0, 91.0]]]))


ADVICE = {
    "swapped": ([[48.5, 120.0], [48.0, 30.0]], "looks swapped"),
    "not swapped, an overshoot": ([[10, 90.5]], None),
    "not swapped, longitudes exceed 90 too": ([[10, 120], [150, 10]], None),
    "a lost decimal point": ([[2.35, 4886]], "looks projected"),
    "metres": ([[300000, 5000000]], "looks projected"),
}


@pytest.mark.parametrize("case", ADVICE)
def test_advice_fits_the_number_at_hand(case):
    points, advice = ADVICE[case]
    with pytest.raises(UsageError) as caught:
        as_lonlat(points)
    message = str(caught.value)
    for words in ("looks swapped", "looks projected"):
        assert (words in message) == (words == advice), message


UNNAMED = {
    "GeoJSON": ({"type": "Point", "coordinates": [1, 2]}, "needs columns lon and lat"),
    "no geometry but its column": (pd.DataFrame({"geometry": [1], "b": [2], "c": [3]}), "a GeoDataFrame"),
    "axes of a grid": (xr.Dataset(coords={"lat": [1, 2], "lon": [3, 4]}), r"\.satclip\.embed\(\)"),
    "columns of two lengths": ({"lat": [1.0, 2.0], "lon": [3.0]}, "have shapes"),
    "eastings": (pd.DataFrame({"northing": [5e6], "easting": [3e5]}), "projected CRS"),
}


@pytest.mark.parametrize("case", UNNAMED)
def test_names_without_a_location_are_refused(case):
    points, message = UNNAMED[case]
    with pytest.raises(UsageError, match=message):
        as_lonlat(points)


class Quantity(np.ndarray):
    """An array with a unit, as astropy has them."""

    unit = "rad"


RADIANS = np.radians([[2.35, 48.86], [36.82, -1.29]])
WITH_UNITS = {
    "array": lambda units: xr.DataArray(RADIANS, dims=("p", "c"), attrs={"units": units}),
    "labels": lambda units: xr.DataArray(
        RADIANS[:, ::-1], dims=("p", "c"), coords={"c": ["lat", "lon"]}, attrs={"units": units}
    ),
    "mapping": lambda units: {
        name: xr.DataArray(RADIANS[:, column], dims="p", attrs={"units": units})
        for column, name in enumerate(("lon", "lat"))
    },
}


@pytest.mark.parametrize("form", WITH_UNITS)
def test_numbers_that_state_their_unit_are_taken_in_it(form):
    points = WITH_UNITS[form]
    np.testing.assert_allclose(as_lonlat(points("radians")), np.degrees(RADIANS), rtol=1e-15)
    for units in ("degrees", "degrees_north", ""):
        np.testing.assert_array_equal(as_lonlat(points(units)), RADIANS)
    for units in ("m", "1", "degrees_west"):
        with pytest.raises(UsageError, match=f"'{units}', which is no unit of longitudes and latitudes"):
            as_lonlat(points(units))


def test_a_unit_of_length_is_the_crss():
    assert np.abs(as_lonlat(WITH_UNITS["array"]("m"), crs=3857)).max() < 1e-3


def test_a_quantity_is_taken_in_its_unit():
    np.testing.assert_allclose(as_lonlat(RADIANS.view(Quantity)), np.degrees(RADIANS), rtol=1e-15)


@pytest.mark.parametrize(
    ("lon", "lat"),
    [("E/W", "N/S"), ("GPSLongitudeRef", "GPSLatitudeRef"), ("lon_hemisphere", "lat_hemisphere")],
)
def test_letters_of_a_hemisphere_must_agree_with_signs(lon, lat):
    table = pd.DataFrame(
        {"latitude": [40.7, 1.0], lat: ["N", "N"], "longitude": [74.0, 2.0], lon: ["W", "East"]}
    )
    with pytest.raises(UsageError, match=rf"'{lon}' says W, and no longitude in 'longitude' is negative"):
        as_lonlat(table)
    table["longitude"] *= [-1, 1]
    assert as_lonlat(table).tolist() == [[-74.0, 40.7], [2.0, 1.0]]
    table[lat] = ["N", "S"]
    with pytest.raises(UsageError, match=rf"'{lat}' says S"):
        as_lonlat(table)

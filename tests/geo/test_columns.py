"""Names of columns that hold longitude and latitude, in many people's tables."""

from __future__ import annotations

import pytest

from satclip_engine.errors import UsageError
from satclip_engine.geo.columns import coordinate_columns

# Longitude and latitude in tables as they are published, and further columns that stand beside them.
TABLES = {
    "abbreviated": ("lon", "lat", "late", "latency", "platform", "long_name", "londonderry", "location"),
    "mixed": ("lon", "latitude"),
    "web maps": ("lng", "latitude"),
    "plural": ("lngs", "lats"),
    "decimal degrees": ("lon_dd", "lat_dd"),
    "joined": ("LongDD", "LatDD"),
    "abbreviated with a full stop": ("Lon.", "Lat."),
    "with a unit": ("Longitude (deg)", "Latitude (deg)"),
    "with a sign and hemisphere": ("lon [°E]", "lat [°N]"),
    "hemispheres alone": ("degrees_east", "degrees_north"),
    "with a datum": ("LON_WGS84", "LAT_WGS84"),
    "nested records": ("coords.lon", "coords.lat"),
    "levels of columns": (("coords", "lon"), ("coords", "lat")),
    "Darwin Core": (
        "decimalLongitude",
        "decimalLatitude",
        "verbatimLongitude",
        "verbatimLatitude",
        "coordinateUncertaintyInMeters",
        "footprintWKT",
    ),
    "GBIF": ("decimallongitude", "decimallatitude", "elevation"),
    "GTFS": ("stop_lon", "stop_lat", "stop_id", "stop_name"),
    "meteorites": ("reclong", "reclat", "GeoLocation", "mass (g)"),
    "US Census": ("INTPTLON", "INTPTLAT", "GEOID", "ALAND"),
    "WRF": ("XLONG", "XLAT"),
    "EXIF": ("GPSLongitude", "GPSLatitude", "GPSAltitude"),
    "Spanish": ("Longitud", "Latitud"),
    "German": ("Längengrad", "Breitengrad"),
    "German weather stations": ("geoLaenge", "geoBreite", "Stationshoehe", "von_datum"),
    "German, decomposed letters": ("geogr. La\u0308nge", "geogr. Breite"),
    "lengths and widths beside them": ("lon", "lat", "Länge", "Breite"),
    "Dutch": ("lengtegraad", "breedtegraad"),
    "Danish": ("længdegrad", "breddegrad"),
    "Polish": ("długość geogr.", "szerokość geogr."),
    "Czech": ("zeměpisná délka", "zeměpisná šířka"),
    "Russian": ("долгота", "широта"),
    "Chinese": ("经度", "纬度"),
    "Japanese": ("経度", "緯度"),
    "plain names before longer ones": ("lon", "lat", "start_lat", "end_lat", "end_lon"),
    "with their errors": ("site_lon", "site_lat", "lon_std", "lat_error", "lat_min"),
    "degrees before x and y": ("longitude", "latitude", "x", "y"),
    "x and y": ("x", "y", "x_pixel", "y_pixel", "box_x", "box_y"),
    "x and y with words": ("point_x", "point_y"),
    "coordinates": ("x_coord", "y_coord"),
}


@pytest.mark.parametrize("case", TABLES)
def test_longitude_and_latitude_are_told_by_their_names_in_any_order(case):
    names = TABLES[case]
    assert coordinate_columns(names) == names[:2]
    assert coordinate_columns(names[::-1]) == names[:2]


def test_names_that_say_nothing_are_left_to_whoever_asks():
    for names in ((0, 1), ("a", "b"), ("late", "longest"), ("fn", "url", "platform"), ("lat_lon", "a", "b")):
        assert coordinate_columns(names) is None, names


REFUSED = {
    ("northing", "easting"): ("'northing' and 'easting'", "projected CRS", "crs='EPSG:…'"),
    ("id", "UTM_Easting", "UTM_Northing"): ("'UTM_Easting' and 'UTM_Northing'", "projected CRS"),
    ("N", "E"): ("'N' and 'E'", "projected CRS"),
    ("y_utm", "x_utm"): ("'x_utm'", "projected CRS"),
    ("x_m", "y_m", "id"): ("'x_m'", "projected CRS"),
    ("lat_rad", "lon_rad"): ("'lon_rad'", "radians", "degrees"),
    ("latitudeE7", "longitudeE7"): ("'longitudeE7'", "scaled integers"),
    ("lon_dms", "lat_dms"): ("'lon_dms'", "minutes"),
    ("Latitude (N)", "Longitude (W)"): ("'Longitude (W)'", "degrees west"),
    ("lat", "latitude", "lon"): ("'lat' and 'latitude'", "each be the latitude"),
    ("lon", "lon", "lat"): ("'lon' and 'lon'", "each be the longitude"),
    ("start_lat", "start_lng", "end_lat", "end_lng"): ("'start_lng' and 'end_lng'",),
    ("lat_n", "lat_s", "lon_e", "lon_w"): ("'lon_e' and 'lon_w'",),
    ("lat1", "lon1", "lat2", "lon2"): ("'lon1' and 'lon2'",),
    ("lat", "value"): ("'lat' is the latitude", "none is the longitude", "'value'"),
    ("a", "b", "lon"): ("'lon' is the longitude", "none is the latitude"),
    ("x", "b", "c"): ("'x' is the x", "none is the y"),
    ("lat_min", "lon_min"): ("neither is plainly a coordinate", "to_numpy"),
    ("SLAT", "SLON"): ("neither is plainly a coordinate",),
    ("cenlat", "cenlon"): ("neither is plainly a coordinate",),
    ("start_latlng_0", "start_latlng_1"): ("neither is plainly a coordinate",),
    ("sin_lat", "cos_lat"): ("neither is plainly a coordinate",),
}


@pytest.mark.parametrize("names", REFUSED, ids=str)
def test_names_that_contradict_or_mean_something_else_are_refused_by_name(names):
    with pytest.raises(UsageError) as caught:
        coordinate_columns(names)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in REFUSED[names]:
        assert fragment in message, message


def test_with_a_projected_crs_easting_and_northing_are_wanted_and_degrees_refused():
    assert coordinate_columns(("northing", "easting"), projected=True) == ("easting", "northing")
    assert coordinate_columns(("y", "x", "lat", "lon"), projected=True) == ("x", "y")
    assert coordinate_columns(("y_utm", "x_utm"), projected=True) == ("x_utm", "y_utm")
    with pytest.raises(UsageError, match="'lat' and 'lon' are degrees, and crs is projected"):
        coordinate_columns(("lat", "lon"), projected=True)

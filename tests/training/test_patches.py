"""Sources of patches in files: S2-100K as published, tables, folders, and what is wrong with them."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import rasterio
import shapely
from factories.training import S2
from rasterio.transform import from_origin

from satclip_engine.errors import DataError, UsageError
from satclip_engine.training.patches import open_source, read_folder, read_index, read_table
from satclip_engine.training.sources.source import SkippedImage

NAMES = ("patch_74721.tif", "patch_752389.tif", "patch_25630.tif", "patch_70541.tif")


def write_image(path, values, *, crs="EPSG:4326", transform=None, **profile):
    """Write (C, H, W) values as a GeoTIFF."""
    count, height, width = values.shape
    transform = transform or from_origin(10, 50, 0.01, 0.01)
    options = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", **options, crs=crs, transform=transform, **profile) as file:
        file.write(values)
    return path


def rewrite_index(folder, edit):
    """Change the lines of index.csv (the header is line 0 of the list)."""
    path = folder / "index.csv"
    path.write_text("\n".join(edit(path.read_text().splitlines())) + "\n")


def test_the_published_layout_becomes_13_channels_with_an_empty_b10():
    source = read_index(S2)
    assert (len(source), source.channels, source.size) == (4, 13, (256, 256))
    for index, name in enumerate(NAMES):
        with rasterio.open(S2 / "images" / name) as file:
            stored = file.read().astype(np.float32)
        image = source.read([index])[0]
        assert image.dtype == np.float32
        expected = np.concatenate([stored[:10] / 10000.0, np.zeros((1, 256, 256)), stored[10:] / 10000.0])
        np.testing.assert_array_equal(image, expected.astype(np.float32))


def test_places_are_those_of_the_index_longitude_first():
    lonlat = read_index(S2).lonlat
    np.testing.assert_allclose(lonlat[0], [-121.86904142093074, 65.83725072260995], rtol=0, atol=1e-12)
    assert lonlat.dtype == np.float64


def test_columns_may_come_in_any_order_and_url_stands_in_for_fn(s2):
    expected = read_index(s2).lonlat

    def turn(lines):
        cells = [line.split(",") for line in lines]
        return [",".join((url, lon, lat)) for lat, lon, url, _ in cells]

    rewrite_index(s2, turn)
    np.testing.assert_array_equal(read_index(s2).lonlat, expected)


def test_missing_and_small_files_are_skipped_at_once_and_damaged_ones_when_they_are_read(s2):
    images = s2 / "images"
    (images / NAMES[0]).unlink()
    (images / NAMES[1]).write_bytes(b"II*\0" + b"\0" * 500)
    whole = (images / NAMES[2]).read_bytes()
    (images / NAMES[2]).write_bytes(whole[: len(whole) // 2])
    source = read_index(s2)
    assert [(os.path.basename(s.path), s.reason) for s in source.skipped] == [
        (NAMES[0], "missing"),
        (NAMES[1], "only 504 bytes"),
    ]
    damaged, good = source.read([0, 1])
    assert isinstance(damaged, SkippedImage)
    assert damaged.reason == "corrupt or truncated"
    assert damaged.path.endswith(NAMES[2])
    assert good.shape == (13, 256, 256)


def test_a_damaged_middle_and_no_image_at_all_are_skipped(s2):
    path = s2 / "images" / NAMES[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :][:4000] = b"\0" * 4000
    path.write_bytes(content[: len(content) // 2] + b"\0" * 4000 + content[len(content) // 2 + 4000 :])
    (s2 / "images" / NAMES[1]).write_bytes(b"<html>" * 5000)
    for found in read_index(s2).read([0, 1]):
        assert isinstance(found, SkippedImage)
        assert found.reason == "corrupt or truncated"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.ones((12, 200, 256), np.uint16), "200×256 pixels, expected 256×256"),
        (np.ones((13, 256, 256), np.uint16), "13 bands, expected 12"),
        (np.ones((12, 256, 256), np.float32), "values are float32, expected uint16"),
    ],
)
def test_images_of_another_shape_or_type_are_skipped(s2, values, reason):
    noise = np.random.default_rng(0).integers(1, 200, values.shape).astype(values.dtype)
    write_image(s2 / "images" / NAMES[0], noise)
    found = read_index(s2).read([0])[0]
    assert isinstance(found, SkippedImage)
    assert found.reason == reason


def test_more_skipped_files_than_allowed_are_an_error_that_names_the_first(s2):
    (s2 / "images" / NAMES[0]).unlink()
    (s2 / "images" / NAMES[1]).unlink()
    assert len(read_index(s2)) == 2  # ten are allowed at least
    with pytest.raises(
        DataError, match=rf"2 of 4 images.*more than the 1 allowed.*{NAMES[0]} \(missing\).*max_skipped=2"
    ):
        read_index(s2, max_skipped=1)
    for name in NAMES[2:]:
        (s2 / "images" / name).unlink()
    with pytest.raises(DataError, match="no image can be used"):
        read_index(s2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("65.83725072260995", "95.5"), r"latitude outside \[-90, 90\] in line 2 \(lat 95.5\)"),
        (("-121.86904142093074", "-190"), r"longitude outside .* in line 2 \(lon -190\)"),
        (("65.83725072260995", ""), "missing or not finite in line 2"),
        (("65.83725072260995", "nan"), "missing or not finite in line 2"),
        (("65.83725072260995", "north"), "lat in line 2 is not a number: 'north'"),
        (("lat,lon", "latitude,longitude"), "no column lat or lon"),
        (("fn", "name"), None),
        ((",fn", ""), "line 2 has 4 cells, the header has 3"),
    ],
)
def test_coordinates_and_columns_that_cannot_be_used_are_named(s2, change, words):
    path = s2 / "index.csv"
    path.write_text(path.read_text().replace(*change, 1))
    if words is None:  # the column url has the names
        assert len(read_index(s2)) == 4
    else:
        with pytest.raises(DataError, match=words):
            read_index(s2)


def test_swapped_coordinates_are_guessed(s2):
    rewrite_index(
        s2, lambda lines: [lines[0], *(",".join(["121.5", "30.25", *x.split(",")[2:]]) for x in lines[1:])]
    )
    with pytest.raises(DataError, match="are lon and lat swapped"):
        read_index(s2)


def test_longitudes_up_to_360_are_the_same_places(s2):
    path = s2 / "index.csv"
    path.write_text(path.read_text().replace("-121.86904142093074", "238.13095857906926"))
    np.testing.assert_allclose(read_index(s2).lonlat[0, 0], -121.86904142093074, atol=1e-12)


def test_repeated_files_are_left_out_and_shared_places_are_noted(s2):
    rewrite_index(s2, lambda lines: [*lines, lines[2], lines[1].replace("74721", "752389")])
    source = read_index(s2)
    assert len(source) == 4
    assert source.notes == ("2 rows name an earlier row's file again and are left out: line 6, line 7",)
    place = ",".join((s2 / "index.csv").read_text().splitlines()[1].split(",")[:2])
    rewrite_index(s2, lambda lines: [lines[0], *(f"{place},,{name}" for name in NAMES[:2])])
    assert read_index(s2).notes[-1] == "1 images share their exact location with another one"


def test_the_fingerprint_follows_rows_files_and_options(s2):
    before = read_index(s2).fingerprint
    assert read_index(s2).fingerprint == before
    os.utime(s2 / "images" / NAMES[0], ns=(1, 1))
    touched = read_index(s2).fingerprint
    path = s2 / "index.csv"
    path.write_text(path.read_text().replace("65.8372", "65.8373"))
    moved = read_index(s2).fingerprint
    tables = [read_table(path, divisor=value).fingerprint for value in (None, 1000)]
    assert len({before, touched, moved, *tables}) == 5


def test_a_folder_that_is_not_s2_100k_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"index\.csv: no such file"):
        read_index(tmp_path)
    (tmp_path / "index.csv").write_text("lat,lon,fn\n1,2,a.tif\n")
    with pytest.raises(DataError, match="no folder images/"):
        read_index(tmp_path)
    (tmp_path / "index.csv").write_text("lat,lon,fn\n")
    with pytest.raises(DataError, match="lists no images"):
        read_index(tmp_path)


def test_images_of_a_folder_lie_where_their_own_georeference_says():
    index = read_index(S2)
    folder = read_folder(S2 / "images", max_skipped=0)
    by_name = dict(zip(sorted(NAMES), folder.lonlat, strict=True))
    assert folder.channels == 12
    for name, place in zip(NAMES, index.lonlat, strict=True):
        np.testing.assert_allclose(by_name[name], place, atol=1e-5)  # a metre


def test_images_without_georeference_need_a_table(tmp_path):
    values = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8)
    write_image(tmp_path / "a.tif", values, crs=None)
    with pytest.raises(DataError, match="no georeference"):
        read_folder(tmp_path)
    (tmp_path / "places.csv").write_text("path;Longitude;Latitude\na.tif;12,5;3\n")
    with pytest.raises(DataError, match="longitude in line 2 is not a number: '12,5'"):
        read_table(tmp_path / "places.csv")
    (tmp_path / "places.csv").write_text("path;Longitude;Latitude\na.tif;12.5;3\n")
    source = read_table(tmp_path / "places.csv")
    np.testing.assert_array_equal(source.lonlat, [[12.5, 3]])
    np.testing.assert_array_equal(source.read([0])[0], values.astype(np.float32) / np.float32(255))


def test_bands_are_chosen_and_transparency_is_none(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (4, 8, 8)).astype(np.uint8)
    values[3] = 255
    write_image(tmp_path / "a.tif", values, photometric="RGB", alpha="yes")
    assert read_folder(tmp_path).channels == 3
    source = read_folder(tmp_path, bands=(3, 1), divisor=1)
    np.testing.assert_array_equal(source.read([0])[0], values[[2, 0]].astype(np.float32))
    with pytest.raises(UsageError, match="has bands 1 to 4, not 5"):
        read_folder(tmp_path, bands=(1, 5))


@pytest.mark.parametrize(
    ("dtype", "divisor"), [("uint8", 255), ("uint16", 10000), ("int16", 10000), ("float32", 1)]
)
def test_values_are_divided_by_what_their_type_suggests(tmp_path, dtype, divisor):
    write_image(tmp_path / "a.tif", np.full((2, 8, 8), 100, dtype))
    np.testing.assert_array_equal(read_folder(tmp_path).read([0])[0], np.float32(100) / np.float32(divisor))


def test_a_type_that_suggests_nothing_needs_a_divisor(tmp_path):
    write_image(tmp_path / "a.tif", np.full((1, 8, 8), 100, np.uint32))
    with pytest.raises(
        UsageError, match="holds uint32, whose scale is not known: give what its values are to be divided by"
    ):
        read_folder(tmp_path)
    with pytest.raises(UsageError, match="divisor: expected a positive number, got 0"):
        read_folder(tmp_path, divisor=0)


def test_larger_images_are_cut_at_their_centre_when_a_size_is_given(tmp_path):
    values = np.arange(20 * 24, dtype=np.float32).reshape(1, 20, 24)
    write_image(tmp_path / "a.tif", values)
    write_image(tmp_path / "b.tif", values[:, :10, :10])
    np.testing.assert_array_equal(read_folder(tmp_path, size=16).read([0])[0], values[:, 2:18, 4:20])
    assert "10×10 pixels, expected at least 16×16" in str(read_folder(tmp_path, size=16).read([1])[0])
    assert "10×10 pixels, expected 20×24" in str(read_folder(tmp_path).read([1])[0])


def test_pixels_without_data_become_zero_and_many_of_them_skip_the_image(tmp_path):
    values = np.ones((2, 20, 20), np.float32)
    values[:, 0, :3] = -9999
    values[0, 5, 5] = np.nan
    write_image(tmp_path / "a.tif", values, nodata=-9999)
    image = read_folder(tmp_path).read([0])[0]
    assert (image == 0).sum() == 2 * 4
    values[:, :4] = -9999
    write_image(tmp_path / "a.tif", values, nodata=-9999)
    assert "20 % of its pixels hold no data" in str(read_folder(tmp_path).read([0])[0])


def test_a_geoparquet_gives_places_by_geometry_in_any_crs(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyproj
    from pyarrow import parquet

    write_image(tmp_path / "a.tif", np.ones((1, 8, 8), np.uint8))
    write_image(tmp_path / "b.tif", np.ones((1, 8, 8), np.uint8))
    there = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True)
    shapes = [
        shapely.Point(*there.transform(12.5, 3.0)),
        shapely.Point(*there.transform(-70, -20)).buffer(100),
    ]
    table = pa.table({"path": ["a.tif", "b.tif"], "geometry": [shapely.to_wkb(shape) for shape in shapes]})
    about = {"encoding": "WKB", "crs": json.loads(pyproj.CRS("EPSG:3857").to_json())}
    geo = {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": about}}
    parquet.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), tmp_path / "t.parquet")
    np.testing.assert_allclose(
        read_table(tmp_path / "t.parquet").lonlat, [[12.5, 3.0], [-70, -20]], atol=1e-6
    )
    parquet.write_table(
        pa.table({"path": ["a.tif", "b.tif"], "lat": [1.0, 99.0], "lon": [2.0, 3.0]}), tmp_path / "t.parquet"
    )
    with pytest.raises(DataError, match=r"row 1 \(lat 99\)"):
        read_table(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="is not a Parquet file"):
        read_table(tmp_path / "t.parquet")


def test_a_path_is_opened_as_what_it_is(s2, tmp_path):
    assert open_source(s2).channels == 13
    assert open_source(s2 / "images").channels == 12
    assert open_source(s2 / "index.csv").channels == 12
    regional = tmp_path / "regional"
    (regional / "images").mkdir(parents=True)
    write_image(regional / "images" / "a.tif", np.ones((3, 8, 8), np.uint8))
    (regional / "index.csv").write_text("lat,lon,fn\n1,2,a.tif\n")
    assert open_source(regional).channels == 3
    assert open_source(s2 / "images" / NAMES[0], count=5).size == (16, 16)
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        open_source(tmp_path / "empty")


def georeferenced(folder, places, swap=False):
    """A table of images that lie where the table says, in lines 2, 3, …"""
    rows = ["fn,lon,lat"]
    for number, (lon, lat) in enumerate(places):
        write_image(
            folder / f"{number}.tif",
            np.full((3, 10, 10), 9, np.uint8),
            transform=from_origin(lon - 0.05, lat + 0.05, 0.01, 0.01),
        )
        rows.append(f"{number}.tif,{lat},{lon}" if swap else f"{number}.tif,{lon},{lat}")
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    return folder / "t.csv"


PLACES = [(5 + 7 * number, 60 - 9 * number) for number in range(12)]


def test_locations_that_the_images_contradict_are_an_error_that_names_them(tmp_path):
    path = georeferenced(tmp_path, PLACES)
    assert read_table(path).notes == ()
    header, *lines = path.read_text().split()
    cells = [line.partition(",") for line in lines]
    places = [place for *_, place in cells]
    shifted = [f"{name},{place}" for (name, *_), place in zip(cells, places[7:] + places[:7], strict=True)]
    path.write_text("\n".join([header, *shifted]) + "\n")
    far = 111.2 * np.hypot(9 * 7, 7 * 7 * np.cos(np.radians(28)))  # roughly, on a sphere
    with pytest.raises(
        DataError, match=r"12 of 12 images that were compared do not lie where .* line 2 by"
    ) as error:
        read_table(path)
    first = str(error.value).partition("line 2 by ")[2].split(" km")[0]
    assert float(first.replace(",", "")) == pytest.approx(far, rel=0.1)
    path.write_text("fn\n" + "\n".join(name for name, *_ in cells) + "\n")
    np.testing.assert_allclose(read_table(path).lonlat, PLACES, atol=1e-9)


def test_swapped_columns_are_recognised_by_the_images(tmp_path):
    with pytest.raises(DataError, match="longitude and latitude are swapped, or leave out its coordinates"):
        read_table(georeferenced(tmp_path, PLACES, swap=True))


def test_one_location_that_its_image_contradicts_is_noted(tmp_path):
    path = georeferenced(tmp_path, PLACES)
    path.write_text(path.read_text().replace("2.tif,19,42", "2.tif,19,-42"))
    (note,) = read_table(path).notes
    assert (
        "1 of 12 images that were compared do not lie where their own georeference puts them: line 4" in note
    )


@pytest.mark.parametrize(
    "header",
    [
        "fn,decimalLongitude,decimalLatitude",
        "fn,Longitude (deg),Latitude (deg)",
        "fn,coords.lon,coords.lat",
        "FN,lng,lat",
        "image,X,Y",
        'fn,lon,lat,"classes: a; b; c; d; e"',
        'fn;lon;lat;"a, b, c, d, e, f"',
        "fn\tlon\tlat\tnotes; and, more",
        "fn|lon|lat|notes; and, more",
    ],
)
def test_columns_are_understood_by_their_names_whatever_separates_them(tmp_path, header):
    write_image(tmp_path / "a.tif", np.ones((3, 8, 8), np.uint8), crs=None)
    separator = next(
        character for character in ",;\t|" if header.count(character) and character in header[:9]
    )
    more = ["note"] * ("classes" in header or "a, b" in header or "notes" in header)
    (tmp_path / "t.csv").write_text(f"{header}\n{separator.join(['a.tif', '12.5', '3', *more])}\n")
    np.testing.assert_array_equal(read_table(tmp_path / "t.csv").lonlat, [[12.5, 3]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fn,lon,lat,lon\na.tif,1,2,3\n", "two columns are called 'lon': leave one of them out"),
        ("fn,Lat,lon,lat \na.tif,1,2,3\n", "two columns are called 'lat'"),
        ("fn,lon,longitude,lat\na.tif,1,2,3\n", "'lon' and 'longitude' may each be the longitude"),
        ("fn,lon\na.tif,1\n", "column 'lon' is the longitude, but none is the latitude"),
        (
            "fn,easting,northing\na.tif,1,2\n",
            "its coordinates are not degrees: transform them to columns lon",
        ),
        (
            "fn,lon,lat\na.tif,12,5,3,25\n",
            "line 2 has 5 cells, the header has 3: numbers want a decimal point",
        ),
        ('fn,lon,lat\na.tif,"12,5",3\n', "lon in line 2 is not a number: '12,5': write 12.5"),
        ("fn,lon,lat\na.tif,inf,3\n", "longitude or latitude is missing or not finite in line 2"),
        ("fn,lon,lat\na.tif,3,90.0000001\n", r"latitude outside .* in line 2 \(lat 90.0000001\) by rounding"),
    ],
)
def test_tables_that_cannot_be_understood_say_what_to_do(tmp_path, text, words):
    write_image(tmp_path / "a.tif", np.ones((3, 8, 8), np.uint8), crs=None)
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "a\x1b]0;b", "../" * 2000])
def test_names_that_no_file_can_have_are_missing_files(s2, name):
    rewrite_index(s2, lambda lines: [*lines, f"1,2,u,{name}"])
    assert [image.reason for image in read_index(s2).skipped] == ["missing"]
    assert [image.reason for image in read_table(s2 / "index.csv").skipped] == ["missing"]


def geoparquet(path, cells, geo):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"path": ["a.tif"] * len(cells), "geometry": pa.array(cells, pa.binary())})
    parquet.write_table(table.replace_schema_metadata({"geo": geo}), path)
    return path


ABOUT = '{"primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB"%s}}}'


@pytest.mark.parametrize(
    ("cell", "geo", "words"),
    [
        (b"", ABOUT % "", "longitude or latitude is missing or not finite in row 0"),
        (None, ABOUT % "", "longitude or latitude is missing or not finite in row 0"),
        (
            shapely.to_wkb(shapely.Point()),
            ABOUT % "",
            "longitude or latitude is missing or not finite in row 0",
        ),
        (b"\1\1", ABOUT % "", "the geometry is damaged in row 0"),
        (b"\1\7\0\0\0\1\0\0\0" * 10**5, ABOUT % "", "the geometry is nested without end in row 0"),
        (b"\0\0\0\3\xef\0\0\0\1" * 10**5, ABOUT % "", "the geometry is nested without end in row 0"),
        (
            b"\1\4\0\0\0\1\0\0\0" + b"U\4\0\0\0\1\0\0\0" * 10**5,
            ABOUT % "",
            "the geometry is nested without end in row 0",
        ),
        (shapely.to_wkb(shapely.Point(1, 95)), ABOUT % "", r"latitude outside .* row 0 \(lat 95\)"),
        (shapely.to_wkb(shapely.Point(1, 2)), "{}{", "its GeoParquet metadata are damaged"),
        (shapely.to_wkb(shapely.Point(1, 2)), "[]", "its GeoParquet metadata are damaged"),
        (shapely.to_wkb(shapely.Point(1, 2)), "[" * 100_000, "its GeoParquet metadata are damaged"),
        (shapely.to_wkb(shapely.Point(1, 2)), '{"primary_column": "other", "columns": {}}', "are damaged"),
        (
            shapely.to_wkb(shapely.Point(1, 2)),
            ABOUT % ', "crs": "nonsense"',
            "the CRS of its geometries is not",
        ),
    ],
)
def test_damaged_geoparquet_is_an_error_that_names_the_row(tmp_path, cell, geo, words):
    write_image(tmp_path / "a.tif", np.ones((3, 8, 8), np.uint8), crs=None)
    with pytest.raises(DataError, match=words):
        read_table(geoparquet(tmp_path / "t.parquet", [cell], geo))


def test_an_image_whose_keys_of_the_crs_are_damaged_is_left_out(tmp_path, monkeypatch):
    from rasterio._err import CPLE_AppDefinedError

    from satclip_engine.training.sources import readers

    write_image(tmp_path / "a.tif", np.ones((3, 8, 8), np.uint8))
    write_image(tmp_path / "b.tif", np.ones((3, 8, 8), np.uint8))
    georeference = readers.georeference

    def damaged(dataset):
        if dataset.name.endswith("b.tif"):
            raise CPLE_AppDefinedError(1, 1, "Corrupt GeoKeys")
        return georeference(dataset)

    monkeypatch.setattr(readers, "georeference", damaged)
    source = read_folder(tmp_path)
    assert len(source) == 1
    assert "Corrupt GeoKeys" in source.skipped[0].reason

"""The names of rasters, their tags, links in their stead and files beside them."""

from __future__ import annotations

import errno
import functools
import os
import socket

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rio_cogeo import cog_validate

from satclip_engine.errors import OutputError, UsageError
from satclip_engine.geo.grid import make_grid
from satclip_engine.raster.write import write_raster as write_raster_by_plan

# What is tested here is the writing of pixels, whoever computes them.
write_raster = functools.partial(write_raster_by_plan, exact=True)


@pytest.mark.parametrize("name", ["w.nc", "w.png", "w", "w.tif.zip", ".tif"])
def test_a_name_that_is_no_geotiffs_is_refused(tiny, tmp_path, name):
    with pytest.raises(UsageError, match=r"expected a GeoTIFF's name, ending in \.tif or \.tiff") as raised:
        write_raster(tiny, tmp_path / name, make_grid(resolution=9))
    assert raised.value.argument == "path"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["w.TIF", "w.tiff", "a\xff\n\x1b ü.tif", "a" * 251 + ".tif"])
def test_any_other_name_can_be_written_and_resumed(tiny, tmp_path, name):
    path = tmp_path / os.fsdecode(name.encode("latin-1") if "\xff" in name else name)
    write_raster(tiny, path, make_grid(resolution=9))
    assert write_raster(tiny, path, make_grid(resolution=9), resume=True).resumed_from == 1
    assert [tmp_path / entry for entry in os.listdir(tmp_path)] == [path]


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"year": 2024}, "'year' in tags must be text, not 2024"),
        ({"note": None}, "'note' in tags must be text, not None"),
        ({1: "a"}, "the name 1 in tags must be text"),
        ({"note": "a\0b"}, r"'note' in tags holds the control character '\\x00'"),
        ({"note": "a\x1b[0m"}, r"holds the control character '\\x1b'"),
        ({"no\0te": "a"}, r"the name 'no\\x00te' in tags holds the control character"),
        ({"note": "a\udcff"}, "'note' in tags holds characters that are no text"),
        ({"a=b": "c"}, "tags cannot have the name 'a=b': GDAL would read another one"),
        ({"dc:title": "c"}, "cannot have the name 'dc:title'"),
        ({"": "c"}, "cannot have the name ''"),
        ({"AREA_OR_POINT": "Point"}, "cannot have the name 'AREA_OR_POINT'"),
        ("note", "tags must be a dictionary of texts"),
        (5, "tags must be a dictionary of texts"),
    ],
)
def test_tags_that_a_reader_would_not_get_are_refused_before_anything_is_computed(
    tiny, tmp_path, tags, message
):
    with pytest.raises(UsageError, match=message) as raised:
        write_raster(tiny, tmp_path / "out.tif", make_grid(resolution=9), tags=tags)
    assert raised.value.argument == "tags"
    assert os.listdir(tmp_path) == []


def test_tags_of_any_text_come_back(tiny, tmp_path):
    tags = {
        "lines": "a\nb\tc\r\n",
        "markup": "<a>&amp;]]>&#0;",
        "größe": "é😀\u2028",
        "equation": "a = b : c",
    }
    write_raster(tiny, tmp_path / "out.tif", make_grid(resolution=9), tags=tags)
    with rasterio.open(tmp_path / "out.tif") as dataset:
        assert {name: dataset.tags()[name] for name in tags} == tags
        assert set(dataset.scales) != {1.0}


@pytest.mark.parametrize("name", ["a\0b", "\x9b31m", "\udc80"])
def test_band_names_that_a_reader_would_not_get_are_refused(tiny, tmp_path, name):
    encoder = tiny.with_head(np.eye(8)[:2], names=[name, "c"])
    with pytest.raises(UsageError, match=r"the band name .* holds"):
        write_raster(encoder, tmp_path / "out.tif", make_grid(resolution=9))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("target", ["target.tif", "missing.tif", "out.tif"])
def test_a_link_is_never_followed(tiny, tmp_path, target):
    """A link to a file, one that leads nowhere, and one to itself."""
    path = tmp_path / "out.tif"
    (tmp_path / "target.tif").write_text("precious")
    path.symlink_to(target)
    for options in ({}, {"resume": True}) if target != "target.tif" else ({},):
        with pytest.raises(OutputError, match=f"out.tif exists already .a link to {target}."):
            write_raster(tiny, path, make_grid(resolution=9), **options)
    assert os.readlink(path) == target
    with pytest.warns(UserWarning, match=f"was a link to {target}: the link is replaced"):
        write_raster(tiny, path, make_grid(resolution=9), overwrite=True)
    assert not path.is_symlink()
    assert cog_validate(path, quiet=True)[0]
    assert (tmp_path / "target.tif").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["out.tif", "target.tif"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: socket.socket(socket.AF_UNIX).bind(str(path))])
def test_what_is_no_file_is_never_replaced(tiny, tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    make("out.tif")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(OutputError, match=r"cannot write out\.tif: it is a (pipe|socket)"):
            write_raster(tiny, "out.tif", make_grid(resolution=9), **options)
    assert os.listdir(tmp_path) == ["out.tif"]


def with_side_files(path):
    """Write a GeoTIFF of 100s whose overviews, mask, statistics and Erdas overviews GDAL put beside it."""
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=90,
        width=180,
        count=2,
        dtype="uint8",
        crs="EPSG:4326",
        transform=make_grid(resolution=2.0).transform,
    ) as dataset:
        dataset.write(np.full((2, 90, 180), 100, "u1"))
    content = path.read_bytes()
    with rasterio.Env(USE_RRD=True), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2], Resampling.nearest)
    erdas = path.with_suffix(".aux").rename(path.with_name("kept"))
    path.write_bytes(content)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.zeros((90, 180), bool))
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2], Resampling.nearest)
    erdas.rename(path.with_suffix(".aux"))
    path.with_name(f"{path.name}.aux.xml").write_text(
        "<PAMDataset><SRS>EPSG:3857</SRS><GeoTransform>0, 1, 0, 0, 0, -1</GeoTransform>"
        '<PAMRasterBand band="1"><Scale>7</Scale></PAMRasterBand></PAMDataset>'
    )


SIDE_FILES = ["a.aux", "a.tif.aux.xml", "a.tif.msk", "a.tif.msk.ovr", "a.tif.ovr"]


def assert_as_written(path, whole):
    """What GDAL reads is the file's own: values, mask, overviews, scales and georeference."""
    assert path.read_bytes() == whole.read_bytes()
    with rasterio.open(path) as dataset, rasterio.open(whole) as alone:
        assert dataset.files == [str(path)]
        assert (dataset.crs, dataset.transform, dataset.scales) == (alone.crs, alone.transform, alone.scales)
        np.testing.assert_array_equal(dataset.read(masked=True).mask, alone.read(masked=True).mask)
        coarse = (2, 45, 90)
        np.testing.assert_array_equal(dataset.read(out_shape=coarse), alone.read(out_shape=coarse))


def test_side_files_of_a_replaced_raster_go_with_it(tiny, tmp_path):
    path, encoder, grid = tmp_path / "a.tif", tiny.select("1-2"), make_grid(resolution=2.0)
    (tmp_path / "alone").mkdir()
    write_raster(encoder, tmp_path / "alone" / "a.tif", grid)
    with_side_files(path)
    assert sorted(os.listdir(tmp_path)) == sorted(["a.tif", "alone", *SIDE_FILES])
    others = ["a.tfw", "b.tif.ovr", "a.tif.xml", "a.txt", "ba.tif.msk", "a.tiff.ovr", "a.tif.ovr.txt"]
    for name in others:
        (tmp_path / name).write_text("precious")
    for name in ("a.tif.OVR", "A.TIF.msk", "A.tif.aux.xml"):  # GDAL takes these, too
        (tmp_path / name).write_bytes((tmp_path / "a.tif.ovr").read_bytes())
    write_raster(encoder, path, grid, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == sorted(["a.tif", "alone", *others])
    assert_as_written(path, tmp_path / "alone" / "a.tif")


def test_side_files_of_a_deleted_raster_are_named_and_go_when_they_may(tiny, tmp_path):
    path, encoder, grid = tmp_path / "a.tif", tiny.select("1-2"), make_grid(resolution=2.0)
    (tmp_path / "alone").mkdir()
    write_raster(encoder, tmp_path / "alone" / "a.tif", grid)
    with_side_files(path)
    path.unlink()
    for options in ({}, {"resume": True}):
        with pytest.raises(OutputError, match=r"a\.aux of a former a\.tif would be read as the new one's"):
            write_raster(encoder, path, grid, **options)
    assert sorted(os.listdir(tmp_path)) == ["a.aux", *SIDE_FILES[1:], "alone"]
    write_raster(encoder, path, grid, overwrite=True)
    assert_as_written(path, tmp_path / "alone" / "a.tif")


def test_side_files_of_a_raster_whose_name_differs_in_case_and_latex_files_stay(tiny, tmp_path):
    for name in ("A.TIF", "A.TIF.msk", "a.aux", "a.tif.d.ovr"):
        (tmp_path / name).write_text("precious")
    (tmp_path / "a.tif.ovr").mkdir()
    write_raster(tiny, tmp_path / "a.tif", make_grid(resolution=9))
    assert sorted(os.listdir(tmp_path)) == [
        "A.TIF",
        "A.TIF.msk",
        "a.aux",
        "a.tif",
        "a.tif.d.ovr",
        "a.tif.ovr",
    ]


def test_a_folder_that_cannot_be_listed_is_one_line(tiny, tmp_path, monkeypatch):
    def failing(self):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(type(tmp_path), "iterdir", failing)
    with pytest.raises(OutputError, match=r"cannot write .*a\.tif: Permission denied"):
        write_raster(tiny, tmp_path / "a.tif", make_grid(resolution=9))


def test_a_side_file_that_cannot_be_told_keeps_the_old_raster(tiny, tmp_path, monkeypatch):
    path, lstat = tmp_path / "a.tif", os.lstat
    path.write_text("old")
    (tmp_path / "a.tif.msk").write_text("mask of the old one")

    def failing(self):
        if self.name == "a.tif.msk":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return lstat(self)

    monkeypatch.setattr(type(path), "lstat", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        write_raster(tiny, path, make_grid(resolution=9), overwrite=True)
    assert path.read_text() == "old"


def test_side_files_are_gone_before_the_new_file_has_its_name(tiny, tmp_path, monkeypatch):
    path, seen = tmp_path / "a.tif", []
    with_side_files(path)
    replace = os.replace

    def watched(source, target, **options):
        if target == path.name:
            seen.append(sorted(name for name in os.listdir(tmp_path) if not name.startswith(".")))
        replace(source, target, **options)

    monkeypatch.setattr(os, "replace", watched)
    write_raster(tiny, path, make_grid(resolution=9), overwrite=True)
    assert seen == [["a.tif"]]

"""Bands of images and rasters: palettes, transparency, masks, few bits, scale and offset, classes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.transform import from_bounds, from_origin

from satclip_engine.errors import DataError, UsageError
from satclip_engine.training.patches import read_folder, read_table
from satclip_engine.training.raster_patches import RasterPatches
from satclip_engine.training.sources.image_files import ImageFiles
from satclip_engine.training.sources.source import SkippedImage

ON_EARTH = {"crs": "EPSG:4326", "transform": from_origin(10, 50, 0.01, 0.01)}


def write(path, values, *, crs="EPSG:4326", transform=ON_EARTH["transform"], finish=None, **profile):
    """Write (C, H, W) values as a GeoTIFF; `finish` may do more to the open file."""
    count, height, width = values.shape
    options = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", **(options | profile), crs=crs, transform=transform) as file:
        file.write(values)
        if finish is not None:
            finish(file)
    return path


def table_of(folder, *names) -> ImageFiles:
    """The images of a folder as a table at one location for each."""
    rows = [f"{name},{10 + 0.001 * number},50" for number, name in enumerate(names)]
    (folder / "t.csv").write_text("\n".join(["path,lon,lat", *rows]) + "\n")
    return read_table(folder / "t.csv")


def random_image(seed=0, shape=(24, 20, 3)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def as_rgb(path):
    """What PIL makes of a file: (3, H, W) between 0 and 1."""
    return np.moveaxis(np.asarray(Image.open(path).convert("RGB"), np.float32), -1, 0) / np.float32(255)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.gif"])
@pytest.mark.parametrize("colours", [2, 6, 200])
def test_paletted_images_are_read_in_their_colours(tmp_path, name, colours):
    random_image().quantize(colours).save(tmp_path / name)
    assert Image.open(tmp_path / name).mode == "P"
    source = table_of(tmp_path, name)
    assert source.channels == 3
    np.testing.assert_array_equal(source.read([0])[0], as_rgb(tmp_path / name))


def test_red_green_and_blue_of_a_palette_are_its_bands(tmp_path):
    random_image().quantize(9).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path,lon,lat\na.png,1,2\n")
    source = read_table(tmp_path / "t.csv", bands=(3, 1), divisor=1)
    np.testing.assert_array_equal(source.read([0])[0], np.rint(255 * as_rgb(tmp_path / "a.png"))[[2, 0]])
    with pytest.raises(UsageError, match="has bands 1 to 3, not 4"):
        read_table(tmp_path / "t.csv", bands=(4,))


def test_images_that_were_made_smaller_by_a_palette_or_opaque_alpha_stay_with_the_others(tmp_path):
    random_image(0).save(tmp_path / "a.png")
    random_image(1).quantize(5).save(tmp_path / "b.png")
    random_image(2).convert("RGBA").save(tmp_path / "c.png")
    source = table_of(tmp_path, "a.png", "b.png", "c.png")
    for image, name in zip(source.read(range(3)), ("a.png", "b.png", "c.png"), strict=True):
        np.testing.assert_array_equal(image, as_rgb(tmp_path / name))


def test_transparent_entries_of_a_palette_hold_no_data(tmp_path):
    image = random_image().quantize(16)
    index = np.asarray(image)
    opacity = np.full(16, 255, np.uint8)
    opacity[3], opacity[4] = 0, 100  # what is half transparent has a colour
    image.save(tmp_path / "a.png", transparency=opacity.tobytes())
    expected = np.where(index == 3, 0, as_rgb(tmp_path / "a.png"))
    assert (index == 3).mean() <= 0.1
    np.testing.assert_array_equal(table_of(tmp_path, "a.png").read([0])[0], expected)
    opacity[:8] = 0
    image.save(tmp_path / "a.png", transparency=opacity.tobytes())
    refused = table_of(tmp_path, "a.png").read([0])[0]
    assert isinstance(refused, SkippedImage)
    assert f"{100 * (index < 8).mean():.0f} % of its pixels hold no data" in refused.reason


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["held", "read window by window"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_patches_of_a_paletted_raster_have_its_colours(tmp_path, dtype, memory):
    index = np.random.default_rng(0).integers(0, 6 if dtype == "uint8" else 50000, (1, 90, 180)).astype(dtype)
    palette = {value: (value * 40 % 256, 255 - value % 251, value // 256, 255) for value in range(50001)}
    palette = {value: entry for value, entry in palette.items() if dtype == "uint16" or value < 256}
    write(
        tmp_path / "a.tif",
        index,
        transform=from_bounds(-180, -90, 180, 90, 180, 90),
        photometric="palette",
        finish=lambda file: file.write_colormap(1, palette),
    )
    source = RasterPatches(tmp_path / "a.tif", patch=8, count=40, memory=memory)
    colours = np.array([palette[value][:3] for value in index.ravel()], np.float32).reshape(90, 180, 3)
    wide = np.concatenate([colours, colours[:, :8]], axis=1)
    assert source.channels == 3
    for image, (lon, lat) in zip(source.read(range(40)), source.lonlat, strict=True):
        column, row = round((lon + 180) / 2 - 4) % 180, round((90 - lat) / 2 - 4)
        expected = np.moveaxis(wide[row : row + 8, column : column + 8], -1, 0) / np.float32(255)
        np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_an_alpha_band_says_where_data_are_and_is_no_channel(tmp_path, mode):
    values = np.asarray(random_image().convert(mode)).copy()
    values[..., -1] = 255
    values[:2, :, -1] = 0
    values[5, :, -1] = 90
    Image.fromarray(values, mode).save(tmp_path / "a.png")
    source = table_of(tmp_path, "a.png")
    expected = np.moveaxis(values[..., :-1], -1, 0) / np.float32(255)
    expected[:, :2] = 0
    assert source.channels == len(mode) - 1
    np.testing.assert_array_equal(source.read([0])[0], expected)


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["held", "read window by window"])
def test_a_mask_inside_or_beside_a_file_says_where_data_are(tmp_path, internal, memory):
    values = np.random.default_rng(0).integers(1, 255, (3, 60, 60), dtype=np.uint8)
    mask = np.full((60, 60), 255, np.uint8)
    mask[:, 30:] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        write(tmp_path / "a.tif", values, finish=lambda file: file.write_mask(mask))
    assert (tmp_path / "a.tif.msk").exists() != internal
    source = RasterPatches(tmp_path / "a.tif", patch=6, count=300, memory=memory)
    assert source.lonlat[:, 0].max() <= 10.30 - 0.02
    assert "50 % of its pixels hold no data" in str(table_of(tmp_path, "a.tif").read([0])[0])


def test_nodata_of_one_band_is_a_gap_but_where_it_may_be_a_colour(tmp_path):
    heights = np.full((2, 20, 20), 5, np.int16)
    heights[1, 0, 0] = -9999
    write(tmp_path / "a.tif", heights, nodata=-9999)
    assert (table_of(tmp_path, "a.tif").read([0])[0] == 0).sum() == 2
    photo = np.full((3, 20, 20), 100, np.uint8)
    photo[0], photo[:, 1, 1] = 0, 0  # no red anywhere, and one pixel without data
    write(tmp_path / "b.tif", photo, nodata=0)
    image = table_of(tmp_path, "b.tif").read([0])[0]
    assert (image[1] == 0).sum() == 1
    assert image[1, 0, 0] == np.float32(100) / np.float32(255)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("driver", ["GTiff", "PNG"])
def test_few_bits_are_grey_between_0_and_1(tmp_path, driver, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (1, 16, 16)).astype(np.uint8)
    write(tmp_path / "a.img", values, driver=driver, nbits=bits)
    source = table_of(tmp_path, "a.img")
    assert source.channels == 1
    np.testing.assert_array_equal(source.read([0])[0], values / np.float32(2**bits - 1))


@pytest.mark.parametrize(("mode", "name"), [("CMYK", "a.jpg"), ("CMYK", "a.tif"), ("YCbCr", "a.tif")])
def test_inks_and_luminance_become_red_green_and_blue(tmp_path, mode, name):
    random_image(0, (3, 3, 3)).resize((32, 32), Image.Resampling.BILINEAR).convert(mode).save(tmp_path / name)
    image = table_of(tmp_path, name).read([0])[0]
    np.testing.assert_allclose(image, as_rgb(tmp_path / name), atol=1.01 / 255)


def test_other_colour_spaces_and_complex_numbers_are_refused(tmp_path):
    def mark(file):
        file.colorinterp = [ColorInterp.hue, ColorInterp.saturation, ColorInterp.lightness]

    values = np.random.default_rng(0).integers(0, 255, (3, 16, 16), dtype=np.uint8)
    write(tmp_path / "a.vrt.tif", values, finish=mark, photometric="minisblack")
    with pytest.raises(DataError, match="its bands are hue, saturation, lightness: convert it to red, green"):
        RasterPatches(tmp_path / "a.vrt.tif", patch=4)
    write(tmp_path / "b.tif", np.ones((1, 16, 16), np.complex64))
    with pytest.raises(DataError, match=r"none of 1 images can be opened: .*complex numbers"):
        table_of(tmp_path, "b.tif")


def scaled(scale, offset) -> Callable:
    def finish(file):
        file.scales, file.offsets = scale, offset

    return finish


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["held", "read window by window"])
def test_scale_and_offset_are_honoured_unless_a_divisor_is_asked_for(tmp_path, memory):
    stored = np.random.default_rng(0).integers(1000, 9000, (2, 40, 40)).astype(np.uint16)
    write(tmp_path / "a.tif", stored, finish=scaled((1e-4, 2e-4), (-0.1, 0.5)))
    with rasterio.open(tmp_path / "a.tif") as file:  # by rasterio, in float64
        physical = file.read() * np.array(file.scales)[:, None, None] + np.array(file.offsets)[:, None, None]
    np.testing.assert_allclose(table_of(tmp_path, "a.tif").read([0])[0], physical, rtol=1e-6)
    patches = RasterPatches(tmp_path / "a.tif", patch=40, count=1, memory=memory)
    np.testing.assert_allclose(patches.read([0])[0], physical, rtol=1e-6)
    divided = RasterPatches(tmp_path / "a.tif", patch=40, count=1, memory=memory, divisor=10000)
    np.testing.assert_array_equal(divided.read([0])[0], stored / np.float32(10000))
    assert patches.fingerprint != divided.fingerprint


def test_every_file_has_its_own_scale_and_one_without_is_left_out(tmp_path):
    stored = np.random.default_rng(0).integers(1000, 9000, (1, 20, 20)).astype(np.uint16)
    for name, offset in (("a.tif", -0.1), ("b.tif", 0.0), ("c.tif", -0.2)):
        write(tmp_path / name, stored, finish=scaled((1e-4,), (offset,)))
    write(tmp_path / "d.tif", stored)
    first, second, third, last = table_of(tmp_path, *(f"{name}.tif" for name in "abcd")).read(range(4))
    np.testing.assert_allclose(first, second - np.float32(0.1), atol=1e-6)
    np.testing.assert_allclose(third, second - np.float32(0.2), atol=1e-6)
    assert "no scale and offset, which the others have" in str(last)


def test_a_scale_of_zero_is_refused(tmp_path):
    write(tmp_path / "a.tif", np.ones((1, 16, 16), np.uint16), finish=scaled((0.0,), (0.0,)))
    with pytest.raises(DataError, match="its scale or offset is 0 or no number"):
        RasterPatches(tmp_path / "a.tif", patch=4)


def test_values_that_look_like_classes_are_noted_with_their_number(tmp_path):
    classes = np.random.default_rng(0).integers(0, 17, (1, 100, 100)).astype(np.uint8)
    write(tmp_path / "a.tif", classes)
    words = "holds 17 different whole numbers, 0 to 16: if they are classes,.* 16 is read as 0.0627"
    for source in (RasterPatches(tmp_path / "a.tif", patch=10, count=50), table_of(tmp_path, "a.tif")):
        assert len(source.notes) == 1
        assert re.search(words, source.notes[0])
    write(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 250, (1, 100, 100)).astype(np.uint8))
    assert RasterPatches(tmp_path / "a.tif", patch=10, count=50).notes == ()


def test_the_odd_first_image_is_left_out_and_not_all_others(tmp_path):
    for number in range(8):
        write(tmp_path / f"{number}.tif", np.full((1 if number == 0 else 3, 16, 16), 7, np.uint8))
    source = read_folder(tmp_path)
    assert source.channels == 3
    images = source.read(range(8))
    assert [isinstance(image, SkippedImage) for image in images] == [True] + [False] * 7
    assert "1 bands, expected 3" in str(images[0])


def test_large_images_are_said_to_need_memory(tmp_path):
    write(tmp_path / "a.tif", np.zeros((1, 4100, 4200), np.float32), compress="deflate")
    (note,) = read_folder(tmp_path).notes
    assert "an image of 4100×4200 pixels takes 68.9 MB, and several are in memory at once" in note


def test_threads_neither_warn_of_missing_georeferences_nor_change_the_filters_of_warnings(tmp_path):
    for number in range(40):
        random_image(number, (12, 12, 3)).save(tmp_path / f"{number}.png")
    source = table_of(tmp_path, *(f"{number}.png" for number in range(40)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda index: source.read([index]), [*range(40)] * 5))
        assert warnings.filters == before
    assert said == []

"""Rasters in containers and archives, by GDAL's names; containers themselves; settings by kind of data."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import zipfile

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from factories.training import S2
from rasterio.transform import from_bounds

from satclip_engine.cli.train import main
from satclip_engine.errors import DataError, UsageError
from satclip_engine.training.config import make_config, read_toml
from satclip_engine.training.features import FeatureCache
from satclip_engine.training.patches import open_source, read_table
from satclip_engine.training.raster_patches import RasterPatches
from satclip_engine.training.sources.source import SkippedImage

TINY = [
    "--epochs",
    "1",
    "--legendre-polys",
    "4",
    "--capacity",
    "8",
    "--embed-dim",
    "8",
    "--threads",
    "1",
    "-q",
]
SCALE, OFFSET = 0.5, 200.0


@pytest.fixture
def climate(tmp_path):
    """A NetCDF file as ERA5 comes: two packed variables of three times, 0 to 360 degrees, no CRS."""
    netcdf_file = pytest.importorskip("scipy.io").netcdf_file
    path = tmp_path / "climate data.nc"
    with netcdf_file(path, "w") as file:
        axes = {
            "time": np.arange(3.0),
            "latitude": np.arange(88.0, -90, -4),
            "longitude": np.arange(0.0, 360, 4),
        }
        for name, values in axes.items():
            file.createDimension(name, len(values))
            file.createVariable(name, "f8", (name,))[:] = values
        file.variables["latitude"].units = "degrees_north"
        file.variables["longitude"].units = "degrees_east"
        shape = tuple(map(len, axes.values()))
        for seed, name in enumerate(("t2m", "tp")):
            variable = file.createVariable(name, "i2", tuple(axes))
            variable[:] = np.random.default_rng(seed).integers(0, 9000, shape)
            variable.scale_factor, variable.add_offset = SCALE, OFFSET
    return path


def stored(path, name):
    """A variable of the file by SciPy, in its own order of longitudes."""
    from scipy.io import netcdf_file

    with netcdf_file(path, mmap=False) as file:
        return file.variables[name][:].astype(np.float64)


def run(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


def refusal(*args):
    """The one line by which a command refuses its data."""
    result = run(*args)
    assert result.exit_code in (1, 2), result.output
    (line,) = result.stderr.splitlines()
    return line


def test_a_container_is_refused_with_names_that_can_be_pasted(climate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [refusal(*form, "--out", "run", *TINY) for form in ((climate,), ("--from-raster", climate))]
    assert lines[0] == lines[1]
    assert "a container of 2 rasters: give one by its own name: " in lines[0]
    for name in shlex.split(lines[0].rpartition("own name: ")[2].replace(",", " ")):
        assert open_source(name, patch=4, count=5).channels == 3


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["held", "read window by window"])
def test_a_variable_of_a_netcdf_file_shows_the_places_that_its_axes_say(climate, memory):
    source = RasterPatches(f"netcdf:{climate}:tp", patch=2, count=200, memory=memory)
    values = stored(climate, "tp") * SCALE + OFFSET
    for image, (lon, lat) in zip(source.read(range(200)), source.lonlat, strict=True):
        column, row = round((lon % 360 - 2) / 4), round((88 - lat - 2) / 4)
        columns = np.arange(column, column + 2) % 90
        np.testing.assert_allclose(image, values[:, row : row + 2][:, :, columns], rtol=1e-6)
    assert np.abs(source.lonlat[:, 0]).max() > 100


def test_two_variables_of_one_file_are_not_the_same_images(climate, tmp_path):
    first, second, again = (
        RasterPatches(f"netcdf:{climate}:{name}", patch=4, count=9).fingerprint
        for name in ("t2m", "tp", "t2m")
    )
    assert first == again != second
    moved = shutil.move(climate, tmp_path / "b.nc")
    assert RasterPatches(f"netcdf:{moved}:t2m", patch=4, count=9).fingerprint == first


def colours(path):
    """A raster of noise in three bands, all over the globe."""
    values = np.random.default_rng(0).integers(0, 255, (3, 45, 90), dtype=np.uint8)
    options = {"driver": "GTiff", "count": 3, "height": 45, "width": 90, "dtype": "uint8", "crs": "EPSG:4326"}
    with rasterio.open(path, "w", **options, transform=from_bounds(-180, -90, 180, 90, 90, 45)) as file:
        file.write(values)
    return path


def test_a_raster_in_an_archive_is_data_and_so_are_images_that_a_table_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = colours(tmp_path / "a.tif")
    with zipfile.ZipFile("z.zip", "w") as archive:
        archive.write("a.tif", "inner/a.tif")
    plain, inside = (open_source(name, patch=5, count=20) for name in (path, "/vsizip/z.zip/inner/a.tif"))
    np.testing.assert_array_equal(plain.read(range(20)), inside.read(range(20)))
    (tmp_path / "t.csv").write_text("path,lon,lat\n/vsizip/z.zip/inner/a.tif,1,2\n/vsizip/no.zip/b.tif,3,4\n")
    image, missing = read_table(tmp_path / "t.csv").read([0, 1])
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(image, file.read() / np.float32(255))
    assert isinstance(missing, SkippedImage)
    assert "/vsizip/no.zip/b.tif" in str(missing)


@pytest.mark.parametrize(
    "name", ["/vsizip/no.zip/a.tif", "netcdf:no.nc:t2m", "/vsicurl/http://127.0.0.1:9/a.tif"]
)
def test_a_name_that_leads_nowhere_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refusal(name, "--out", "run", *TINY)
    assert line.startswith(f"satclip-train: {name} cannot be read as a raster")


@pytest.mark.parametrize("form", [[], ["--from-raster"]], ids=["DATA", "--from-raster"])
def test_a_raster_obeys_its_options_however_it_is_given(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = colours(tmp_path / "a.tif")
    options = [
        "--patch",
        "4",
        "--count",
        "60",
        "--seed",
        "3",
        "--bands",
        "3,1",
        "--divisor",
        "100",
        "--rcf-filters",
        "4",
    ]
    assert run(*form, path, "--out", "run", *options, *TINY).exit_code == 0
    expected = RasterPatches(path, patch=4, count=60, seed=3, bands=(3, 1), divisor=100)
    cache = FeatureCache.open("run/features")
    np.testing.assert_array_equal(cache.lonlat, expected.lonlat[cache.rows])
    assert cache.manifest["made_of"]["images"] == expected.fingerprint
    written = read_toml(tmp_path / "run" / "config.toml")
    named = {
        "patch": 4,
        "count": 60,
        "seed": 3,
        "bands": [3, 1],
        "divisor": 100.0,
        "water_kept": 1.0,
        "views": 4,
    }
    assert named.items() <= written.items()
    assert written.keys().isdisjoint({"max_skipped", "bounds"})
    assert run(*form, path, "--out", "run", "--resume", "--epochs", 2, "-q").exit_code == 0


def test_bounds_and_water_kept_reach_a_raster_given_as_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = np.zeros((1, 40, 80), np.uint8)
    values[:, :, 40:] = np.random.default_rng(0).integers(0, 255, (40, 40))
    with rasterio.open("a.png", "w", driver="PNG", count=1, height=40, width=80, dtype="uint8") as file:
        file.write(values)
    options = [
        "--bounds",
        "0",
        "0",
        "80",
        "40",
        "--water-kept",
        "0",
        "--patch",
        "4",
        "--count",
        "90",
        "--rcf-filters",
        "4",
    ]
    result = run("a.png", "--out", "run", *options, *TINY)
    assert result.exit_code == 0, result.output
    assert FeatureCache.open("run/features").lonlat[:, 0].min() > 37


@pytest.mark.parametrize(
    ("data", "option", "kind"),
    [
        ("a.tif", ["--max-skipped", 5], "a raster"),
        ("s2", ["--patch", 16], "a folder in the S2-100K layout"),
        ("s2", ["--bounds", -180, -90, 180, 90], "a folder in the S2-100K layout"),
        ("s2/images", ["--count", 10], "a folder of images"),
        ("s2/index.csv", ["--water-kept", 1.0], "a table of images"),
        ("features", ["--bands", "1,2"], "a folder of features"),
        ("features", ["--no-blur"], "a folder of features"),
        ("features", ["--divisor", 3], "a folder of features"),
    ],
)
def test_an_option_that_data_do_not_take_is_refused_with_their_kind(
    data, option, kind, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(S2, "s2")
    colours("a.tif")
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "manifest.json").write_text("{}")
    line = refusal(data, *option, "--out", "run", *TINY)
    assert line.startswith(
        f"satclip-train: {option[0].replace('no-', '')}: {data} is {kind}, and this is for "
    )
    assert line.endswith(": leave it out")
    assert not (tmp_path / "run").exists()
    setting = option[0].replace("--no-", "").strip("-").replace("-", "_")
    value = {"bands": "[1, 2]", "bounds": "[-180, -90, 180, 90]", "blur": "false"}.get(setting, option[-1])
    (tmp_path / "run.toml").write_text(f"{setting} = {value}\n")
    line = refusal(data, "--config", "run.toml", "--out", "run", *TINY)
    assert line.startswith(f"satclip-train: run.toml: {setting}: {data} is {kind}, and this is for ")


def test_open_source_refuses_options_of_other_readers(tmp_path):
    with pytest.raises(UsageError, match=r"size: .*a\.tif is a raster, and this is for a table of images or"):
        open_source(colours(tmp_path / "a.tif"), size=16)
    with pytest.raises(
        UsageError, match=r"patch: .* is a folder in the S2-100K layout, and this is for a raster"
    ):
        open_source(S2, patch=16)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--views", 3], "--views: 3 is asked for, the features in run/features have 2"),
        (["--rcf-filters", 9], "--rcf-filters: 9 is asked for, the features in run/features have 4"),
        (["--rcf-components", 5], "--rcf-components: 5 is asked for, the features in run/features have 14"),
    ],
)
def test_settings_that_features_contradict_are_refused_and_theirs_are_written(
    option, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = colours(tmp_path / "a.tif")
    small = ["--patch", "4", "--count", "40", "--views", "2", "--rcf-filters", "4"]
    assert run(path, "--out", "run", *small, *TINY).exit_code == 0
    assert words in refusal("run/features", "--out", "b", *option, *TINY)
    assert run("run/features", "--out", "b", *TINY).exit_code == 0
    written = read_toml(tmp_path / "b" / "config.toml")
    assert written["views"] == 2
    assert written.keys().isdisjoint({"patch", "count", "water_kept", "flips", "blur", "rcf_filters"})
    assert run("run/features", "--out", "run", "--resume", "--epochs", 2, "-q").exit_code == 0
    assert make_config(read_toml(tmp_path / "run" / "config.toml")).patch == 4


def test_bands_and_divisor_of_a_folder_in_the_s2_100k_layout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = open_source(S2, bands=(4, 3, 2), divisor=1000)
    with rasterio.open(S2 / "images" / "patch_74721.tif") as file:
        np.testing.assert_array_equal(source.read([0])[0], file.read([4, 3, 2]) / np.float32(1000))
    assert (
        len(
            {open_source(S2, **options).fingerprint for options in ({}, {"bands": (4, 3, 2)}, {"divisor": 3})}
        )
        == 3
    )
    options = [
        "--bands",
        "4,3,2",
        "--divisor",
        "1000",
        "--rcf-filters",
        "4",
        "--val-random-split-fraction",
        "0",
    ]
    result = run(S2, "--out", "run", *options, *TINY)
    assert result.exit_code == 0, result.output


def test_overlap_of_held_out_patches_is_noted_with_its_share(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = colours(tmp_path / "a.tif")
    small = ["--patch", 3, "--count", 400, "--rcf-filters", 4, "--out", "run", "--overwrite", *TINY]
    shares = []
    for more in ([], ["--val-block-degrees", 60], ["--val-random-split-fraction", 0]):
        said = run(path, *small, "--rebuild-features", *more).stderr
        note = re.search(
            r"(\d+) % of the held-out patches share pixels with patches that are trained on", said
        )
        shares.append(int(note.group(1)) if note else 0)
    assert shares[0] > 2 * shares[1]
    assert shares[2] == 0
    source = RasterPatches(path, patch=6, count=400)
    train, held_out = np.arange(300), np.arange(300, 400)
    windows = np.stack([source._columns, source._rows], axis=1)
    apart = np.abs(windows[held_out, None] - windows[None, train])
    apart[..., 0] = np.minimum(apart[..., 0], 90 - apart[..., 0])
    assert source.overlapping_share(held_out, train) == (apart < 6).all(axis=2).any(axis=1).mean()


def test_settings_of_another_encoder_or_of_a_cache_are_refused(tmp_path):
    colours(tmp_path / "a.tif")
    line = refusal(
        tmp_path / "a.tif", "--out", tmp_path / "run", "--image-encoder", "resnet18", "--rcf-filters", 3
    )
    assert "--rcf-filters: the image encoder is resnet18, and this is for rcf: leave it out" in line
    unfrozen = ["--image-encoder", "resnet18", "--unfreeze", "--views", 3]
    line = refusal(tmp_path / "a.tif", "--out", tmp_path / "run", *unfrozen)
    assert "--views: an image encoder that is trained sees a fresh view every time: leave it out" in line


def test_a_raster_located_by_control_points_is_refused(tmp_path):
    points = [
        rasterio.control.GroundControlPoint(*place) for place in ((0, 0, 0, 9), (9, 0, 0, 0), (0, 9, 9, 9))
    ]
    options = {"driver": "GTiff", "count": 1, "height": 20, "width": 20, "dtype": "uint8", "gcps": points}
    with rasterio.open(tmp_path / "a.tif", "w", **options, crs="EPSG:4326") as file:
        file.write(np.ones((1, 20, 20), np.uint8))
    with pytest.raises(DataError, match="is located by ground control points: warp it first"):
        RasterPatches(tmp_path / "a.tif")


@pytest.mark.parametrize(("unit", "metres"), [("km", 1000.0), ("m", 1.0)])
def test_patches_of_a_netcdf_in_kilometres_lie_where_its_axes_say(tmp_path, unit, metres):
    netcdf_file = pytest.importorskip("scipy.io").netcdf_file
    import pyproj

    crs = pyproj.CRS("EPSG:3413")
    x, y = np.arange(-800.0, 800, 25), np.arange(700.0, -700, -25)  # kilometres, as OSI-SAF has them
    with netcdf_file(tmp_path / "ice.nc", "w") as file:
        for name, values, axis in (("yc", y, "y"), ("xc", x, "x")):
            file.createDimension(name, len(values))
            variable = file.createVariable(name, "f8", (name,))
            variable[:] = values * 1000 / metres
            variable.units, variable.standard_name = unit, f"projection_{axis}_coordinate"
        mapping = file.createVariable("polar", "i4", ())
        for name, value in crs.to_cf().items():
            if isinstance(value, float | int) or (isinstance(value, str) and value.isascii()):
                setattr(mapping, name, value)
        ice = file.createVariable("ice", "f4", ("yc", "xc"))
        ice.grid_mapping = "polar"
        ice[:] = np.add.outer(1000 * y, x)  # tells its own place
    source = RasterPatches(f"netcdf:{tmp_path / 'ice.nc'}:ice", patch=2, count=40, divisor=1)
    to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    mean = np.stack(source.read(range(40)))[:, 0].mean(axis=(1, 2), dtype=np.float64)
    at_y = np.rint(mean / 1000 / 12.5) * 12.5
    expected = np.stack(to_degrees.transform(1000 * (mean - 1000 * at_y), 1000 * at_y), axis=1)
    np.testing.assert_allclose(source.lonlat, expected, atol=1e-3)


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.tif")
    (tmp_path / "t.csv").write_text("path,lon,lat\na.tif,1,2\n")
    for name in ("a.tif", "t.csv"):
        with pytest.raises(DataError, match=r"a\.tif.*a pipe"):
            open_source(tmp_path / name)

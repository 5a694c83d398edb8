"""Ranges of integer codes: over the globe, of a window, of a file; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rioxarray
import zarr
from factories.networks import NETWORKS, network

from satclip_engine import _C, reference
from satclip_engine.atlas.write import write_atlas
from satclip_engine.backends.extremes import Extremes, network_extremes
from satclip_engine.encoder import Encoder, load
from satclip_engine.errors import OutputError, UsageError, WeightsError
from satclip_engine.geo.grid import make_grid
from satclip_engine.lattice.tolerance import spiral
from satclip_engine.quantize import RANGE_MARGIN, SAMPLE_TYPES, Quantiser, fit
from satclip_engine.raster.write import write_raster
from satclip_engine.weights import Layers, LocationWeights

GRIDS = {
    "globe": {"resolution": 5.0},
    "window": {"resolution": 0.5, "bounds": (5, 44, 17, 48)},
    "UTM": {"crs": "EPSG:32633", "resolution": 20_000, "bounds": (300_000, 5_000_000, 700_000, 5_400_000)},
    "pole": {"crs": "EPSG:3031", "resolution": 200_000, "bounds": (-3e6, -3e6, 3e6, 3e6)},
}
WINDOW = GRIDS["window"]


def stored(path: Path) -> Quantiser:
    with rasterio.open(path) as dataset:
        sample = SAMPLE_TYPES[dataset.dtypes[0]]
        return Quantiser(sample, np.array(dataset.scales), np.array(dataset.offsets))


def assert_same(one: Quantiser, other: Quantiser) -> None:
    assert one.sample == other.sample
    np.testing.assert_array_equal(one.scale, other.scale)
    np.testing.assert_array_equal(one.offset, other.offset)


def written(encoder: Encoder, path: Path, grid: dict = WINDOW, **options: object) -> Quantiser:
    write_raster(encoder, path, make_grid(**grid), **{"overwrite": True, **options})
    return stored(path)


# Over the globe


@pytest.mark.parametrize("name", ["L=1", "L=2", "L=40, ragged", "L=40, three outputs"])
def test_extremes_are_those_of_the_reference_with_every_instruction_set(name):
    pytest.importorskip("torch")
    degrees, sizes, gain = NETWORKS[name]
    layers, points = network(degrees, sizes, gain), spiral(3000)
    exact = reference.encode(points, layers)
    for isa in _C.instruction_sets():
        extremes = network_extremes(layers, points, 2, isa)
        np.testing.assert_allclose(extremes.low, exact.min(0), rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(extremes.high, exact.max(0), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("isa", _C.instruction_sets())
def test_scales_have_the_same_bits_with_every_instruction_set_and_number_of_threads(isa):
    layers = network(10, (256, 256, 64), 3)
    here, there = (
        fit(SAMPLE_TYPES["int8"], extremes.low, extremes.high, margin=RANGE_MARGIN)
        for extremes in (
            network_extremes(layers, spiral(1 << 14), 2),
            network_extremes(layers, spiral(1 << 14), 1, isa),
        )
    )
    assert_same(here, there)


def test_noise_of_float64_does_not_reach_the_scales():
    rng = np.random.default_rng(0)
    low = rng.normal(size=20_000)
    high = low + rng.uniform(0.01, 3, low.size)
    sample = SAMPLE_TYPES["uint8"]
    noise = 1 + 1e-13 * rng.normal(size=low.size)
    assert_same(fit(sample, low, high), fit(sample, low * noise, high * noise))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_rasters_and_arrays_of_an_encoder_share_scales_whatever_their_pixels(tiny, tmp_path, dtype):
    expected = fit(SAMPLE_TYPES[dtype], tiny.extremes.low, tiny.extremes.high, margin=RANGE_MARGIN)
    for name, grid in GRIDS.items():
        assert_same(written(tiny, tmp_path / f"{name}.tif", grid, dtype=dtype), expected)
        array = tiny.grid(**grid, dtype=dtype)
        np.testing.assert_array_equal(array.scale, expected.scale)
        np.testing.assert_array_equal(array.offset, expected.offset)
    for offset in (expected.offset, expected.scale):
        np.testing.assert_array_equal(offset, offset.astype(np.float32))


def test_bands_share_scales_with_the_whole_and_so_does_every_backend(tiny, tiny_weights, tmp_path):
    whole = written(tiny, tmp_path / "whole.tif")
    few = written(tiny.select([5, 1]), tmp_path / "few.tif")
    np.testing.assert_array_equal(few.scale, whole.scale[[5, 1]])
    np.testing.assert_array_equal(few.offset, whole.offset[[5, 1]])
    pytest.importorskip("torch")
    for options in ({"backend": "reference"}, {"precision": "fast"}, {"threads": 1}):
        assert_same(written(load(tiny_weights, **options), tmp_path / "other.tif"), whole)


def test_codes_of_the_globe_hardly_clip(tiny, tmp_path):
    report = write_raster(tiny, tmp_path / "globe.tif", make_grid(resolution=1.0))
    assert report.clipping.values == 0
    values = tiny.grid(resolution=1.0).values
    quantiser = stored(tmp_path / "globe.tif")
    used = np.ptp(values, axis=(1, 2)) / quantiser.scale / 254
    assert (used > 0.9).all()


def test_a_rough_window_reports_what_lies_beyond_the_globe(tmp_path):
    narrow = tmp_path / "narrow.json"
    narrow.write_text(json.dumps({"low": -0.05, "high": 0.05}))
    with pytest.warns(UserWarning, match="of a band's values lie beyond its codes"):
        report = write_raster(
            load("default-l10", threads=2).select("1"), tmp_path / "a.tif", make_grid(**WINDOW), range=narrow
        )
    assert report.clipping.values > 0


def test_constant_bands_keep_their_value(tmp_path):
    layers = network(4, (16, 3))
    weights = {
        "layers.0.weight": layers.weights[0] / 30,
        "layers.0.bias": layers.biases[0] / 30,
        "last_layer.weight": np.array([[0.0] * 16, [1e-9] * 16, [1e-4] * 16]),
        "last_layer.bias": np.array([0.1, -3.7, 1.0]),
    }
    encoder = load(LocationWeights(weights, "orthonormal"))
    report = write_raster(encoder, tmp_path / "a.tif", make_grid(**WINDOW))
    assert report.clipping.values == 0
    with rioxarray.open_rasterio(tmp_path / "a.tif", mask_and_scale=True) as array:
        np.testing.assert_allclose(
            array.values, encoder.grid(**WINDOW).values, atol=1e-6 + report.max_quantisation_error
        )
        np.testing.assert_allclose(array[0], 0.1, rtol=1e-6)
        np.testing.assert_allclose(array[1], -3.7, rtol=1e-6)


def test_weights_without_finite_values_are_an_error(tmp_path):
    layers = network(4, (16, 3))
    layers = Layers(4, (layers.weights[0], layers.weights[1] * 1e300), layers.biases)
    with pytest.raises(WeightsError, match="not finite everywhere"):
        network_extremes(layers, spiral(100), 1)


def test_the_provenance_says_which_rule_it_was(tiny, tmp_path):
    path = tmp_path / "a.tif"
    for choice, expected in (("globe", "globe"), ("window", "window")):
        report = write_raster(tiny, path, make_grid(**WINDOW), range=choice, overwrite=True)
        with rasterio.open(path) as dataset:
            assert dataset.tags()["quantisation_range"] == expected
            assert dataset.tags()["quantisation_scale"] == "band"
            assert report.quantisation["range"] == expected
            np.testing.assert_array_equal(report.quantisation["scale"], dataset.scales)
    assert tiny.grid(**WINDOW, dtype="int8").attrs["quantisation_range"] == "globe"


# Atlases


@pytest.fixture(scope="module")
def atlas(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("atlas") / "tiny.zarr"
    write_atlas(tiny, path)
    return path


def changed(atlas: Path, folder: Path, **attributes: object) -> Path:
    """A copy with other attributes; None removes one."""
    import shutil

    copy = folder / "changed.zarr"
    shutil.copytree(atlas, copy)
    group = zarr.open_group(copy, mode="r+", zarr_format=3)
    content = {**group.attrs.asdict(), **attributes}
    for name in attributes:
        del group.attrs[name]
    group.attrs.update({name: value for name, value in content.items() if value is not None})
    return copy


def test_an_atlas_has_the_scales_of_its_network(tiny, atlas, tmp_path):
    earth = load(atlas)
    assert_same(written(earth, tmp_path / "a.tif"), written(tiny, tmp_path / "b.tif"))
    few = written(earth.select("2-3"), tmp_path / "c.tif")
    assert_same(few, written(tiny.select("2-3"), tmp_path / "d.tif"))


def test_heads_on_an_atlas_look_at_its_nodes(tiny, atlas):
    weight = np.vstack([np.ones(8), np.arange(8.0)])
    earth, network = load(atlas).with_head(weight), tiny.with_head(weight)
    allowed = 2e-3 * np.abs(weight) @ tiny.moments.sigma
    assert (np.abs(earth.extremes.low - network.extremes.low) <= allowed).all()
    assert (np.abs(earth.extremes.high - network.extremes.high) <= allowed).all()
    # Nodes are float32, and so are the values: float64 finds the same ones.
    values = earth(spiral(1 << 16), exact=False)
    np.testing.assert_allclose(earth.extremes.low, values.min(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(earth.extremes.high, values.max(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "attributes",
    [
        {"low": [0.0] * 7},
        {"low": [float("nan")] * 8},
        {"low": [1e9] * 8},
        {"low": "low"},
        {"high": [[0.0] * 8]},
        {"low": None},
        {"high": None},
    ],
    ids=str,
)
def test_an_atlas_whose_ranges_are_damaged_is_refused(atlas, tmp_path, attributes):
    with pytest.raises(WeightsError, match="damaged"):
        load(changed(atlas, tmp_path, **attributes))


# Windows and common scales


def test_a_window_has_finer_steps_of_its_own(tiny, tmp_path):
    globe, window = written(tiny, tmp_path / "a.tif"), written(tiny, tmp_path / "b.tif", range="window")
    assert (window.scale < globe.scale / 2).all()
    values = tiny.grid(**WINDOW).values.reshape(8, -1)
    np.testing.assert_allclose(window.scale, np.ptp(values, axis=1) / 253, rtol=1e-3)
    np.testing.assert_allclose(tiny.grid(**WINDOW, dtype="int8", range="window").scale, window.scale)


@pytest.mark.parametrize("choice", ["globe", "window"])
def test_common_scales_are_one_for_all_bands_and_survive_rioxarray(tiny, tmp_path, choice):
    common = written(tiny, tmp_path / "a.tif", range=choice, scale="common")
    bands = written(tiny, tmp_path / "b.tif", range=choice)
    assert len(set(common.scale)) == len(set(common.offset)) == 1
    ends = bands.offset + 127 * bands.scale * np.array([[-1], [1]])
    assert common.offset[0] - 127.5 * common.scale[0] <= ends.min() + bands.scale.max()
    assert common.offset[0] + 127.5 * common.scale[0] >= ends.max() - bands.scale.max()
    with rioxarray.open_rasterio(tmp_path / "a.tif", mask_and_scale=True) as values:
        values.rio.to_raster(tmp_path / "again.tif")
        with rioxarray.open_rasterio(tmp_path / "again.tif", mask_and_scale=True) as again:
            np.testing.assert_array_equal(again.values, values.values)
    assert set(tiny.grid(**WINDOW, dtype="uint8", range=choice, scale="common").scale.values) == {
        common.scale[0]
    }


def test_values_read_by_scales_of_their_own_are_written_again_without_the_encoding(tiny, tmp_path):
    written(tiny, tmp_path / "a.tif")
    with rioxarray.open_rasterio(tmp_path / "a.tif", mask_and_scale=True) as values:
        values = values.load()
    values.encoding.clear()
    values.rio.to_raster(tmp_path / "again.tif")
    with rioxarray.open_rasterio(tmp_path / "again.tif", mask_and_scale=True) as again:
        np.testing.assert_array_equal(again.values, values.values)


# Files


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_the_scales_of_a_raster_serve_others_of_every_type(tiny, tmp_path, dtype):
    first = written(tiny, tmp_path / "first.tif", range="window", dtype="int16")
    other = written(tiny, tmp_path / "b.tif", GRIDS["UTM"], range=tmp_path / "first.tif", dtype=dtype)
    assert_same(other, first.of_type(SAMPLE_TYPES[dtype]))
    few = written(tiny.select([6, 2]), tmp_path / "c.tif", range=str(tmp_path / "first.tif"), dtype="int16")
    np.testing.assert_array_equal(few.scale, first.scale[[6, 2]])
    np.testing.assert_array_equal(few.offset, first.offset[[6, 2]])
    array = tiny.grid(**WINDOW, dtype=dtype, range=tmp_path / "b.tif")
    np.testing.assert_array_equal(array.scale, other.scale)
    np.testing.assert_array_equal(array.offset, other.offset)


def test_common_scales_are_asked_of_a_file_only_where_it_has_them(tiny, tmp_path):
    first = written(tiny, tmp_path / "first.tif", scale="common")
    assert_same(written(tiny, tmp_path / "b.tif", range=tmp_path / "first.tif", scale="common"), first)
    written(tiny, tmp_path / "bands.tif")
    with pytest.raises(UsageError, match="have scales of their own") as error:
        written(tiny, tmp_path / "b.tif", range=tmp_path / "bands.tif", scale="common")
    assert error.value.argument == "scale"


def test_a_report_is_a_file_of_scales(tiny, tmp_path):
    report = write_raster(tiny, tmp_path / "a.tif", make_grid(**WINDOW), range="window")
    (tmp_path / "report.json").write_text(json.dumps(report.as_dict()))
    assert_same(written(tiny, tmp_path / "b.tif", range=tmp_path / "report.json"), stored(tmp_path / "a.tif"))
    few = written(tiny.select("3"), tmp_path / "c.tif", range=tmp_path / "report.json")
    assert few.scale[0] == report.quantisation["scale"][2]
    assert_same(written(tiny, tmp_path / "d.tif", range=report.quantisation), stored(tmp_path / "a.tif"))
    array = tiny.grid(**WINDOW, dtype="int8")
    numbers = {"scale": array.scale, "offset": tuple(array.offset.values)}
    np.testing.assert_array_equal(tiny.grid(**WINDOW, dtype="int8", range=numbers).values, array.values)
    with pytest.raises(UsageError, match="range: the mapping has 8 bands without names, not 1"):
        tiny.select("1").grid(**WINDOW, dtype="int8", range=numbers)


FILES = {
    "numbers for all": ("a.json", '{"scale": 0.05, "offset": -1}', [0.05] * 8, [-1] * 8),
    "lists": (
        "a.toml",
        "scale = [1, 2, 3, 4, 5, 6, 7, 8]\noffset = 0.5",
        [1, 2, 3, 4, 5, 6, 7, 8],
        [0.5] * 8,
    ),
    "names": (
        "a.json",
        json.dumps({"bands": [f"e00{k}" for k in range(8, 0, -1)], "scale": list(range(1, 9)), "offset": 0}),
        [8, 7, 6, 5, 4, 3, 2, 1],
        [0] * 8,
    ),
    "of another type": ("a.JSON", '{"dtype": "int16", "scale": 0.5, "offset": 3}', [128] * 8, [3] * 8),
    "of unsigned bytes": ("a.json", '{"dtype": "uint8", "scale": 0.5, "offset": -61}', [0.5] * 8, [3] * 8),
    "a table": ("a.toml", "[quantisation]\nscale = 0.5\noffset = 3", [0.5] * 8, [3] * 8),
}


@pytest.mark.parametrize(("name", "text", "scale", "offset"), FILES.values(), ids=FILES)
def test_json_and_toml_give_scales(tiny, tmp_path, name, text, scale, offset):
    (tmp_path / name).write_text(text)
    quantiser = written(tiny, tmp_path / "a.tif", range=tmp_path / name)
    np.testing.assert_array_equal(quantiser.scale, scale)
    np.testing.assert_array_equal(quantiser.offset, offset)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_codes_are_spread_over_the_range_that_a_file_gives(tiny, tmp_path, dtype):
    (tmp_path / "a.json").write_text('{"low": [-4, -4, -4, -4, -4, -4, 1, 0], "high": 4}')
    quantiser = written(tiny, tmp_path / "a.tif", range=tmp_path / "a.json", dtype=dtype)
    low, high = np.array([-4, -4, -4, -4, -4, -4, 1, 0]), 4
    sample = quantiser.sample
    ends = np.array([[sample.zero - sample.largest_code], [sample.zero + sample.largest_code]])
    least, largest = quantiser.decode(ends * np.ones(8, int))
    assert (least <= low).all()
    assert (largest >= high).all()
    assert (largest - least <= 1.02 * (high - low)).all()


REFUSED = {
    "another name": ("nosuch", None, "is none of globe, window and a file that is there"),
    "no raster": ("a.tif", "text", "is no raster, JSON or TOML that can be read"),
    "a key twice": ("a.json", '{"scale": 1, "scale": 2, "offset": 0}', "it names something twice"),
    "no JSON": ("a.json", "{", "cannot be read"),
    "no UTF-8": ("a.json", b"\xff\xfe", "cannot be read"),
    "deep": ("a.json", "[" * 100_000, "cannot be read"),
    "no table": ("a.json", "[1]", "is no table"),
    "no table below": ("a.json", '{"quantisation": 3}', "is no table"),
    "nothing in it": ("a.json", '{"scale": 1}', 'has neither "scale" and "offset" nor "low" and "high"'),
    "text": ("a.json", '{"scale": "1", "offset": 0}', "must be a number or a list of numbers"),
    "yes": ("a.json", '{"scale": true, "offset": 0}', "must be a number or a list of numbers"),
    "NaN": ("a.json", '{"scale": NaN, "offset": 0}', "must be finite"),
    "huge": ("a.json", '{"scale": 1, "offset": 1' + "0" * 400 + "}", "must be finite"),
    "tiny": ("a.json", '{"scale": 1e-45, "offset": 0}', "has numbers that float32 cannot hold"),
    "negative": ("a.json", '{"scale": -1, "offset": 0}', "scales must be positive"),
    "too few": ("a.json", '{"scale": [1, 1], "offset": 0}', "has 2 bands without names, not 8"),
    "other names": ("a.json", '{"bands": ["a"], "scale": [1], "offset": 0}', "has no band 'e001' and 7 more"),
    "names that do not fit": ("a.json", '{"bands": ["a"], "scale": [1, 2], "offset": 0}', "2 numbers for 1"),
    "a name twice": ("a.json", '{"bands": ["a", "a"], "scale": [1, 2], "offset": 0}', "names a band twice"),
    "names that are none": ("a.json", '{"bands": 3, "scale": 1, "offset": 0}', "must be a list of names"),
    "upside down": ("a.json", '{"low": 1, "high": 0}', 'must not be above "high"'),
    "floats": ("a.json", '{"dtype": "float32", "scale": 1, "offset": 0}', "scales are those of int8, uint8"),
    "no type": ("a.json", '{"dtype": [], "scale": 1, "offset": 0}', "scales are those of int8, uint8, int16"),
}


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_gives_no_scales_is_refused_before_anything_is_written(
    tiny, tmp_path, name, content, message
):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for job in (
        lambda: write_raster(tiny, tmp_path / "out.tif", make_grid(**WINDOW), range=tmp_path / name),
        lambda: tiny.grid(**WINDOW, dtype="int8", range=tmp_path / name),
    ):
        with pytest.raises(UsageError, match=message) as error:
            job()
        assert error.value.argument == "range"
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out.tif").exists()


def test_rasters_that_have_no_scales_for_these_bands_are_refused(tiny, tmp_path):
    written(tiny, tmp_path / "float.tif", dtype="float32")
    written(tiny.select("1-3"), tmp_path / "few.tif")
    written(tiny.with_head(np.eye(8)), tmp_path / "others.tif")
    with rasterio.open(
        tmp_path / "plain.tif", "w", driver="GTiff", width=4, height=4, count=8, dtype="int16"
    ) as plain:
        plain.write(np.zeros((8, 4, 4), np.int16))
    for name, message in (
        ("float", "'float32'; scales are those of int8"),
        ("few", "has no band 'e004' and 4 more"),
        ("others", "has no band 'e001'"),
        ("plain", "has no scales and offsets"),
    ):
        with pytest.raises(UsageError, match=message):
            written(tiny, tmp_path / "out.tif", range=tmp_path / f"{name}.tif")


@pytest.mark.parametrize(
    ("options", "argument", "message"),
    [
        ({"dtype": "float32", "range": "window"}, "range", "float32 stores the values themselves"),
        ({"dtype": "float16", "scale": "common"}, "scale", "float16 stores the values themselves"),
        ({"scale": "pixel"}, "scale", "scale must be band or common, not 'pixel'"),
        ({"range": None}, "range", "range must be globe, window, a file or a mapping, not None"),
        ({"range": 3}, "range", "range must be globe, window, a file or a mapping, not 3"),
    ],
)
def test_what_is_no_rule_is_refused(tiny, tmp_path, options, argument, message):
    with pytest.raises(UsageError, match=message) as error:
        write_raster(tiny, tmp_path / "out.tif", make_grid(**WINDOW), **options)
    assert error.value.argument == argument


def test_an_array_takes_numbers_or_a_rule(tiny):
    for options in ({"range": "window"}, {"scale": "common"}):
        with pytest.raises(UsageError, match="scale_offset says what range and scale say"):
            tiny.grid(**WINDOW, dtype="int8", scale_offset=(0.1, 0), **options)
        with pytest.raises(UsageError, match="float32 stores the values themselves"):
            tiny.grid(**WINDOW, **options)


def test_a_file_is_known_by_its_numbers_when_a_run_is_resumed(tiny, tmp_path):
    numbers = '{"scale": 0.05, "offset": 0}'
    (tmp_path / "a.json").write_text(numbers)
    (tmp_path / "renamed.toml").write_text("scale = 0.05\noffset = 0")
    (tmp_path / "other.json").write_text('{"scale": 0.06, "offset": 0}')
    out, grid = tmp_path / "out.tif", make_grid(**WINDOW)
    write_raster(tiny, out, grid, range=tmp_path / "a.json")
    assert write_raster(tiny, out, grid, range=tmp_path / "renamed.toml", resume=True).resumed_from == 1
    for other in (tmp_path / "other.json", "globe"):
        with pytest.raises(OutputError, match="range was numbers"):
            write_raster(tiny, out, grid, range=other, resume=True)
    with pytest.raises(OutputError, match="scale was band, is now common"):
        write_raster(tiny, out, grid, range=tmp_path / "a.json", scale="common", resume=True)


def test_extremes_of_some_bands_are_picked():
    extremes = Extremes(np.arange(3.0), np.arange(3.0) + 1)
    picked = extremes.of_bands(np.array([2, 0]))
    assert picked.low.tolist() == [2, 0]
    assert picked.high.tolist() == [3, 1]

"""write_raster: pixels, overviews, determinism, bounded memory, reports, and what bad input gets."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import rasterio
from factories.planned import OtherNetwork, WithNetwork
from rio_cogeo import cog_validate

from satclip_engine.backends.protocols import CALL
from satclip_engine.encoder import load
from satclip_engine.errors import OutputError, UsageError
from satclip_engine.geo.grid import make_grid
from satclip_engine.options import INTERLEAVES
from satclip_engine.quantize import SAMPLE_TYPES, Quantiser
from satclip_engine.raster.spool import spool_folder
from satclip_engine.raster.write import write_raster as write_raster_by_plan

GRID = {"resolution": 0.5}  # 360 × 720
# What is tested here is the writing of pixels, whoever computes them.
write_raster = functools.partial(write_raster_by_plan, exact=True)


def quantiser_of(path, dtype):
    if SAMPLE_TYPES[dtype].largest_code is None:
        return Quantiser(SAMPLE_TYPES[dtype])
    with rasterio.open(path) as dataset:
        return Quantiser(SAMPLE_TYPES[dtype], np.array(dataset.scales), np.array(dataset.offsets))


def expected_levels(encoder, grid, count, halved):
    levels = [encoder.evaluate(grid)]
    for _ in range(count - 1):
        levels.append(halved(levels[-1]))
    return levels


@pytest.mark.parametrize("dtype", SAMPLE_TYPES)
@pytest.mark.parametrize("compress", ["zstd", "deflate", "lerc", "none"])
@pytest.mark.parametrize("interleave", INTERLEAVES)
def test_every_level_holds_the_encoders_values_quantised(
    tiny, tmp_path, read, halved, dtype, compress, interleave
):
    if (dtype, compress) == ("float16", "lerc"):
        with pytest.raises(UsageError, match="float16"):
            write_raster(tiny, tmp_path / "out.tif", make_grid(**GRID), dtype=dtype, compress=compress)
        return
    path, grid = tmp_path / "out.tif", make_grid(**GRID)
    report = write_raster(tiny, path, grid, dtype=dtype, compress=compress, interleave=interleave)
    assert cog_validate(path, strict=True, quiet=True)[0]
    quantiser = quantiser_of(path, dtype)
    for number, values in enumerate(expected_levels(tiny, grid, 3, halved)):
        np.testing.assert_array_equal(read(path, number), quantiser.encode(values), err_msg=f"level {number}")
    assert report.bytes == path.stat().st_size
    assert report.overviews == [2, 4]
    assert report.valid_pixels == 360 * 720
    assert os.listdir(tmp_path) == ["out.tif"]


def test_readers_get_real_values_within_half_a_step(tiny, tmp_path):
    import rioxarray

    path, grid = tmp_path / "out.tif", make_grid(**GRID)
    report = write_raster(tiny, path, grid)
    with rioxarray.open_rasterio(path, mask_and_scale=True) as array:
        values = array.values.transpose(1, 2, 0)
    error = np.abs(values - tiny.evaluate(grid))
    assert error.max() <= report.max_quantisation_error * 1.0001
    assert (error.max((0, 1)) > 0.4 * quantiser_of(path, "int8").scale).all()


@pytest.mark.parametrize(
    "shape", [(1, 1), (16, 16), (17, 40), (63, 257), (300, 129), (513, 511)], ids=lambda s: f"{s[0]}x{s[1]}"
)
@pytest.mark.parametrize("blocksize", [16, 48, 64])
@pytest.mark.parametrize("interleave", INTERLEAVES)
def test_odd_shapes_and_blocks_come_out_right_on_every_level(
    tiny, tmp_path, read, halved, shape, blocksize, interleave
):
    from odc.geo.geobox import GeoBox

    grid = make_grid(like=GeoBox.from_bbox((10, -20, 50, 20), "EPSG:4326", shape=shape))
    path = tmp_path / "out.tif"
    options = {"blocksize": blocksize, "interleave": interleave, "threads": 2, "memory": 3 << 20}
    report = write_raster(tiny, path, grid, **options)
    assert cog_validate(path, strict=True, quiet=True)[0]
    quantiser = quantiser_of(path, "int8")
    for number, values in enumerate(expected_levels(tiny, grid, len(report.overviews) + 1, halved)):
        np.testing.assert_array_equal(read(path, number), quantiser.encode(values), err_msg=f"level {number}")


@pytest.mark.parametrize("interleave", INTERLEAVES)
def test_bytes_do_not_depend_on_threads_or_memory(tiny, tmp_path, interleave):
    grid = make_grid(resolution=0.4)
    contents = set()
    for threads, memory in [(1, 1 << 30), (2, 1 << 30), (3, 1 << 30), (2, 1 << 20), (3, 2 << 20)]:
        limits = {"threads": threads, "memory": memory}
        options = {"blocksize": 32, "interleave": interleave, "overwrite": True}
        write_raster(tiny, tmp_path / "out.tif", grid, **limits, **options)
        contents.add((tmp_path / "out.tif").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
@pytest.mark.parametrize("compress", ["zstd", "lerc"])
@pytest.mark.parametrize("interleave", ["tile", "pixel"])
def test_pixels_that_are_no_place_are_nodata_and_do_not_enter_means(
    tiny, tmp_path, read, halved, dtype, compress, interleave
):
    if (dtype, compress) == ("float16", "lerc"):
        pytest.skip("LERC does not know float16")
    grid = make_grid(
        crs="ESRI:54030", bounds=(-18e6, -9e6, 18e6, 9e6), resolution=40000
    )  # Robinson, corners empty
    path = tmp_path / "out.tif"
    report = write_raster(tiny, path, grid, dtype=dtype, compress=compress, interleave=interleave)
    values = tiny.evaluate(grid)
    missing = np.isnan(values[..., 0])
    assert 0.05 < missing.mean() < 0.5
    assert report.valid_pixels == np.count_nonzero(~missing)
    quantiser = quantiser_of(path, dtype)
    for number, level in enumerate(expected_levels(tiny, grid, len(report.overviews) + 1, halved)):
        np.testing.assert_array_equal(read(path, number), quantiser.encode(level), err_msg=f"level {number}")
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(1, masked=True).mask, missing)
        np.testing.assert_array_equal(dataset.dataset_mask() == 0, missing)


def test_one_band_and_chosen_bands_with_names(tiny, tmp_path, read):
    grid = make_grid(resolution=1.0)
    for bands, names in (("3", ("e3",)), ([5, 1], ("e6", "e2"))):
        chosen = tiny.select(bands)
        write_raster(chosen, tmp_path / "out.tif", grid, overwrite=True)
        assert cog_validate(tmp_path / "out.tif", strict=True, quiet=True)[0]
        with rasterio.open(tmp_path / "out.tif") as dataset:
            assert dataset.descriptions == tuple(chosen.band_names)
            assert len(dataset.descriptions) == len(names)
        quantiser = quantiser_of(tmp_path / "out.tif", "int8")
        np.testing.assert_array_equal(read(tmp_path / "out.tif"), quantiser.encode(chosen.evaluate(grid)))


def test_tags_say_where_the_pixels_come_from(tiny, tmp_path):
    write_raster(
        tiny, tmp_path / "out.tif", make_grid(resolution=2.0), tags={"command": "satclip-grid <x> & y"}
    )
    with rasterio.open(tmp_path / "out.tif") as dataset:
        tags, record = dataset.tags(), dataset.tags(ns="SATCLIP")["STATE"]
    assert tags["weights_sha256"] == tiny.weights.sha256
    assert tags["function_sha256"] == tiny.sha256
    assert tags["harmonics"] == "exact"
    assert tags["software"].startswith("satclip-engine ")
    assert tags["command"] == "satclip-grid <x> & y"
    assert json.loads(record)["dtype"] == "int8"


def test_a_constant_band_is_kept_exactly(tiny, tmp_path):
    weight = np.zeros((2, 8))
    weight[1, 0] = 1
    constant = tiny.with_head(weight, [4.125, 0.0])
    report = write_raster(constant, tmp_path / "out.tif", make_grid(resolution=1.0))
    with rasterio.open(tmp_path / "out.tif") as dataset:
        values = dataset.read(1) * dataset.scales[0] + dataset.offsets[0]
    assert (values == 4.125).all()
    assert report.clipping.values == 0


class Recorder:
    """Progress that remembers what it was told and by whom."""

    def __init__(self):
        self.total, self.pixels, self.stages, self.finished, self.threads = None, 0, [], 0, set()

    def start(self, total_pixels):
        self.total = total_pixels

    def advance(self, pixels):
        self.pixels += pixels
        self.threads.add(threading.get_ident())

    def stage(self, text):
        self.stages.append(text)

    def finish(self):
        self.finished += 1


def test_progress_is_told_every_pixel_from_the_calling_thread(tiny, tmp_path):
    progress = Recorder()
    write_raster(tiny, tmp_path / "out.tif", make_grid(**GRID), progress=progress)
    assert progress.total == progress.pixels == 360 * 720
    assert progress.threads == {threading.get_ident()}
    assert any("will take about" in stage for stage in progress.stages)
    assert progress.finished == 1


def test_the_report_is_complete_and_goes_through_json(tiny, tmp_path):
    report = write_raster(tiny, tmp_path / "out.tif", make_grid(**GRID))
    content = json.loads(json.dumps(report.as_dict()))
    assert content["shape"] == [360, 720]
    assert content["bands"] == 8
    assert content["raw_bytes"] == 360 * 720 * 8
    assert content["clipping"]["fraction"] < 1e-4
    assert content["resumed_from"] == 0
    assert set(content["cpu_seconds"]) == {"compute", "pack", "compress", "write"}
    assert content["pixels_per_second"] > 0
    assert content["peak_memory"] > 10**7
    assert content["bytes"] <= content["disk_estimate"] <= 3 * content["bytes"] + 10**6


class Spiky(OtherNetwork):
    """A network whose rare peaks no sample sees."""

    def encode_pixels(self, pixels, rows=None, cols=None, out=None, call=CALL):
        out = self.inner.encode_pixels(pixels, rows, cols, out, call)
        if isinstance(rows, slice) and rows.start == 384:
            out[:2, ::4, 3] = 1e4
        return out


def test_clipping_beyond_the_promise_is_reported_and_warned_of_with_the_bands_names(tiny, tmp_path):
    with pytest.warns(UserWarning, match="lie beyond its codes, in"):
        report = write_raster(
            WithNetwork(tiny, Spiky(tiny.network)),
            tmp_path / "out.tif",
            make_grid(resolution=0.25),
            threads=1,
        )
    assert report.clipping.bands == [tiny.band_names[3]]
    assert report.clipping.fraction > 1e-4
    assert report.clipping.excess == pytest.approx(1e4, rel=0.01)
    assert report.max_quantisation_error == pytest.approx(report.clipping.excess)
    with rasterio.open(tmp_path / "out.tif") as dataset:
        assert dataset.read(4).max() == 127


def test_memory_stays_bounded_while_the_raster_grows(tmp_path):
    script = textwrap.dedent("""
        import sys, json, numpy as np
        from satclip_engine.geo.grid import make_grid
        from satclip_engine.backends.protocols import BATCH_HINTS
        from satclip_engine.raster.write import write_raster
        class Field:
            embed_dim, threads, backend, isa, sha256 = 64, 2, "fake", "none", "f"
            device, precision, hints = "cpu", "exact", BATCH_HINTS
            band_names, plan = [f"b{k}" for k in range(64)], None
            class weights: sha256, harmonics = "w", "exact"
            network = property(lambda self: self)
            def encode_pixels(self, grid, rows=None, cols=None, out=None, call=None):
                r, c = np.arange(grid.shape[0])[rows], np.arange(grid.shape[1])[cols]
                if out is None: out = np.empty((r.size, c.size, 64), np.float32)
                out[:] = np.sin(r / 97)[:, None, None] + np.sin(c / 83)[:, None] + np.arange(64)
                return out
        grid = make_grid(resolution=float(sys.argv[2]))
        report = write_raster(Field(), sys.argv[1], grid, memory=100 << 20, exact=True, range="window")
        print(report.peak_memory)
    """)
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", script, tmp_path / f"{resolution}.tif", resolution],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for resolution in ("0.5", "0.125")  # 16 times the pixels: 66 MB and 1.1 GB of float32
    ]
    assert peaks[1] < peaks[0] + 60e6


BAD = {
    "dtype": ({"dtype": "uint16"}, UsageError, "int8, uint8, int16, float16, float32"),
    "compress": ({"compress": "lzw"}, UsageError, "zstd, deflate, lerc, none"),
    "interleave": ({"interleave": "line"}, UsageError, "tile, pixel, band, not 'line'"),
    "blocksize": ({"blocksize": 100}, UsageError, "multiple of 16"),
    "threads": ({"threads": 0}, UsageError, "threads"),
    "memory": ({"memory": 1000}, UsageError, "need at least"),
    "both": ({"overwrite": True, "resume": True}, UsageError, "overwrite and resume are mutually exclusive"),
}


@pytest.mark.parametrize(("options", "kind", "message"), BAD.values(), ids=BAD)
def test_arguments_that_cannot_be_used_are_refused_before_anything_is_written(
    tiny, tmp_path, options, kind, message
):
    with pytest.raises(kind, match=message):
        write_raster(tiny, tmp_path / "out.tif", make_grid(**GRID), **options)
    assert os.listdir(tmp_path) == []


def test_an_existing_file_is_left_alone_unless_it_is_to_be_replaced(tiny, tmp_path):
    path = tmp_path / "out.tif"
    path.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        write_raster(tiny, path, make_grid(resolution=2.0))
    with pytest.raises(OutputError, match="nothing to resume"):
        write_raster(tiny, path, make_grid(resolution=2.0), resume=True)
    assert path.read_text() == "precious"
    (tmp_path / "out.tif.aux.xml").write_text("<stale/>")
    write_raster(tiny, path, make_grid(resolution=2.0), overwrite=True)
    assert cog_validate(path, quiet=True)[0]
    assert os.listdir(tmp_path) == ["out.tif"]


def test_the_embedding_of_another_encoder_is_no_grid_to_write(tiny, tmp_path):
    some, head = tiny.select("1-3"), tiny.with_head(np.eye(8)[:2])
    for encoder, array in (
        (tiny, tiny.grid(resolution=5, bands="1-3")),
        (some, tiny.grid(resolution=5)),
        (tiny, head.grid(resolution=5)),
        (tiny, tiny.grid(resolution=5)[:3]),
        (tiny, tiny.grid(resolution=5).isel(band=0)),
    ):
        with pytest.raises(UsageError, match="pass the encoder that made it"):
            write_raster(encoder, tmp_path / "out.tif", array)
    assert os.listdir(tmp_path) == []
    for encoder in (tiny, some, head):
        report = write_raster(encoder, tmp_path / "out.tif", encoder.grid(resolution=5), overwrite=True)
        assert report.bands == encoder.embed_dim
    part = tiny.grid(resolution=5).isel(y=slice(4, 9))
    assert write_raster(tiny, tmp_path / "out.tif", part, overwrite=True).shape == (5, 72)


def test_a_missing_folder_and_a_folder_in_the_way_are_named(tiny, tmp_path):
    with pytest.raises(OutputError, match=r"there is no folder .*missing"):
        write_raster(tiny, tmp_path / "missing" / "out.tif", make_grid(**GRID))
    with pytest.raises(OutputError, match="it is a folder"):
        write_raster(tiny, tmp_path, make_grid(**GRID), overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable for root")
def test_an_unwritable_folder_is_named(tiny, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="not writable"):
        write_raster(tiny, folder / "out.tif", make_grid(**GRID))


@pytest.mark.parametrize(
    ("interleave", "dtype", "resolution", "bands"),
    [
        ("tile", "int8", 1.0, "1-32"),
        ("tile", "float32", 1.0, "1-32"),
        ("pixel", "int8", 2.0, "1-32"),
        ("tile", "int8", 15.0, "1-3"),
        ("pixel", "float32", 15.0, "1-3"),
    ],
)
def test_the_announced_size_is_right_or_slightly_high_overviews_included(
    tmp_path, monkeypatch, interleave, dtype, resolution, bands
):
    from satclip_engine.raster import write

    estimates, estimate = [], write.estimate_disk
    monkeypatch.setattr(write, "estimate_disk", lambda *a: estimates.append(estimate(*a)) or estimates[0])
    encoder, grid = load("default", threads=2).select(bands), make_grid(resolution=resolution)
    report = write_raster(encoder, tmp_path / "out.tif", grid, dtype=dtype, interleave=interleave)
    assert 0.99 <= estimates[0].file / report.bytes <= 1.2


def test_a_raster_without_any_place_on_earth_is_a_usage_error(tiny, tmp_path):
    nowhere = make_grid(crs="ESRI:54030", bounds=(17e6, 8.5e6, 17.9e6, 8.9e6), resolution=10000)
    assert np.isnan(tiny.evaluate(nowhere)).all()
    with pytest.raises(UsageError, match="none of the 40 × 90 pixels lies on Earth"):
        write_raster(tiny, tmp_path / "out.tif", nowhere)
    assert os.listdir(tmp_path) == []


def test_too_little_free_space_is_refused_at_the_start_with_the_numbers(tiny, tmp_path, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(OutputError, match=r"will take about .* while it is written, but only .*kB are free"):
        write_raster(tiny, tmp_path / "out.tif", make_grid(**GRID))
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_line_and_leaves_nothing_under_the_name(tiny_file, tmp_path, read):
    script = textwrap.dedent("""
        import resource, sys
        from satclip_engine.encoder import load
        from satclip_engine.errors import OutputError
        from satclip_engine.geo.grid import make_grid
        from satclip_engine.raster.write import write_raster
        encoder, grid = load(sys.argv[1], threads=2), make_grid(resolution=0.25)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
        try:
            write_raster(encoder, sys.argv[2], grid, compress="none", exact=True)
        except OutputError as error:
            print(error)
    """)
    path, whole = tmp_path / "out.tif", 720 * 1440 * 8
    for limit in (
        whole // 3,
        whole + whole // 8,
    ):  # full while computing; full while the file is put together
        run = subprocess.run(
            [sys.executable, "-c", script, tiny_file, path, str(limit)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.count("\n") == 1, run.stdout
        assert "File too large" in run.stdout
        assert "run again with resume=True" in run.stdout
        assert not path.exists()
        assert spool_folder(path).exists()
    encoder, grid = load(tiny_file), make_grid(resolution=0.25)
    report = write_raster(encoder, path, grid, compress="none", resume=True)
    assert report.resumed_from > 0.9
    np.testing.assert_array_equal(read(path), quantiser_of(path, "int8").encode(encoder.evaluate(grid)))


@pytest.fixture(scope="module")
def tiny_file(tiny_weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    tiny_weights.save(path)
    return path


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_really_full_disk_is_one_line_and_resuming_with_room_goes_on(tiny, small_disk, monkeypatch):
    from satclip_engine.raster import write
    from satclip_engine.raster.size_estimate import DiskEstimate

    monkeypatch.setattr(write, "estimate_disk", lambda *a: DiskEstimate(1, 1))  # as if tiles compressed well
    path, grid = small_disk / "out.tif", make_grid(resolution=0.25)
    with pytest.raises(OutputError, match=r"cannot write .*out\.tif: No space left on device; .*resume"):
        write_raster(tiny, path, grid, compress="none")
    assert os.listdir(small_disk) == [spool_folder(path).name]
    subprocess.run(["mount", "-o", "remount,size=60m", small_disk], check=True)
    report = write_raster(tiny, path, grid, compress="none", resume=True)
    assert report.resumed_from > 0.1
    assert os.listdir(small_disk) == ["out.tif"]
    assert cog_validate(path, strict=True, quiet=True)[0]


def test_the_default_weights_make_a_raster_that_equals_the_reference(tmp_path):
    encoder, reference = load("default"), load("default", backend="reference")
    grid = make_grid(resolution=2.0)
    report = write_raster(encoder, tmp_path / "out.tif", grid)
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 90, 100), rng.integers(0, 180, 100)
    with rasterio.open(tmp_path / "out.tif") as dataset:
        assert dataset.count == 256
        values = dataset.read()[:, rows, columns].T * np.array(dataset.scales) + np.array(dataset.offsets)
    expected = reference(grid.pixel_lonlat(rows, columns))
    assert np.abs(values - expected).max() <= report.max_quantisation_error * 1.001

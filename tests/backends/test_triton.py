"""Encoders by Triton's kernels, under its interpreter: the same values by every door, and what they say."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import rasterio  # noqa: E402

import satclip_engine as se  # noqa: E402
from satclip_engine import reference  # noqa: E402
from satclip_engine.backends import protocols  # noqa: E402
from satclip_engine.errors import UsageError  # noqa: E402

pytestmark = pytest.mark.triton

POINTS = np.array([[2.25, 48.5], [-180.0, -90.0], [181.5, 0.0], [13.0, 90.0], [np.nan, 3.0]])
# Of the embedding's rms: float32 throughout, and 16-bit products after the first layer.
TOLERANCES = {"exact": 1e-5, "fast": 5e-3}


@pytest.fixture(scope="module", params=TOLERANCES)
def enc(request, tiny_weights):
    return se.load(tiny_weights, backend="triton", precision=request.param, threads=2)


def largest_error(result, expected):
    rms = np.sqrt(np.nanmean(expected**2))
    return np.nanmax(np.abs(result - expected)) / rms


def test_points_are_embedded_to_the_precision_asked_for(enc, tiny_weights):
    expected = reference.encode(POINTS, tiny_weights.folded())
    result = enc(POINTS)
    assert result.dtype == np.float32
    assert np.array_equal(np.isnan(result), np.isnan(expected))
    assert largest_error(result, expected) <= TOLERANCES[enc.precision]


def test_a_grid_is_embedded_to_the_precision_asked_for(enc, tiny):
    grid = se.make_grid(resolution=30)
    assert largest_error(enc.evaluate(grid), tiny.evaluate(grid)) <= TOLERANCES[enc.precision]


def test_a_pixel_has_the_same_bits_however_results_are_cut(enc, monkeypatch):
    grid = se.make_grid(resolution=20)
    whole, at_points = enc.evaluate(grid), enc(POINTS)
    monkeypatch.setattr(enc.network, "hints", protocols.BatchHints(7, 4 * 8 * 7))  # parts of a row
    assert np.array_equal(enc.evaluate(grid), whole)
    assert np.array_equal(enc(POINTS), at_points, equal_nan=True)
    window = enc.evaluate(grid, slice(2, 5), np.array([1, 9, 17]))
    assert np.array_equal(window, whole[2:5, [1, 9, 17]])


def test_threads_get_what_one_gets(enc):
    grid = se.make_grid(resolution=20)
    whole = enc.evaluate(grid)
    rows = [slice(row, row + 3) for row in range(0, 9, 3)]
    result = {}
    workers = [
        threading.Thread(
            target=lambda k=k, part=part: result.update({k: enc.evaluate(grid, part, threads=1)})
        )
        for k, part in enumerate(rows)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for k, part in enumerate(rows):
        assert np.array_equal(result[k], whole[part])


def test_a_tensor_where_it_computes_is_not_taken_to_the_host_and_back(enc, monkeypatch):
    expected = enc(POINTS)
    monkeypatch.setattr(type(enc.network), "encode", None)  # the door of the host
    result = enc(torch.from_numpy(POINTS).reshape(5, 1, 2))
    assert (result.dtype, result.shape) == (torch.float32, (5, 1, 8))
    assert np.array_equal(result[:, 0].numpy(), expected, equal_nan=True)
    strided = torch.from_numpy(np.repeat(POINTS, 2, axis=1))[:, ::2]
    assert np.array_equal(enc(strided).numpy(), enc(strided.contiguous()).numpy(), equal_nan=True)
    assert enc(torch.empty(0, 2)).shape == (0, 8)


def test_a_tensor_elsewhere_comes_back_to_where_it_was(tiny_weights, monkeypatch):
    enc = se.load(tiny_weights, backend="triton")
    expected = enc(POINTS)
    monkeypatch.setattr(type(enc.network), "encode_tensor", lambda self, lonlat: None)
    assert np.array_equal(enc(torch.from_numpy(POINTS)).numpy(), expected, equal_nan=True)


def test_a_tensors_latitude_beyond_a_pole_names_its_row(enc):
    with pytest.raises(ValueError, match=r"row 2: latitude 90\.5 is outside \[-90, 90\]"):
        enc(torch.tensor([[0.0, 90.0], [0.0, np.nan], [120.0, 90.5], [0.0, 91.0]]))
    with pytest.raises(UsageError, match=r"shape \(\.\.\., 2\)"):
        enc(torch.zeros(3, 3))
    with pytest.raises(TypeError, match="real numbers"):
        enc(torch.zeros(3, 2, dtype=torch.complex64))


def test_it_says_where_and_how_it_computes(enc):
    assert (enc.backend, enc.device) == ("triton", "cpu")
    assert enc.isa.split()[0] == "triton"
    assert enc.isa.split()[2:] == ["interpreter", enc.precision]
    assert f"backend triton ({enc.isa}) on cpu, 2 threads" in repr(enc)


def test_a_pickled_encoder_computes_as_the_one_it_was(enc):
    again = pickle.loads(pickle.dumps(enc))
    assert (again.backend, again.device, again.isa, again.threads) == (enc.backend, enc.device, enc.isa, 2)
    assert np.array_equal(again(POINTS), enc(POINTS), equal_nan=True)


def test_selections_and_heads_compute_where_the_whole_does(enc):
    for derived in (enc.select("1-3"), enc.with_head(np.eye(8)[:2])):
        assert (derived.backend, derived.precision) == ("triton", enc.precision)
    assert np.allclose(enc.select("1-3")(POINTS), enc(POINTS)[:, :3], atol=1e-2, equal_nan=True)


def test_strips_of_a_raster_have_at_least_what_one_start_is_worth(tiny_weights):
    hints = se.load(tiny_weights, backend="triton").hints
    assert hints.batch_size == protocols.MAX_BATCH, "embeddings of 8 numbers are short"
    wide = se.load(tiny_weights, backend="triton").with_head(np.ones((256, 8)))
    assert wide.hints.batch_size * 256 * 4 == wide.hints.pinned_bytes


@pytest.mark.parametrize("window", [{"resolution": 20}, {"crs": "EPSG:8857", "resolution": 3_000_000}])
def test_workers_of_a_raster_share_it(tmp_path, enc, tiny, window):
    grid = se.make_grid(**window)
    report = se.write_raster(
        enc, tmp_path / "a.tif", grid, dtype="float32", blocksize=16, threads=3, compress="deflate"
    )
    assert (report.device, report.precision) == ("cpu", enc.precision)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        result = dataset.read().transpose(1, 2, 0)
    assert np.array_equal(result, enc.evaluate(grid), equal_nan=True)
    assert largest_error(result, tiny.evaluate(grid)) <= TOLERANCES[enc.precision]

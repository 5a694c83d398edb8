"""The CUDA kernels of product grids, their own bodies run on the CPU, compute the reference's function."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from factories.networks import LATITUDES, LONGITUDES, network, relative_error

from satclip_engine import _C, reference
from satclip_engine.weights import Layers

# Of the embedding's rms. Exact: three TF32 products lose 5e-7 of a product on average; what is left is
# float32's rounding, as on the CPU (1e-5), and sums in steps. Fast: operands of 11 bits, 5e-4 each, averaged
# over the inputs of a unit and carried through a sine or two.
TOLERANCE = {"exact": 2e-5, "fast": 5e-3}

NETWORKS = {  # degrees, outputs of the layers, gain of the first
    "L=1": (1, (9, 7, 3), 1),
    "L=2, one hidden layer": (2, (24, 8), 1),
    "L=10": (10, (96, 48, 32), 1),
    "L=40, ragged": (40, (33, 70, 61, 37), 3),
    "L=40, trained gain": (40, (64, 64, 3), 20),
    "L=100": (100, (48, 48, 256), 1),
    "four groups a warp": (5, (260, 512, 257), 1),
    "wider than a panel": (3, (600, 16, 520), 1),
    "as released": (40, (512, 512, 256), 1),
}
FEW = 3  # rows and columns where a network is large: 64 pixels are computed whatever is asked for


def run(layers: Layers, precision: str, lat, lon, out=None, **options) -> np.ndarray:
    if out is None:
        out = np.full((len(lat), len(lon), layers.embed_dim), 7.0, np.float32)
    weights = [weight.astype(np.float32) for weight in layers.weights]
    biases = [bias.astype(np.float32) for bias in layers.biases]
    _C.cuda_emulated.encode_grid(layers.degrees, weights, biases, precision, lat, lon, out, **options)
    return out


@functools.cache
def case(name: str) -> tuple[Layers, np.ndarray, np.ndarray, np.ndarray]:
    degrees, sizes, gain = NETWORKS[name]
    layers = network(degrees, sizes, gain)
    large = max(sizes) > 256
    lat = LATITUDES[[1, -1, -3]] if large else LATITUDES
    lon = LONGITUDES[-FEW:] if large else LONGITUDES
    return layers, lat, lon, reference.encode_grid(lat, lon, layers)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_grid_equals_the_reference(name, precision):
    layers, lat, lon, expected = case(name)
    assert relative_error(run(layers, precision, lat, lon), expected) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_pixel_has_the_same_bits_in_every_window(precision):
    layers = network(6, (40, 24, 21))
    lat, lon = np.linspace(-90, 90, 19), np.linspace(-180, 180, 131)
    whole = run(layers, precision, lat, lon)
    for rows, columns in [
        (slice(0, 1), slice(0, 1)),
        (slice(3, 12), slice(5, 70)),
        (slice(9, 19), slice(64, 131)),
    ]:
        assert np.array_equal(run(layers, precision, lat[rows], lon[columns]), whole[rows, columns])


@pytest.mark.parametrize("name", ["L=40, ragged", "four groups a warp", "wider than a panel"])
def test_no_result_depends_on_the_order_of_threads_or_on_how_rows_are_copied_back(name):
    layers, lat, lon, _ = case(name)
    for precision in TOLERANCE:
        expected = run(layers, precision, lat, lon)
        row = expected[0].nbytes
        for pieces in (1, row, 2 * row + 1):
            result = run(layers, precision, lat, lon, backwards=True, piece_bytes=pieces)
            assert np.array_equal(result, expected)


def test_not_finite_coordinates_give_nan_and_leave_the_others_alone():
    layers = network(9, (40, 24, 5))
    lat, lon = np.array([10.0, np.nan, -20.0, np.inf]), np.array([5.0, np.nan, 6.0, -np.inf, 7.0])
    for precision in TOLERANCE:
        result = run(layers, precision, lat, lon)
        assert np.isnan(result[[1, 3]]).all()
        assert np.isnan(result[:, [1, 3]]).all()
        finite = np.ix_([0, 2], [0, 2, 4])
        assert np.array_equal(result[finite], run(layers, precision, lat[[0, 2]], lon[[0, 2, 4]]))


def test_a_pole_is_one_point_and_the_date_line_one_meridian():
    layers = network(12, (40, 24, 5))
    poles = run(layers, "exact", [-90.0, 90.0], LONGITUDES)
    assert (poles == poles[:, :1]).all()
    lines = run(layers, "exact", LATITUDES, [180.0, -180.0, 540.0])
    assert (lines == lines[:, :1]).all()


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
@pytest.mark.parametrize("bands", [3, 32, 130])
def test_codes_equal_quantising_the_floats(dtype, bands):
    layers = network(5, (24, bands))
    lat, lon = [np.nan, -3.0, 4.0, 50.0], np.linspace(-180, 180, 70)
    floats = run(layers, "exact", lat, lon)
    limit, missing = (127, -128) if dtype == np.int8 else (32767, -32768)
    inverse_scale = np.linspace(0.8, 1.5, bands).astype(np.float32) * limit  # some are clamped
    offset = np.linspace(-0.1, 0.1, bands).astype(np.float32)
    codes = np.clip((floats - offset) * inverse_scale, -limit, limit)
    expected = np.where(np.isnan(floats), missing, np.rint(codes)).astype(dtype)
    result = run(layers, "exact", lat, lon, np.empty(floats.shape, dtype), quantise=(inverse_scale, offset))
    assert np.array_equal(result, expected)
    assert (np.abs(expected[1:].astype(int)) == limit).any()


def test_the_output_may_have_gaps():
    layers = network(4, (24, 6))
    lat, lon = np.linspace(-80, 80, 5), np.linspace(0, 90, 7)
    expected = run(layers, "exact", lat, lon)
    for view in (
        np.zeros((5, 9, 6), np.float32)[:, :7],
        np.zeros((5, 7, 11), np.float32)[..., 2:8],
        np.zeros((10, 7, 6), np.float32)[::-2],
    ):
        assert np.array_equal(run(layers, "exact", lat, lon, view), expected)


def test_nothing_is_written_for_no_rows_or_columns():
    layers = network(4, (24, 6))
    assert run(layers, "exact", [], [1.0]).shape == (0, 1, 6)
    assert run(layers, "exact", [1.0], []).shape == (1, 0, 6)


def test_bad_arguments_are_named():
    layers = network(4, (24, 6))
    with pytest.raises(ValueError, match="row 1: latitude 91"):
        run(layers, "exact", [0.0, 91.0], [0.0])
    with pytest.raises(ValueError, match="'exact' or 'fast', not 'half'"):
        run(layers, "half", [0.0], [0.0])
    with pytest.raises(ValueError, match=r"float32 array of shape \(1, 1, 6\)"):
        run(layers, "exact", [0.0], [0.0], np.empty((1, 1, 6)))
    ones = np.ones(6, np.float32)
    with pytest.raises(ValueError, match="int8 or int16"):
        run(layers, "exact", [0.0], [0.0], np.empty((1, 1, 6), np.float32), quantise=(ones, ones))
    huge = Layers(1, tuple(w * 1e9 for w in network(1, (4, 4)).weights), network(1, (4, 4)).biases)
    with pytest.raises(ValueError, match="beyond float16"):
        run(huge, "fast", [0.0], [0.0])

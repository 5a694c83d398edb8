"""Lattice resampling: exact where theory says so, converging at its order, alike on the CPU and in CUDA."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from satclip_engine import _C, backends
from satclip_engine.weights import read_weights

ORDERS = (4, 6, 8, 10, 12)
IMPLEMENTATIONS = {
    **{isa: functools.partial(_C.resample, isa=isa, threads=2) for isa in _C.instruction_sets()},
    "cuda, emulated": _C.cuda_emulated.resample,
}
EPSILON = float(np.finfo(np.float32).eps)


@pytest.fixture(params=IMPLEMENTATIONS)
def resample(request: pytest.FixtureRequest):
    return IMPLEMENTATIONS[request.param]


def resampled(resample, lattice, rows, columns, dtype=np.float32, **options) -> np.ndarray:
    out = np.full((len(rows), len(columns), lattice.shape[2]), 7, dtype)
    resample(lattice, rows, columns, out, **options)
    return out


def random_lattice(rows=30, columns=41, bands=37, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns, bands)).astype(np.float32)


def inside(nodes: int, order: int, count: int, seed: int = 1) -> np.ndarray:
    """Positions whose stencils fit, the first and last of them included."""
    low, high = order // 2 - 1, nodes - order // 2
    places = np.random.default_rng(seed).uniform(low, high, count)
    return np.sort(np.concatenate([[low, np.nextafter(high, 0)], places]))


@pytest.mark.parametrize("order", ORDERS)
def test_polynomials_below_the_order_are_reproduced(resample, order):
    nodes, powers = 20, np.arange(order)
    # Of nodes scaled to [−1, 1], so that values are of order one.
    at = np.linspace(-1, 1, nodes)
    lattice = np.power.outer(at, powers)[:, None] * np.power.outer(at, powers[::-1])[None]
    rows, columns = inside(nodes, order, 50), inside(nodes, order, 60, seed=2)
    scaled = [2 * places / (nodes - 1) - 1 for places in (rows, columns)]
    expected = np.power.outer(scaled[0], powers)[:, None] * np.power.outer(scaled[1], powers[::-1])[None]
    found = resampled(resample, lattice.astype(np.float32), rows, columns, order=order)
    # Values and weights are rounded once, sums of `order` terms on each axis; the weights' absolute values
    # sum to at most 2.5 in the middle interval.
    assert np.abs(found - expected).max() < 2 * (order + 2) * 2.5**2 * EPSILON / 2


@pytest.mark.parametrize("order", ORDERS)
def test_nodes_keep_their_values(resample, order):
    lattice = random_lattice()
    rows, columns = np.arange(order // 2 - 1, 30 - order // 2), np.arange(order // 2 - 1, 41 - order // 2)
    found = resampled(resample, lattice, rows, columns, order=order)
    assert np.array_equal(found, lattice[np.ix_(rows, columns)])


@pytest.mark.parametrize(("order", "spacings"), [(4, (4.0, 2.0)), (8, (6.0, 4.0))])
def test_the_embedding_converges_at_the_order(order, spacings):
    weights = Path(backends.__file__).parents[1] / "data" / "bluemarble-l10.safetensors"
    network = backends.resolve("cpu").prepare(read_weights(weights).folded())
    lat, lon = np.linspace(20, 24, 33), np.linspace(5, 9, 37)
    exact = network.encode_grid(lat, lon)
    errors = []
    for spacing in spacings:
        south, west = 20 - spacing * order, 5 - spacing * order
        steps = spacing * np.arange(2 * order + int(4 / spacing) + 1)
        lattice = network.encode_grid(south + steps, west + steps)
        found = resampled(
            _C.resample, lattice, lat, lon, order=order, origin=(south, west), spacing=(spacing, spacing)
        )
        errors.append(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))
    assert errors[1] > 20 * EPSILON  # rounding does not hide the rate
    rate = np.log(errors[0] / errors[1]) / np.log(spacings[0] / spacings[1])
    assert abs(rate - order) < 1.5, errors


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
@pytest.mark.parametrize("bands", [1, 4, 37, 64])
def test_codes_equal_quantising_the_floats(resample, dtype, bands):
    lattice = random_lattice(bands=bands)
    lattice[3, 3, 0] = np.nan
    rows, columns = inside(30, 8, 20), np.append(inside(41, 8, 80), np.nan)
    floats = resampled(resample, lattice, rows, columns)
    limit, missing = (127, -128) if dtype == np.int8 else (32767, -32768)
    inverse_scale = np.linspace(0.9, 0.7, bands).astype(np.float32) * limit  # some are clamped
    offset = np.linspace(-0.1, 0.1, bands).astype(np.float32)
    codes = np.clip((floats - offset) * inverse_scale, -limit, limit)
    expected = np.where(np.isnan(floats), missing, np.rint(codes)).astype(dtype)
    found = resampled(resample, lattice, rows, columns, dtype, quantise=(inverse_scale, offset))
    assert np.array_equal(found, expected)
    assert (expected == missing).any()
    assert (np.abs(expected.astype(int)) == limit).any()


def test_a_pixel_has_the_same_bits_in_every_window_and_order(resample):
    lattice = random_lattice()
    rows, columns = inside(30, 8, 11), inside(41, 8, 150)
    whole = resampled(resample, lattice, rows, columns)
    shuffled = np.random.default_rng(3).permutation(len(columns))
    assert np.array_equal(resampled(resample, lattice, rows, columns[shuffled]), whole[:, shuffled])
    assert np.array_equal(resampled(resample, lattice, rows[::-1], columns[::-1]), whole[::-1, ::-1])
    assert np.array_equal(resampled(resample, lattice, rows[2:5], columns[7:80]), whole[2:5, 7:80])


def test_implementations_with_fused_arithmetic_agree_to_the_bit():
    lattice, rows, columns = random_lattice(), inside(30, 8, 11), inside(41, 8, 150)
    fused = {name: run for name, run in IMPLEMENTATIONS.items() if name != "baseline"}
    found = {name: resampled(run, lattice, rows, columns) for name, run in fused.items()}
    for name, values in found.items():
        assert np.array_equal(values, found["cuda, emulated"]), name
    baseline = resampled(IMPLEMENTATIONS["baseline"], lattice, rows, columns)
    assert np.abs(baseline - found["cuda, emulated"]).max() < 32 * EPSILON * np.abs(lattice).max()


def test_what_is_not_finite_spreads_to_its_stencils_only(resample):
    lattice = random_lattice()
    lattice[10, 20] = np.nan
    rows, columns = np.array([7.5, 9.5, np.nan, 15.0]), np.array([10.5, 20.5, np.nan])
    found = np.isnan(resampled(resample, lattice, rows, columns)).all(-1)
    assert found.tolist() == [
        [False, True, True],
        [False, True, True],
        [True, True, True],
        [False, False, True],
    ]


def test_a_position_without_its_nodes_is_named(resample):
    lattice = random_lattice()
    needs = {"row 1: position 2.9 needs 4 nodes": [5.0, 2.9], "row 0: position 26 needs 4 nodes": [26.0]}
    for message, rows in needs.items():
        with pytest.raises(ValueError, match=message):
            resampled(resample, lattice, rows, [10.0])
    with pytest.raises(ValueError, match=r"column 0: position 1e\+300"):
        resampled(resample, lattice, [5.0], [1e300])
    with pytest.raises(ValueError, match="column 0"):
        resampled(resample, lattice[:, :7], [5.0], [3.0])
    with pytest.raises(ValueError, match="order must be 4, 6, 8, 10 or 12, not 5"):
        resampled(resample, lattice, [5.0], [5.0], order=5)


def test_origin_and_spacing_count_in_nodes(resample):
    lattice = random_lattice()
    rows, columns = np.arange(3, 26, 0.375), np.arange(3, 37, 0.625)
    expected = resampled(resample, lattice, rows, columns)
    # Powers of two: no rounding.
    found = resampled(
        resample, lattice, 90 - rows / 4, columns / 2 - 128, origin=(90.0, -128.0), spacing=(-0.25, 0.5)
    )
    assert np.array_equal(found, expected)


def test_lattice_and_output_may_have_gaps(resample):
    base = random_lattice(60, 45, 40)
    lattice = base[::-2, 4:, 1:38]
    rows, columns = inside(30, 8, 11), inside(41, 8, 20)
    out = np.zeros((13, 30, 50), np.float32)[:, ::-1][:, :22, 3:40]
    resample(lattice, rows, columns, out)
    assert np.array_equal(out, resampled(resample, np.ascontiguousarray(lattice), rows, columns))


def test_tensors_are_read_and_written_through_dlpack(resample):
    torch = pytest.importorskip("torch")
    lattice, rows, columns = random_lattice(), inside(30, 8, 11), inside(41, 8, 20)
    out = torch.zeros(13, 22, 37)
    resample(torch.from_numpy(lattice), rows, columns, out)
    assert np.array_equal(out.numpy(), resampled(resample, lattice, rows, columns))
    with pytest.raises(ValueError, match="f8"):
        resample(torch.zeros(13, 22, 37, dtype=torch.float64), rows, columns, out)
    with pytest.raises(TypeError, match="must be a NumPy array or have __dlpack__"):
        resample([[1.0]], rows, columns, out)


def test_a_raised_check_ends_the_call():
    def stop() -> None:
        raise KeyboardInterrupt

    lattice, places = random_lattice(40, 40, 64), np.linspace(3, 35, 1000)
    out = np.empty((1000, 1000, 64), np.float32)

    def repeat() -> None:
        for _ in range(100):  # it is asked every 50 ms or so
            _C.resample(lattice, places, places, out, check=stop)

    with pytest.raises(KeyboardInterrupt):
        repeat()


BANDS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 48, 63, 65, 127, 200, 255, 257, 299, 300)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.int16])
def test_a_band_has_the_same_bits_among_any_number_of_bands(resample, dtype):
    lattice, rows, columns = random_lattice(12, 20, 300), inside(12, 8, 3), inside(20, 8, 70)
    scale = np.linspace(20, 90, 300, dtype=np.float32)

    def found(bands: int) -> np.ndarray:
        quantise = None if dtype == np.float32 else (scale[:bands], scale[:bands] / 1000)
        out = np.full((len(rows), len(columns), bands + 3), 7, dtype)
        resample(lattice[:, :, :bands], rows, columns, out[:, :, :bands], quantise=quantise)
        assert (out[:, :, bands:] == 7).all(), "written beyond the bands"
        return out[:, :, :bands]

    whole = found(300)
    for bands in BANDS:
        assert np.array_equal(found(bands), whole[:, :, :bands]), bands


@pytest.mark.parametrize("isa", _C.instruction_sets())
@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_memory_past_the_caches_gets_the_bits_of_small_windows(isa, dtype):
    """From 64 MB on results go around the caches, in whole vectors: base and rows are not aligned to them."""
    height, width, bands = (515, 521, 63) if dtype == np.float32 else (1033, 1041, 63)
    lattice, rows, columns = (
        random_lattice(20, 24, bands),
        np.linspace(3, 15, height),
        np.linspace(3, 19, width),
    )
    scale = np.linspace(20, 90, bands, dtype=np.float32)
    quantise = None if dtype == np.float32 else (scale, scale / 1000)
    memory = np.full(height * (width + 2) * bands + 1, 7, dtype)
    whole = memory[1:].reshape(height, width + 2, bands)
    _C.resample(lattice, rows, columns, whole[:, :width], quantise=quantise, threads=2, isa=isa)
    assert whole[:, :width].nbytes >= 64 << 20
    assert memory[0] == 7
    assert (whole[:, width:] == 7).all()
    for top in range(0, height, 200):
        some = rows[top : top + 200]
        small = resampled(_C.resample, lattice, some, columns, dtype, quantise=quantise, isa=isa)
        assert np.array_equal(small, whole[top : top + 200, :width])

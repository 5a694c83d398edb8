"""_C.resample_points: single points from a lattice, as `_C.resample` has them in rows."""

from __future__ import annotations

import numpy as np
import pytest

from satclip_engine import _C

ORDERS = (4, 6, 8, 10, 12)
DTYPES = (np.float32, np.int8, np.int16)
EPSILON = float(np.finfo(np.float32).eps)
ISAS = _C.instruction_sets()


def random_lattice(rows=30, columns=41, bands=37, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns, bands)).astype(np.float32)


def positions(count: int, order: int, nodes: tuple[int, int] = (30, 41), seed: int = 1):
    """(rows, columns) whose stencils fit, the outermost of them included."""
    random, found = np.random.default_rng(seed), []
    for size in nodes:
        low, high = order // 2 - 1, size - order // 2
        found.append(np.append(random.uniform(low, high, count), [low, np.nextafter(high, 0)]))
    return found


def quantise(dtype, bands=37):
    scale = np.linspace(20, 90, bands, dtype=np.float32)
    return None if dtype == np.float32 else (scale, scale / 1000)


def at_points(lattice, rows, columns, dtype=np.float32, **options) -> np.ndarray:
    out = np.full((len(rows), lattice.shape[2]), 7, dtype)
    _C.resample_points(lattice, rows, columns, out, quantise=quantise(dtype, lattice.shape[2]), **options)
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_point_is_the_pixel_of_its_row_and_column(order, isa):
    lattice, (rows, columns) = random_lattice(), positions(300, order)
    found = at_points(lattice, rows, columns, order=order, isa=isa)
    pixels = np.empty((len(rows), len(columns), 37), np.float32)
    _C.resample(lattice, rows, columns, pixels, order=order, isa=isa)
    # Sums of the same order² terms in two orders; the weights' absolute values sum to at most 2.5 an axis.
    most = 2 * (order + 2) * 2.5**2 * EPSILON / 2 * np.abs(lattice).max()
    assert np.abs(found - pixels[np.arange(len(rows)), np.arange(len(rows))]).max() < most


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("order", ORDERS)
def test_polynomials_below_the_order_are_reproduced(order, isa):
    powers, at = np.arange(order), np.linspace(-1, 1, 20)
    lattice = np.power.outer(at, powers)[:, None] * np.power.outer(at, powers[::-1])[None]
    points = positions(200, order, (20, 20))
    found = at_points(lattice.astype(np.float32), *points, order=order, isa=isa)
    row, column = (2 * some / 19 - 1 for some in points)
    expected = np.power.outer(row, powers) * np.power.outer(column, powers[::-1])
    assert np.abs(found - expected).max() < 2 * (order + 2) * 2.5**2 * EPSILON / 2


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("order", ORDERS)
def test_nodes_keep_their_values(order, isa):
    lattice, half = random_lattice(), order // 2
    rows, columns = np.meshgrid(np.arange(half - 1, 30 - half), np.arange(half - 1, 41 - half))
    found = at_points(lattice, rows.ravel(), columns.ravel(), order=order, isa=isa)
    assert np.array_equal(found, lattice[rows.ravel(), columns.ravel()])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.int8, np.int16])
@pytest.mark.parametrize("order", ORDERS)
def test_codes_equal_quantising_the_floats(order, dtype, isa):
    lattice, (rows, columns) = random_lattice(), positions(300, order)
    rows[5], columns[6] = np.nan, np.nan
    floats = at_points(lattice, rows, columns, order=order, isa=isa)
    inverse_scale, offset = quantise(dtype)
    limit = np.iinfo(dtype).max
    codes = np.clip(np.rint((floats - offset) * inverse_scale), -limit, limit)
    expected = np.where(np.isnan(floats), -limit - 1, codes)
    assert np.array_equal(at_points(lattice, rows, columns, dtype, order=order, isa=isa), expected)
    assert np.isnan(floats[[5, 6]]).all()
    assert not np.isnan(np.delete(floats, [5, 6], axis=0)).any()
    assert dtype == np.int16 or (np.abs(expected[7:]) == limit).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_band_has_the_same_bits_among_any_number_of_bands(dtype, isa):
    lattice, (rows, columns) = random_lattice(bands=300), positions(70, 8)
    scale = np.linspace(20, 90, 300, dtype=np.float32)

    def found(bands: int) -> np.ndarray:
        codes = None if dtype == np.float32 else (scale[:bands], scale[:bands] / 1000)
        out = np.full((len(rows), bands + 3), 7, dtype)
        _C.resample_points(lattice[:, :, :bands], rows, columns, out[:, :bands], quantise=codes, isa=isa)
        assert (out[:, bands:] == 7).all(), "written beyond the bands"
        return out[:, :bands]

    whole = found(300)
    for bands in (1, 2, 3, 7, 9, 15, 16, 17, 31, 33, 63, 65, 127, 255, 257, 299):
        assert np.array_equal(found(bands), whole[:, :bands]), bands


@pytest.mark.parametrize("dtype", DTYPES)
def test_index_says_which_row_of_out_a_point_becomes(dtype):
    lattice, (rows, columns) = random_lattice(), positions(500, 8)
    plain = at_points(lattice, rows, columns, dtype)
    index = np.random.default_rng(2).choice(900, len(rows), replace=False)
    out = np.full((900, 37), 7, dtype)
    _C.resample_points(lattice, rows, columns, out, index=index, quantise=quantise(dtype))
    assert np.array_equal(out[index], plain)
    assert (np.delete(out, index, axis=0) == 7).all()


def test_a_point_has_the_same_bits_in_every_order_and_with_any_threads():
    lattice, (rows, columns) = random_lattice(), positions(2000, 8)
    whole = at_points(lattice, rows, columns)
    shuffled = np.random.default_rng(3).permutation(len(rows))
    assert np.array_equal(at_points(lattice, rows[shuffled], columns[shuffled]), whole[shuffled])
    assert np.array_equal(at_points(lattice, rows[70:90], columns[70:90]), whole[70:90])
    for threads in (2, 3, 8):
        assert np.array_equal(at_points(lattice, rows, columns, threads=threads), whole)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_memory_past_the_caches_gets_the_bits_of_few_points(dtype, isa):
    """From 64 MB on results go around the caches, in whole vectors: base and rows are not aligned to them."""
    lattice, (rows, columns) = random_lattice(bands=63), positions(9998, 8)
    height = (64 << 20) // (63 * np.dtype(dtype).itemsize) + 1
    memory = np.full(height * 64 + 1, 7, dtype)
    out = memory[1:].reshape(height, 64)[:, :63]
    index = np.append(np.random.default_rng(0).permutation(height - 1)[:9999], height - 1)
    codes = quantise(dtype, 63)
    _C.resample_points(lattice, rows, columns, out, index=index, quantise=codes, threads=2, isa=isa)
    assert np.array_equal(out[index], at_points(lattice, rows, columns, dtype, isa=isa))
    assert np.count_nonzero((out != 7).any(axis=1)) <= 10_000
    assert (memory[1:].reshape(height, 64)[:, 63] == 7).all()
    assert memory[0] == 7


@pytest.mark.parametrize("dtype", DTYPES)
def test_lattice_and_output_may_have_gaps(dtype):
    base, (rows, columns) = random_lattice(60, 45, 40), positions(100, 8)
    lattice = base[::-2, 4:, 1:38]
    memory = np.full((2 * len(rows), 50), 7, dtype)
    out = memory[::-2, 3:40]
    _C.resample_points(lattice, rows, columns, out, quantise=quantise(dtype))
    assert np.array_equal(out, at_points(np.ascontiguousarray(lattice), rows, columns, dtype))
    assert (memory[::2] == 7).all()
    assert (np.delete(memory, np.s_[3:40], axis=1) == 7).all()
    pixels = np.full((len(rows), 1, 37), 7, dtype)  # a raster with one column will do
    _C.resample_points(lattice, rows, columns, pixels, quantise=quantise(dtype))
    assert np.array_equal(pixels[:, 0], out)


def test_origin_and_spacing_count_in_nodes():
    lattice = random_lattice()
    rows, columns = np.arange(3, 26, 0.375), np.arange(3, 26, 0.375)
    found = at_points(lattice, 90 - rows / 4, columns / 2 - 128, origin=(90.0, -128.0), spacing=(-0.25, 0.5))
    assert np.array_equal(found, at_points(lattice, rows, columns))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_point_without_its_nodes_is_named(threads):
    lattice, (rows, columns) = random_lattice(), positions(1000, 8)
    for point, (row, column), shown in [
        (700, (2.9, 10.0), "(2.9, 10)"),
        (333, (10.0, 37.0), "(10, 37)"),
        (64, (1e300, 5.0), "(1e+300, 5)"),
    ]:
        rows[point], columns[point] = row, column
        with pytest.raises(ValueError, match="needs 4 nodes on every side") as error:
            at_points(lattice, rows, columns, threads=threads)
        assert f"point {point}: position {shown} " in str(error.value)
        assert str(error.value).endswith("the lattice has 30 × 41")


def test_no_points_are_no_work():
    assert at_points(random_lattice(), np.empty(0), np.empty(0)).shape == (0, 37)


def test_wrong_arguments_are_named():
    lattice, (rows, columns) = random_lattice(), positions(8, 8)
    out = np.zeros((10, 37), np.float32)

    def refused(message, lattice=lattice, rows=rows, columns=columns, out=out, **options):
        with pytest.raises(ValueError, match=message):
            _C.resample_points(lattice, rows, columns, out, **options)

    refused("as many columns as rows, not 9 and 10", columns=columns[:9])
    refused("out has 9 rows for 10 points", out=out[:9])
    refused("out must be a writable float32", out=out[:, :36])
    refused("out must be a writable float32", out=out.astype(np.float64))
    refused("out must be a writable int8 or int16", quantise=quantise(np.int8))
    refused("out must be a writable float32", out=np.empty((10, 74), np.float32)[:, ::2])
    refused("out must be a writable float32", out=np.empty((10, 2, 37), np.float32))
    refused("lattice must be a float32", lattice=lattice.astype(np.float64))
    refused("lattice must be a float32", lattice=lattice[0])
    refused("order must be 4, 6, 8, 10 or 12, not 14", order=14)
    refused("index must have an entry for each of 10 points", index=np.arange(9))
    refused("index 3: 10 is no row of out, which has 10", index=np.array([0, 1, 2, 10, 4, 5, 6, 7, 8, 9]))
    refused("index 9: -1 is no row of out", index=np.arange(10)[::-1] - 1)
    refused(
        "inverse_scale must have a value for each of 37",
        out=out.astype(np.int8),
        quantise=quantise(np.int8, 36),
    )
    out.flags.writeable = False
    refused("read-only")

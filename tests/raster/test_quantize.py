"""Packing pixels into tiles and quantising them: the compiled kernels against NumPy and imagecodecs."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest

from satclip_engine import _C
from satclip_engine.arrays.ranges import SAMPLE_PIXELS, sample_indices
from satclip_engine.errors import UsageError
from satclip_engine.quantize import (
    MAX_CLIPPED,
    RANGE_MARGIN,
    SAMPLE_TYPES,
    QuantisationStatistics,
    Quantiser,
    fit,
    sample_type,
)

INSTRUCTION_SETS = _C.instruction_sets()
SHAPES = {  # rows, columns, bands, side
    "one pixel": (1, 1, 1, 16),
    "one tile": (16, 16, 4, 16),
    "ragged edge": (5, 100, 19, 64),
    "all bands": (3, 40, 256, 32),
}


def quantiser_for(pixels: np.ndarray, dtype: str, spread: float = 1.0) -> Quantiser:
    low, high = np.nanmin(pixels, (0, 1)) * spread, np.nanmax(pixels, (0, 1)) * spread
    return fit(SAMPLE_TYPES[dtype], low, high)


def pixels_of(shape: tuple[int, int, int]) -> np.ndarray:
    rng = np.random.default_rng(3)
    pixels = rng.normal(size=shape).astype(np.float32)
    if pixels.size > 1:
        pixels[rng.random(shape[:2]) < 0.1] = np.nan
        pixels[0, 0] = 2.0
    return pixels


def packed(
    pixels: np.ndarray,
    quantiser: Quantiser,
    side: int,
    predictor: int,
    isa: str | None = None,
    first_row: int = 0,
    interleaved: bool = False,
) -> tuple[np.ndarray, QuantisationStatistics]:
    """Tiles with `predictor` undone by imagecodecs, (tiles, E, side, side)."""
    bands = pixels.shape[2]
    count = -(-pixels.shape[1] // side)
    shape = (side, side, bands) if interleaved else (bands, side, side)
    tiles = np.zeros((count, *shape), quantiser.sample.name)
    valid, statistics = np.zeros(count, np.int64), QuantisationStatistics.zero(bands)
    inverse_scale, offset = quantiser.factors
    _C.pack_tiles(
        pixels,
        tiles,
        first_row=first_row,
        dtype=quantiser.sample.name,
        predictor=predictor,
        inverse_scale=inverse_scale,
        offset=offset,
        clipped=statistics.clipped,
        overshoot=statistics.overshoot,
        valid=valid,
        interleaved=interleaved,
        isa=isa,
    )
    statistics.valid = int(valid.sum())
    columns_axis = -2 if interleaved else -1
    if predictor == 2:
        tiles = imagecodecs.delta_decode(tiles, axis=columns_axis)
    elif predictor == 3:
        tiles = imagecodecs.floatpred_decode(tiles.copy(), axis=columns_axis)
    return np.moveaxis(tiles, -1, 1) if interleaved else tiles, statistics


@pytest.mark.parametrize("interleaved", [False, True], ids=["planes", "interleaved"])
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    ("dtype", "predictor"), [(d, p) for d, s in SAMPLE_TYPES.items() for p in (1, s.predictor)]
)
def test_packed_tiles_equal_numpy_with_every_type_predictor_and_instruction_set(
    interleaved, isa, shape, dtype, predictor
):
    rows, columns, bands, side = shape
    pixels = pixels_of((rows, columns, bands))
    quantiser = quantiser_for(pixels, dtype)
    first_row = min(3, side - rows)
    tiles, statistics = packed(pixels, quantiser, side, predictor, isa, first_row, interleaved)
    padded = np.pad(quantiser.encode(pixels), ((0, 0), (0, len(tiles) * side - columns), (0, 0)), mode="edge")
    expected = padded.reshape(rows, len(tiles), side, bands).transpose(1, 3, 0, 2)
    np.testing.assert_array_equal(tiles[:, :, first_row : first_row + rows], expected)
    assert statistics.valid == np.count_nonzero(~np.isnan(pixels[..., 0]))
    assert statistics.clipped.sum() == 0


def test_a_strip_of_another_array_is_packed_where_it_lies():
    pixels = pixels_of((8, 64, 16))
    quantiser = quantiser_for(pixels, "int8")
    part, _ = packed(pixels[2:6, 16:48], quantiser, 16, 2)
    copy, _ = packed(pixels[2:6, 16:48].copy(), quantiser, 16, 2)
    np.testing.assert_array_equal(part, copy)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_float16_rounds_to_nearest_even_for_every_kind_of_number(isa):
    rng = np.random.default_rng(5)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    exponents = (10 ** rng.uniform(-9, 4.8, 1 << 16)).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    others = rng.normal(size=1 << 16).astype(np.float32) * exponents
    values = np.concatenate([halves, np.nextafter(halves, np.float32(1)), others])
    values = values[np.isfinite(values) & (np.abs(values) <= 65504)]
    values = values[: values.size // 16384 * 16384].reshape(-1, 16, 1024, 1)
    for block in values:
        pixels = np.ascontiguousarray(block.reshape(16, 1024, 1))
        tiles, statistics = packed(pixels, Quantiser(SAMPLE_TYPES["float16"]), 1024, 1, isa)
        expected = pixels[..., 0].astype(np.float16)
        np.testing.assert_array_equal(tiles[0, 0].view(np.uint16)[:16], expected.view(np.uint16))
        assert statistics.clipped.sum() == 0


def test_what_half_precision_cannot_hold_is_clipped_and_counted():
    pixels = np.array([[[1e6], [-70000.0], [3.0], [np.nan]]], np.float32)
    tiles, statistics = packed(pixels, Quantiser(SAMPLE_TYPES["float16"]), 16, 1)
    np.testing.assert_array_equal(tiles[0, 0, 0, :4], np.array([65504, -65504, 3, np.nan], np.float16))
    assert statistics.clipped[0] == 2
    assert statistics.overshoot[0] == pytest.approx(1e6 - 65504)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_nodata_is_never_produced_by_data_and_clipping_is_counted_per_band(dtype):
    pixels = pixels_of((64, 64, 5))
    quantiser = quantiser_for(pixels, dtype, spread=0.5)
    tiles, statistics = packed(pixels, quantiser, 64, 1)
    codes = tiles[0].transpose(1, 2, 0)
    missing = np.isnan(pixels)
    np.testing.assert_array_equal(codes == int(quantiser.sample.nodata), missing)
    distance = np.abs(pixels - quantiser.quantise.offset) / quantiser.scale - quantiser.sample.largest_code
    beyond = np.nan_to_num(distance, nan=-1.0) > 0.5
    assert beyond.any()
    np.testing.assert_allclose(
        statistics.clipped, beyond.sum((0, 1)), atol=2
    )  # float32 codes may fall on the other side
    np.testing.assert_allclose(
        statistics.overshoot, np.where(beyond, distance, 0).max((0, 1)), rtol=1e-4, atol=0.02
    )


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 2, 16), (5, 7, 19), (6, 8, 256)])
def test_halves_are_means_of_the_valid_values_of_two_by_two(isa, shape, halved):
    pixels = pixels_of(shape)
    pixels[:2, :2] = np.nan
    out = np.empty(((shape[0] + 1) // 2, (shape[1] + 1) // 2, shape[2]), np.float32)
    _C.halve(pixels, out, isa=isa)
    np.testing.assert_array_equal(out, halved(pixels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tiles": np.zeros((1, 3, 16, 16), np.int16)}, "1-byte"),
        ({"tiles": np.zeros((2, 3, 16, 16), np.int8)}, "number"),
        ({"interleaved": True}, "side, side, 3"),
        ({"first_row": 13}, "rows"),
        ({"predictor": 3}, "predictor"),
        ({"offset": None}, "one value a band"),
        ({"offset": np.zeros(2, np.float32)}, "one value a band"),
        ({"valid": np.zeros(1, np.int32)}, "valid"),
        ({"pixels": np.zeros((4, 16, 3), np.float64)}, "float32"),
        ({"pixels": np.zeros((4, 16, 6), np.float32)[:, :, ::2]}, "contiguous"),
        ({"isa": "sse9"}, "instruction set"),
    ],
)
def test_the_binding_refuses_arrays_that_do_not_fit(change, message):
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    arguments = {
        "pixels": np.zeros((4, 16, 3), np.float32),
        "tiles": np.zeros((1, 3, 16, 16), np.int8),
        "first_row": 0,
        "dtype": "int8",
        "predictor": 2,
        "inverse_scale": ones,
        "offset": zeros,
        "clipped": np.zeros(3, np.int64),
        "overshoot": zeros.copy(),
        "valid": np.zeros(1, np.int64),
    }
    with pytest.raises(ValueError, match=message):
        _C.pack_tiles(**{**arguments, **change})


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("offset", [0.0, 100.0, -1e6])
def test_decoded_codes_lie_within_half_a_step(dtype, offset):
    values = (np.random.default_rng(0).normal(size=(4000, 3)) * [1e-3, 1, 50] + offset).astype(np.float32)
    quantiser = fit(SAMPLE_TYPES[dtype], values.min(0), values.max(0))
    error = np.abs(quantiser.decode(quantiser.encode(values)) - values)
    rounding = np.spacing(np.float32(np.abs(values).max(0))) * 2  # of the float32 subtraction and product
    assert (error <= quantiser.scale * 0.5 + rounding).all()


def test_a_constant_band_comes_back_exactly_and_any_deviation_counts_as_clipped():
    low = high = np.array([3.25, 0.0, -1e20], np.float32)
    quantiser = fit(SAMPLE_TYPES["int8"], low, high, margin=RANGE_MARGIN)
    np.testing.assert_array_equal(quantiser.decode(quantiser.encode(low)), low.astype(np.float64))
    pixels = np.broadcast_to(low, (1, 16, 3)).copy()
    pixels[0, 3, 0] += 0.1
    _, statistics = packed(pixels, quantiser, 16, 1)
    assert statistics.clipped.tolist() == [1, 0, 0]


def test_scale_and_offset_survive_decimal_tags_and_json():
    values = np.random.default_rng(1).normal(size=(100, 7)).astype(np.float32)
    quantiser = fit(SAMPLE_TYPES["int16"], values.min(0), values.max(0), margin=RANGE_MARGIN)
    np.testing.assert_array_equal(quantiser.scale, quantiser.scale.astype(np.float32))
    again = Quantiser.from_dict(quantiser.as_dict())
    np.testing.assert_array_equal(again.scale, quantiser.scale)
    np.testing.assert_array_equal(again.offset, quantiser.offset)


def test_a_sampled_range_clips_less_than_promised_of_gaussian_bands():
    rng = np.random.default_rng(2)
    worst = 0.0
    for _ in range(8):
        values = rng.normal(size=(1_000_000, 4)).astype(np.float32)
        sample = values[:SAMPLE_PIXELS]
        quantiser = fit(SAMPLE_TYPES["int8"], sample.min(0), sample.max(0), margin=RANGE_MARGIN)
        code = (values - quantiser.offset) / quantiser.scale
        worst = max(worst, (np.abs(code) > 127.5).mean(0).max())
    assert worst < MAX_CLIPPED / 2


@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 1000), (256, 256), (257, 256), (720, 1440), (5, 10**6), (10**6, 3)]
)
def test_a_sample_is_stratified_repeatable_and_within_the_raster(shape):
    parts = sample_indices(shape, SAMPLE_PIXELS, seed=0)
    count = sum(rows.size * columns.size for rows, columns in parts)
    height, width = shape
    if height * width <= SAMPLE_PIXELS:
        assert count == height * width
    else:
        assert 0.5 * SAMPLE_PIXELS <= count <= 1.5 * SAMPLE_PIXELS
    for (rows, columns), (same_rows, same_columns) in zip(
        parts, sample_indices(shape, SAMPLE_PIXELS, 0), strict=True
    ):
        assert 0 <= rows.min() <= rows.max() < height
        assert 0 <= columns.min() <= columns.max() < width
        np.testing.assert_array_equal(rows, same_rows)
        np.testing.assert_array_equal(columns, same_columns)
    rows = np.concatenate([rows for rows, _ in parts])
    assert np.unique(rows).size == rows.size
    assert rows.min() <= height / 16
    assert rows.max() >= height * 15 / 16 - 1


def test_an_unknown_type_is_a_usage_error_naming_the_known_ones():
    with pytest.raises(UsageError, match="int8, uint8, int16, float16, float32"):
        sample_type("uint16")

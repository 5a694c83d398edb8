"""Arrays of codes: `Encoder.grid` into int8 and int16, with scales given or fitted, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import rioxarray

from satclip_engine.errors import UsageError
from satclip_engine.quantize import sample_type

WINDOW = {"resolution": 1, "bounds": (0, 0, 30, 20)}  # so small that it is evaluated
TILE = {"crs": "EPSG:32633", "resolution": 20_000, "bounds": (300000, 5000000, 700000, 5400000)}


def real(array) -> np.ndarray:
    codes = array.values.astype(float)
    codes[codes == array.attrs["_FillValue"]] = np.nan
    return codes * array.scale.values[:, None, None] + array.offset.values[:, None, None]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", np.int8])
@pytest.mark.parametrize("grid", [WINDOW, TILE], ids=["degrees", "UTM"])
def test_fitted_codes_are_within_half_a_step_of_the_values(tiny, dtype, grid):
    array, exact = tiny.grid(**grid, dtype=dtype), tiny.grid(**grid).values
    assert array.dtype == dtype
    assert array.dims == ("band", "y", "x")
    half = array.scale.values[:, None, None] * 0.5001 + 3e-7 * np.abs(exact)  # float32 itself
    assert (np.abs(real(array) - exact) <= half).all()
    assert array.rio.nodata == int(sample_type(str(array.dtype)).nodata)


def test_codes_keep_scale_offset_and_nodata_in_a_file(tiny, tmp_path):
    array = tiny.grid(**TILE, dtype="int8")
    array.rio.to_raster(tmp_path / "codes.tif")
    with rioxarray.open_rasterio(tmp_path / "codes.tif", mask_and_scale=True) as back:
        np.testing.assert_allclose(back.values, real(array), atol=1e-6)
    assert array.rio.reproject("EPSG:3857").dtype == np.int8


def test_given_scales_are_kept_and_memory_is_filled_in_place(tiny):
    out = np.zeros((20, 30, 8), np.int16)
    array = tiny.grid(**WINDOW, out=out, scale_offset=(0.01, np.arange(8)))
    assert np.shares_memory(array.values, out)
    np.testing.assert_allclose(array.scale, 0.01, rtol=1e-6)
    np.testing.assert_array_equal(array.offset, np.arange(8))
    exact = tiny.grid(**WINDOW).values
    inside = np.abs(exact - np.arange(8)[:, None, None]) < 0.01 * 32766
    assert (np.abs(real(array) - exact)[inside] <= 0.00501).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "dtype must be float32, int8, uint8 or int16, not"),
        ({"dtype": "int9"}, "dtype must be float32, int8, uint8 or int16, not"),
        ({"dtype": "int8", "chunks": "auto"}, "chunks is for later"),
        ({"scale_offset": (1, 0)}, "scale_offset is for integers"),
        ({"dtype": "int8", "scale_offset": (0, 0)}, "scales positive"),
        ({"dtype": "int8", "scale_offset": (1, np.nan)}, "must be finite"),
        ({"dtype": "int8", "scale_offset": ([1, 2], 0)}, "for each of 8 bands"),
        ({"dtype": "int8", "scale_offset": 3}, "two numbers"),
        ({"dtype": "int8", "out": np.zeros((20, 30, 8), np.float32)}, "out must be an int8 array"),
        ({"out": np.zeros((20, 30, 8), np.float64)}, "out must be a float32 array"),
        ({"out": [1, 2]}, "out must be a float32 array"),
    ],
)
def test_what_cannot_be_is_refused(tiny, options, message):
    with pytest.raises(UsageError, match=message):
        tiny.grid(**WINDOW, **options)

"""Product grids by Triton kernels are the reference's, in every window and in codes too."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from factories.networks import LATITUDES, LONGITUDES, network  # noqa: E402

from satclip_engine import reference  # noqa: E402
from satclip_engine.kernels import grid  # noqa: E402
from satclip_engine.kernels.device_functions.quantise import DeviceQuantise  # noqa: E402
from satclip_engine.kernels.grid import PreparedGrid, encode_grid  # noqa: E402
from satclip_engine.kernels.launch import recording  # noqa: E402
from satclip_engine.weights import Layers  # noqa: E402

pytestmark = pytest.mark.triton

# Of the embedding's rms. Exact: the project's bound for float32 networks. Fast: float16 rounds weights and
# activations, each by 1.4e-4 of itself; that adds up to 2e-4 of the rms with every layer after the first, and
# the largest of thousands is five times as far off.
TOLERANCE = {"exact": 1e-5, "fast": 5e-3}
COLUMNS = LONGITUDES[-20:]

NETWORKS = {
    "L=1": (1, (9, 7, 3), 1),
    "L=2, one hidden layer": (2, (24, 8), 1),
    "L=10, three hidden layers": (10, (33, 70, 61, 37), 1),
    "L=40, trained gain": (40, (64, 64, 40), 20),
    "L=40, wide outputs": (40, (16, 16, 300), 1),
}


def tensors(layers: Layers) -> tuple[list[Any], list[Any]]:
    return (
        [torch.tensor(weight, dtype=torch.float32) for weight in layers.weights],
        [torch.tensor(bias, dtype=torch.float32) for bias in layers.biases],
    )


def prepare(layers: Layers, precision: str) -> PreparedGrid:
    return grid.prepare(layers.degrees, *tensors(layers), precision)


def encoded(prepared: PreparedGrid, lat: np.ndarray, lon: np.ndarray, **how: Any) -> np.ndarray:
    return encode_grid(prepared, torch.tensor(lat), torch.tensor(lon), **how).numpy()


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(values - expected).max() / np.sqrt(np.mean(expected**2)))


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("case", NETWORKS)
def test_a_grid_equals_the_reference(case: str, precision: str) -> None:
    degrees, sizes, gain = NETWORKS[case]
    layers = network(degrees, sizes, gain)
    expected = reference.encode_grid(LATITUDES, COLUMNS, layers)
    values = encoded(prepare(layers, precision), LATITUDES, COLUMNS)
    assert values.dtype == np.float32
    assert relative_error(values, expected) < TOLERANCE[precision]


RELEASED = network(40, (512, 512, 256))  # the released size
WINDOW = LATITUDES[[0, 2, 5, 8]], COLUMNS[[0, 7, 12]]


def first_layers(layers: Layers, count: int) -> Layers:
    """A network whose embedding is the pre-activations of layer number `count`."""
    return dataclasses.replace(layers, weights=layers.weights[:count], biases=layers.biases[:count])


@pytest.mark.parametrize(("count", "tolerance"), [(1, 1e-5), (2, 2e-3), (3, 2e-3)])
def test_fast_errs_layer_by_layer_within_its_share(count: int, tolerance: float) -> None:
    layers = first_layers(RELEASED, count)
    expected = reference.encode_grid(*WINDOW, layers)
    assert relative_error(encoded(prepare(layers, "fast"), *WINDOW), expected) < tolerance


@pytest.mark.parametrize("gain", [1, 20])
def test_exact_holds_its_bound_at_the_released_size(gain: int) -> None:
    layers = network(40, (512, 512, 256), gain)
    expected = reference.encode_grid(*WINDOW, layers)
    assert relative_error(encoded(prepare(layers, "exact"), *WINDOW), expected) < TOLERANCE["exact"]


@settings(max_examples=8, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_a_pixel_has_the_same_bits_in_every_window(precision: str, data: Any) -> None:
    prepared = prepare(network(5, (20, 12, 9)), precision)
    lat, lon = np.linspace(-89.75, 89.75, 360), np.linspace(-179.75, 179.75, 720)
    rows = sorted(data.draw(st.sets(st.integers(0, 359), min_size=1, max_size=5)))
    columns = data.draw(st.lists(st.integers(0, 719), min_size=1, max_size=70))
    window = encoded(prepared, lat[rows], lon[columns])
    row, column = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, len(columns) - 1))
    alone = encoded(prepared, lat[rows[row]][None], lon[columns[column]][None])
    assert np.array_equal(window[row, column], alone[0, 0])


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_chunks_that_bound_the_memory_change_no_bit(precision: str, monkeypatch: Any) -> None:
    prepared = prepare(network(3, (20, 12, 9)), precision)
    whole = encoded(prepared, LATITUDES, COLUMNS)
    for name, size in [("COEFFICIENT_BYTES", 9000), ("BASIS_BYTES", 700)]:
        monkeypatch.setattr(grid, name, size)
        assert np.array_equal(encoded(prepared, LATITUDES, COLUMNS), whole)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_longitude_is_periodic_and_without_effect_at_the_poles(precision: str) -> None:
    prepared = prepare(network(10, (32, 16), 5), precision)
    turns = 12.25 + 360.0 * np.array([0, -3, -1, 1, 1000])
    values = encoded(prepared, np.array([47.5]), turns)[0]
    assert np.array_equal(values, np.broadcast_to(values[0], values.shape))
    values = encoded(prepared, np.array([90.0, -90.0]), np.array([-180, -33.3, 0, 90, 1e6]))
    assert np.array_equal(values, np.broadcast_to(values[:, :1], values.shape))


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_what_is_not_finite_gives_nan_and_leaves_its_neighbours_alone(precision: str) -> None:
    prepared = prepare(network(4, (20, 12, 9)), precision)
    lat, lon = np.array([np.nan, 10.0, np.inf]), np.array([5.0, np.nan, -5.0, np.inf])
    values = encoded(prepared, lat, lon)
    finite = encoded(prepared, lat[1:2], lon[[0, 2]])
    assert np.isnan(values[[0, 2]]).all()
    assert np.isnan(values[1, [1, 3]]).all()
    assert np.array_equal(values[1:2, [0, 2]], finite)
    assert (encoded(prepared, lat, lon, quantise=codes("int8", 9))[0] == -128).all()


def codes(dtype: str, outputs: int) -> DeviceQuantise:
    """Codes of a spread that some values exceed."""
    generator = torch.Generator().manual_seed(3)
    limit = torch.iinfo(getattr(torch, dtype)).max
    return DeviceQuantise(
        dtype,
        limit / (0.3 + torch.rand(outputs, generator=generator)),
        torch.randn(outputs, generator=generator) / 10,
    )


@pytest.mark.parametrize("dtype", ["int8", "int16"])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_codes_are_those_of_the_values(precision: str, dtype: str) -> None:
    prepared = prepare(network(5, (20, 12, 37)), precision)
    how = codes(dtype, 37)
    limit = torch.iinfo(how.torch_dtype).max
    values = encode_grid(prepared, torch.tensor(LATITUDES), torch.tensor(COLUMNS))
    expected = torch.round((values - how.offset) * how.inverse_scale).clamp(-limit, limit)
    stored = encoded(prepared, LATITUDES, COLUMNS, quantise=how)
    assert stored.dtype == np.dtype(dtype)
    assert np.array_equal(stored, expected.numpy())
    assert (np.abs(stored) == limit).any()
    assert (np.abs(stored) < limit).any()


@pytest.mark.parametrize("quantise", [None, codes("int16", 9)])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_results_go_where_out_says(precision: str, quantise: DeviceQuantise | None) -> None:
    prepared = prepare(network(4, (20, 9)), precision)
    lat, lon = torch.tensor(LATITUDES), torch.tensor(COLUMNS)
    expected = encode_grid(prepared, lat, lon, quantise=quantise)
    out = torch.full_like(expected, 7)
    assert encode_grid(prepared, lat, lon, out, quantise) is out
    assert torch.equal(out, expected)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_weights_of_any_size_fit_into_16_bits(precision: str) -> None:
    layers = network(4, (20, 12, 9))
    sizes = (1e-4, 1e6, 1e9)  # sines of the small, the large, and an embedding beyond float16's range
    extreme = dataclasses.replace(
        layers, weights=tuple(w * size for w, size in zip(layers.weights, sizes, strict=True))
    )
    extreme = dataclasses.replace(
        extreme, weights=(extreme.weights[0], layers.weights[1], extreme.weights[2])
    )
    expected = reference.encode_grid(LATITUDES, COLUMNS, extreme)
    assert relative_error(encoded(prepare(extreme, precision), LATITUDES, COLUMNS), expected) < 5e-3


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (3, 0)])
def test_an_empty_grid_is_empty(rows: int, columns: int) -> None:
    prepared = prepare(network(2, (8, 5)), "fast")
    assert encoded(prepared, LATITUDES[:rows], COLUMNS[:columns]).shape == (rows, columns, 5)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_a_whole_globe_is_recorded_without_memory(precision: str) -> None:
    with recording("sm_90") as record:
        layers = network(10, (512, 512, 256))
        weights, biases = ([t.to("meta") for t in side] for side in tensors(layers))
        prepared = grid.prepare(10, weights, biases, precision)
        lat, lon = (torch.empty(n, dtype=torch.float64, device="meta") for n in (300, 3600))
        assert encode_grid(prepared, lat, lon).shape == (300, 3600, 256)
    products = 300 * 3600 * (512 * 512 + 512 * 256)
    counted = sum(launch.work.half for launch in record.launches)
    passes = 3 if precision == "exact" else 1
    assert passes * products < counted < 1.2 * passes * products


def test_another_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision is exact or fast, not half"):
        prepare(network(2, (8, 5)), "half")
    with pytest.raises(ValueError, match="codes are int8 or int16, not uint8"):
        DeviceQuantise("uint8", torch.ones(1), torch.ones(1))

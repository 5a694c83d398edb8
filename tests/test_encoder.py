"""Encoder: what may be asked in which form, and that the answer has the same bits however it is asked."""

from __future__ import annotations

import math
import pickle
import threading

import numpy as np
import pandas as pd
import pyproj
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

import satclip_engine as se
from satclip_engine import reference
from satclip_engine.arrays import lazy
from satclip_engine.arrays.bands import band_names, parse_bands
from satclip_engine.backends.protocols import Prepared
from satclip_engine.errors import UsageError, WeightsError
from satclip_engine.geo.grid import make_grid

PLACES = np.array([[2.25, 48.5], [-180.0, -90.0], [181.5, 0.0], [13.0, 90.0]])

GRIDS = {
    "globe": {"resolution": 15},
    "across the antimeridian": {"resolution": 1.5, "bounds": (171, -21, 189, -6)},
    "UTM": {"crs": "EPSG:32633", "resolution": 10_000, "bounds": (300_000, 5_000_000, 450_000, 5_100_000)},
    "Equal Earth": {"crs": "EPSG:8857", "resolution": 2_000_000},
    "rotated": {
        "like": GeoBox(
            (9, 14), Affine.translation(10, 50) * Affine.rotation(20) * Affine.scale(2, -2), "EPSG:4326"
        )
    },
    "south up": {"like": GeoBox((8, 11), Affine(5, 0, -20, 0, 5, -10), "EPSG:4326")},
    "beyond the pole": {"like": GeoBox((5, 12), Affine(30, 0, -180, 0, -15, 105), "EPSG:4326")},
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_places_are_embedded_as_the_reference_defines(tiny_weights, backend):
    expected = reference.encode(PLACES, tiny_weights.folded())
    embedding = se.load(tiny_weights, backend=backend)(PLACES)
    assert embedding.dtype == np.float32
    assert np.abs(embedding - expected).max() <= 1e-5 * np.sqrt((expected**2).mean())


FORMS = {
    "list": lambda p: p.tolist(),
    "tuple of tuples": lambda p: tuple(map(tuple, p.tolist())),
    "float32": lambda p: p.astype(np.float32),
    "float16": lambda p: p.astype(np.float16),
    "long double": lambda p: p.astype(np.longdouble),
    "Fortran order": np.asfortranarray,
    "strided": lambda p: np.repeat(p, 3, axis=0)[::3],
    "read-only": lambda p: np.frombuffer(p.tobytes()).reshape(-1, 2),
    "masked": np.ma.masked_invalid,
    "data array": lambda p: xr.DataArray(p),
    "table": lambda p: pd.DataFrame(p),
    "table lon lat": lambda p: pd.DataFrame({"lon": p[:, 0], "lat": p[:, 1]}),
    "table Latitude Longitude": lambda p: pd.DataFrame({"Latitude": p[:, 1], "Longitude": p[:, 0]}),
    "table with more": lambda p: pd.DataFrame({"name": "a", "y": p[:, 1], "x": p[:, 0]}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_places_gives_the_same_embedding(tiny, form):
    places = FORMS[form](PLACES)
    embedding = tiny(places)
    assert type(embedding) is np.ndarray
    assert np.array_equal(embedding, tiny(PLACES))


def test_whole_numbers_are_places_too(tiny):
    whole = [[2, 48], [-180, -90]]
    for dtype in (int, np.int16, np.int8):
        if dtype is not np.int8:
            assert np.array_equal(tiny(np.array(whole, dtype)), tiny(np.array(whole, float)))
    assert np.array_equal(tiny(np.array([[2, 48]], np.uint8)), tiny([[2.0, 48.0]]))


@pytest.mark.parametrize("shape", [(2,), (1, 2), (3, 2), (4, 5, 2), (2, 1, 3, 2), (0, 2), (3, 0, 2)])
def test_the_shape_of_the_places_is_kept(tiny, shape):
    places = np.random.default_rng(1).uniform(-80, 80, shape)
    embedding = tiny(places)
    assert embedding.shape == (*shape[:-1], 8)
    assert np.array_equal(embedding.reshape(-1, 8), tiny(places.reshape(-1, 2)))


@pytest.mark.parametrize("shape", [(), (3,), (3, 3), (2, 2, 1), (0,), (0, 3)])
def test_another_shape_is_refused_by_name(tiny, shape):
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 2\)") as error:
        tiny(np.zeros(shape))
    assert str(shape) in str(error.value)


def test_ragged_lists_and_wide_tables_are_refused(tiny):
    with pytest.raises(UsageError, match=r"shape \(\.\.\., 2\)"):
        tiny([[1, 2], [3]])
    with pytest.raises(UsageError, match="columns lon and lat"):
        tiny(pd.DataFrame({"a": [1.0], "b": [2.0], "c": [3.0]}))
    with pytest.raises(UsageError, match=r"'Lat' is the latitude, but none is the longitude.*'Meridian'"):
        tiny(pd.DataFrame({"Lat": [1.0], "Meridian": [2.0]}))


def test_columns_are_found_by_their_names_whatever_their_order_and_case(tiny):
    expected = tiny([[2.35, 48.86]])
    for lon, lat in (("decimalLongitude", "decimalLatitude"), ("LON", "Lat"), ("x", "y")):
        table = pd.DataFrame({"species": ["a"], lat: [48.86], lon: [2.35]})
        np.testing.assert_array_equal(tiny(table), expected)


def test_a_column_that_is_no_number_is_named_as_given(tiny):
    for values in (["2.35"], pd.Series([2.35], dtype=object), [None]):
        with pytest.raises(TypeError, match="column 'Lon': lonlat must be real numbers"):
            tiny(pd.DataFrame({"Lon": values, "Lat": [48.86]}))


def test_a_single_number_is_told_the_form_of_a_place(tiny):
    with pytest.raises(UsageError, match=r"such as \[\[2\.35, 48\.86\]\]"):
        tiny(2.35)


@pytest.mark.parametrize(
    "places", ["2,48", [["2", "48"]], [[1j, 2]], [[True, False]], [[None, 1]], {"lon": "1", "lat": 2}, None],
    ids=str,
)  # fmt: skip
def test_what_is_not_real_numbers_is_a_type_error(tiny, places):
    with pytest.raises(TypeError, match="real numbers"):
        tiny(places)


def test_a_latitude_beyond_a_pole_names_its_index(tiny):
    with pytest.raises(ValueError, match=r"row 2: latitude 90\.5 is outside \[-90, 90\]"):
        tiny([[0, 90], [0, -90], [120, 90.5], [0, 91]])
    with pytest.raises(ValueError, match=r"index \(1, 2\): latitude -91\.0"):
        tiny(np.array([[[0, 0]] * 3, [[0, 0], [0, 0], [100, -91]]]))
    with pytest.raises(ValueError, match=r"^latitude 95\.0"):
        tiny([120, 95])


def test_swapped_coordinates_are_pointed_out(tiny):
    with pytest.raises(UsageError, match="longitude comes first"):
        tiny([[48.5, 120.0]])
    with pytest.raises(UsageError) as error:
        tiny([[120.0, 120.0]])
    assert "swapped" not in str(error.value)


def test_points_in_another_crs_are_taken_to_degrees(tiny):
    to_grid = pyproj.Transformer.from_crs(4326, 27700, always_xy=True)
    x, y = to_grid.transform([-0.1278, -3.19], [51.5074, 55.95])
    expected = tiny([[-0.1278, 51.5074], [-3.19, 55.95]])
    for points in (np.stack([x, y], axis=-1), pd.DataFrame({"northing": y, "easting": x})):
        np.testing.assert_allclose(tiny(points, crs="EPSG:27700"), expected, rtol=0, atol=1e-5)


def test_nowhere_is_nan_and_leaves_its_neighbours_alone(tiny):
    places = np.array([[2.0, 48.0], [np.nan, 0], [0, np.nan], [np.inf, 0], [0, -np.inf], [3.0, 4.0]])
    embedding = tiny(places)
    assert np.isnan(embedding[1:5]).all()
    assert np.array_equal(embedding[[0, 5]], tiny(places[[0, 5]]))
    masked = np.ma.array([[2.0, 48.0], [3.0, 4.0]], mask=[[False, False], [True, False]])
    assert np.isnan(tiny(masked)).all(axis=1).tolist() == [False, True]


def test_longitude_is_periodic_and_does_not_matter_at_a_pole(tiny):
    assert np.array_equal(tiny([[10.25, 20]]), tiny([[370.25, 20]]))
    for lat in (90, -90):
        poles = tiny(np.stack([np.linspace(-540, 540, 37), np.full(37, lat)], -1))
        assert (poles == poles[0]).all()


def test_a_tensor_gives_a_tensor(tiny):
    torch = pytest.importorskip("torch")
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64):
        places = torch.tensor([[2, 48], [-120, 12]], dtype=dtype)
        embedding = tiny(places)
        assert isinstance(embedding, torch.Tensor)
        assert (embedding.dtype, embedding.device) == (torch.float32, places.device)
        assert np.array_equal(embedding.numpy(), tiny([[2, 48], [-120, 12]]))
    assert tiny(torch.zeros(2)).shape == (8,)


def test_a_tensor_that_wants_gradients_is_refused_with_the_way_out(tiny):
    torch = pytest.importorskip("torch")
    places = torch.zeros(3, 2, requires_grad=True)
    with pytest.raises(UsageError, match=r"detach\(\)"):
        tiny(places)
    with torch.no_grad():
        assert tiny(places).shape == (3, 8)
    with pytest.raises(TypeError, match="real numbers"):
        tiny(torch.zeros(3, 2, dtype=torch.complex64))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", GRIDS)
def test_a_grid_holds_the_embedding_of_its_pixels(tiny_weights, case, backend):
    enc = se.load(tiny_weights, backend=backend)
    grid = make_grid(**GRIDS[case])
    array = enc.grid(**GRIDS[case])
    assert array.dims == ("band", "y", "x")
    assert array.shape == (8, *grid.shape)
    assert array.dtype == np.float32
    expected = enc(grid.lonlat())
    assert np.allclose(array.transpose("y", "x", "band"), expected, rtol=0, atol=1e-5, equal_nan=True)
    assert np.array_equal(np.isnan(array.values), np.moveaxis(np.isnan(expected), -1, 0))


@pytest.mark.parametrize("case", ["Equal Earth", "beyond the pole"])
def test_pixels_that_are_no_places_are_nan_in_every_band(tiny, case):
    values = tiny.grid(**GRIDS[case]).values
    nowhere = np.isnan(values).any(axis=0)
    assert 0 < nowhere.mean() < 0.5
    assert np.isnan(values[:, nowhere]).all()


@st.composite
def windows(draw, size):
    """A slice (any step), an index or a list of indices into an axis."""
    kind = draw(st.sampled_from(["slice", "index", "list"]))
    index = st.integers(-size, size - 1)
    if kind == "index":
        return draw(index)
    if kind == "list":
        return draw(st.lists(index, min_size=1, max_size=5))
    return slice(
        draw(st.none() | index), draw(st.none() | index), draw(st.sampled_from([None, 1, 2, 3, -1, -2]))
    )


@given(data=st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", GRIDS)
def test_any_part_of_a_lazy_grid_has_the_bits_of_the_whole(tiny_weights, case, backend, data):
    array = ENCODERS.setdefault(backend, se.load(tiny_weights, backend=backend)).grid(**GRIDS[case])
    key = (backend, case)
    if key not in WHOLE:
        WHOLE[key] = array.copy(data=ENCODERS[backend].grid(**GRIDS[case]).values)
    part = {dim: data.draw(windows(array.sizes[dim]), label=dim) for dim in array.dims}
    assert np.array_equal(array.isel(part).values, WHOLE[key].isel(part).values, equal_nan=True)


ENCODERS: dict[str, se.Encoder] = {}
WHOLE: dict[tuple[str, str], xr.DataArray] = {}


@pytest.mark.parametrize("case", GRIDS)
def test_points_picked_from_a_lazy_grid_have_the_bits_of_the_whole(tiny, case):
    array, whole = tiny.grid(**GRIDS[case]), tiny.grid(**GRIDS[case]).load()
    rng = np.random.default_rng(3)
    rows = xr.DataArray(rng.integers(0, array.sizes["y"], (3, 5)), dims=("a", "b"))
    cols = xr.DataArray(rng.integers(0, array.sizes["x"], (3, 5)), dims=("a", "b"))
    bands = xr.DataArray(rng.integers(0, 8, (3, 5)), dims=("a", "b"))
    for part in (
        {"y": rows, "x": cols},
        {"y": rows, "x": cols, "band": bands},
        {"y": rows, "x": cols, "band": 2},
    ):
        assert np.array_equal(array.isel(part).values, whole.isel(part).values, equal_nan=True)


def test_many_picked_points_cost_points_not_their_whole_rectangle(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(Prepared, "encode_pixels", lambda *args: pytest.fail("a rectangle was evaluated"))
    evaluate = Prepared.encode_single_pixels
    monkeypatch.setattr(
        Prepared,
        "encode_single_pixels",
        lambda self, grid, rows, *args: asked.append(len(rows)) or evaluate(self, grid, rows, *args),
    )
    at = xr.DataArray(np.linspace(-80, 80, 1000), dims="p")
    assert tiny.grid(resolution=0.001).sel(x=at, y=at, method="nearest").values.shape == (8, 1000)
    assert asked == [1000]


def test_a_lazy_grid_evaluates_only_what_is_looked_at(tiny, monkeypatch):
    asked = []
    evaluate = Prepared.encode_pixels

    def counting(*args):
        result = evaluate(*args)
        asked.append(result.shape)
        return result

    monkeypatch.setattr(Prepared, "encode_pixels", counting)
    array = tiny.grid(resolution=0.0001)
    assert array.shape == (8, 1_800_000, 3_600_000)
    repr(array)
    array.isel(x=slice(10, 500), y=slice(5, 70)).transpose("y", "x", "band")
    assert not asked
    array.sel(x=10.3, y=48.2, method="nearest").load()
    array.isel(x=slice(7, 10), y=[1, 2], band=slice(3)).load()
    assert asked == [(1, 1, 8), (2, 3, 8)]


def test_values_are_computed_once_and_then_kept(tiny, monkeypatch):
    array = tiny.grid(resolution=30)
    first = array.values
    monkeypatch.setattr(Prepared, "encode_pixels", lambda *args: pytest.fail("computed twice"))
    assert np.array_equal(array.values, first)
    array[0, 0, 0] = 5.0
    assert array.values[0, 0, 0] == 5.0


def test_band_y_x_is_a_view_of_the_kernels_order(tiny):
    for array in (tiny.grid(resolution=30), tiny.grid(resolution=30, out=np.empty((6, 12, 8), np.float32))):
        assert array.values.transpose(1, 2, 0).flags.c_contiguous


def test_many_bands_and_few_bands_agree_to_the_bit(tiny):
    """Above some thousand pixels only the chosen bands are computed."""
    whole = tiny.grid(resolution=2).values
    assert whole[0].size > lazy._FEW_PIXELS
    array = tiny.grid(resolution=2)
    assert np.array_equal(array.isel(band=[5, 1]).values, whole[[5, 1]])
    assert np.array_equal(array.isel(band=3).values, whole[3])
    assert np.array_equal(tiny.grid(resolution=2, bands="2-4").values, whole[1:4])
    assert np.array_equal(tiny.select([5, 1])(PLACES), tiny(PLACES)[:, [5, 1]])


@pytest.mark.parametrize("case", ["globe", "UTM", "Equal Earth"])
def test_out_is_filled_in_place_whatever_its_form(tiny, case):
    expected = tiny.grid(**GRIDS[case]).values
    count, height, width = expected.shape

    def memory():
        return np.full((height, width, count), 7, np.float32)

    for out in (
        memory(),
        memory().transpose(2, 0, 1),
        np.full((height, 2 * width, count), 7, np.float32)[:, ::2],
    ):
        array = tiny.grid(**GRIDS[case], out=out)
        assert np.shares_memory(array.values, out)
        assert np.array_equal(array.values, expected, equal_nan=True)
    named = xr.DataArray(memory(), dims=("y", "x", "band"))
    assert np.shares_memory(tiny.grid(**GRIDS[case], out=named).values, named.values)
    assert np.array_equal(named.transpose("band", "y", "x"), expected, equal_nan=True)


OUT_ERRORS = {
    "another type": (np.empty((6, 12, 8)), "float32"),
    "another shape": (np.empty((6, 13, 8), np.float32), "shape"),
    "a list": ([1, 2], "float32"),
    "bands slowest": (np.empty((8, 6, 12), np.float32), "band fastest"),
    "other dimensions": (
        xr.DataArray(np.empty((6, 12, 8), np.float32), dims=("a", "x", "band")),
        "dimensions",
    ),
    "read-only": (np.frombuffer(bytes(6 * 12 * 8 * 4), np.float32).reshape(6, 12, 8), "read-only"),
}


@pytest.mark.parametrize("case", OUT_ERRORS)
def test_memory_that_cannot_be_filled_is_refused(tiny, case):
    out, message = OUT_ERRORS[case]
    with pytest.raises(UsageError, match=message):
        tiny.grid(resolution=30, out=out)
    with pytest.raises(UsageError, match="one of them"):
        tiny.grid(resolution=30, out=np.empty((6, 12, 8), np.float32), chunks=3)


def test_a_grid_is_described_in_one_way_only(tiny):
    geobox = GeoBox((2, 2), Affine(1, 0, 0, 0, -1, 2), "EPSG:4326")
    assert tiny.grid(geobox).shape == (8, 2, 2)
    with pytest.raises(UsageError, match="geobox and like are mutually exclusive"):
        tiny.grid(geobox, like=geobox)
    with pytest.raises(UsageError, match="leave out resolution"):
        tiny.grid(geobox, resolution=1)


def test_a_head_is_folded_into_the_last_layer(tiny):
    rng = np.random.default_rng(5)
    weight, bias = rng.normal(size=(3, 8)), rng.normal(size=3)
    head = tiny.with_head(weight, bias, names=["red", "green", "blue"])
    expected = tiny(PLACES).astype(float) @ weight.T + bias
    assert np.allclose(head(PLACES), expected, rtol=0, atol=1e-5)
    assert head.band_names == ["red", "green", "blue"]
    assert head.grid(resolution=30).band.values.tolist() == ["red", "green", "blue"]
    assert (head.embed_dim, head.weights.embed_dim) == (3, 8)
    assert head.weights is tiny.weights
    assert head.sha256 != tiny.sha256
    twice = head.with_head([[1, -1, 0]])
    assert twice.band_names == ["head1"]
    assert np.allclose(twice(PLACES)[:, 0], expected[:, 0] - expected[:, 1], rtol=0, atol=1e-5)


def test_a_head_of_another_shape_is_refused(tiny):
    for weight, bias, names in (
        (np.zeros((3, 7)), None, None),
        (np.zeros(8), None, None),
        (np.zeros((0, 8)), None, None),
        (np.zeros((3, 8)), np.zeros(2), None),
        (np.full((3, 8), np.nan), None, None),
        (np.zeros((3, 8)), None, ["a", "b"]),
        (np.zeros((3, 8)), None, "abc"),
    ):
        with pytest.raises(UsageError):
            tiny.with_head(weight, bias, names)
    with pytest.raises(TypeError, match="real numbers"):
        tiny.with_head([["a"] * 8])


def test_a_head_may_be_a_tensor(tiny):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(8, 2)
    head = tiny.with_head(layer.weight, layer.bias)
    expected = layer(tiny(torch.tensor(PLACES))).detach().numpy()
    assert np.allclose(head(PLACES), expected, rtol=0, atol=1e-5)


def test_an_encoder_travels_to_other_processes(tiny):
    head = tiny.with_head(np.eye(8)[:2], names=["a", "b"])
    for enc in (tiny, tiny.select("3-5"), head):
        copy = pickle.loads(pickle.dumps(enc))
        assert np.array_equal(copy(PLACES), enc(PLACES))
        assert (copy.band_names, copy.sha256, copy.threads) == (enc.band_names, enc.sha256, enc.threads)


def test_threads_do_not_change_the_bits(tiny_weights):
    one, three = se.load(tiny_weights, threads=1), se.load(tiny_weights, threads=3)
    assert np.array_equal(one.grid(resolution=5).values, three.grid(resolution=5).values)
    assert (one.threads, three.threads) == (1, 3)


def test_one_encoder_serves_many_python_threads(tiny):
    grid = make_grid(**GRIDS["Equal Earth"])
    expected = tiny.evaluate(grid)
    results: list[np.ndarray] = []
    workers = [
        threading.Thread(target=lambda: results.append(tiny.evaluate(grid, threads=1))) for _ in range(6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 6
    assert all(np.array_equal(result, expected, equal_nan=True) for result in results)


def test_the_repr_tells_heads_from_selections(tiny):
    text = repr(tiny.with_head(np.eye(8)[:3]))
    for part in ("L=4", "16 exact harmonics", "16 → 16", "3 (head)", "memory", "cpu", "2 threads"):
        assert part in text
    assert "→ 3 (of 8)," in repr(tiny.select("1-3"))
    assert "→ 8 (head)," in repr(tiny.with_head(np.eye(8)))
    assert "→ 2 (head)," in repr(pickle.loads(pickle.dumps(tiny.with_head(np.eye(8)[:3]).select("1-2"))))
    assert "→ 8, " in repr(tiny)


def test_load_refuses_what_it_cannot_do(tiny_weights):
    with pytest.raises(UsageError, match="cuda"):
        se.load(tiny_weights, device="cuda")
    with pytest.raises(UsageError, match="backend"):
        se.load(tiny_weights, backend="abacus")
    for threads in (0, -1, 1.5, "all"):
        with pytest.raises(UsageError, match="threads"):
            se.load(tiny_weights, threads=threads)
    with pytest.raises((UsageError, WeightsError), match="nowhere"):
        se.load("nowhere")
    with pytest.raises(WeightsError, match=r"https://host/x\.ckpt: .* download it first"):
        se.load("https://host/x.ckpt")


def test_bands_are_chosen_by_text_from_one_or_by_index_from_zero():
    names = band_names(12)
    assert names[0] == "e001"
    assert band_names(1000)[-1] == "e1000"
    for choice, expected in {
        "all": list(range(12)),
        "1-3": [0, 1, 2],
        "3, 5,7": [2, 4, 6],
        "2,1": [1, 0],
        "e012": [11],
    }.items():
        assert parse_bands(choice, names) == expected
    assert parse_bands(None, names) == list(range(12))
    assert parse_bands(slice(2, 8, 3), names) == [2, 5]
    assert parse_bands([0, -1, np.int64(3)], names) == [0, 11, 3]
    assert parse_bands(["e003", 0], names) == [2, 0]
    assert parse_bands(4, names) == [4]
    assert parse_bands(np.arange(12) > 9, names) == [10, 11]


@pytest.mark.parametrize(("bands", "twice"), [("5,5", 5), ("2,1-2", 2), ("3-6,1,5-8", 5)])
def test_a_band_named_twice_in_text_is_refused_by_number(bands, twice):
    with pytest.raises(UsageError, match=f"names band {twice} twice"):
        parse_bands(bands, band_names(12))


@pytest.mark.parametrize(
    "bands", ["0", "13", "1-13", "5-3", "1;2", "", "e13", [], [12], [-13], [1.5], ["x"], [True], 2.5]
)
def test_bands_that_do_not_exist_are_refused(bands):
    with pytest.raises(UsageError, match="bands"):
        parse_bands(bands, band_names(12))


@given(start=st.floats(-1e7, 1e7), step=st.floats(1e-4, 1e4) | st.floats(-1e4, -1e-4), data=st.data())
@settings(max_examples=200, deadline=None)
def test_selection_by_computed_labels_equals_pandas(start, step, data):
    """An axis too long to store selects as an ordinary one does."""
    from satclip_engine.arrays.axis import AxisIndex, AxisLabels

    size = 50
    index = AxisIndex(AxisLabels("x", "x", size, start, step))
    computed = xr.Dataset(coords=xr.Coordinates({"x": index.create_variables()["x"]}, indexes={"x": index}))
    stored = xr.Dataset(coords={"x": np.arange(size) * step + start})
    assert np.array_equal(computed.x, stored.x)
    at = data.draw(st.floats(-10, size + 10).map(lambda position: start + position * step))
    tie = 1e-6 + 4 * np.spacing(abs(start) + size * abs(step)) / abs(step)  # labels themselves are rounded
    if abs((at - start) / step % 1 - 0.5) > tie:
        assert computed.sel(x=at, method="nearest").x == stored.sel(x=at, method="nearest").x
    i, j = sorted((data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))))
    exact = float(stored.x[i])
    assert computed.sel(x=exact).x == exact
    cut = slice(exact, float(stored.x[j]))
    assert np.array_equal(computed.sel(x=cut).x, stored.sel(x=cut).x)
    assert np.array_equal(computed.isel(x=slice(i, j, 2)).x, stored.isel(x=slice(i, j, 2)).x)
    with pytest.raises(KeyError):
        computed.sel(x=exact + step / 3)
    with pytest.raises(KeyError):
        computed.sel(x=exact + step / 3, method="nearest", tolerance=abs(step) / 10)


def test_a_long_axis_computes_its_labels_and_a_short_part_of_it_stores_them(tiny):
    array = tiny.grid(resolution=0.0001)
    assert array.x.variable._data.__class__.__name__ == "CoordinateTransformIndexingAdapter"
    part = array.sel(x=slice(10, 10.002), y=slice(48.002, 48))
    assert part.shape == (8, 20, 20)
    assert type(part.indexes["x"]) is pd.Index
    other = xr.DataArray(np.ones(20), coords={"x": part.x.values}, dims="x")
    assert (part * other).shape == part.shape
    assert math.isclose(float(part.x[0]), 10.00005)
    assert xr.align(array, array, join="exact")[0].shape == array.shape


def test_dask_chunks_compute_the_same_bits_with_one_thread_each(tiny, monkeypatch):
    threads = []
    evaluate = Prepared.encode_pixels

    def recording(*args):
        threads.append(args[-1].threads)
        return evaluate(*args)

    expected = tiny.grid(resolution=10).values
    monkeypatch.setattr(Prepared, "encode_pixels", recording)
    for chunks in (5, "auto", {"x": 7}, {"band": 3, "y": -1}, (8, 9, (20, 16)), {"band": 2, "x": "auto"}):
        array = tiny.grid(resolution=10, chunks=chunks)
        assert array.chunks is not None
        assert np.array_equal(array.values, expected)
        assert array.isel(band=2, y=3, x=4).compute() == expected[2, 3, 4]
    assert set(threads) == {1}


def test_equal_dask_grids_have_equal_names(tiny_weights):
    pytest.importorskip("dask")
    one, two = (se.load(tiny_weights).grid(resolution=10, chunks=5) for _ in range(2))
    assert one.data.name == two.data.name
    assert one.data.name != se.load(tiny_weights).grid(resolution=15, chunks=5).data.name


def test_too_many_chunks_are_refused_with_the_size_to_use(tiny):
    with pytest.raises(UsageError, match="98,891,016 chunks") as error:
        tiny.grid(resolution=0.0001, chunks=256)
    size = int(str(error.value).partition("chunks=")[2].split()[0])
    array = tiny.grid(resolution=0.0001, chunks=size)
    assert math.prod(array.data.numblocks) <= 100_000
    for chunks in ({"z": 3}, [1, 2], 2.5, True, "big", {"x": -5}, 0):
        with pytest.raises(UsageError, match="chunks"):
            tiny.grid(resolution=10, chunks=chunks)

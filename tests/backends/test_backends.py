"""Every backend and every instruction set computes the reference's function: one parity table."""

from __future__ import annotations

import dataclasses
import functools
import pickle

import numpy as np
import pytest
from factories.networks import LATITUDES, LONGITUDES, NETWORKS, everywhere, network, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from satclip_engine import _C, backends, reference
from satclip_engine.backends import cpu
from satclip_engine.backends.protocols import Call
from satclip_engine.errors import UsageError
from satclip_engine.weights import Layers

# float32 network on float64 harmonics: rounding of weights and activations (6e-8 each), sums of up to 40000
# terms, two sines. The bound is the project's for networks of ordinary gains: 1e-5 of the embedding's rms.
TOLERANCE = 1e-5
ORDINARY_GAIN = 10.0  # of the first weights, over those of the initialisation


IMPLEMENTATIONS = [
    ("reference", None),
    pytest.param(("triton", None), marks=pytest.mark.triton),
    *(("cpu", isa) for isa in _C.instruction_sets()),
]


def prepared(implementation: tuple[str, str | None], layers: Layers) -> backends.Prepared:
    name, isa = implementation
    row = backends.resolve(name)
    return row.prepare(layers, isa=isa) if isa else row.prepare(layers)


def label(implementation: tuple[str, str | None]) -> str:
    return "-".join(filter(None, implementation))


@pytest.fixture(params=IMPLEMENTATIONS, ids=label)
def implementation(request: pytest.FixtureRequest) -> tuple[str, str | None]:
    return request.param


def workload(case: str, interpreted: bool) -> tuple[Layers, np.ndarray, np.ndarray, np.ndarray]:
    """A network, points and a grid; fewer for Triton's interpreter, which takes 0.1 s a tile."""
    degrees, sizes, gain = NETWORKS[case]
    if interpreted:
        pytest.importorskip("triton")
        narrow = tuple(min(size, 20) for size in sizes)
        return network(degrees, narrow, gain), everywhere(5)[-22:], LATITUDES[::3], LONGITUDES[::7]
    return network(degrees, sizes, gain), everywhere(), LATITUDES, LONGITUDES


@functools.cache
def expected_at_points(case: str, interpreted: bool) -> np.ndarray:
    """Values of the reference, which all implementations but the interpreted one are compared with."""
    layers, points, _, _ = workload(case, interpreted)
    return reference.encode(points, layers)


@functools.cache
def expected_on_grid(case: str, interpreted: bool) -> np.ndarray:
    """Values of the reference at the grid's pixels as points."""
    layers, _, latitudes, longitudes = workload(case, interpreted)
    return reference.encode(np.stack(np.meshgrid(longitudes, latitudes), -1).reshape(-1, 2), layers)


@pytest.mark.parametrize("case", NETWORKS)
def test_points_equal_the_reference(implementation, case):
    layers, points, _, _ = workload(case, implementation[0] == "triton")
    expected = expected_at_points(case, implementation[0] == "triton")
    assert relative_error(prepared(implementation, layers).encode(points), expected) < TOLERANCE


def random_network(seed: int, released: bool) -> tuple[Layers, float]:
    """A network of any size and gain, or of the released ones' sizes with an ordinary gain; and that gain."""
    rng = np.random.default_rng(seed)
    degrees = int(rng.choice([10, 16, 25, 40] if released else [1, 2, 3, 5, 8, 20, 60, 90]))
    capacity = int(rng.choice([256, 512] if released else [5, 16, 33, 128]))
    depth = int(rng.integers(2, 4) if released else rng.integers(1, 5))
    gain = float(10 ** rng.uniform(0 if released else -1, 1 if released else 1.8))
    return network(degrees, (capacity,) * depth + (int(rng.integers(3, 257)),), gain, seed), gain


def in_plain_float32(points: np.ndarray, layers: Layers) -> np.ndarray:
    """The layers as PyTorch computes them in float32, on exact harmonics rounded once."""
    torch = pytest.importorskip("torch")
    hidden = torch.from_numpy(reference.harmonics(points, layers.degrees)).float()
    *pairs, last = zip(
        *(map(torch.tensor, arrays) for arrays in (layers.weights, layers.biases)), strict=True
    )
    for weight, bias in pairs:
        hidden = torch.sin(torch.nn.functional.linear(hidden, weight.float(), bias.float()))
    return torch.nn.functional.linear(hidden, *(tensor.float() for tensor in last)).numpy()


@pytest.mark.parametrize("released", [True, False], ids=["released sizes, ordinary gains", "any"])
def test_random_networks_err_as_float32_does_and_ordinary_ones_within_the_tolerance(released):
    points, sets = everywhere(20), _C.instruction_sets()
    for seed in range(6 if released else 20):
        layers, gain = random_network(seed, released)
        expected = reference.encode(points, layers)
        limit = 8 * relative_error(in_plain_float32(points, layers), expected)
        if released:
            assert gain <= ORDINARY_GAIN
            limit = min(limit, TOLERANCE)
        network_of_one_set = prepared(("cpu", sets[seed % len(sets)]), layers)
        assert relative_error(network_of_one_set.encode(points), expected) < limit, seed


@pytest.mark.parametrize("case", NETWORKS)
def test_a_product_grid_equals_its_points(implementation, case):
    layers, _, latitudes, longitudes = workload(case, implementation[0] == "triton")
    expected = expected_on_grid(case, implementation[0] == "triton")
    grid = prepared(implementation, layers).encode_grid(latitudes, longitudes)
    assert grid.shape == (latitudes.size, longitudes.size, layers.embed_dim)
    assert relative_error(grid.reshape(expected.shape), expected) < TOLERANCE


@pytest.mark.parametrize("degrees", [1, 2, 10, 40, 100, 200])
def test_harmonics_equal_the_reference(degrees):
    expected = reference.harmonics(everywhere(20), degrees)
    for isa in _C.instruction_sets():
        # float64 recurrences in different orders of rounding: a few ulp per degree.
        assert (
            np.abs(_C.harmonics(everywhere(20), degrees, 2, isa) - expected).max()
            < 3e-15 * max(degrees, 4) ** 1.5
        )
    assert np.array_equal(
        backends.resolve("cpu").harmonics(everywhere(20), degrees), _C.harmonics(everywhere(20), degrees)
    )


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 47, 48, 49, 191, 192, 193, 600])
def test_any_number_of_points_gives_each_the_same_bits(count):
    layers = network(12, (40, 24, 21))
    points = everywhere(600)[:600]
    for isa in _C.instruction_sets():
        cpu = prepared(("cpu", isa), layers)
        whole = cpu.encode(points)
        for threads in (1, 2, 5):
            assert np.array_equal(cpu.encode(points[:count], call=Call(threads)), whole[:count])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_pixel_has_the_same_bits_in_every_window(data):
    layers = network(12, (40, 24, 21))
    lat = np.linspace(-89.75, 89.75, 360)[:: data.draw(st.sampled_from([1, 7, 40]))]
    lon = np.linspace(-179.75, 179.75, 720)
    cpu = prepared(("cpu", data.draw(st.sampled_from(_C.instruction_sets()))), layers)
    rows = sorted(data.draw(st.sets(st.integers(0, lat.size - 1), min_size=1, max_size=5)))
    columns = data.draw(st.lists(st.integers(0, 719), min_size=1, max_size=60))
    threads = data.draw(st.integers(1, 4))
    window = cpu.encode_grid(lat[rows], lon[columns], call=Call(threads))
    row, column = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, len(columns) - 1))
    alone = cpu.encode_grid(lat[rows[row] : rows[row] + 1], lon[columns[column] : columns[column] + 1])
    assert np.array_equal(window[row, column], alone[0, 0])


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_a_wide_grid_has_the_same_bits_however_many_threads_share_it(rows):
    layers = network(8, (16, 8, 5))
    lat = np.linspace(-80.3, 71.9, rows)
    lon = np.random.default_rng(4).uniform(-180, 180, 5000)
    for isa in _C.instruction_sets():
        cpu = prepared(("cpu", isa), layers)
        alone = cpu.encode_grid(lat, lon, call=Call(1))
        for threads in (2, 3, 7):
            assert np.array_equal(cpu.encode_grid(lat, lon, call=Call(threads)), alone)


def test_longitude_is_periodic_and_without_effect_at_the_poles(implementation):
    layers = network(40, (32, 32, 8), 5)
    run = prepared(implementation, layers)
    base = run.encode(np.array([[12.25, 47.5]]))
    turns = np.array([[12.25 + 360.0 * k, 47.5] for k in (-3, -1, 1, 1000)])
    assert np.allclose(run.encode(turns), base, atol=1e-6)
    for pole in (90.0, -90.0):
        values = run.encode(np.array([[lon, pole] for lon in (-180, -33.3, 0, 90, 1e6)]))
        assert np.abs(values - values[0]).max() < 1e-13


def test_points_that_are_not_finite_give_nan_and_leave_their_neighbours_alone(implementation):
    layers = network(10, (32, 32, 8))
    run = prepared(implementation, layers)
    points = everywhere(40)
    expected = run.encode(points).copy()
    for row, point in zip((0, 7, 20), ((np.nan, 1.0), (np.inf, 1.0), (1.0, -np.inf)), strict=True):
        points[row] = point
        expected[row] = np.nan
    assert np.array_equal(run.encode(points), expected, equal_nan=True)
    grid = run.encode_grid(np.array([np.nan, 10.0, 20.0]), np.array([5.0, np.nan, -5.0, np.inf]))
    assert np.isnan(grid[0]).all()
    assert np.isnan(grid[1:, [1, 3]]).all()
    assert np.isfinite(grid[1:, [0, 2]]).all()


def test_a_latitude_beyond_the_poles_is_refused_by_row(implementation):
    run = prepared(implementation, network(4, (8, 3)))
    with pytest.raises(ValueError, match=r"row 1: latitude 90\.5 is outside"):
        run.encode(np.array([[0, 90.0], [0, 90.5], [0, -91.0]]))
    with pytest.raises(ValueError, match=r"row 0: latitude -91"):
        run.encode_grid(np.array([-91.0]), np.array([0.0]))


def test_results_go_where_out_says(implementation):
    layers = network(6, (16, 5))
    run = prepared(implementation, layers)
    points = everywhere(30)
    table = np.full((len(points), 9), 7.0, np.float32)
    run.encode(points, out=table[:, 2:7])
    assert np.array_equal(table[:, 2:7], run.encode(points).astype(np.float32))
    assert (table[:, [0, 1, 7, 8]] == 7).all()
    flipped = np.full((len(LATITUDES), len(LONGITUDES), 5), 7.0, np.float32)[::-1]
    run.encode_grid(LATITUDES, LONGITUDES, out=flipped)
    assert np.array_equal(flipped, run.encode_grid(LATITUDES, LONGITUDES).astype(np.float32))


def test_an_output_that_does_not_fit_is_refused():
    run = prepared(("cpu", None), network(6, (16, 5)))
    points = everywhere(3)
    for out in (
        np.empty((len(points), 4), np.float32),
        np.empty((len(points), 5), np.float64),
        np.empty((5, len(points)), np.float32).T,
    ):
        with pytest.raises(ValueError, match=r"out must be a writable float32 array of shape \(38, 5\)"):
            run.encode(points, out=out)
    frozen = np.empty((len(points), 5), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="writable"):
        run.encode(points, out=frozen)


def test_arguments_that_swamp_the_fast_sine_still_give_the_right_sine():
    layers = network(3, (16, 4))
    weight = layers.weights[0].copy()
    weight[::2] *= 1e8
    steep = dataclasses.replace(layers, weights=(weight, *layers.weights[1:]))
    # At 1e8 radians float32 has no digits after the point: only boundedness and finiteness can be asked for …
    points = everywhere(200)
    for isa in _C.instruction_sets():
        assert np.isfinite(prepared(("cpu", isa), steep).encode(points)).all()
    # … but exact multiples are exact: a constant argument of 2^20 is representable.
    bias = np.where(np.arange(16) % 2, 2.0**20, 0.5)
    constant = Layers(3, (np.zeros((16, 9)), np.eye(16)), (bias, np.zeros(16)))
    for isa in _C.instruction_sets():
        values = prepared(("cpu", isa), constant).encode(points)
        assert np.abs(values - np.sin(bias)).max() < 1e-7


def test_the_sine_errs_by_its_bound_at_most():
    # A layer that hands its biases through gives the sine of any numbers. Over every float32 up to 65536 the
    # largest error is 1.34e-7.
    rng = np.random.default_rng(5)
    near = np.arange(-20_000, 20_001) * (np.pi / 2)
    limits = np.array([8192.0, 65536.0])
    numbers = np.concatenate(
        [
            rng.uniform(-10, 10, 20_000),
            np.exp(rng.uniform(-30, 20, 20_000)) * rng.choice([-1, 1], 20_000),
            near + rng.uniform(-1e-4, 1e-4, near.size),
            near,
            *(
                np.nextafter(np.float32(sign * limits), np.float32(to))
                for sign in (1, -1)
                for to in (0, 1e9, -1e9)
            ),
            [0.0, 1e-45, 1e-38, 5226.03955, 1465.68176, 3e38],
        ]
    ).astype(np.float32)
    for isa in _C.instruction_sets():
        for chunk in np.array_split(numbers, numbers.size // 1000):
            count = chunk.size
            layers = Layers(
                1, (np.zeros((count, 1)), np.eye(count)), (chunk.astype(np.float64), np.zeros(count))
            )
            sines = prepared(("cpu", isa), layers).encode(np.zeros((1, 2)))[0]
            assert np.abs(sines - np.sin(chunk.astype(np.float64))).max() < 1.4e-7


def test_sums_over_many_harmonics_are_rounded_in_parts():
    layers = network(200, (256, 256, 64), 5)
    points = everywhere(40)
    expected = reference.encode(points, layers)
    rms = np.sqrt(np.mean(expected**2))
    for isa in _C.instruction_sets():
        error = prepared(("cpu", isa), layers).encode(points) - expected
        # One chain of 40000 terms errs by 2.6e-6, chains of 398 at most by 5e-7.
        assert np.sqrt(np.mean(error**2)) < 1e-6 * rms


def test_an_out_array_that_was_pickled_is_written_too():
    run = prepared(("cpu", None), network(6, (16, 5)))
    points = everywhere(3)
    out = pickle.loads(pickle.dumps(np.zeros((len(points), 5), np.float32)))  # its dtype is a copy of NumPy's
    assert np.array_equal(run.encode(points, out=out), run.encode(points))


def test_what_is_no_number_is_refused_by_numpy_itself():
    run = prepared(("cpu", None), network(6, (16, 5)))
    for wrong in (np.array([["east", "north"]]), [[1.0, 2.0], [3.0]]):
        with pytest.raises(ValueError, match=r"could not convert string|inhomogeneous"):
            run.encode(wrong)
    with pytest.raises(ValueError, match="could not convert string"):
        run.encode_grid(np.array(["north"]), np.zeros(1))


@pytest.mark.parametrize("degrees", [-1, 0, 1001, 100_000])
def test_degrees_that_the_recurrence_is_not_proven_for_are_refused(degrees):
    with pytest.raises(ValueError, match=rf"degrees must be between 1 and 1000, not {degrees}"):
        _C.harmonics(np.zeros((0, 2)), degrees)
    with pytest.raises(ValueError, match=rf"degrees must be between 1 and 1000, not {degrees}"):
        _C.Network(degrees, [np.zeros((2, 1))] * 2, [np.zeros(2)] * 2)


def test_a_backend_asked_for_by_name_runs_or_raises(monkeypatch):
    with pytest.raises(
        UsageError, match="unknown backend 'gpu': choose from auto, triton, cuda, cpu, reference"
    ):
        backends.resolve("gpu")
    assert backends.resolve("auto").name == "cpu"
    monkeypatch.setattr(cpu, "_C", None)
    monkeypatch.setattr(cpu, "MISSING", "the compiled kernels cannot be loaded", raising=False)
    assert backends.resolve("auto").name == "reference"
    with pytest.raises(ImportError, match="compiled kernels cannot be loaded"):
        backends.resolve("cpu")


def test_an_instruction_set_that_is_not_there_is_named():
    layers = network(2, (4, 2))
    with pytest.raises(ValueError, match="no instruction set 'sse9'"):
        backends.resolve("cpu").prepare(layers, isa="sse9")


@pytest.mark.skipif(
    not {"avx2", "avx512"} <= set(_C.instruction_sets()), reason="needs a processor with AVX2 and AVX-512"
)
def test_avx2_and_avx512_agree_bit_by_bit():
    layers = network(40, (33, 70, 61, 37), 3)
    narrow, wide = prepared(("cpu", "avx2"), layers), prepared(("cpu", "avx512"), layers)
    assert np.array_equal(narrow.encode(everywhere()), wide.encode(everywhere()))
    assert np.array_equal(narrow.encode_grid(LATITUDES, LONGITUDES), wide.encode_grid(LATITUDES, LONGITUDES))

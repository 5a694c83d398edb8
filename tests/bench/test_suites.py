"""Suites: all implementations of a workload answer right, baselines and rasters are checked."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from factories.benchmarks import EVERYTHING, SMALL

from satclip_engine import reference
from satclip_engine.bench import catalogue, inputs, run
from satclip_engine.bench.measure import FAILED, OK, Rounds, time_all
from satclip_engine.bench.suites import torch_baselines, write


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("group", catalogue.GROUPS)
def test_every_workload_of_a_group_has_its_own_name_and_a_suite(group, quick):
    workloads = catalogue.workloads(group, quick=quick)
    assert workloads
    assert len({workload.name for workload in workloads}) == len(workloads)
    for workload in workloads:
        assert type(workload) in run.SUITES
        assert json.loads(json.dumps(workload.parameters()))


def test_a_name_follows_from_the_parameters():
    workload = catalogue.PointsWorkload(40, 100_000)
    assert workload.name == "points L=40, N=100,000"
    assert dataclasses.replace(workload, degrees=10).name == "points L=10, N=100,000"


def test_every_baseline_can_be_chosen():
    assert {baseline.key for baseline in torch_baselines.BASELINES} <= EVERYTHING


@pytest.mark.parametrize("workload", SMALL, ids=lambda workload: workload.name)
def test_all_implementations_of_a_workload_give_the_right_answer(workload):
    implementations = run.SUITES[type(workload)](workload, (1,), EVERYTHING)
    timings = time_all(implementations, Rounds(1, 0.01))
    assert [t.note for t in timings if t.status == FAILED] == []
    assert any(t.implementation.ours or t.implementation.roofline for t in timings if t.status == OK)
    for timing in timings:
        if timing.implementation.ours:
            assert timing.status == OK
            assert timing.error <= workload.tolerance


def test_an_implementation_is_found_again_by_another_process():
    workload = catalogue.workloads("points", quick=True)[0]
    assert run.find_implementation("points", workload.name, "satclip", 1, quick=True).ours
    with pytest.raises(LookupError, match="no implementation 'nobody'"):
        run.find_implementation("points", workload.name, "nobody", 1, quick=True)


def test_a_poisoned_embedding_is_an_infinite_error():
    layers, lonlat = inputs.siren(4, (12, 8, 5)), inputs.scattered(50)
    expected = inputs.Expected(layers, lonlat)
    answer = reference.encode(lonlat, layers)
    assert expected.error(answer) < 1e-15
    answer[-1, 2] = np.nan
    assert expected.error(answer) == float("inf")
    assert expected.error(answer[:, :3]) == float("inf")


@pytest.mark.parametrize("baseline", torch_baselines.BASELINES, ids=lambda baseline: baseline.name)
@pytest.mark.parametrize("block", [None, 64])
def test_a_baseline_computes_the_reference_function(baseline, block):
    if baseline.missing:
        pytest.skip(baseline.missing)
    layers, lonlat = inputs.siren(12, (40, 40, 20)), inputs.scattered(150)
    answer = baseline.build(layers, block)(lonlat)
    assert answer.shape == (150, 20)
    # At L = 12 none of them suffers from cancellation: float32 rounding is all that is left.
    bound = 1e-9 if baseline.dtype == "float64" else 5e-5
    assert inputs.Expected(layers, lonlat).error(answer, within=baseline.within) < bound


@pytest.mark.parametrize("degrees", [1, 2, 3, 40])
def test_the_blocked_recurrence_equals_the_reference(degrees):
    torch = pytest.importorskip("torch")
    lonlat = inputs.scattered(80)
    values = torch_baselines.harmonics(torch.from_numpy(lonlat), degrees, torch.float64).T.numpy()
    assert np.abs(values - reference.harmonics(lonlat, degrees)).max() < 1e-12


def test_expanded_polynomials_have_the_known_coefficients():
    # P(4, 2)'' = (105 x² − 15) / 2
    norm, terms = torch_baselines.polynomial(4, 2)
    assert dict(terms) == {2: 52.5, 0: -7.5}
    assert norm == pytest.approx(np.sqrt(2 * 9 / (4 * np.pi) * 2 / 720))


def test_a_raster_with_other_pixels_is_a_wrong_answer(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    workload = catalogue.WriteWorkload(20.0, bands=3, alone=True)
    write.writer_alone(workload, tmp_path / "world.tif", 1, "int8").run()
    assert write.read_back(workload, tmp_path / "world.tif") <= workload.tolerance
    assert write.read_back(dataclasses.replace(workload, bands=2), tmp_path / "world.tif") == float("inf")
    with rasterio.open(tmp_path / "world.tif") as source:
        pixels, profile, scales = source.read(), source.profile, source.scales
    with rasterio.open(tmp_path / "shifted.tif", "w", **{**profile, "driver": "GTiff"}) as target:
        target.write(np.roll(pixels, 1, axis=2))
        target.scales = scales
    assert write.read_back(workload, tmp_path / "shifted.tif") > 1


def test_a_computed_encoder_has_the_values_of_the_encoder():
    from satclip_engine.encoder import load
    from satclip_engine.geo.grid import make_grid

    encoder, grid = load("default", threads=1).select([0, 5]), make_grid(resolution=30)
    computed = write.ComputedEncoder(encoder, grid)
    rows, cols = slice(1, 4), np.array([0, 3, 11])
    assert np.array_equal(
        computed.network.encode_pixels(grid, rows, cols), encoder.evaluate(grid, rows, cols)
    )
    assert computed.band_names == encoder.band_names
    other = make_grid(resolution=45)
    assert np.array_equal(computed.network.encode_pixels(other), encoder.evaluate(other))

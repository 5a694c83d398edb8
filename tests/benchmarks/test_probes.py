"""benchmarks/probes.py: probes find what is there, splits keep groups whole, features are right."""

from __future__ import annotations

import json
from pathlib import Path

import click.testing
import numpy as np
import pytest

pytest.importorskip("torch", reason="probes need PyTorch")

import probes
import torch
from probing import geoclip, targets
from probing.features import BASELINES, lonlat_degrees, make_rows, polynomial, unit_vector, untrained
from probing.packages import package_file
from probing.run import Result, measure
from probing.score import score
from probing.splits import Split, block_split, random_split
from probing.table import markdown, short, summary
from probing.targets import Target

from satclip_engine.errors import MissingExtra, UsageError


@pytest.fixture(scope="module")
def lonlat() -> np.ndarray:
    """700 points uniform by area."""
    u, v = np.random.default_rng(0).uniform(-1, 1, (2, 700))
    return np.stack([180 * u, np.degrees(np.arcsin(v))], 1)


@pytest.fixture(scope="module")
def splits(lonlat: np.ndarray) -> list[Split]:
    return [random_split(len(lonlat)), block_split(lonlat)]


@pytest.mark.parametrize(("probe", "least"), [("linear", 0.99999), ("mlp", 0.99)])
def test_a_probe_finds_a_linear_target_and_no_target_in_noise(lonlat, splits, probe, least):
    rng = np.random.default_rng(1)
    features = np.concatenate([unit_vector(lonlat), rng.normal(size=(len(lonlat), 5))], 1)
    target = 7 + features @ np.array([40.0, 8, 3, 0, 0, 1, 0, 0])
    for split in splits:
        assert score(features, target, split, probe, 0) > least
        assert score(features, rng.normal(size=len(target)), split, probe, 0) < 0.1


@pytest.mark.parametrize("probe", probes.PROBES)
def test_a_probe_finds_classes_that_lines_divide(lonlat, splits, probe):
    features = unit_vector(lonlat)
    classes = np.array([3, 11, 40])[features.argmax(1)]
    for split in splits:
        assert score(features, classes, split, probe, 0) > 0.93
    shuffled = np.random.default_rng(2).permutation(classes)
    assert score(features, shuffled, splits[0], probe, 0) < 0.5


def test_an_mlp_finds_what_a_line_cannot(lonlat, splits):
    features = unit_vector(lonlat)
    target = features[:, 0] * features[:, 1]
    assert score(features, target, splits[0], "linear", 0) < 0.1
    assert score(features, target, splits[0], "mlp", 0) > 0.9


@pytest.mark.parametrize("probe", probes.PROBES)
def test_a_score_depends_on_its_seed_alone(lonlat, splits, probe):
    features, target = unit_vector(lonlat), np.sin(lonlat[:, 0] / 20)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = score(features, target, splits[1], probe, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert score(features, target, splits[1], probe, 5) == first
    assert score(features, target, splits[1], probe, 6) != first


@pytest.mark.parametrize("seed", range(5))
def test_a_split_never_shares_a_group_and_uses_every_row(lonlat, splits, seed):
    for split in splits:
        rng = np.random.default_rng(seed)
        train, test = split.hold_out(0.2, rng)
        learned, checked = split.hold_out(0.15, rng, train)
        sets = [learned, checked, test]
        assert np.array_equal(np.sort(np.concatenate(sets)), np.arange(len(lonlat)))
        assert 0.18 < len(test) / len(lonlat) < 0.22
        groups = [set(split.groups[rows]) for rows in sets]
        assert sum(map(len, groups)) == len(set.union(*groups))
        folds = split.folds(5, rng, train)
        assert np.array_equal(np.sort(np.concatenate([test_rows for _, test_rows in folds])), train)
        for train_rows, test_rows in folds:
            assert not set(split.groups[train_rows]) & set(split.groups[test_rows])
            assert len(train_rows) + len(test_rows) == len(train)
            assert abs(len(test_rows) / len(train) - 0.2) < 0.03


def test_blocks_are_squares_of_the_map_with_poles_and_date_line_inside():
    lonlat = np.array(
        [[0, 0], [9.99, 9.99], [10, 0], [0, -0.01], [180, 0], [-180, 0], [5, 90], [5, 80], [5, -90]]
    )
    groups = block_split(lonlat).groups
    assert groups[0] == groups[1]
    assert len({groups[0], groups[2], groups[3]}) == 3
    assert groups[4] == groups[5]
    assert groups[6] == groups[7]
    assert groups.max() < 18 * 36
    with pytest.raises(UsageError, match="nothing to hold out"):
        block_split(lonlat[:2]).hold_out(0.2, np.random.default_rng(0))


def test_score_refuses_what_does_not_fit(lonlat, splits):
    features = unit_vector(lonlat)
    with pytest.raises(UsageError, match=r"\(700, 3\), \(699,\)"):
        score(features, np.zeros(699), splits[0], "linear", 0)
    with pytest.raises(UsageError, match="finite"):
        score(features * np.nan, features[:, 0], splits[0], "linear", 0)
    with pytest.raises(UsageError, match="linear, mlp, not 'tree'"):
        score(features, features[:, 0], splits[0], "tree", 0)


def test_positions_as_features_are_exact(lonlat):
    assert np.array_equal(unit_vector(np.array([[0, 0], [90, 0], [0, 90]])).round(15), np.eye(3))
    x, y, z = unit_vector(lonlat).T
    expected = [x, y, z, x * x, x * y, x * z, y * y, y * z, z * z]
    expected += [x * x * x, x * x * y, x * x * z, x * y * y, x * y * z, x * z * z]
    expected += [y * y * y, y * y * z, y * z * z, z * z * z]
    np.testing.assert_allclose(polynomial(lonlat), np.stack(expected, 1), rtol=0, atol=1e-15)
    assert np.linalg.matrix_rank(np.column_stack([polynomial(lonlat), np.ones(len(lonlat))])) == 16  # 4²
    assert np.array_equal(lonlat_degrees(lonlat), lonlat)


def test_untrained_encoders_differ_by_seed(lonlat):
    first, same, other = (untrained(lonlat[:5], seed, degrees=10) for seed in (1, 1, 2))
    assert first.shape == (5, 256)
    assert np.array_equal(first, same)
    assert not np.allclose(first, other)


def test_rows_have_names_of_their_own(tiny_weights, tmp_path):
    files = [tmp_path / "a" / "w.safetensors", tmp_path / "b" / "w.safetensors"]
    for file in files:
        file.parent.mkdir()
        tiny_weights.save(file)
    rows = make_rows(("unit",), ("default", *map(str, files)))
    assert [row.name for row in rows] == ["unit vector", "default weights", *map(str, files)]
    assert [row.name for row in make_rows((), (str(files[0]),))] == ["w.safetensors"]
    assert rows[2].features(np.zeros((3, 2)), 0).shape == (3, 8)
    assert [row.sha256 for row in rows[::2]] == ["", tiny_weights.sha256]  # tells weights of one name apart
    with pytest.raises(UsageError, match="no rows"):
        make_rows((), ())


def _geoclip_by_hand(point: np.ndarray, weights: dict[str, torch.Tensor]) -> np.ndarray:
    lon, lat = np.radians(point)
    t = np.arcsin(np.sqrt(3) / 2 * np.sin(lat))
    a = geoclip.EQUAL_EARTH
    slope = a[0] + 3 * a[1] * t**2 + 7 * a[2] * t**6 + 9 * a[3] * t**8
    x = 2 * np.sqrt(3) * lon * np.cos(t) / (3 * slope)
    y = a[0] * t + a[1] * t**3 + a[2] * t**7 + a[3] * t**9
    values = {name: value.double().numpy() for name, value in weights.items()}
    total = 0.0
    for k in range(3):
        angles = 2 * np.pi * values[f"LocEnc{k}.capsule.0.b"] @ (np.array([x, y]) * 66.50336 / 180)
        h = np.concatenate([np.cos(angles), np.sin(angles)])
        for layer in (1, 3, 5):
            weight, bias = (values[f"LocEnc{k}.capsule.{layer}.{kind}"] for kind in ("weight", "bias"))
            h = np.maximum(weight @ h + bias, 0)
        total = total + values[f"LocEnc{k}.head.0.weight"] @ h + values[f"LocEnc{k}.head.0.bias"]
    return total / np.linalg.norm(total)


def test_geoclip_is_its_formula():
    rng = torch.Generator().manual_seed(0)
    shapes = {"capsule.0.b": (6, 2)}
    for name, (inputs, outputs) in {
        "capsule.1": (12, 9),
        "capsule.3": (9, 9),
        "capsule.5": (9, 9),
        "head.0": (9, 4),
    }.items():
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    weights = {
        f"LocEnc{k}.{name}": torch.randn(shape, generator=rng)
        for k in range(3)
        for name, shape in shapes.items()
    }
    lonlat = np.array([[0, 0], [2.35, 48.86], [180, 90], [-180, -89.5], [-70.6, -33.4]], np.float32)
    embeddings = geoclip.embed(torch.from_numpy(lonlat), weights)
    for point, embedding in zip(lonlat, embeddings, strict=True):
        np.testing.assert_allclose(embedding, _geoclip_by_hand(point.astype(float), weights), atol=2e-5)


def test_geoclip_gives_what_its_own_class_gives():
    """Numbers of version 1.3.0 with its own weights, divided by its length."""
    try:
        embedding = geoclip.geoclip(np.array([[2.35, 48.86]]))
    except MissingExtra as error:
        pytest.skip(str(error))
    assert embedding.shape == (1, 512)
    np.testing.assert_allclose(embedding[0, :3], [-0.05663541, 0.03749561, -0.02850368], atol=1e-4)


def test_a_raster_is_looked_up_by_pixel():
    raster = np.arange(18 * 36, dtype=np.uint16).reshape(18, 36)
    lonlat = np.array([[-180, 90], [180, 90], [-175, 85], [179.9, -90], [0, 0.1], [0, -0.1]])
    assert targets.lookup(raster, lonlat).tolist() == [0, 0, 0, 18 * 36 - 1, 8 * 36 + 18, 9 * 36 + 18]


def test_land_is_uniform_by_area_and_classes_are_common_ones():
    zones = np.full((180, 360), targets.OCEAN, np.uint8)
    zones[:90, 180:] = 5  # the northern half of the east
    points = targets.land_points(zones, 4000)
    assert points.shape == (4000, 2)
    assert points.min() >= 0
    assert abs((points[:, 1] > 30).mean() - 0.5) < 0.03  # half of a hemisphere's area
    assert np.array_equal(targets.land_points(zones, 50), points[:50])
    lonlat, values = targets.common_classes(
        points[:1000], np.where(np.arange(1000) < 9, 7, np.arange(1000) % 2)
    )
    assert set(values) == {0, 1}
    assert len(lonlat) == 991


def test_airports_of_unknown_or_impossible_elevation_are_left_out():
    elevations = [100, 0, 200, -1266, 99999, -9999, 300]
    table = np.array([[index, 0, feet] for index, feet in enumerate(elevations)] + [[0, 0, 500]], float)
    lonlat, metres = targets.clean_airports(table, 10)
    assert dict(zip(lonlat[:, 0].tolist(), metres.round(2).tolist(), strict=True)) == {
        0: 30.48,
        2: 60.96,
        3: -385.88,
        6: 91.44,
    }
    assert len(targets.clean_airports(table, 2)[0]) == 2


def _stations(path: Path, rows: int = 120) -> Path:
    lines = [f"{index},{index / 2},{20 - index / 10},{index * 7}" for index in range(rows)]
    path.write_text("\n".join(["Lon,Lat,meanT,meanP", *lines, "5,5,,3"]) + "\n")
    return path


def test_stations_are_read_by_their_column_names(tmp_path):
    read = targets.read_target("precip", points=5, stations=_stations(tmp_path / "s.csv"))
    assert read.lonlat.shape == (121, 2)
    assert read.values[2] == 14
    assert len(targets.read_target("temp", points=5, stations=tmp_path / "s.csv").values) == 120
    (tmp_path / "bad.csv").write_text("Lon,Lat\n1,2\n")
    with pytest.raises(UsageError, match="column 'meanT' is missing"):
        targets.read_target("temp", points=5, stations=tmp_path / "bad.csv")
    (tmp_path / "bad.csv").write_text("Lon,Lat,meanT\n1,2,warm\n")
    with pytest.raises(UsageError, match=r"bad.csv: cannot be read.*warm"):
        targets.read_target("temp", points=5, stations=tmp_path / "bad.csv")
    with pytest.raises(UsageError, match="at least 100"):
        targets.read_target("temp", points=5, stations=_stations(tmp_path / "few.csv", 7))
    with pytest.raises(UsageError, match="needs --stations FILE"):
        targets.read_target("temp", points=5)


def test_a_missing_package_is_named_with_its_command():
    with pytest.raises(
        MissingExtra, match=r"target elev needs no_such_data.*pip install --no-deps no-such-data"
    ):
        package_file("no_such_data", "x.csv", install="no-such-data", why="target elev")
    with pytest.raises(MissingExtra, match=r"which has no x\.csv"):
        package_file("satclip_engine", "x.csv", install="satclip-engine", why="it")


def test_results_do_not_depend_on_the_number_of_processes(lonlat):
    rows = [BASELINES["unit"], BASELINES["untrained10"]]
    labelled = [Target("temp", lonlat[:300], lonlat[:300, 1].copy())]
    reported = []
    single, double = (
        measure(rows, labelled, ("linear",), (0, 1), jobs=jobs, report=reported.append) for jobs in (1, 2)
    )
    assert single == double
    assert len(single) == 2 * 1 * 2 * 1 * 2
    assert len(reported) == 4
    assert {result.row for result in single} == {"unit vector", "untrained L=10"}


def test_the_table_has_a_line_a_row_and_random_before_block():
    results = [
        Result(row, target, split, "mlp", seed, level + value + seed / 10)
        for row, level in (("unit vector", 0.5), ("GeoCLIP", -0.2))
        for target in ("temp", "koppen")
        for split, value in (("random", 0), ("block", -1))
        for seed in (0, 1)
    ]
    text = markdown(results)
    assert "| encoder | temp | Köppen |\n| --- | --- | --- |\n| unit vector | .55/−.45 | .55/−.45 |\n" in text
    assert "| GeoCLIP | −.15/−1.15 | −.15/−1.15 |" in text
    assert "| GeoCLIP | .07/.07 | .07/.07 |" in text
    assert [short(value) for value in (1, -0.001, 0.996, -0.2, -1.204, 10.04)] == [
        "1.00",
        ".00",
        "1.00",
        "−.20",
        "−1.20",
        "10.04",
    ]
    first = summary(results)[0]
    assert (first["seeds"], round(first["mean"], 9), round(first["deviation"], 6)) == (2, 0.55, 0.070711)


def test_the_command_prints_a_table_and_writes_everything(tmp_path):
    file, stations = tmp_path / "all.json", _stations(tmp_path / "s.csv")
    arguments = ["--stations", stations, "--targets", "temp", "--rows", "lonlat,unit", "--probes", "linear"]
    run = click.testing.CliRunner()
    result = run.invoke(probes.main, [*map(str, arguments), "--seeds", "2", "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("| lon/lat | ") == 2  # means, deviations
    assert "2/2 unit vector on temp" in result.stderr
    content = json.loads(file.read_text())
    assert len(content["scores"]) == 2 * 2 * 2
    assert content["options"]["places"] == {"temp": 120}
    assert content["options"]["complete"]
    assert {"machine", "versions", "summary"} <= content.keys()
    for wrong in (
        ["--rows", "moon"],
        ["--targets", "temp"],
        ["--rows", "none", "--targets", "temp"],
        ["--resume"],
    ):
        assert run.invoke(probes.main, wrong).exit_code == 2


def test_a_table_is_extended_by_rows_and_seeds(tmp_path, monkeypatch):
    file, stations = tmp_path / "all.json", _stations(tmp_path / "s.csv")
    arguments = [
        "--stations",
        stations,
        "--targets",
        "temp",
        "--probes",
        "linear",
        "--json",
        file,
        "--resume",
    ]

    def measured(*options: str) -> list[dict]:
        result = click.testing.CliRunner().invoke(probes.main, [*map(str, arguments), *options])
        assert result.exit_code == 0, result.output
        return json.loads(file.read_text())["scores"]

    measured("--rows", "lonlat", "--seeds", "1")
    marked = json.loads(file.read_text())
    marked["scores"][0]["score"] = 7.0  # whether it is measured again shows
    file.write_text(json.dumps(marked))
    scores = measured("--rows", "lonlat,unit", "--seeds", "2")
    assert len(scores) == 2 * 2 * 2
    assert [score["score"] for score in scores].count(7.0) == 1
    assert len(measured("--rows", "cubic", "--seeds", "1")) == 2 * 2 * 2 + 2  # the others stay in the file
    marked["versions"]["numpy"] = "0.1"
    file.write_text(json.dumps(marked))
    refused = click.testing.CliRunner().invoke(probes.main, [*map(str, arguments), "--rows", "lonlat"])
    assert refused.exit_code == 2
    assert "made with numpy 0.1" in refused.output

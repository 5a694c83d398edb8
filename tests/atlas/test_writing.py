"""An atlas is written whole or not at all, with as few nodes as its tolerance allows."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from factories.atlas import PARIS

import satclip_engine as se
from satclip_engine.atlas import folder, writer
from satclip_engine.atlas.file import square, triangle
from satclip_engine.atlas.global_zones import count_nodes, merged
from satclip_engine.atlas.packing import differenced, undifferenced
from satclip_engine.atlas.write import write_atlas
from satclip_engine.errors import OutputError, UsageError
from satclip_engine.lattice.zones import make_zones

pytest.importorskip("zarr")


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("a.tif", {}, r"ends in \.zarr"),
        ("a.zarr", {"dtype": "int8"}, "dtype must be one of int16, float16, float32"),
        ("a.zarr", {"threads": 0}, "threads must be"),
        ("a.zarr", {"tolerance": 0}, "tolerance must be positive"),
        ("a.zarr", {"tolerance": 1e-9}, "below what float32 can keep"),
        ("a.zarr", {"tolerance": 1e-4}, r"int16 cannot keep .* leaves 0\.000\d+ σ.*float32"),
        ("a.zarr", {"tolerance": 1e-3, "dtype": "float16"}, "float16 cannot keep .*int16"),
        ("a.zarr", {"limit": 10_000}, "more than .* GB: give a larger tolerance"),
    ],
)
def test_what_cannot_be_written_is_refused(exact, tmp_path, name, how, words):
    with pytest.raises(UsageError, match=words):
        write_atlas(exact, tmp_path / name, **how)
    assert list(tmp_path.iterdir()) == []


def test_an_atlas_is_not_written_of_an_atlas(atlas, tmp_path):
    with pytest.raises(UsageError, match="an atlas already"):
        write_atlas(atlas, tmp_path / "a.zarr")


def test_what_is_there_is_kept_unless_it_is_an_atlas_to_overwrite(exact, copied, tmp_path):
    with pytest.raises(OutputError, match="exists already"):
        write_atlas(exact, copied)
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.txt").write_text("years")
    with pytest.raises(OutputError, match="no atlas"):
        write_atlas(exact, tmp_path / "mine.zarr", overwrite=True)
    assert (tmp_path / "mine.zarr" / "thesis.txt").read_text() == "years"
    with pytest.raises(OutputError, match="there is no folder"):
        write_atlas(exact, tmp_path / "no" / "a.zarr")
    write_atlas(exact.select("1-2"), copied, overwrite=True, tolerance=1e-2)
    assert se.load(copied).embed_dim == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy.zarr", "mine.zarr"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError])
@pytest.mark.parametrize("where", ["write", "publish"])
def test_what_fails_leaves_nothing(exact, copied, tmp_path, monkeypatch, error, where):
    def fails(*_, **__):
        raise error

    owner = {"write": folder.ZoneArray, "publish": folder.Folder}[where]
    monkeypatch.setattr(owner, "write" if where == "write" else "_rename", fails)
    expected = OutputError if isinstance(error, OSError) else error
    with pytest.raises(expected):
        write_atlas(exact, tmp_path / "new.zarr", tolerance=1e-2)
    with pytest.raises(expected):
        write_atlas(exact, copied, tolerance=1e-2, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["copy.zarr"]
    assert np.isfinite(se.load(copied)(PARIS)).all()


def test_a_zone_that_errs_too_much_is_refined(exact, tmp_path, monkeypatch):
    monkeypatch.setattr("satclip_engine.atlas.global_zones._PROBE_LENIENCE", 40.0)
    report = write_atlas(exact, tmp_path / "a.zarr", tolerance=5e-3)
    assert report.rounds > 1
    assert report.certificate.max_tolerance <= 1.0
    monkeypatch.setattr(writer, "REFINEMENT_ROUNDS", 1)
    with pytest.raises(UsageError, match="did not keep a tolerance"):
        write_atlas(exact, tmp_path / "b.zarr", tolerance=5e-3)


def test_nodes_beyond_the_sampled_range_are_kept(exact, tmp_path, monkeypatch):
    spiral = writer.spiral
    monkeypatch.setattr(writer, "spiral", lambda count: spiral(count)[:2000])  # of the Arctic only
    report = write_atlas(exact, tmp_path / "a.zarr", tolerance=5e-3)
    assert report.certificate.max_sigma <= 5e-3


def test_progress_counts_nodes(exact, tmp_path):
    class Told:
        total = done = 0
        stages: tuple[str, ...] = ()
        finished = False

        def start(self, total):
            self.total, self.done = total, 0

        def advance(self, count):
            self.done += count

        def stage(self, text):
            self.stages += (text,)

        def finish(self):
            self.finished = True

    told = Told()
    report = write_atlas(exact, tmp_path / "a.zarr", tolerance=1e-2, progress=told)
    assert told.finished
    assert told.done == told.total
    assert report.rounds > 1 or told.total == report.nodes
    assert "measuring the error" in told.stages
    json.dumps(report.as_dict(), allow_nan=False)


# Parts


def test_folding_loses_nothing():
    random = np.random.default_rng(0)
    codes = random.integers(-32767, 32768, (16, 75, 5)).astype(np.int16)
    stored = differenced(codes)
    for left in (0, 32, 64):
        part = stored[:, left : left + 32]
        np.testing.assert_array_equal(undifferenced(part), codes[:, left : left + 32])


@pytest.mark.parametrize(("spacing", "order"), [(2.0, 8), (2.0, 12), (0.3, 8), (30.0, 4)])
def test_merged_zones_cover_the_earth_with_fewer_nodes(spacing, order):
    zones = make_zones(spacing, order)
    found = merged(zones)
    assert count_nodes(found) <= count_nodes(zones)
    assert (found[0].south, found[-1].north) == (-90.0, 90.0)
    assert all(a.north == b.south for a, b in itertools.pairwise(found))


def test_a_triangle_holds_a_symmetric_matrix():
    matrix = np.arange(9.0).reshape(3, 3)
    matrix += matrix.T
    np.testing.assert_array_equal(square(triangle(matrix)), matrix)

"""Of an atlas's file only what is needed is read, from anywhere, and what is wrong with it is said."""

from __future__ import annotations

import functools
import json
import multiprocessing
import pickle
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from factories.atlas import PARIS, places

import satclip_engine as se
from satclip_engine.atlas.file import AtlasFile
from satclip_engine.atlas.write import write_atlas
from satclip_engine.errors import MissingExtra, UsageError, WeightsError

zarr = pytest.importorskip("zarr")


def metadata(folder: Path) -> dict:
    return json.loads((folder / "zarr.json").read_text())


def change(folder: Path, **attributes: object) -> None:
    content = metadata(folder)
    content["attributes"].update(attributes)
    (folder / "zarr.json").write_text(json.dumps(content))


def refusal(source: object) -> str:
    with pytest.raises(WeightsError) as error:
        se.load(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_only_chunks_that_are_needed_are_read(atlas_path, monkeypatch):
    read = []
    stored = AtlasFile.stored

    def counted(self, zone, rows, columns):
        read.append((zone, len(rows) // 16, -(-columns.stop // 32) - columns.start // 32))
        return stored(self, zone, rows, columns)

    monkeypatch.setattr(AtlasFile, "stored", counted)
    atlas = se.load(atlas_path)
    assert read == []
    atlas(PARIS)
    assert sum(rows * columns for _, rows, columns in read) <= 4
    atlas([*PARIS, [139.7, 35.7], [-70.0, -50.0]])
    assert sum(rows * columns for _, rows, columns in read) <= 12
    before = len(read)
    atlas.select([3])(PARIS)
    atlas.with_head(np.ones((1, 8)))([[2.4, 48.9]])
    assert len(read) == before  # shared
    grid = atlas.grid(resolution=5).values
    total = sum(rows * columns for _, rows, columns in read)
    np.testing.assert_array_equal(atlas.grid(resolution=5).values, grid)
    assert sum(rows * columns for _, rows, columns in read) == total


class _Handler(SimpleHTTPRequestHandler):
    asked: list[str]
    broken = False
    folder: str | None = None

    def do_GET(self):
        self.directory = self.folder or self.directory
        self.asked.append(self.path)
        if self.broken and "/c/" in self.path:
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(atlas_path: Path):
    """An HTTP server of the atlas's folder: its handler class and address."""
    pytest.importorskip("aiohttp")
    handler = type("Handler", (_Handler,), {"asked": []})
    httpd = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(atlas_path.parent))
    )
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield handler, f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_over_http_it_asks_for_what_it_needs(server, atlas):
    handler, address = server
    remote = se.load(f"{address}/earth.zarr/")
    assert len(handler.asked) <= 2
    np.testing.assert_array_equal(remote(PARIS), atlas(PARIS))
    assert len(handler.asked) <= 2 + 4
    np.testing.assert_array_equal(remote.grid(resolution=10).values, atlas.grid(resolution=10).values)
    assert len(set(handler.asked)) == len(handler.asked)  # nothing twice
    again = pickle.loads(pickle.dumps(remote.select("1")))
    np.testing.assert_array_equal(again(PARIS), atlas(PARIS)[:, :1])


def test_over_http_a_forked_process_connects_anew(server, atlas):
    _, address = server
    remote, context = se.load(f"{address}/earth.zarr"), multiprocessing.get_context("fork")
    remote(PARIS)
    answers = context.Queue()
    child = context.Process(target=lambda: answers.put(remote([[70.0, -30.0]])))
    child.start()
    try:
        np.testing.assert_array_equal(answers.get(timeout=20), atlas([[70.0, -30.0]]))
    finally:
        child.kill()
        child.join()


def test_over_http_errors_are_sentences(server, monkeypatch):
    monkeypatch.setattr("satclip_engine.atlas.file._PAUSE_SECONDS", 0.0)
    handler, address = server
    assert refusal(f"{address}/mars.zarr") == f"{address}/mars.zarr: no Zarr group is there"
    remote = se.load(f"{address}/earth.zarr")
    handler.broken = True
    with pytest.raises(WeightsError, match="cannot be read: 503"):
        remote(PARIS)
    handler.broken = False
    assert np.isfinite(remote(PARIS)).all()  # as soon as it can
    assert "cannot be read as an atlas" in refusal("http://127.0.0.1:1/earth.zarr")


@pytest.mark.parametrize("victim", ["zarr.json", "zone00/c/1/1/0"])
def test_over_http_files_without_end_are_refused(server, copied, victim):
    handler, address = server
    handler.folder = str(copied.parent)
    with (copied / victim).open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(WeightsError, match="more than the"):
        se.load(f"{address}/copy.zarr")(places(500))


def test_over_http_chunks_of_another_place_are_noticed(server, copied):
    handler, address = server
    handler.folder = str(copied.parent)
    first, second = (copied / "zone00" / "c" / "1" / name / "0" for name in "01")
    shutil.copyfile(first, second)
    with pytest.raises(WeightsError, match="is a chunk of another place or atlas"):
        se.load(f"{address}/copy.zarr")(places(500))


def test_any_file_system_of_fsspec_will_do(atlas_path, atlas):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.put(str(atlas_path), "/shelf/earth.zarr", recursive=True)
    np.testing.assert_array_equal(se.load("memory://shelf/earth.zarr")(PARIS), atlas(PARIS))
    memory.rm("/shelf", recursive=True)
    with pytest.raises((MissingExtra, WeightsError)):
        se.load("no-such-protocol://host/earth.zarr")


# What it refuses


@pytest.mark.parametrize(
    "option", [{"harmonics": "exact"}, {"backend": "cpu"}, {"device": "cuda"}, {"precision": "fast"}]
)
def test_options_of_a_network_are_refused(atlas_path, option):
    with pytest.raises(UsageError, match=f"an atlas holds no network: {next(iter(option))}="):
        se.load(atlas_path, **option)


@pytest.mark.parametrize("how", [{"exact": True}, {"tolerance": 1e-6}])
def test_more_than_it_has_is_refused(atlas, tmp_path, how):
    import satclip_engine.xarray  # noqa: F401

    jobs = (
        lambda: atlas(PARIS, **how),
        lambda: atlas.grid(resolution=10, **how),
        lambda: atlas.grid(resolution=10, dtype="int8", **how),
        lambda: atlas.grid(resolution=10).satclip.embed(atlas, **how),
        lambda: se.write_raster(atlas, tmp_path / "a.tif", se.make_grid(resolution=10), **how),
    )
    for job in jobs:
        with pytest.raises(UsageError, match=r"no network and errs by up to|interpolates by a plan"):
            job()
    assert not (tmp_path / "a.tif").exists()


def test_a_tolerance_that_it_keeps_is_fine(atlas):
    np.testing.assert_array_equal(atlas(PARIS, tolerance=1e-3), atlas(PARIS))
    with pytest.raises(UsageError, match="tolerance must be"):
        atlas(PARIS, tolerance=-1)


def test_what_needs_the_network_says_so(atlas):
    jobs = (
        lambda: atlas.layers.weights,
        lambda: atlas.layers.degrees,
        lambda: atlas.layers.astype("f4"),
        lambda: atlas.weights.tensors,
        lambda: atlas.weights.folded(),
        lambda: atlas.weights.save("w.safetensors"),
    )
    for job in jobs:
        with pytest.raises(UsageError, match="is an atlas, which holds no network"):
            job()


def test_what_is_no_atlas_is_refused(tmp_path):
    assert refusal(tmp_path / "none.zarr") == f"{tmp_path / 'none.zarr'}: no such file or folder"
    (tmp_path / "empty.zarr").mkdir()
    assert "no Zarr group is there" in refusal(tmp_path / "empty.zarr")
    (tmp_path / "file.zarr").write_text("no")
    assert "file.zarr" in refusal(tmp_path / "file.zarr")
    zarr.open_group(tmp_path / "other.zarr", mode="w", zarr_format=3, attributes={"format": "OME"})
    assert "is a Zarr group but no atlas" in refusal(tmp_path / "other.zarr")
    zarr.create_array(tmp_path / "array.zarr", shape=(3,), dtype="f4")
    assert "array.zarr" in refusal(tmp_path / "array.zarr")
    zarr.open_group(tmp_path / "two.zarr", mode="w", zarr_format=2, attributes={"format": "satclip-atlas"})
    assert "two.zarr" in refusal(tmp_path / "two.zarr")


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"version": 1}, "atlas of format version 1, this software reads 2"),
        ({"scale": [1.0]}, "scale: expected a list of 8 items, one a band, found [1.0]"),
        ({"zones": []}, "zones: expected a list of 1 to 64 items, found []"),
        ({"zones": [{"south": 0}]}, "zones[0].north: missing"),
        ({"dtype": "int8"}, "dtype: expected one of int16, float16, float32, found 'int8'"),
        (
            {"dtype": "\x1b]0;mine\x07"},
            r"dtype: expected one of int16, float16, float32, found '\x1b]0;mine\x07'",
        ),
        ({"certificate": None}, "certificate: expected a dictionary, found None"),
        ({"reach": float("nan")}, "reach: expected a number from 0 to 1e+37, found nan"),
        ({"band_names": ["a\0b"] + ["c"] * 7}, "band_names[0]: expected at most 200 printable letters"),
        ({"software": "another one"}, "do not have the sha256 that attributes_sha256 states"),
    ],
)
def test_damaged_attributes_are_refused(copied, attributes, words):
    change(copied, **attributes)
    assert words in refusal(copied)
    assert str(copied) in refusal(copied)


def test_a_missing_array_is_refused(copied):
    content = metadata(copied)
    del content["consolidated_metadata"]
    (copied / "zarr.json").write_text(json.dumps(content))
    assert np.isfinite(se.load(copied)(PARIS)).all()  # more requests, the same answers
    shutil.rmtree(copied / "zone00")
    assert "has no array zone00" in refusal(copied)


def test_a_missing_chunk_is_named(copied):
    for chunk in (copied / "zone00" / "c").rglob("0"):
        if chunk.is_file():
            chunk.unlink()
    with pytest.raises(WeightsError, match=r"copy\.zarr: .* chunk zone00/c/\d+/\d+/0 is missing"):
        se.load(copied)(places(500))


def test_a_damaged_chunk_is_noticed(copied):
    for chunk in [file for file in (copied / "zone00" / "c").rglob("0") if file.is_file()]:
        content = bytearray(chunk.read_bytes())
        content[len(content) // 2] ^= 1
        chunk.write_bytes(content)
    with pytest.raises(WeightsError, match=r"copy\.zarr: zone00, rows .* cannot be read"):
        se.load(copied)(places(500))


def test_without_zarr_the_extra_is_named(atlas_path, exact, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    for job in (lambda: se.load(atlas_path), lambda: write_atlas(exact, tmp_path / "a.zarr")):
        with pytest.raises(MissingExtra, match=r"satclip-engine\[atlas\]"):
            job()
    assert list(tmp_path.iterdir()) == []

"""The feature cache: what it holds, going on after a stop, refusing what does not belong, full disks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from factories.training import MadeEncoder, MadeSource

from satclip_engine.errors import DataError, OutputError, UsageError
from satclip_engine.training.features import FeatureCache, build_cache
from satclip_engine.training.images.augment import Augmentation
from satclip_engine.training.patches import read_index

torch = pytest.importorskip("torch")
TESTS = str(Path(__file__).parents[1])


def build(folder, source=None, encoder=None, **options):
    options = {"views": 3, "shard": 16, "batch": 12, **options}
    return build_cache(source or MadeSource(), encoder or MadeEncoder(), folder, **options)


def content(folder):
    """Bytes of every file but the lock."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != "lock"}


def test_the_cache_holds_the_trunks_output_for_every_view(tmp_path):
    source, encoder = MadeSource(), MadeEncoder()
    cache = build(tmp_path / "cache", source, encoder, seed=4)
    assert (len(cache), cache.views, cache.dim) == (50, 3, 6)
    np.testing.assert_array_equal(cache.lonlat, source.lonlat)
    images = source.read(range(50))
    views = torch.from_numpy(Augmentation().views(images, range(50), range(3), seed=4))
    for view in range(3):
        expected = encoder.trunk(views[:, view]).half().float()
        assert torch.equal(cache.batch(range(50), view), expected)
    some = np.array([49, 0, 17, 17])
    mixed = cache.batch(some, [0, 2, 1, 0])
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed[2], cache.batch([17], 1)[0])
    assert torch.equal(mixed[0], cache.batch([49])[0])
    with pytest.raises(IndexError):
        cache.batch([50])
    with pytest.raises(IndexError):
        cache.batch([0], 3)


def test_neither_threads_nor_batches_change_more_than_rounding(tmp_path):
    expected = build(tmp_path / "a").batch(range(50), 1)
    for number, options in enumerate(({"workers": 1}, {"workers": 7}, {"batch": 1}, {"batch": 500})):
        found = build(tmp_path / str(number), **options).batch(range(50), 1)
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_unreadable_images_are_left_out_and_listed(tmp_path):
    source = MadeSource(broken=(0, 20, 49))
    cache = build(tmp_path / "cache", source)
    assert [item.path for item in cache.skipped] == ["made-0", "made-20", "made-49"]
    assert len(cache) == 47
    np.testing.assert_array_equal(cache.rows, [i for i in range(50) if i not in source.broken])
    np.testing.assert_array_equal(cache.lonlat, source.lonlat[cache.rows])
    whole = build(tmp_path / "whole")
    np.testing.assert_allclose(cache.batch(range(47), 2), whole.batch(cache.rows, 2), atol=1e-3)


def test_a_shard_may_be_left_without_images(tmp_path):
    cache = build(tmp_path / "cache", MadeSource(24, broken=tuple(range(8, 16)), max_skipped=8), shard=8)
    assert len(cache) == 16
    assert cache.batch(range(16)).isfinite().all()


def test_more_unreadable_images_than_allowed_are_an_error(tmp_path):
    with pytest.raises(
        DataError, match=r"4 of 50 images cannot be used, more than the 3 allowed: made-1 \(broken\)"
    ):
        build(tmp_path / "cache", MadeSource(broken=(1, 2, 3, 4), max_skipped=3))
    with pytest.raises(DataError, match="unfinished"):
        FeatureCache.open(tmp_path / "cache")


def test_features_that_float16_cannot_hold_are_left_out(tmp_path):
    class Huge(MadeEncoder):
        def trunk(self, batch):
            features = super().trunk(batch)
            return torch.where(features[:, :1] > 0.55, features * 1e9, features)

    cache = build(
        tmp_path / "cache", MadeSource(max_skipped=50), Huge(), augmentation=Augmentation(flips=False)
    )
    assert 0 < len(cache) < 50
    assert "its features are not finite" in str(cache.skipped[0])
    assert cache.batch(range(len(cache))).isfinite().all()


def test_a_finished_cache_is_opened_and_not_made_again(tmp_path):
    build(tmp_path / "cache")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("features-*")}

    class Untouched(MadeEncoder):
        def trunk(self, batch):
            raise AssertionError("nothing is to be computed")

    build(tmp_path / "cache", encoder=Untouched())
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert FeatureCache.open(tmp_path / "cache").fingerprint == build(tmp_path / "cache").fingerprint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder": MadeEncoder(2.0)}, r"differs in encoder \(corners \w{8}, now corners \w{8}\)"),
        (
            {"source": MadeSource(seed=1)},
            r"differs in images \(50 of made as before, but a file's size or time of change, .*"
            r"if they were only copied or touched, give .* itself as the data",
        ),
        ({"source": MadeSource(40)}, r"differs in images \(50 of made, now 40 of made\)"),
        ({"views": 2}, r"differs in views \(3, now 2\)"),
        ({"seed": 1}, r"differs in seed \(0, now 1\)"),
        (
            {"augmentation": Augmentation(10)},
            r"augmentation \(whole images, flips, blur, now crops of 10, flips, blur\)",
        ),
    ],
)
def test_a_cache_of_something_else_is_refused_and_can_be_replaced(tmp_path, change, words):
    build(tmp_path / "cache")
    before = content(tmp_path / "cache")
    with pytest.raises(DataError, match=words) as caught:
        build(tmp_path / "cache", **change)
    assert "replace the cache" in str(caught.value)
    assert str(caught.value).endswith("with rebuild=True")
    assert caught.value.argument == "rebuild"
    assert content(tmp_path / "cache") == before
    fresh = build(tmp_path / "fresh", **change)
    assert build(tmp_path / "cache", **change, rebuild=True).fingerprint == fresh.fingerprint
    assert content(tmp_path / "cache") == content(tmp_path / "fresh")


SCRIPT = textwrap.dedent("""
    import sys, time
    sys.path.insert(0, sys.argv[2])
    from factories.training import MadeEncoder, MadeSource
    from satclip_engine.training.features import build_cache

    class Slow(MadeEncoder):
        def trunk(self, batch):
            time.sleep(0.05)
            return super().trunk(batch)

    build_cache(MadeSource(200, broken=(3, 30)), Slow(), sys.argv[1], views=3, shard=16, batch=12)
""")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_stopped_run_goes_on_and_writes_the_same_bytes(tmp_path, number):
    source = MadeSource(200, broken=(3, 30))
    build(tmp_path / "whole", source)
    folder = tmp_path / "cache"
    # A shell's background jobs ignore Ctrl-C, and their children inherit that.
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", start + SCRIPT, folder, TESTS], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(folder.glob("features-*.npy"))) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        process.wait(30)
    finally:
        process.kill()
    finished = json.loads((folder / "manifest.json").read_text())["shards"]
    assert 2 <= len(finished) < 13
    with pytest.raises(DataError, match="unfinished"):
        FeatureCache.open(folder)
    before = {name: (folder / name).stat().st_mtime_ns for name in finished}
    build(folder, source)
    assert before == {name: (folder / name).stat().st_mtime_ns for name in finished}
    assert content(folder) == content(tmp_path / "whole")


def test_damaged_and_missing_shards_are_named_and_computed_again(tmp_path):
    folder = tmp_path / "cache"
    build(folder)
    whole = content(folder)
    first, second = folder / "features-00000.npy", folder / "features-00001.npy"
    for damage in (
        lambda: first.write_bytes(first.read_bytes()[:-100]),
        lambda: first.write_bytes(first.read_bytes()[:-4] + b"\1\2\3\4"),
        first.unlink,
    ):
        damage()
        with pytest.raises(DataError, match=r"features-00000\.npy is (damaged|missing).*build the cache"):
            FeatureCache.open(folder)
        stamp = second.stat().st_mtime_ns
        build(folder)
        assert content(folder) == whole
        assert second.stat().st_mtime_ns == stamp
    (folder / "lonlat.npy").write_bytes(whole["lonlat.npy"][:-8] + b"\0" * 8)
    with pytest.raises(DataError, match=r"lonlat\.npy is damaged"):
        FeatureCache.open(folder)
    manifest = json.loads(whole["manifest.json"])
    for foreign in ({**manifest, "shards": {"features-00000.npy": {}}}, {**manifest, "made_of": None}, []):
        (folder / "manifest.json").write_text(json.dumps(foreign))
        for call in (FeatureCache.open, build):
            with pytest.raises(
                DataError, match=r"is not the manifest of a feature cache.* with rebuild=True"
            ):
                call(folder)
    (folder / "manifest.json").write_text("{")
    for call in (FeatureCache.open, build):
        with pytest.raises(
            DataError, match=r"manifest\.json cannot be read.*replace the cache in .* with rebuild=True"
        ):
            call(folder)
    build(folder, rebuild=True)
    assert content(folder) == whole


def test_a_shard_of_another_shape_is_damaged_even_unverified(tmp_path):
    build(tmp_path / "cache")
    np.save(tmp_path / "cache" / "features-00001.npy", np.zeros((16, 3, 5), np.float16))
    with pytest.raises(DataError, match=r"holds float16 \(16, 3, 5\), expected float16 \(16, 3, 6\)"):
        FeatureCache.open(tmp_path / "cache", verify=False)


def test_a_full_disk_is_one_line_that_names_the_file_and_nothing_whole_is_lost(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
    code = SCRIPT.replace("shard=16", "shard=64")
    process = subprocess.run(
        [sys.executable, "-c", limit + code, tmp_path / "cache", TESTS], capture_output=True, text=True
    )
    last = process.stderr.strip().splitlines()[-1]
    assert "OutputError: cannot write" in last
    assert "features-00000.npy: File too large; what is finished is kept" in last
    assert not list((tmp_path / "cache").glob("*.part"))
    build(tmp_path / "cache", MadeSource(200, broken=(3, 30)), shard=64)
    build(tmp_path / "whole", MadeSource(200, broken=(3, 30)), shard=64)
    assert content(tmp_path / "cache") == content(tmp_path / "whole")


def test_too_little_room_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(OutputError, match=r"need 1.8 kB, the disk of .* has 1 kB free"):
        build(tmp_path / "cache")


def test_folders_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"holds other files \(thesis\.txt\)"):
        build(tmp_path, rebuild=True)
    assert os.listdir(tmp_path) == ["thesis.txt"]
    with pytest.raises(OutputError, match="it is a file"):
        build(tmp_path / "thesis.txt")
    with pytest.raises(DataError, match="holds no feature cache"):
        FeatureCache.open(tmp_path)


def test_only_a_caches_own_files_are_removed_and_what_a_killed_run_was_writing(tmp_path):
    build(tmp_path)
    others = [
        "notes.part",
        ".notes.txt.part",
        "features-1.npy",
        ".features-00001.npy.part.txt",
        "rows.npy.old",
    ]
    for name in others:
        (tmp_path / name).write_text("precious")
    for name in (".features-00099.npy.part", ".manifest.json.part", "features-00077.npy"):
        (tmp_path / name).write_text("of a killed run")
    build(tmp_path, seed=1, rebuild=True)
    assert others == [name for name in others if (tmp_path / name).read_text() == "precious"]
    own = {*(f"features-{number:05d}.npy" for number in range(4)), "lonlat.npy", "rows.npy", "manifest.json"}
    own.add("encoder.pt")
    assert set(os.listdir(tmp_path)) == {*others, *own, "lock"}


def test_a_cache_may_lie_behind_a_link_but_nothing_in_it_may(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    build(tmp_path / "cache")
    shard, precious = tmp_path / "disk" / "features-00000.npy", tmp_path / "precious"
    precious.write_text("precious")
    shard.unlink()
    shard.symlink_to(precious)
    with pytest.raises(OutputError, match=r"features-00000\.npy is in the way: it is a link to"):
        build(tmp_path / "cache", seed=1, rebuild=True)
    assert (tmp_path / "disk" / "manifest.json").exists()
    (tmp_path / "disk" / "lock").unlink()
    (tmp_path / "disk" / "lock").symlink_to(precious)
    with pytest.raises(OutputError, match="lock is in the way: it is a link to"):
        build(tmp_path / "cache")
    assert precious.read_text() == "precious"


def test_options_that_cannot_be_are_refused(tmp_path):
    for bad in ({"views": 0}, {"shard": 0}, {"batch": 0}):
        with pytest.raises(UsageError, match="expected at least 1, got 0"):
            build(tmp_path / "cache", **bad)
    encoder = MadeEncoder()
    encoder.channels = 13
    with pytest.raises(UsageError, match="takes 13 channels, the images have 3"):
        build(tmp_path / "cache", encoder=encoder)
    with pytest.raises(UsageError, match="smaller than the crop"):
        build(tmp_path / "cache", augmentation=Augmentation(20))
    assert not (tmp_path / "cache").exists()


def test_progress_counts_every_image_and_ends(tmp_path):
    class Heard:
        total = done = ended = 0

        def start(self, total):
            self.total = total

        def advance(self, count):
            self.done += count

        def stage(self, text): ...

        def finish(self):
            self.ended += 1

    heard = Heard()
    build(tmp_path / "cache", MadeSource(broken=(3,)), progress=heard)
    assert (heard.total, heard.done, heard.ended) == (50, 50, 1)


def test_real_patches_go_through_random_features(s2, tmp_path):
    from satclip_engine.training.images import load_encoder

    path = s2 / "images" / "patch_25630.tif"
    path.write_bytes(path.read_bytes()[:300_000])
    source = read_index(s2)
    encoder = load_encoder("rcf", source, filters=8)
    cache = build_cache(source, encoder, tmp_path / "cache", views=2, augmentation=Augmentation(224))
    assert len(cache) == 3
    assert cache.skipped[0].path.endswith("patch_25630.tif")
    features = [cache.batch(range(3), view) for view in range(2)]
    apart = torch.cdist(features[0], features[1])
    assert (apart.argmin(dim=1) == torch.arange(3)).all()  # an image's other view is nearer than other images


def test_features_lie_on_earth_when_they_are_made_and_when_they_are_read(tmp_path):
    source = MadeSource()
    source.lonlat[7] = 121.0, 95.0
    with pytest.raises(DataError, match=r"made: latitude outside \[-90, 90\] in image 7 \(lat 95\)"):
        build(tmp_path / "cache", source)
    assert not (tmp_path / "cache").exists()
    build(tmp_path / "cache")
    lonlat = np.load(tmp_path / "cache" / "lonlat.npy")
    lonlat[3, 0] = np.nan
    np.save(tmp_path / "cache" / "lonlat.npy", lonlat)
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    manifest["lonlat_sha256"] = hashlib.sha256(lonlat.tobytes()).hexdigest()
    (tmp_path / "cache" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="longitude or latitude is missing or not finite in sample 3"):
        FeatureCache.open(tmp_path / "cache")

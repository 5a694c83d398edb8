"""Building the feature cache: images pass through the frozen trunk once, and training reads what came out.

Of every image `views` augmented views go through the encoder's trunk, and the results are stored as float16,
which rounds a feature by at most 5e-4 of its value. A shard holds the images of a fixed range of the source.
A run that was stopped goes on behind the last whole shard and writes the same bytes: views are fixed by seed,
image and view, and batches never cross shards.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from satclip_engine._optional import need
from satclip_engine.errors import DataError, OutputError, UsageError
from satclip_engine.progress import Progress, Silence
from satclip_engine.raster.output import disk_errors, size_text
from satclip_engine.raster.spool import locked_folder
from satclip_engine.training import shards
from satclip_engine.training.augment import Augmentation
from satclip_engine.training.feature_cache import FeatureCache
from satclip_engine.training.images import ImageEncoder, augmentation_for
from satclip_engine.training.source import PatchSource, Skipped, check_skipped, default_readers

if TYPE_CHECKING:
    pass

__all__ = ["FeatureCache", "build_cache"]

_SHARD = 4096  # images
_BATCH_BYTES = 64 << 20  # of views that go through the trunk at once
_BATCH_MOST = 4096
_AHEAD = 2  # blocks of views beyond those being made, per cache, that wait for the trunk


@dataclass(frozen=True)
class _Job:
    """What a cache is made of."""

    source: PatchSource
    encoder: ImageEncoder
    augmentation: Augmentation
    views: int
    seed: int
    shard: int
    batch: int  # views a call of the trunk

    def made_of(self) -> dict[str, Any]:
        """What decides the content, for telling one cache from another."""
        return {
            "images": self.source.fingerprint,
            "encoder": self.encoder.fingerprint,
            "augmentation": self.augmentation.fingerprint,
            "views": self.views,
            "seed": self.seed,
            "shard": self.shard,
        }

    def in_words(self) -> dict[str, str]:
        return {
            "images": f"{len(self.source)} of {self.source.name}",
            "encoder": f"{self.encoder.name} {self.encoder.fingerprint[:8]}",
            "augmentation": str(self.augmentation),
            "views": str(self.views),
            "seed": str(self.seed),
            "shard": str(self.shard),
        }

    def ranges(self) -> dict[str, range]:
        """Every shard's name and images."""
        starts = range(0, len(self.source), self.shard)
        return {
            shards.shard_name(number): range(start, min(start + self.shard, len(self.source)))
            for number, start in enumerate(starts)
        }


def build_cache(
    source: PatchSource,
    encoder: ImageEncoder,
    folder: str | os.PathLike[str],
    *,
    views: int = 1,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    batch: int | None = None,
    workers: int | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    shard: int = _SHARD,
) -> FeatureCache:
    """Make the cache in `folder`, or what is missing of it, and open it.

    augmentation: the published one at the encoder's own size without.
    batch: views a call of the trunk; as many as make 64 MB without.
    workers: threads that read images and make views.
    resume: go on with what `folder` holds; False replaces it.

    Raises DataError when `folder` holds a cache of something else, naming what differs, or when too many
    images cannot be used; OutputError when it cannot be written.
    """
    folder = Path(folder)
    augmentation = augmentation or augmentation_for(encoder, source)
    height, width = augmentation.output_size(source.size)
    if views < 1 or shard < 1 or (batch is not None and batch < 1):
        raise UsageError("views, batch and shard must be at least 1")
    if encoder.channels != source.channels:
        raise UsageError(
            f"{encoder.name} takes {encoder.channels} channels, the images have {source.channels}"
        )
    default = min(max(1, _BATCH_BYTES // (4 * source.channels * height * width)), _BATCH_MOST)
    job = _Job(source, encoder, augmentation, views, seed, shard, batch or default)
    _check_folder(folder)
    progress = progress or Silence()
    try:
        with locked_folder(folder):
            manifest = _manifest(job, folder, resume)
            _compute(job, folder, manifest, workers or default_readers(), progress)
            _finish(job, folder, manifest)
    finally:
        progress.finish()
    return FeatureCache.open(folder, verify=False)


def _check_folder(folder: Path) -> None:
    """Make the folder's parents. Raises OutputError for a folder that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"cannot write the feature cache {folder}: it is a file")
    if folder.is_dir() and not (folder / shards.MANIFEST).exists():
        other = [entry.name for entry in folder.iterdir() if entry.name != "lock" and entry.suffix != ".part"]
        if other:
            raise OutputError(
                f"{folder} holds other files ({other[0]}) and no feature cache: choose another folder"
            )
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)


def _manifest(job: _Job, folder: Path, resume: bool) -> dict[str, Any]:
    """The manifest to go on with: the folder's own, without damaged shards, or a fresh one."""
    found = shards.read_manifest(folder) if resume else None
    if found is None:
        shards.remove_cache(folder)
        fresh = {
            "format": shards.FORMAT,
            "complete": False,
            "made_of": job.made_of(),
            "in_words": job.in_words(),
            "dim": job.encoder.dim,
            "shards": {},
            "skipped": [[item.path, item.reason] for item in job.source.skipped],
        }
        shards.write_manifest(folder, fresh)
        return fresh
    _check_same(job, folder, found)
    found["shards"] = {
        name: entry for name, entry in found["shards"].items() if _is_whole(folder / name, entry["crc"])
    }
    found["complete"] &= found["shards"].keys() == job.ranges().keys()
    return found


def _check_same(job: _Job, folder: Path, found: dict[str, Any]) -> None:
    """Raise DataError naming everything in which a cache differs from what is asked for."""
    now, words = job.made_of(), job.in_words()
    different = [
        f"{key} ({found['in_words'].get(key)}, now {words[key]})"
        for key in now
        if found["made_of"].get(key) != now[key]
    ]
    if different:
        raise DataError(
            f"{folder} holds the features of something else: it differs in {', '.join(different)}; "
            f"{shards.afresh(folder)}"
        )


def _is_whole(path: Path, crc: int) -> bool:
    try:
        return shards.file_crc(path) == crc
    except OSError:
        return False


def _compute(job: _Job, folder: Path, manifest: dict[str, Any], workers: int, progress: Progress) -> None:
    """Compute and store the shards that the manifest does not name."""
    missing = {name: rows for name, rows in job.ranges().items() if name not in manifest["shards"]}
    total = sum(len(rows) for rows in missing.values())
    if not total:
        return
    _check_room(folder, total * job.views * job.encoder.dim * 2)
    progress.stage("image features")
    progress.start(total)
    with ThreadPoolExecutor(workers, thread_name_prefix="images") as pool:
        try:
            blocks = _ahead(pool, job, missing.values(), workers + _AHEAD)
            for name, rows in missing.items():
                _store_shard(job, folder, manifest, name, rows, blocks, progress)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _store_shard(
    job: _Job,
    folder: Path,
    manifest: dict[str, Any],
    name: str,
    rows: range,
    blocks: Iterator[_Block],
    progress: Progress,
) -> None:
    """Put a shard's views through the trunk, write it, and note it in the manifest."""
    features, skipped, done = [], [], 0
    while done < len(rows):
        block = next(blocks)
        found, failed = _features(job, block)
        features.append(found)
        skipped += block.skipped + failed
        done += block.images
        progress.advance(block.images)
    array = np.concatenate(features)
    crc = shards.write_array(folder / name, array)
    entry = {
        "rows": len(array),
        "crc": crc,
        "skipped": [[row, item.path, item.reason] for row, item in skipped],
    }
    manifest["shards"] = dict(sorted({**manifest["shards"], name: entry}.items()))
    shards.write_manifest(folder, manifest)
    everything = [*job.source.skipped, *(Skipped(*item[1:]) for item in _skipped_rows(manifest))]
    total = len(job.source) + len(job.source.skipped)
    check_skipped(everything, total, job.source.max_skipped, job.source.name)


@dataclass(frozen=True)
class _Block:
    """Views of some images."""

    images: int  # that were asked for
    rows: list[int]  # of the source, that could be read
    views: np.ndarray | None  # (rows, views, C, h, w) float32; None without rows
    skipped: list[tuple[int, Skipped]]


def _ahead(pool: ThreadPoolExecutor, job: _Job, ranges: Iterable[range], depth: int) -> Iterator[_Block]:
    """Blocks of views in the order of the images, some being made while the trunk is busy."""
    step = max(1, job.batch // job.views)
    pending: deque[Future[_Block]] = deque()
    for rows in ranges:
        for start in range(0, len(rows), step):
            pending.append(pool.submit(_make_views, job, rows[start : start + step]))
            if len(pending) >= depth:
                yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _make_views(job: _Job, rows: range) -> _Block:
    images: list[np.ndarray] = []
    kept: list[int] = []
    skipped = []
    for row, image in zip(rows, job.source.read(rows), strict=True):
        if isinstance(image, Skipped):
            skipped.append((row, image))
        else:
            images.append(image)
            kept.append(row)
    numbers = np.arange(job.views)
    views = job.augmentation.views(images, kept, numbers, seed=job.seed) if images else None
    return _Block(len(rows), kept, views, skipped)


def _features(job: _Job, block: _Block) -> tuple[np.ndarray, list[tuple[int, Skipped]]]:
    """(rows, views, dim) float16 of a block, and the images whose features float16 cannot hold."""
    if block.views is None:
        return np.empty((0, job.views, job.encoder.dim), np.float16), []
    torch = need("torch", extra="train", why="training")
    with torch.inference_mode():
        views = torch.from_numpy(block.views).flatten(0, 1)
        parts = [
            job.encoder.trunk(part.to(job.encoder.device)).half().cpu() for part in views.split(job.batch)
        ]
    features = torch.cat(parts).numpy().reshape(len(block.rows), job.views, job.encoder.dim)
    finite = np.isfinite(features).all(axis=(1, 2))
    failed = [
        (row, Skipped(f"{job.source.name}, image {row}", "its features are not finite"))
        for row, good in zip(block.rows, finite, strict=True)
        if not good
    ]
    return features[finite], failed


def _check_room(folder: Path, needed: int) -> None:
    """Raise OutputError when the disk has no room for the features, before hours are spent."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"the features need {size_text(needed)}, the disk of {folder} has {size_text(free)} free: "
            "make room, choose another folder or fewer views"
        )


def _skipped_rows(manifest: dict[str, Any]) -> list[tuple[int, str, str]]:
    return [tuple(item) for _, entry in manifest["shards"].items() for item in entry["skipped"]]


def _finish(job: _Job, folder: Path, manifest: dict[str, Any]) -> None:
    """Write the places of all features, and say that the cache is complete."""
    left_out = {row for row, *_ in _skipped_rows(manifest)}
    rows = np.array([row for row in range(len(job.source)) if row not in left_out], np.int64)
    lonlat = np.ascontiguousarray(job.source.lonlat[rows])
    shards.write_array(folder / "rows.npy", rows)
    shards.write_array(folder / "lonlat.npy", lonlat)
    manifest.update(complete=True, lonlat_sha256=shards.sha256(lonlat))
    shards.write_manifest(folder, manifest)

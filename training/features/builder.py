"""Builds the feature cache: images pass through the frozen trunk once, and training reads the results.

Of every image `views` augmented views go through the encoder's trunk, and the results are stored as float16,
which rounds a feature by at most 5e-4 of its value. A shard holds the images of a fixed range of the source.
A run that was stopped resumes behind the last whole shard and writes the same bytes: views are fixed by seed,
image and view, and batches never cross shards.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from satclip_engine._optional import need
from satclip_engine.errors import Argument, DataError, OutputError, UsageError
from satclip_engine.files import LOCK, WorkingFolder, locked_folder
from satclip_engine.progress import Progress, Silence, size_text
from satclip_engine.training.features.encoder_file import write_image_encoder
from satclip_engine.training.features.feature_cache import FeatureCache
from satclip_engine.training.features.shards import (
    FORMAT,
    MANIFEST,
    REBUILD,
    file_crc,
    is_temporary,
    read_manifest,
    rebuild_advice,
    remove_cache,
    remove_temporary,
    sha256,
    shard_name,
    write_array,
    write_manifest,
)
from satclip_engine.training.images.augment import Augmentation
from satclip_engine.training.images.encoders import ImageEncoder, augmentation_for
from satclip_engine.training.locations import check_on_earth
from satclip_engine.training.prefetch import prefetch, reader_threads
from satclip_engine.training.sources.source import PatchSource, SkippedImage, check_skipped
from satclip_engine.training.torch_defaults import cpu_by_default

_SHARD_IMAGES: Final = 4096
_BATCH_BYTES: Final = 64 << 20  # of views that go through the trunk at once
_MAX_BATCH_VIEWS: Final = 4096
_CHUNKS_AHEAD: Final = 2  # of views beyond those being made, that wait for the trunk


@dataclass(frozen=True)
class _CacheContent:
    """Content of a cache by all that decides it, and the batch in which it is computed."""

    source: PatchSource
    encoder: ImageEncoder
    augmentation: Augmentation
    views: int
    seed: int
    shard: int  # images
    batch: int  # views a call of the trunk

    def identity(self) -> dict[str, Any]:
        """Fingerprints and numbers by which one cache is told from another."""
        return {
            "images": self.source.fingerprint,
            "encoder": self.encoder.fingerprint,
            "augmentation": self.augmentation.fingerprint,
            "views": self.views,
            "seed": self.seed,
            "shard": self.shard,
        }

    def description(self) -> dict[str, str]:
        """The same for people."""
        return {
            "images": f"{len(self.source)} of {self.source.name}",
            "encoder": f"{self.encoder.name} {self.encoder.fingerprint[:8]}",
            "augmentation": str(self.augmentation),
            "views": str(self.views),
            "seed": str(self.seed),
            "shard": str(self.shard),
        }

    def shard_rows(self) -> dict[str, range]:
        """Rows of the source by shard name."""
        starts = range(0, len(self.source), self.shard)
        return {
            shard_name(number): range(start, min(start + self.shard, len(self.source)))
            for number, start in enumerate(starts)
        }


@cpu_by_default()
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
    rebuild: bool = False,
    progress: Progress | None = None,
    shard: int = _SHARD_IMAGES,
) -> FeatureCache:
    """Build the cache in `folder`, or what is missing of it, and open it.

    augmentation: by default the published one at the encoder's own size.
    batch: views a call of the trunk; by default as many as make 64 MB.
    workers: threads that read images and make views.
    rebuild: replace the cache that `folder` holds; by default it is completed.

    Raises DataError when `folder` holds a cache of something else, naming the differences, or when too many
    images cannot be used; OutputError when it cannot be written.
    """
    folder = Path(folder)
    augmentation = augmentation or augmentation_for(encoder, source)
    height, width = augmentation.output_size(source.size)
    for name, value in (("views", views), ("shard", shard), ("batch", batch)):
        if value is not None and value < 1:
            raise UsageError(f"{name}: expected at least 1, got {value}", argument=name)
    if encoder.channels != source.channels:
        raise UsageError(
            f"{encoder.name} takes {encoder.channels} channels, the images have {source.channels}: load an "
            "encoder for these",
            argument="image_encoder",
        )
    check_on_earth(source.lonlat, "image {}".format, source.name)
    default = min(max(1, _BATCH_BYTES // (4 * source.channels * height * width)), _MAX_BATCH_VIEWS)
    content = _CacheContent(source, encoder, augmentation, views, seed, shard, batch or default)
    _check_folder(folder)
    progress = progress or Silence()
    try:
        with locked_folder(folder) as locked:
            manifest = _start_manifest(content, locked, rebuild)
            _compute(content, folder, manifest, workers or reader_threads(), progress)
            write_image_encoder(folder, encoder)
            _finish(content, folder, manifest)
    finally:
        progress.finish()
    return FeatureCache.open(folder, verify=False)


def _check_folder(folder: Path) -> None:
    """Make the folder's parents. Raises OutputError for a folder that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(
            f"cannot write the feature cache {folder}: it is a file; choose another ",
            Argument("folder"),
            argument="folder",
        )
    if folder.is_dir() and not (folder / MANIFEST).exists():
        other = [
            entry.name for entry in folder.iterdir() if entry.name != LOCK and not is_temporary(entry.name)
        ]
        if other:
            raise OutputError(
                f"{folder} holds other files ({other[0]}) and no feature cache: choose another ",
                Argument("folder"),
                argument="folder",
            )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error


def _start_manifest(content: _CacheContent, locked: WorkingFolder, rebuild: bool) -> dict[str, Any]:
    """The folder's manifest without damaged shards, to be completed, or a fresh one."""
    folder = locked.path
    remove_temporary(locked)
    manifest = None if rebuild else read_manifest(folder)
    if manifest is None:
        remove_cache(locked)
        fresh = {
            "format": FORMAT,
            "complete": False,
            "made_of": content.identity(),
            "in_words": content.description(),
            "dim": content.encoder.dim,
            "shards": {},
            "skipped": [[image.path, image.reason] for image in content.source.skipped],
        }
        write_manifest(folder, fresh)
        return fresh
    _check_same(content, folder, manifest)
    manifest["shards"] = {
        name: entry for name, entry in manifest["shards"].items() if _is_whole(folder / name, entry["crc"])
    }
    manifest["complete"] &= manifest["shards"].keys() == content.shard_rows().keys()
    return manifest


def _check_same(content: _CacheContent, folder: Path, manifest: dict[str, Any]) -> None:
    """Raise DataError naming everything in which a cache differs from what is asked for."""
    identity, description = content.identity(), content.description()
    differences = {
        key: f"{key} ({manifest['in_words'].get(key)}, now {description[key]})"
        for key in identity
        if manifest["made_of"].get(key) != identity[key]
    }
    if not differences:
        return
    advice = rebuild_advice(folder)
    if "images" in differences and manifest["in_words"].get("images") == description["images"]:
        differences["images"] = (
            f"images ({description['images']} as before, but a file's size or time of change, a location, or "
            "how they are read is another)"
        )
        if len(differences) == 1:
            advice = (f"if they were only copied or touched, give {folder} itself as the data; or ", *advice)
    raise DataError(
        f"{folder} holds the features of something else: it differs in {', '.join(differences.values())}; ",
        *advice,
        argument=REBUILD.name,
    )


def _is_whole(path: Path, crc: int) -> bool:
    try:
        return file_crc(path) == crc
    except OSError:
        return False


def _compute(
    content: _CacheContent, folder: Path, manifest: dict[str, Any], workers: int, progress: Progress
) -> None:
    """Compute and store the shards that the manifest does not name."""
    missing = {name: rows for name, rows in content.shard_rows().items() if name not in manifest["shards"]}
    total = sum(len(rows) for rows in missing.values())
    if not total:
        return
    _check_room(folder, total * content.views * content.encoder.dim * 2)
    progress.stage("image features")
    progress.start(total)
    with ThreadPoolExecutor(workers, thread_name_prefix="images") as pool:
        try:
            chunks = prefetch(
                lambda rows: pool.submit(_make_views, content, rows),
                _chunk_rows(content, missing.values()),
                workers + _CHUNKS_AHEAD,
            )
            for name, rows in missing.items():
                _store_shard(content, folder, manifest, name, rows, chunks, progress)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _store_shard(
    content: _CacheContent,
    folder: Path,
    manifest: dict[str, Any],
    name: str,
    rows: range,
    chunks: Iterator[Future[_ViewChunk]],
    progress: Progress,
) -> None:
    """Pass a shard's views through the trunk, write it, and note it in the manifest."""
    features, skipped, count = [], [], 0
    while count < len(rows):
        chunk = next(chunks).result()
        finite, not_finite = _features(content, chunk)
        features.append(finite)
        skipped += chunk.skipped + not_finite
        count += chunk.images
        progress.advance(chunk.images)
    array = np.concatenate(features)
    crc = write_array(folder / name, array)
    entry = {
        "rows": len(array),
        "crc": crc,
        "skipped": [[row, image.path, image.reason] for row, image in skipped],
    }
    manifest["shards"] = dict(sorted({**manifest["shards"], name: entry}.items()))
    write_manifest(folder, manifest)
    source = content.source
    left_out = [*source.skipped, *(SkippedImage(*item[1:]) for item in _skipped_rows(manifest))]
    check_skipped(left_out, len(source) + len(source.skipped), source.max_skipped, source.name)


@dataclass(frozen=True)
class _ViewChunk:
    """Views of the images that go through the trunk together."""

    images: int  # that were asked for
    rows: list[int]  # of the source, that could be read
    views: np.ndarray | None  # (rows, views, C, h, w) float32; None without rows
    skipped: list[tuple[int, SkippedImage]]


def _chunk_rows(content: _CacheContent, shard_rows: Iterable[range]) -> Iterator[range]:
    """Rows whose views make a batch, shard by shard."""
    step = max(1, content.batch // content.views)
    for rows in shard_rows:
        for start in range(0, len(rows), step):
            yield rows[start : start + step]


def _make_views(content: _CacheContent, rows: range) -> _ViewChunk:
    images: list[np.ndarray] = []
    readable: list[int] = []
    skipped = []
    for row, image in zip(rows, content.source.read(rows), strict=True):
        if isinstance(image, SkippedImage):
            skipped.append((row, image))
        else:
            images.append(image)
            readable.append(row)
    numbers = np.arange(content.views)
    views = content.augmentation.views(images, readable, numbers, seed=content.seed) if images else None
    return _ViewChunk(len(rows), readable, views, skipped)


def _features(content: _CacheContent, chunk: _ViewChunk) -> tuple[np.ndarray, list[tuple[int, SkippedImage]]]:
    """Features (rows, views, dim) float16 of a chunk, and the images whose features float16 cannot hold."""
    encoder = content.encoder
    if chunk.views is None:
        return np.empty((0, content.views, encoder.dim), np.float16), []
    torch = need("torch", extra="train", why="training")
    with torch.inference_mode():
        views = torch.from_numpy(chunk.views).flatten(0, 1)
        batches = [
            encoder.trunk(batch.to(encoder.device)).half().cpu() for batch in views.split(content.batch)
        ]
    features = torch.cat(batches).numpy().reshape(len(chunk.rows), content.views, encoder.dim)
    finite = np.isfinite(features).all(axis=(1, 2))
    not_finite = [
        (row, SkippedImage(f"{content.source.name}, image {row}", "its features are not finite"))
        for row, is_finite in zip(chunk.rows, finite, strict=True)
        if not is_finite
    ]
    return features[finite], not_finite


def _check_room(folder: Path, needed: int) -> None:
    """Raise OutputError when the disk has no room for the features, before hours are spent."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"the features need {size_text(needed)}, the disk of {folder} has {size_text(free)} free: "
            "make room, choose another ",
            Argument("folder"),
            " or fewer views",
            argument="folder",
        )


def _skipped_rows(manifest: dict[str, Any]) -> list[tuple[int, str, str]]:
    return [tuple(item) for entry in manifest["shards"].values() for item in entry["skipped"]]


def _finish(content: _CacheContent, folder: Path, manifest: dict[str, Any]) -> None:
    """Write the locations of all features, and mark the cache as complete."""
    left_out = {row for row, *_ in _skipped_rows(manifest)}
    rows = np.array([row for row in range(len(content.source)) if row not in left_out], np.int64)
    lonlat = np.ascontiguousarray(content.source.lonlat[rows])
    write_array(folder / "rows.npy", rows)
    write_array(folder / "lonlat.npy", lonlat)
    manifest.update(complete=True, lonlat_sha256=sha256(lonlat))
    write_manifest(folder, manifest)

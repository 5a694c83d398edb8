"""Fresh augmented views of images for a training that reads images at every step, read ahead by threads.

    rows, skipped = usable_rows(source)              one pass over the images, before training
    images = ImageViews(source, rows, augmentation, seed=0)
    for views in images.prefetch(requests): ...      (n, C, h, w) float32 each, the next being made meanwhile

Where a cache of features holds a few views of an image, here every number below `ImageViews.views` is one,
made when it is asked for; asked for again, it is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from satclip_engine.errors import DataError
from satclip_engine.progress import Progress, Silence
from satclip_engine.training.images.augment import Augmentation
from satclip_engine.training.locations import check_on_earth
from satclip_engine.training.prefetch import prefetch, reader_threads
from satclip_engine.training.sources.source import (
    PatchSource,
    SkippedImage,
    check_skipped,
    fingerprint,
)

_FRESH_VIEWS: Final = 2**31  # so many that no two epochs show an image in the same one
_READ_IMAGES: Final = 8  # that a thread reads at once
_REQUESTS_AHEAD: Final = 2  # the one in use, and the next


class ViewRequest(NamedTuple):
    """Samples, and the number of the view of each."""

    samples: np.ndarray  # (n,)
    views: np.ndarray  # (n,)


class ImageViews:
    """The images of a source that can be used, by sample and view.

    rows: of the source, that are the samples. seed: of the views. workers: threads that read and make views.
    """

    views: Final = _FRESH_VIEWS

    def __init__(
        self,
        source: PatchSource,
        rows: np.ndarray,
        augmentation: Augmentation,
        *,
        seed: int,
        workers: int | None = None,
    ) -> None:
        self.source, self.rows, self.augmentation = source, np.asarray(rows, np.int64), augmentation
        self.lonlat = np.ascontiguousarray(source.lonlat[self.rows])
        check_on_earth(self.lonlat, lambda index: f"image {self.rows[index]}", source.name)
        self._seed, self._workers = seed, workers or reader_threads()

    @property
    def fingerprint(self) -> str:
        """sha256 over what determines the views."""
        inputs = {"images": self.source.fingerprint, "augmentation": self.augmentation.fingerprint}
        return fingerprint("image views", {**inputs, "seed": self._seed}, self.rows)

    def prefetch(self, requests: Iterable[ViewRequest]) -> Iterator[np.ndarray]:
        """Make (n, C, h, w) float32 views of one request after the other, the next while one is in use.

        Raises DataError naming an image that can no longer be read.
        """
        with ThreadPoolExecutor(self._workers, thread_name_prefix="views") as pool:
            try:
                for futures in prefetch(partial(self._submit, pool), requests, _REQUESTS_AHEAD):
                    yield np.concatenate([future.result() for future in futures])
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, request: ViewRequest) -> list[Future[np.ndarray]]:
        """Split a request among the threads."""
        samples, views = request
        step = max(1, min(_READ_IMAGES, -(-len(samples) // self._workers)))
        chunks = [slice(start, start + step) for start in range(0, len(samples), step)]
        return [pool.submit(self._make_views, samples[chunk], views[chunk]) for chunk in chunks]

    def _make_views(self, samples: np.ndarray, views: np.ndarray) -> np.ndarray:
        rows = self.rows[samples]
        images: list[np.ndarray] = []
        for image in self.source.read(rows):
            if isinstance(image, SkippedImage):
                raise DataError(
                    f"{image}: it could be used when training began; restore it as it was and continue with "
                    "--resume"
                )
            images.append(image)
        return self.augmentation.views(images, rows, views[:, None], seed=self._seed)[:, 0]


def usable_rows(
    source: PatchSource, *, workers: int | None = None, progress: Progress | None = None
) -> tuple[np.ndarray, list[SkippedImage]]:
    """Rows of the images that can be read, and the images that are left out.

    Every image is read once, because only reading a file shows whether it is whole. Raises DataError when too
    many are left out.
    """
    progress = progress or Silence()
    chunks = [
        range(start, min(start + _READ_IMAGES, len(source))) for start in range(0, len(source), _READ_IMAGES)
    ]
    skipped, rows = list(source.skipped), []
    total = len(source) + len(source.skipped)
    progress.stage("checking images")
    progress.start(len(source))
    with ThreadPoolExecutor(workers or reader_threads(), thread_name_prefix="images") as pool:
        try:
            for chunk, unusable in zip(chunks, pool.map(partial(_unusable, source), chunks), strict=True):
                skipped += unusable.values()
                rows += [row for row in chunk if row not in unusable]
                progress.advance(len(chunk))
                if unusable:
                    check_skipped(skipped, total, source.max_skipped, source.name)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            progress.finish()
    return np.array(rows, np.int64), skipped


def _unusable(source: PatchSource, rows: range) -> dict[int, SkippedImage]:
    """Images that cannot be used, by row."""
    images = source.read(rows)
    return {row: image for row, image in zip(rows, images, strict=True) if isinstance(image, SkippedImage)}

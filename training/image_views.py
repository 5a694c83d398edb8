"""Fresh views of images for a training that reads images at every step, made by threads that run ahead.

    rows, skipped = usable_rows(source)          one pass over the images, before training
    images = ImageViews(source, rows, augmentation, seed=0)
    for views in images.ahead(parts): ...        (n, C, h, w) float32 each, the next being made meanwhile

Where a cache of features holds a few views of an image, here every number below `ImageViews.views` is one,
made when it is asked for; asked for again, it is the same to the bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from satclip_engine.errors import DataError
from satclip_engine.progress import Progress, Silence
from satclip_engine.training.augment import Augmentation
from satclip_engine.training.source import (
    PatchSource,
    Skipped,
    check_skipped,
    default_readers,
    fingerprint,
)

_VIEWS: Final = 2**31  # so many that no two epochs show an image in the same one
_BLOCK: Final = 8  # images that a thread takes at once


class Part(NamedTuple):
    """Samples, and which view of each."""

    samples: np.ndarray  # (n,)
    views: np.ndarray  # (n,)


class ImageViews:
    """The images of a source that can be used, by sample and view.

    rows: of the source, that are the samples. seed: of the views. workers: threads that read and make views.
    """

    views: Final = _VIEWS

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
        self._seed, self._workers = seed, workers or default_readers()

    @property
    def fingerprint(self) -> str:
        """sha256 over what determines the views."""
        made_of = {"images": self.source.fingerprint, "augmentation": self.augmentation.fingerprint}
        return fingerprint("image views", {**made_of, "seed": self._seed}, self.rows)

    def ahead(self, parts: Iterable[Part]) -> Iterator[np.ndarray]:
        """(n, C, h, w) float32 views of one part after the other; one part is made while another is in use.

        Raises DataError naming an image that can no longer be read.
        """
        with ThreadPoolExecutor(self._workers, thread_name_prefix="views") as pool:
            making: deque[list[Future[np.ndarray]]] = deque()
            try:
                for samples, views in parts:
                    step = max(1, min(_BLOCK, -(-len(samples) // self._workers)))
                    blocks = [slice(start, start + step) for start in range(0, len(samples), step)]
                    making.append([pool.submit(self._made, samples[here], views[here]) for here in blocks])
                    if len(making) > 1:
                        yield _joined(making.popleft())
                while making:
                    yield _joined(making.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _made(self, samples: np.ndarray, views: np.ndarray) -> np.ndarray:
        rows = self.rows[samples]
        images: list[np.ndarray] = []
        for image in self.source.read(rows):
            if isinstance(image, Skipped):
                raise DataError(
                    f"{image}: it could be used when training began; restore it as it was and go on with "
                    "--resume"
                )
            images.append(image)
        return self.augmentation.views(images, rows, views[:, None], seed=self._seed)[:, 0]


def usable_rows(
    source: PatchSource, *, workers: int | None = None, progress: Progress | None = None
) -> tuple[np.ndarray, list[Skipped]]:
    """Rows of the images that can be read, and what is left out. Raises DataError when that is too much.

    Every image is read once: whether a file is whole is not known before.
    """
    progress = progress or Silence()
    blocks = [range(start, min(start + _BLOCK, len(source))) for start in range(0, len(source), _BLOCK)]
    skipped, rows = list(source.skipped), []
    total = len(source) + len(source.skipped)
    progress.stage("checking images")
    progress.start(len(source))
    with ThreadPoolExecutor(workers or default_readers(), thread_name_prefix="images") as pool:
        try:
            found = pool.map(partial(_faults, source), blocks)
            for block, faults in zip(blocks, found, strict=True):
                skipped += faults.values()
                rows += [row for row in block if row not in faults]
                progress.advance(len(block))
                if faults:
                    check_skipped(skipped, total, source.max_skipped, source.name)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            progress.finish()
    return np.array(rows, np.int64), skipped


def _faults(source: PatchSource, rows: range) -> dict[int, Skipped]:
    """Those of the images that cannot be used, by row."""
    images = source.read(rows)
    return {row: image for row, image in zip(rows, images, strict=True) if isinstance(image, Skipped)}


def _joined(blocks: list[Future[np.ndarray]]) -> np.ndarray:
    return np.concatenate([block.result() for block in blocks])

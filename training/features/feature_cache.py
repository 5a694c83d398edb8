"""Feature cache as training reads it: a few views of each image, float16, memory-mapped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from satclip_engine._optional import need
from satclip_engine.errors import DataError
from satclip_engine.training.features.shards import (
    MANIFEST,
    completion_advice,
    open_array,
    read_manifest,
    sha256,
)
from satclip_engine.training.locations import check_on_earth
from satclip_engine.training.sources.source import SkippedImage

if TYPE_CHECKING:
    import torch


class FeatureCache:
    """A finished cache, memory-mapped; `FeatureCache.open(folder)`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], shards: Sequence[np.ndarray]) -> None:
        self.folder, self.manifest = folder, manifest
        self._shards = shards
        self._ends = np.cumsum([len(shard) for shard in shards])
        count = int(self._ends[-1])
        self.lonlat = np.array(open_array(folder / "lonlat.npy", (count, 2), np.float64))  # degrees
        self.rows = np.array(open_array(folder / "rows.npy", (count,), np.int64))  # of the source
        if sha256(self.lonlat) != manifest["lonlat_sha256"]:
            raise DataError(f"{folder / 'lonlat.npy'} is damaged; {completion_advice(folder)}")
        check_on_earth(self.lonlat, "sample {}".format, str(folder))

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, verify: bool = True) -> FeatureCache:
        """Open a finished cache. Raises DataError when there is none, it is unfinished or damaged.

        verify: compare every shard with its checksum, at the speed of the disk.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise DataError(
                f"{folder} holds no feature cache ({MANIFEST} is missing): build it, or give another folder"
            )
        if not manifest["complete"]:
            finished = sum(shard["rows"] for shard in manifest["shards"].values())
            raise DataError(
                f"the feature cache in {folder} is unfinished ({finished} images so far); "
                f"{completion_advice(folder)}"
            )
        shards = [
            open_array(
                folder / name,
                (shard["rows"], manifest["made_of"]["views"], manifest["dim"]),
                np.float16,
                crc=shard["crc"] if verify else None,
            )
            for name, shard in manifest["shards"].items()
        ]
        return cls(folder, manifest, shards)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def views(self) -> int:
        return self.manifest["made_of"]["views"]

    @property
    def dim(self) -> int:
        return self.manifest["dim"]

    @property
    def skipped(self) -> tuple[SkippedImage, ...]:
        """Images of the source that are not in the cache."""
        unread = [SkippedImage(*item) for item in self.manifest["skipped"]]
        shards = self.manifest["shards"].values()
        return (*unread, *(SkippedImage(*item[1:]) for shard in shards for item in shard["skipped"]))

    @property
    def fingerprint(self) -> str:
        """sha256 over what the cache was made of and its content."""
        shards = [shard["crc"] for shard in self.manifest["shards"].values()]
        text = repr([sorted(self.manifest["made_of"].items()), shards, self.manifest["lonlat_sha256"]])
        return hashlib.sha256(text.encode()).hexdigest()

    def batch(self, indices: Any, views: Any = 0) -> torch.Tensor:
        """Read (n, dim) float32 features of rows `indices`; views: one for all, or one for each."""
        torch = need("torch", extra="train", why="training")
        index = np.asarray(indices, np.int64)
        view = np.broadcast_to(np.asarray(views, np.int64), index.shape)
        if index.size and not (index.min() >= 0 and index.max() < len(self)):
            raise IndexError(f"rows must lie between 0 and {len(self) - 1}")
        features = np.empty((len(index), self.dim), np.float16)
        shard_of = np.searchsorted(self._ends, index, side="right")
        for shard in np.unique(shard_of):
            in_shard = shard_of == shard
            start = self._ends[shard] - len(self._shards[shard])
            features[in_shard] = self._shards[shard][index[in_shard] - start, view[in_shard]]
        return torch.from_numpy(features).float()

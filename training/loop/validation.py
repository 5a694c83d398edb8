"""Validation: contrastive loss and retrieval, location to image and image to location, computed in blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from satclip_engine.contrast import contrastive_loss
from satclip_engine.training.loop.model import Model
from satclip_engine.training.samples import Features

_BLOCK_ROWS: Final = 2048  # locations embedded, or rows of similarities in memory, at once


@dataclass(frozen=True)
class RetrievalScores:
    """Loss over all samples at once, and recall at 1 and at 10.

    `place_*`: an image is searched by its location; `image_*`: a location by its image. The fields have the
    names of the columns in log.csv and of the entries in states and checkpoints.
    """

    loss: float
    place_r1: float
    place_r10: float
    image_r1: float
    image_r10: float
    samples: int

    @property
    def chance(self) -> float:
        """Loss of embeddings that say nothing: all of `samples` are equally likely."""
        return math.log(self.samples)

    @property
    def finite(self) -> bool:
        """True where the loss is a number."""
        return math.isfinite(self.loss)


@torch.no_grad()
def validate(model: Model, data: Features, samples: np.ndarray, device: torch.device) -> RetrievalScores:
    """Compute scores on `samples`, their first views, without dropout, noise and jitter."""
    training = model.training
    model.eval()
    locations, images = [], []
    for block in _blocks(samples):
        lonlat = torch.from_numpy(data.lonlat[block]).to(device)
        features = data.batch(block, np.zeros(len(block), np.int64)).to(device)
        locations.append(model.embed_locations(lonlat))
        images.append(model.embed_images(features))
    model.train(training)
    a, b = torch.cat(locations), torch.cat(images)
    loss = float(contrastive_loss(a, b, model.scale(), backend=model.location.backend))
    by_location, by_image = retrieval_ranks(a, b), retrieval_ranks(b, a)
    return RetrievalScores(
        loss,
        _recall(by_location, 1),
        _recall(by_location, 10),
        _recall(by_image, 1),
        _recall(by_image, 10),
        len(a),
    )


@torch.no_grad()
def retrieval_ranks(queries: Tensor, candidates: Tensor) -> Tensor:  # (n, E), (n, E) -> (n,)
    """Count, for each query, the candidates other than its own that are at least as similar."""
    ranks = []
    for start in range(0, len(queries), _BLOCK_ROWS):
        similarity = queries[start : start + _BLOCK_ROWS] @ candidates.T
        own = similarity.diagonal(start)[:, None]
        # A NaN is similar to nothing: all others then count as ahead.
        ranks.append((~(similarity < own)).sum(1) - 1)
    return torch.cat(ranks)


def _recall(ranks: Tensor, k: int) -> float:
    """Share of the queries whose own partner is among the first `k`."""
    return float((ranks < k).double().mean())


def _blocks(samples: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(samples), _BLOCK_ROWS):
        yield samples[start : start + _BLOCK_ROWS]

"""How well places find their images and images their places, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from satclip_engine.contrast import contrastive_loss
from satclip_engine.training.model import Model
from satclip_engine.training.samples import Features

_BLOCK = 2048  # places embedded, or rows of similarities in memory, at once


@dataclass(frozen=True)
class Scores:
    """The loss over all samples at once, and the share of queries whose own partner is the first of all, or
    among the first ten. `place_*`: a place looks for its image; `image_*`: an image looks for its place."""

    loss: float
    place_r1: float
    place_r10: float
    image_r1: float
    image_r10: float
    samples: int

    @property
    def finite(self) -> bool:
        """Whether the loss is a number."""
        return math.isfinite(self.loss)


@torch.no_grad()
def validate(model: Model, data: Features, samples: np.ndarray, device: torch.device) -> Scores:
    """Scores on `samples`, their first views, without dropout, noise and jitter."""
    training = model.training
    model.eval()
    places, images = [], []
    for chosen in _blocks(samples):
        lonlat = torch.from_numpy(data.lonlat[chosen]).to(device)
        features = data.batch(chosen, np.zeros(len(chosen), np.int64)).to(device)
        places.append(model.embed_places(lonlat))
        images.append(model.embed_images(features))
    model.train(training)
    a, b = torch.cat(places), torch.cat(images)
    loss = float(contrastive_loss(a, b, model.scale(), backend=model.location.backend))
    place, image = ranks(a, b), ranks(b, a)
    return Scores(loss, _share(place, 1), _share(place, 10), _share(image, 1), _share(image, 10), len(a))


@torch.no_grad()
def ranks(queries: Tensor, candidates: Tensor) -> Tensor:  # (n, E), (n, E) -> (n,)
    """For each query, how many candidates other than its own are at least as similar."""
    found = []
    for start in range(0, len(queries), _BLOCK):
        similar = queries[start : start + _BLOCK] @ candidates.T
        own = similar.diagonal(start)[:, None]
        # A NaN is similar to nothing: all others then count as ahead.
        found.append((~(similar < own)).sum(1) - 1)
    return torch.cat(found)


def _share(found: Tensor, first: int) -> float:
    return float((found < first).double().mean())


def _blocks(samples: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(samples), _BLOCK):
        yield samples[start : start + _BLOCK]

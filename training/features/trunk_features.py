"""Features of an image encoder that is being trained, with gradients in chunks that bound the memory.

The loss compares all images of a batch with each other, but a trunk keeps its activations for a gradient, and
those of a whole batch fit into no memory. Gradients are therefore cached where they pass the features (Gao et
al. 2021, "Scaling deep contrastive learning batch size under memory limited setup"):

1. the chunks pass without gradient, which gives all features;
2. the loss gives its gradient by every feature;
3. the chunks pass again, each with gradient, and pass on their share of it.

The sum over the chunks is the gradient of the whole batch. A batch of one chunk passes once. Views are made
again for the second pass, to the bit, because 8192 views of 13 × 224 × 224 are 21 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from satclip_engine.errors import UsageError
from satclip_engine.training.images.image_views import ImageViews, ViewRequest

if TYPE_CHECKING:
    from satclip_engine.training.loop.batches import TrainingBatch


class TrunkFeatures:
    """Features of images as a trunk makes them when they are asked for; `Features` to those who read them.

    trunk: (n, C, h, w) → (n, dim), in evaluation mode. chunk: images that pass through it at once.
    trunk_fingerprint: of the trunk with which training starts.
    """

    def __init__(
        self, images: ImageViews, trunk: nn.Module, *, dim: int, chunk: int, trunk_fingerprint: str
    ) -> None:
        unfit = [
            f"{name} is {parameter.dtype} on {parameter.device}"
            for name, parameter in trunk.named_parameters()
            if parameter.is_meta or parameter.dtype != torch.float32
        ]
        if unfit:
            raise UsageError(f"trunk: expected float32 weights, but {unfit[0]}", argument="trunk")
        self.images, self.trunk = images, trunk
        self.dim, self.chunk = dim, chunk
        self.lonlat, self.views = images.lonlat, images.views
        self.fingerprint = f"{images.fingerprint} through {trunk_fingerprint}"
        self._trunk_fingerprint = trunk_fingerprint

    def with_trunk(self, trunk: nn.Module) -> TrunkFeatures:
        """Features of the same images by another state of the trunk."""
        return TrunkFeatures(
            self.images, trunk, dim=self.dim, chunk=self.chunk, trunk_fingerprint=self._trunk_fingerprint
        )

    def batch(self, indices: Any, views: Any) -> Tensor:
        """Compute features (n, dim), without gradient, on the trunk's device."""
        requests = split_chunks(np.asarray(indices), np.asarray(views), self.chunk)
        with torch.no_grad():
            return torch.cat([trunk_forward(self.trunk, pixels) for pixels in self.images.prefetch(requests)])


class GradientCache:
    """Forward and backward passes of one step's images after the other through `trunk`.

    batch_at: the batch of a step, for the steps below `total`; the images of the next are read ahead.
    """

    def __init__(
        self, data: TrunkFeatures, trunk: nn.Module, batch_at: Callable[[int], TrainingBatch], total: int
    ) -> None:
        self._images, self._chunk, self._trunk = data.images, data.chunk, trunk
        self._batch_at, self._total = batch_at, total
        self._views: Iterator[np.ndarray] = iter(())
        self._next = -1  # the step whose views come next
        self._features: Tensor | None = None  # of a batch of several chunks, until they have passed again

    def forward(self, batch: TrainingBatch) -> Tensor:  # (n, dim)
        """Compute the features of a batch. Their gradient reaches the trunk by itself, or by `backward`."""
        if batch.step != self._next:
            self.close()
            steps = range(batch.step, self._total)
            self._views = self._images.prefetch(_requests(map(self._batch_at, steps), self._chunk))
        self._next = batch.step + 1
        count = -(-len(batch.samples) // self._chunk)
        if count == 1:
            return trunk_forward(self._trunk, next(self._views))
        with torch.no_grad():
            features = torch.cat([trunk_forward(self._trunk, next(self._views)) for _ in range(count)])
        self._features = features.requires_grad_()
        return features

    def backward(self, arithmetic: Callable[[], AbstractContextManager[Any]]) -> None:
        """Pass the features' gradient on to the trunk, where the loss's own backward could not.

        arithmetic: context of the forward pass. Each chunk has it to itself: autocast keeps its narrowed
        weights as long as it lasts, with the graph of the chunk that they were narrowed for.
        """
        if self._features is None:
            return
        gradient, self._features = self._features.grad, None
        assert gradient is not None, "the loss's own backward comes first"
        for chunk_gradient in gradient.split(self._chunk):
            with arithmetic():
                features = trunk_forward(self._trunk, next(self._views))
            features.backward(chunk_gradient)

    def close(self) -> None:
        """Stop reading ahead."""
        close: Callable[[], None] | None = getattr(self._views, "close", None)
        if close is not None:
            close()
        self._views, self._next, self._features = iter(()), -1, None


def trunk_forward(trunk: nn.Module, views: np.ndarray) -> Tensor:  # (n, C, h, w) -> (n, F)
    """Compute features of views on the trunk's device."""
    device = next(trunk.parameters()).device
    return trunk(torch.from_numpy(views).to(device, memory_format=torch.channels_last))


def split_chunks(samples: np.ndarray, views: np.ndarray, size: int) -> list[ViewRequest]:
    """Split samples into requests of `size`, the last one of the rest."""
    starts = range(0, len(samples), size)
    return [ViewRequest(samples[start : start + size], views[start : start + size]) for start in starts]


def _requests(batches: Iterable[TrainingBatch], chunk: int) -> Iterator[ViewRequest]:
    """Views that the steps need: a batch's chunks, and all of them again where there are several."""
    for batch in batches:
        chunks = split_chunks(batch.samples, batch.views, chunk)
        yield from chunks
        if len(chunks) > 1:
            yield from chunks

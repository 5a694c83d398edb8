"""Random convolutional features (MOSAIKS, Rolf et al. 2021), an image encoder that needs no weights.

Filters are small patches of the data themselves, each minus its own mean, divided by its length, and
ZCA-whitened. They are whitened twice, because images are not whitened: f·(Zx) = (Zf)·x. Each is scaled so
that its response deviates by 1 over the data. An image's features are

    mean of relu(+response − bias) and of relu(−response − bias) over its pixels, for every filter
    mean and deviation of every channel

standardised over a sample of the data. With `components`, they are projected to their first principal
components and half-whitened: a component of variance λ is divided by λ^¼, so that the leading ones still
weigh more; the mean variance of what comes out is 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from satclip_engine.errors import DataError, UsageError, WeightsError
from satclip_engine.training.prefetch import prefetch
from satclip_engine.training.sources.source import PatchSource, SkippedImage, fingerprint

_ZCA_BIAS = 1e-3
_SAMPLE_IMAGES = 1000  # that filters and statistics are taken from
_WHITENING_PATCHES = 100_000  # small ones, over which filters are whitened
_READ_IMAGES = 16  # at once
_CHUNK_RESPONSES = 1 << 21  # in memory at once: 8 MB stays in cache on most machines
_MIN_FILTERS = 16  # of a convolution
_READER_THREADS = 4


class RandomFeatures:
    """An image encoder of random convolutional features; made by `fit`."""

    name = "rcf"
    size: int | None = None
    fixed_size = False
    projection_loaded = False
    vision_layers: str | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, tensors: dict[str, torch.Tensor], *, embed_dim: int, seed: int) -> None:
        self._tensors = tensors
        self.channels = tensors["filters"].shape[1]
        self.dim = tensors["components"].shape[0] if "components" in tensors else tensors["mean"].shape[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projection = torch.nn.Linear(self.dim, embed_dim, device=self.device, dtype=torch.float32)

    @property
    def device(self) -> torch.device:
        return self._tensors["filters"].device

    @property
    def fingerprint(self) -> str:
        return fingerprint(
            "rcf", {"tensors": list(self._tensors)}, *(t.cpu().numpy() for t in self._tensors.values())
        )

    def to(self, device: str | torch.device) -> RandomFeatures:
        self._tensors = {name: value.to(device) for name, value in self._tensors.items()}
        self.projection.to(device)
        return self

    def trunk(self, batch: torch.Tensor) -> torch.Tensor:
        """Features of images: (B, C, H, W) float32 → (B, dim). Raises UsageError for another shape."""
        tensors = self._tensors
        features = (_raw_features(batch, tensors) - tensors["mean"]) / tensors["deviation"]
        return features @ tensors["components"].T if "components" in tensors else features

    def network(self) -> None:
        """None: filters taken from the data are not trained."""
        return None

    def state_dict(self) -> dict[str, torch.Tensor]:
        projection = {f"projection.{name}": value for name, value in self.projection.state_dict().items()}
        return {**self._tensors, **projection}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Load what `state_dict` returned. Raises WeightsError when it does not fit."""
        own = self.state_dict()
        shapes = {name: value.shape for name, value in own.items()}
        if {name: value.shape for name, value in state.items()} != shapes:
            raise WeightsError("the image encoder is another one: its random features have other shapes")
        self._tensors = {name: state[name].to(self.device) for name in self._tensors}
        self.projection.load_state_dict({name: state[f"projection.{name}"] for name in ("weight", "bias")})


def fit(
    source: PatchSource,
    *,
    filters: int = 256,
    filter_size: int = 3,
    bias: float = 0.5,
    components: int | None = None,
    sample: int = _SAMPLE_IMAGES,
    embed_dim: int = 256,
    seed: int = 0,
) -> RandomFeatures:
    """Fit filters and statistics to a sample of the data; the same for the same data and seed.

    filters: their number; features are twice as many, and two a channel.
    bias: in deviations of the response.
    components: number of principal components that are kept, half-whitened; by default all features.

    Raises UsageError for options out of range, DataError when there are too few images that can be read.
    """
    _check_options(source, filters, filter_size, bias, components)
    rng = np.random.default_rng(seed)
    indices = np.sort(rng.choice(len(source), min(sample, len(source)), replace=False))
    patches = _random_patches(source, indices, filter_size, rng)
    tensors = {name: torch.from_numpy(value) for name, value in _filters(patches, filters, rng).items()}
    tensors["bias"] = torch.tensor(bias, dtype=torch.float32)
    with torch.inference_mode():
        images = _images(source, indices)
        raw = [_raw_features(torch.from_numpy(image)[None], tensors) for image in images]
    features = torch.cat(raw).double()
    deviation = features.std(dim=0, correction=0)
    tensors["mean"] = features.mean(dim=0).float()
    tensors["deviation"] = torch.where(deviation > 0, deviation, 1.0).float()
    if components is not None:
        standard = (features - features.mean(dim=0)) / tensors["deviation"]
        tensors["components"] = _half_whitened(standard, components, source.name)
    return RandomFeatures(tensors, embed_dim=embed_dim, seed=seed)


def _check_options(
    source: PatchSource, filters: int, filter_size: int, bias: float, components: int | None
) -> None:
    for name, value in (("filters", filters), ("components", components)):
        if value is not None and value < 1:
            raise UsageError(f"{name}: expected at least 1, got {value}", argument=name)
    if not 1 <= filter_size <= min(source.size):
        raise UsageError(
            f"filter_size: expected between 1 and the images' {min(source.size)} pixels, got {filter_size}",
            argument="filter_size",
        )
    if not bias >= 0:
        raise UsageError(f"bias: expected at least 0, got {bias}", argument="bias")
    if components is not None and components > 2 * filters + 2 * source.channels:
        raise UsageError(
            f"{filters} filters give {2 * filters + 2 * source.channels} features, fewer than {components} "
            "components: give fewer components or more filters",
            argument="rcf_components",
        )


def _raw_features(batch: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute (B, 2F + 2C) features before they are standardised; memory is bounded whatever the batch."""
    filters, bias = tensors["filters"], tensors["bias"]
    count, channels, size, _ = filters.shape
    _, batch_channels, height, width = batch.shape
    if batch_channels != channels or min(height, width) < size:
        raise UsageError(
            f"rcf was fitted to {channels} channels and filters of {size} pixels, "
            f"not to images of {batch_channels} × {height} × {width}"
        )
    pixels = (height - size + 1) * (width - size + 1)
    filters = filters.contiguous(memory_format=torch.channels_last)  # a fifth faster on the CPU
    features = []
    for images in batch.contiguous(memory_format=torch.channels_last).split(
        max(1, _CHUNK_RESPONSES // (count * pixels))
    ):
        standard = (images - tensors["channel_mean"]) / tensors["channel_deviation"]
        filter_chunks = filters.split(max(_MIN_FILTERS, _CHUNK_RESPONSES // (len(images) * pixels)))
        rectified = [_rectified(standard, chunk, bias) for chunk in filter_chunks]
        columns = [positive for positive, _ in rectified] + [negative for _, negative in rectified]
        columns += [standard.mean(dim=(2, 3)), standard.std(dim=(2, 3), correction=0)]
        features.append(torch.cat(columns, dim=1))
    return torch.cat(features)


def _rectified(
    images: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of relu(r − b) and of relu(−r − b) over each response r."""
    response = torch.nn.functional.conv2d(images, filters)
    positive = (response - bias).clamp_(min=0).mean(dim=(2, 3))
    return positive, response.add_(bias).clamp_(max=0).mean(dim=(2, 3)).neg_()  # relu(−x) = −min(x, 0)


def _images(source: PatchSource, indices: np.ndarray) -> Iterator[np.ndarray]:
    """The images that can be read, some ahead of the one in use."""
    chunks = [indices[start : start + _READ_IMAGES] for start in range(0, len(indices), _READ_IMAGES)]
    with ThreadPoolExecutor(_READER_THREADS) as pool:
        for images in prefetch(lambda chunk: pool.submit(source.read, chunk), chunks, _READER_THREADS):
            yield from (image for image in images.result() if not isinstance(image, SkippedImage))


def _random_patches(
    source: PatchSource, indices: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Cut (n, C, size, size) patches at random out of the images. Raises DataError when none can be read."""
    per_image = -(-_WHITENING_PATCHES // len(indices))
    patches = []
    for image in _images(source, indices):
        view = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(1, 2))
        rows, columns = (rng.integers(length, size=per_image) for length in view.shape[1:3])
        patches.append(view[:, rows, columns].swapaxes(0, 1))
    if not patches:
        raise DataError(f"{source.name}: none of the {len(indices)} images tried can be read")
    return np.concatenate(patches)


def _filters(patches: np.ndarray, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Whitened filters from patches, and each channel's mean and deviation."""
    mean = patches.mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    deviation = patches.std(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    deviation[deviation == 0] = 1.0  # a channel without content, such as the absent B10
    standard = ((patches - mean) / deviation).reshape(len(patches), -1)
    centred = standard - standard.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    textured = length[:, 0] > 1e-6
    if not textured.any():
        raise DataError(
            "all images are constant: there is nothing to take filters from; choose another image encoder"
        )
    unit = centred[textured] / length[textured]
    unit -= unit.mean(axis=0)
    values, vectors = np.linalg.eigh(unit.T @ unit / len(unit))
    twice = vectors / (np.maximum(values, 0.0) + _ZCA_BIAS) @ vectors.T  # Z², with Z = V (λ + bias)^−½ Vᵀ
    filters = unit[rng.choice(len(unit), count, replace=count > len(unit))] @ twice
    filters /= np.maximum((standard @ filters.T).std(axis=0), 1e-12)[:, None]
    return {
        "filters": filters.reshape(count, *patches.shape[1:]).astype(np.float32),
        "channel_mean": mean[0].astype(np.float32),
        "channel_deviation": deviation[0].astype(np.float32),
    }


def _half_whitened(features: torch.Tensor, count: int, source: str) -> torch.Tensor:
    """Rows (count, D) that project standardised features to half-whitened components."""
    if len(features) <= count:
        raise DataError(
            f"{count} components need more than the {len(features)} images that can be read in {source}: "
            "give fewer components or more images",
            argument="rcf_components",
        )
    values, vectors = torch.linalg.eigh(features.T @ features / len(features))
    leading, axes = values.flip(0)[:count].clamp(min=1e-12), vectors.flip(1)[:, :count].T
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    axes = axes * largest.sign()  # an eigenvector's sign is arbitrary
    return (axes / leading[:, None] ** 0.25 / leading.sqrt().mean().sqrt()).float()

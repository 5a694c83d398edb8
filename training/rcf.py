"""Random convolutional features (MOSAIKS, Rolf et al. 2021): an image encoder that needs no weights.

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
from satclip_engine.training.source import PatchSource, Skipped, fingerprint

_ZCA_BIAS = 1e-3
_SAMPLE = 1000  # images that filters and statistics are taken from
_SPOTS = 100_000  # small patches over which filters are whitened
_BLOCK = 16  # images that are read at once
_CHUNK = 1 << 21  # responses that are held at once: 8 MB stays in cache on most machines
_FEWEST = 16  # filters of a convolution
_READERS = 4


class RandomFeatures:
    """Filters and statistics as `fit` made them."""

    name = "rcf"
    size: int | None = None
    fixed_size = False
    vision_layers: str | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, tensors: dict[str, torch.Tensor], *, embed_dim: int, seed: int) -> None:
        self._tensors = tensors
        self.channels = tensors["filters"].shape[1]
        self.dim = tensors["components"].shape[0] if "components" in tensors else tensors["mean"].shape[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projection = torch.nn.Linear(self.dim, embed_dim)

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
        """(B, C, H, W) float32 → (B, dim). Raises UsageError for another shape."""
        tensors = self._tensors
        features = (_raw_features(batch, tensors) - tensors["mean"]) / tensors["deviation"]
        return features @ tensors["components"].T if "components" in tensors else features

    def network(self) -> None:
        """Nothing: filters taken from the data are not trained."""
        return None

    def state_dict(self) -> dict[str, torch.Tensor]:
        projection = {f"projection.{name}": value for name, value in self.projection.state_dict().items()}
        return {**self._tensors, **projection}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take what `state_dict` gave. Raises WeightsError when it does not fit."""
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
    sample: int = _SAMPLE,
    embed_dim: int = 256,
    seed: int = 0,
) -> RandomFeatures:
    """Take filters and statistics from a sample of the data; the same for the same data and seed.

    filters: their number; features are twice as many, and two a channel.
    bias: in deviations of the response.
    components: how many principal components are kept, half-whitened; all features without.

    Raises UsageError for options out of range, DataError when there are too few images that can be read.
    """
    _check_options(source, filters, filter_size, bias, components)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(source), min(sample, len(source)), replace=False))
    spots = _spots(source, chosen, filter_size, rng)
    tensors = {name: torch.from_numpy(value) for name, value in _filters(spots, filters, rng).items()}
    tensors["bias"] = torch.tensor(bias, dtype=torch.float32)
    with torch.inference_mode():
        found = [_raw_features(torch.from_numpy(image)[None], tensors) for image in _images(source, chosen)]
    features = torch.cat(found).double()
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
    if filters < 1 or (components is not None and components < 1):
        raise UsageError("filters and components must be at least 1")
    if not 1 <= filter_size <= min(source.size):
        raise UsageError(
            f"filter_size must lie between 1 and the images' {min(source.size)}, not {filter_size}"
        )
    if not bias >= 0:
        raise UsageError(f"bias must not be negative: {bias}")
    if components is not None and components > 2 * filters + 2 * source.channels:
        raise UsageError(
            f"{filters} filters give {2 * filters + 2 * source.channels} features, not {components}"
        )


def _raw_features(batch: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, 2F + 2C): features before they are standardised; memory is bounded whatever the batch."""
    filters, bias = tensors["filters"], tensors["bias"]
    count, channels, size, _ = filters.shape
    _, given, height, width = batch.shape
    if given != channels or min(height, width) < size:
        raise UsageError(
            f"rcf was fitted to {channels} channels and filters of {size} pixels, "
            f"not to images of {given} × {height} × {width}"
        )
    pixels = (height - size + 1) * (width - size + 1)
    filters = filters.contiguous(memory_format=torch.channels_last)  # a fifth faster on the CPU
    features = []
    for images in batch.contiguous(memory_format=torch.channels_last).split(
        max(1, _CHUNK // (count * pixels))
    ):
        standard = (images - tensors["channel_mean"]) / tensors["channel_deviation"]
        blocks = filters.split(max(_FEWEST, _CHUNK // (len(images) * pixels)))
        halves = [_rectified(standard, block, bias) for block in blocks]
        parts = [above for above, _ in halves] + [below for _, below in halves]
        parts += [standard.mean(dim=(2, 3)), standard.std(dim=(2, 3), correction=0)]
        features.append(torch.cat(parts, dim=1))
    return torch.cat(features)


def _rectified(
    images: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of relu(r − b) and relu(−r − b) over each response r."""
    response = torch.nn.functional.conv2d(images, filters)
    above = (response - bias).clamp_(min=0).mean(dim=(2, 3))
    return above, response.add_(bias).clamp_(max=0).mean(dim=(2, 3)).neg_()  # relu(−x) = −min(x, 0)


def _images(source: PatchSource, indices: np.ndarray) -> Iterator[np.ndarray]:
    """The images that can be read, some ahead of the one in use."""
    blocks = [indices[start : start + _BLOCK] for start in range(0, len(indices), _BLOCK)]
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(blocks), _READERS):
            for images in pool.map(source.read, blocks[start : start + _READERS]):
                yield from (image for image in images if not isinstance(image, Skipped))


def _spots(source: PatchSource, indices: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """(n, C, size, size) small patches from random spots of the sample. Raises DataError without images."""
    each = -(-_SPOTS // len(indices))
    found = []
    for image in _images(source, indices):
        view = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(1, 2))
        rows, columns = (rng.integers(length, size=each) for length in view.shape[1:3])
        found.append(view[:, rows, columns].swapaxes(0, 1))
    if not found:
        raise DataError(f"{source.name}: none of the {len(indices)} images tried can be read")
    return np.concatenate(found)


def _filters(spots: np.ndarray, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Whitened filters from small patches, and each channel's mean and deviation."""
    mean = spots.mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    deviation = spots.std(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    deviation[deviation == 0] = 1.0  # a channel without content, such as the absent B10
    standard = ((spots - mean) / deviation).reshape(len(spots), -1)
    own = standard - standard.mean(axis=1, keepdims=True)
    length = np.linalg.norm(own, axis=1, keepdims=True)
    textured = length[:, 0] > 1e-6
    if not textured.any():
        raise DataError("all images are constant: there is nothing to take filters from")
    unit = own[textured] / length[textured]
    unit -= unit.mean(axis=0)
    values, vectors = np.linalg.eigh(unit.T @ unit / len(unit))
    twice = vectors / (np.maximum(values, 0.0) + _ZCA_BIAS) @ vectors.T  # Z², with Z = V (λ + bias)^−½ Vᵀ
    filters = unit[rng.choice(len(unit), count, replace=count > len(unit))] @ twice
    filters /= np.maximum((standard @ filters.T).std(axis=0), 1e-12)[:, None]
    return {
        "filters": filters.reshape(count, *spots.shape[1:]).astype(np.float32),
        "channel_mean": mean[0].astype(np.float32),
        "channel_deviation": deviation[0].astype(np.float32),
    }


def _half_whitened(features: torch.Tensor, count: int, where: str) -> torch.Tensor:
    """(count, D) rows that project standardised features to half-whitened components."""
    if len(features) <= count:
        raise DataError(f"{where}: {count} components need more than the {len(features)} images at hand")
    values, vectors = torch.linalg.eigh(features.T @ features / len(features))
    leading, axes = values.flip(0)[:count].clamp(min=1e-12), vectors.flip(1)[:, :count].T
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    axes = axes * largest.sign()  # an eigenvector's sign is arbitrary
    return (axes / leading[:, None] ** 0.25 / leading.sqrt().mean().sqrt()).float()

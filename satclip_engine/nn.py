"""Location encoders as PyTorch modules: to train, to fine-tune, and in place of the published loader.

    model = LocationEncoder(degrees=40)                # or LocationEncoder.from_weights(read_weights(path))
    model(lonlat)                                      # (..., 2) -> (..., E); longitude first, degrees
    model.to_weights().save("mine.ckpt")

    location = get_satclip("satclip-vit16-l40.ckpt", device="cpu")      # as in the published repository

Parameters have the published names and stay in the checkpoint's own convention, so optimizers, weight decay
and state dictionaries see what they see in the published code. Folding them onto our one basis is a
differentiable step of every call.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from satclip_engine import backends
from satclip_engine._optional import need
from satclip_engine.backends.protocols import check_precision
from satclip_engine.encoder import Encoder, load
from satclip_engine.errors import UsageError, WeightsError
from satclip_engine.op import encode
from satclip_engine.weights import LocationWeights, Provenance, read_weights
from satclip_engine.weights.conventions import (
    PUBLISHED_DEGREES,
    column_factors,
    folds_published,
    published_by_order,
)
from satclip_engine.weights.hub import download
from satclip_engine.weights.lightning_file import read_state
from satclip_engine.weights.schema import (
    MAX_DEGREES,
    PUBLISHED_W0,
    Convention,
    Harmonics,
    check_modes,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = need("torch", extra="torch", why="satclip_engine.nn")
    nn = torch.nn

PUBLISHED_DROPOUT = 0.5


class Layer(nn.Module):
    """Parameters of a dense layer; LocationEncoder computes with all of them at once."""

    def __init__(self, inputs: int, outputs: int, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, **factory))
        self.bias = nn.Parameter(torch.empty(outputs, **factory))

    def extra_repr(self) -> str:
        return "{1} → {0}".format(*self.weight.shape)


class Siren(nn.Module):
    """The layers under their published names: layers.0, layers.1, ..., last_layer."""

    def __init__(self, widths: list[int], **factory: Any) -> None:
        super().__init__()
        *hidden, last = itertools.pairwise(widths)
        self.layers = nn.ModuleList([Layer(*shape, **factory) for shape in hidden])
        self.last_layer = Layer(*last, **factory)

    def all_layers(self) -> list[Layer]:
        """In order of evaluation."""
        return [*self.layers, self.last_layer]


class LocationEncoder(nn.Module):
    """Spherical harmonics into a SIREN: (..., 2) degrees, longitude first → (..., E).

    degrees: L, harmonics of degree 0..L−1. dropout: share of the hidden pre-activations dropped in training;
    masks are drawn by torch's generator. convention, harmonics: what the columns of the first weight mean,
    see LocationWeights. w0: sine frequencies of the first and of the further hidden layers. backend and
    precision: as in op.encode, but for "cpu" and "triton", which take float32, parameters in float64 are
    narrowed in every call. seed: of the initial weights; None draws them from torch's generator.

    As with torch's own dropout, processes whose generators are equal draw equal masks. Under
    DistributedDataParallel seed each by its rank, `torch.manual_seed(seed + dist.get_rank())`; the parameters
    stay equal, because DistributedDataParallel broadcasts those of rank 0.

    The first weight is U(±1/L²), the others U(±√(6/inputs)/w0), biases as their weights, all drawn in float32
    on the CPU.

    Locations are never narrowed, and neither is anything under autocast. The result has the dtype of the
    parameters, float32 at least. Raises UsageError for arguments that cannot be used.
    """

    def __init__(
        self,
        degrees: int = 40,
        capacity: int = 512,
        hidden_layers: int = 2,
        embed_dim: int = 256,
        *,
        dropout: float = PUBLISHED_DROPOUT,
        convention: Convention = "orthonormal",
        harmonics: Harmonics = "exact",
        w0: tuple[float, float] = PUBLISHED_W0,
        backend: str = "auto",
        precision: str = "exact",
        seed: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        _check_shape(degrees, capacity, hidden_layers, embed_dim)
        _check_modes(degrees, convention, harmonics, dropout)
        self.degrees, self.embed_dim = degrees, embed_dim
        self.dropout, self.backend, self.precision = dropout, backend, check_precision(precision)
        self.convention, self.harmonics, self.w0 = convention, harmonics, w0
        widths = [degrees**2, *[capacity] * hidden_layers, embed_dim]
        self.nnet = Siren(widths, device=device, dtype=dtype)
        self.reset_parameters(seed)
        self._register_fold()

    def reset_parameters(self, seed: int | None = None) -> None:
        """Draw the initial weights again."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        first, *others = self.nnet.all_layers()
        for layer in (first, *others):
            inputs = layer.weight.shape[1]
            bound = 1 / inputs if layer is first else math.sqrt(6 / inputs) / self.w0[1]
            for parameter in (layer.weight, layer.bias):
                drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
                parameter.data.copy_(drawn.uniform_(-bound, bound, generator=generator))

    def forward(self, lonlat: Tensor) -> Tensor:  # (..., 2) -> (..., E)
        """Embed locations; NaN or infinite ones give NaN, |latitude| > 90 is an error naming the row."""
        if lonlat.ndim == 0 or lonlat.shape[-1] != 2:
            raise UsageError(
                f"lonlat must have shape (..., 2), longitude first, not {tuple(lonlat.shape)}",
                argument="lonlat",
            )
        weights, biases = self.folded()
        dropout = self.dropout if self.training else 0.0
        seed = 0 if dropout == 0 else torch.randint(2**63 - 1, ()).item()
        wide = weights[0].dtype
        if backends.float32_only(self.backend):  # however wide the parameters are kept
            weights, biases = [weight.float() for weight in weights], [bias.float() for bias in biases]
        out = encode(
            lonlat.reshape(-1, 2),
            weights,
            biases,
            dropout=dropout,
            seed=seed,
            backend=self.backend,
            precision=self.precision,
        )
        return out.reshape(*lonlat.shape[:-1], self.embed_dim).to(wide)

    def folded(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases as op.encode takes them, differentiable in the parameters."""
        layers = self.nnet.all_layers()
        dtypes = [parameter.dtype for parameter in self.parameters()]
        dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
        weights = [layer.weight.to(dtype) for layer in layers]
        biases = [layer.bias.to(dtype) for layer in layers]
        weights[0] = self._orthonormal(weights[0])
        frequencies = [self.w0[0], *[self.w0[1]] * (len(layers) - 2), 1.0]
        for index, frequency in enumerate(frequencies):
            if frequency != 1:
                weights[index], biases[index] = weights[index] * frequency, biases[index] * frequency
        return weights, biases

    @classmethod
    def from_weights(
        cls,
        weights: LocationWeights,
        *,
        dropout: float = PUBLISHED_DROPOUT,
        backend: str = "auto",
        precision: str = "exact",
        device: Any = None,
        dtype: Any = None,
    ) -> LocationEncoder:
        """The encoder of these weights, in their own convention and, without `dtype`, their own dtypes."""
        model = cls(
            weights.degrees,
            weights.capacity,
            weights.hidden_layers,
            weights.embed_dim,
            dropout=dropout,
            convention=weights.convention,
            harmonics=weights.harmonics,
            w0=weights.w0,
            backend=backend,
            precision=precision,
            seed=0,  # leaves torch's generator alone
        )
        values = [torch.from_numpy(np.array(value)) for value in weights.tensors.values()]
        for layer, weight, bias in zip(model.nnet.all_layers(), values[0::2], values[1::2], strict=True):
            layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        return model.to(device=device, dtype=dtype)

    def to_weights(self, provenance: Provenance | None = None) -> LocationWeights:
        """The parameters as they are now, in their own convention and dtypes."""
        named = {
            name.removeprefix("nnet."): _as_numpy(parameter) for name, parameter in self.named_parameters()
        }
        return LocationWeights(named, self.convention, self.harmonics, self.w0, provenance or Provenance())

    def encoder(self, *, threads: int | None = None, device: str = "cpu") -> Encoder:
        """The parameters as they are now, ready for grids and rasters."""
        return load(self.to_weights(), threads=threads, device=device, precision=self.precision)

    def extra_repr(self) -> str:
        return (
            f"L={self.degrees}, {self.convention}, harmonics={self.harmonics!r}, w0={self.w0}, "
            f"dropout={self.dropout}, backend={self.backend!r}, precision={self.precision!r}"
        )

    def _orthonormal(self, weight: Tensor) -> Tensor:  # (H, L²) in the convention -> (H, L²) in our basis
        weight = weight * self._factors.to(weight.dtype)
        if self._table is None:
            return weight
        columns = torch.nn.functional.pad(weight.T, (0, 0, 0, 1))  # a last row of zeros where there is none
        by_order = columns.index_select(0, self._column.flatten()).unflatten(0, self._column.shape)
        # In float64, which autocast leaves alone.
        folded = self._table.transpose(1, 2) @ by_order.double()  # [2L − 1, L, H]
        return folded.flatten(0, 1).index_select(0, self._position).T.to(weight.dtype)

    def _register_fold(self) -> None:
        """The constants of the fold where the parameters are and, exactly, as precise as they are."""
        like = self.nnet.layers[0].weight
        dtype = torch.promote_types(like.dtype, torch.float32)

        def constant(name: str, values: np.ndarray | None, dtype: Any) -> None:
            tensor = None if values is None else torch.tensor(values, dtype=dtype, device=like.device)
            self.register_buffer(name, tensor, persistent=False)

        constant("_factors", column_factors(self.degrees, self.convention), dtype)
        column = position = table = None
        if folds_published(self.degrees, self.convention, self.harmonics):
            column, table = published_by_order(self.degrees)
            position = np.argsort(column.ravel(), kind="stable")[: self.degrees**2]
        constant("_table", table, torch.float64)
        constant("_column", column, torch.int64)
        constant("_position", position, torch.int64)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        module = super()._apply(fn, recurse)
        self._register_fold()  # π in float32 must not become that of a float64 module
        return module


class SatClip(nn.Module):
    """A whole checkpoint: its location encoder and what it holds beside that; images are not encoded here.

    location: LocationEncoder. logit_scale: logarithm of the scale of the similarities. visual_state: tensors
    of the image encoder by their names in it, for load_state_dict of a model built elsewhere.
    """

    def __init__(self, location: LocationEncoder, logit_scale: Tensor, visual_state: Mapping[str, Tensor]):
        super().__init__()
        self.location = location
        self.logit_scale = nn.Parameter(logit_scale)
        self.visual_state = dict(visual_state)

    def encode_location(self, coords: Tensor) -> Tensor:
        """(N, 2) degrees, longitude first → (N, E) float64."""
        return self.location(coords)

    def encode_image(self, image: Any) -> Tensor:
        """Raise UsageError: images are not encoded here."""
        raise UsageError("satclip_engine encodes locations only: load .visual_state into an image encoder")


def get_satclip(
    path: str | os.PathLike[str],
    device: Any = "cpu",
    return_all: bool = False,
    *,
    harmonics: Harmonics | None = None,
    backend: str = "auto",
) -> LocationEncoder | SatClip:
    """The location encoder of a checkpoint, as the published `get_satclip` returns it: in evaluation mode.

    It takes (N, 2) degrees, longitude first, and returns (N, E) float64; parameters are float64.
    path: what read_weights reads. harmonics: as there. return_all: a SatClip with the logit scale and the
        image encoder's tensors too, from a `.ckpt` that has them.
    backend: "reference" computes in float64; "auto" takes the fastest on the device as `load` does, which
        computes in float32.

    Raises WeightsError for weights that cannot be read or lack what was asked for.
    """
    source = os.fspath(path)
    weights = read_weights(source, harmonics=harmonics)
    if backend == "auto":
        backend = backends.resolve_for(backend, torch.empty(0, dtype=torch.float32, device=device)).name
    location = LocationEncoder.from_weights(weights, backend=backend, device=device, dtype=torch.float64)
    if not return_all:
        return location.eval()
    return _whole(source, location).eval()


def _whole(source: str, location: LocationEncoder) -> SatClip:
    path = Path(download(source) if source.startswith("hf://") else source)
    if path.suffix.lower() != ".ckpt":
        raise WeightsError(f"{source}: return_all needs a whole SatCLIP checkpoint, a .ckpt file")
    state = {key.removeprefix("model."): value for key, value in read_state(path, source).items()}
    if "logit_scale" not in state:
        raise WeightsError(f"{source}: model.logit_scale is missing: expected a whole SatCLIP checkpoint")
    device = location.nnet.last_layer.weight.device
    visual = {
        key.removeprefix("visual."): state[key].to(device) for key in state if key.startswith("visual.")
    }
    return SatClip(location, state["logit_scale"].to(device, copy=True), visual)


def _as_numpy(parameter: Tensor) -> np.ndarray:
    values = parameter.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _check_shape(degrees: int, capacity: int, hidden_layers: int, embed_dim: int) -> None:
    sizes = {"degrees": degrees, "capacity": capacity, "hidden_layers": hidden_layers, "embed_dim": embed_dim}
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise UsageError(f"{name} must be a positive whole number, not {size!r}", argument=name)
    if degrees > MAX_DEGREES:
        raise UsageError(f"degrees must be at most {MAX_DEGREES}, not {degrees}", argument="degrees")


def _check_modes(degrees: int, convention: str, harmonics: str, dropout: float) -> None:
    check_modes(convention=convention, harmonics=harmonics)
    if folds_published(degrees, convention, harmonics) and degrees > PUBLISHED_DEGREES:  # type: ignore[arg-type]
        raise UsageError(
            f"harmonics='published' covers L up to {PUBLISHED_DEGREES}, not {degrees}", argument="harmonics"
        )
    if not 0 <= dropout < 1:
        raise UsageError(f"dropout must be at least 0 and below 1, not {dropout}", argument="dropout")

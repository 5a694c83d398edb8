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
from satclip_engine.op import check_tensor, encode
from satclip_engine.ops import transforms
from satclip_engine.ops.autograd import is_wrapped, no_autocast, unwrapped_tensor
from satclip_engine.ops.modules import (
    all_are_watched,
    calls_method_of,
    check_exported,
    has_hooks,
    is_dense,
    unwrapped,
)
from satclip_engine.ops.states import converted_state
from satclip_engine.weights import LocationWeights, Provenance, read_weights
from satclip_engine.weights.conventions import (
    EXACT_DEGREES,
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
from satclip_engine.weights.statement import STATEMENT_KEY, Statement, decode_statement

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = need("torch", extra="torch", why="satclip_engine.nn")
    nn = torch.nn

PUBLISHED_DROPOUT = 0.5


class Siren(nn.Module):
    """The layers under their published names: layers.0, layers.1, ..., last_layer.

    Called, it computes as the published code does, module after module: harmonics in the convention of the
    weights, (..., L²) → (..., E).
    """

    def __init__(
        self,
        widths: list[int],
        *,
        w0: tuple[float, float] = PUBLISHED_W0,
        dropout: float = PUBLISHED_DROPOUT,
        **factory: Any,
    ) -> None:
        super().__init__()
        *hidden, last = itertools.pairwise(widths)
        self.w0, self.dropout = w0, dropout
        self.takes_unstated = True  # a LocationEncoder that was not told its convention says no
        self.layers = nn.ModuleList([_undrawn(*shape, **factory) for shape in hidden])
        self.last_layer = _undrawn(*last, **factory)

    def forward(self, features: Tensor) -> Tensor:
        """Embed harmonics."""
        dropout = self.dropout if self.training else 0.0
        seed, hidden = draw_seed() if dropout else 0, features
        for index, layer in enumerate(self.layers):
            pre_activations = transforms.dropped(layer(hidden), index, dropout, seed)
            hidden = torch.sin(self.w0[index > 0] * pre_activations)
        return self.last_layer(hidden)

    def all_layers(self) -> list[Any]:
        """In order of evaluation."""
        return [*self.layers, self.last_layer]

    def fuses(self) -> bool:
        """True while weights and biases are all that its modules compute with: no hooks, no other modules."""
        is_own = calls_method_of(self, Siren) and not has_hooks(self) and not all_are_watched()
        return is_own and all(map(is_dense, self.all_layers()))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any, **options: Any
    ) -> None:
        # Of a LocationEncoder that is loaded whole, the prefix ends with the name that the network has in it.
        is_alone = "nnet" not in prefix.split(".")
        if is_alone and not self.takes_unstated and any(key.startswith(prefix) for key in state_dict):
            raise WeightsError(
                "nnet: the state of a network alone does not say in which convention its harmonics are: load "
                "the whole LocationEncoder's, or into LocationEncoder(…, convention=…).nnet"
            )
        super()._load_from_state_dict(state_dict, prefix, *arguments, **options)

    def extra_repr(self) -> str:
        return f"w0={self.w0}, dropout={self.dropout}"


class LocationEncoder(nn.Module):
    """Spherical harmonics into a SIREN: (..., 2) degrees, longitude first → (..., E).

    degrees: L, harmonics of degree 0..L−1. dropout: share of the hidden pre-activations dropped in training;
    masks are drawn by torch's generator. convention, harmonics: what the columns of the first weight mean,
    see LocationWeights; without, "orthonormal" and "exact". w0: sine frequencies of the first and of the
    further hidden layers. backend and precision: as in op.encode, but for "cpu" and "triton", which take
    float32, parameters in float64 are narrowed in every call. seed: of the initial weights; None draws them
    from torch's generator.

    The state dictionary says what it is: `_extra_state` states convention, harmonics and w0. A state of
    another convention is converted when it is loaded; one that states nothing, such as the published code's,
    is refused (WeightsError) unless `convention` was given here, and with it, where analytic weights have
    published polynomials (L > 20), `harmonics`.

    One fused operator computes the layers. Where they are more than weights and biases (hooks on them or on
    all modules, adapters, replaced or quantised layers, another nnet), the modules are called one after
    another instead, on the reference's harmonics, in their own dtype: slower, and harmonics stay in memory.

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
        convention: Convention | None = None,
        harmonics: Harmonics | None = None,
        w0: tuple[float, float] = PUBLISHED_W0,
        backend: str = "auto",
        precision: str = "exact",
        seed: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        _check_shape(degrees, capacity, hidden_layers, embed_dim)
        self.convention: Convention = "orthonormal" if convention is None else convention
        self.harmonics: Harmonics = "exact" if harmonics is None else harmonics
        _check_modes(degrees, self.convention, self.harmonics, dropout)
        one_function = self.convention != "analytic" or degrees <= EXACT_DEGREES
        self._takes_unstated = convention is not None and (harmonics is not None or one_function)
        self.degrees, self.embed_dim = degrees, embed_dim
        self.backend, self.precision = backend, check_precision(precision)
        widths = [degrees**2, *[capacity] * hidden_layers, embed_dim]
        self.nnet = Siren(widths, w0=w0, dropout=dropout, device=device, dtype=dtype)
        self.nnet.takes_unstated = self._takes_unstated
        self.reset_parameters(seed)
        self._set_constants()

    @property
    def dropout(self) -> float:
        """Share of the hidden pre-activations dropped in training."""
        return self._siren().dropout

    @dropout.setter
    def dropout(self, share: float) -> None:
        self._siren().dropout = share

    @property
    def w0(self) -> tuple[float, float]:
        """Sine frequencies of the first and of the further hidden layers."""
        return self._siren().w0

    @w0.setter
    def w0(self, frequencies: tuple[float, float]) -> None:
        self._siren().w0 = frequencies

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
        check_tensor(lonlat)
        if lonlat.ndim == 0 or lonlat.shape[-1] != 2:
            raise UsageError(
                f"lonlat must have shape (..., 2), longitude first, not {tuple(lonlat.shape)}",
                argument="lonlat",
            )
        if STATEMENT_KEY in vars(self):  # of a state dictionary by which functional_call computes
            self._check_called(vars(self)[STATEMENT_KEY])
        points = lonlat.reshape(-1, 2)
        fuses = isinstance(self.nnet, Siren) and self.nnet.fuses()
        out = self._fused(points) if fuses else self._by_modules(points)
        return out.reshape(*lonlat.shape[:-1], out.shape[-1])

    def _fused(self, points: Tensor) -> Tensor:  # (N, 2) -> (N, E)
        weights, biases = self.folded()
        dropout = self.nnet.dropout if self.training else 0.0
        wide = weights[0].dtype
        if backends.float32_only(self.backend):  # however wide the parameters are kept
            weights, biases = [weight.float() for weight in weights], [bias.float() for bias in biases]
        out = encode(
            points,
            weights,
            biases,
            dropout=dropout,
            seed=draw_seed() if dropout else 0,
            backend=self.backend,
            precision=self.precision,
        )
        return out.to(wide)

    def _by_modules(self, points: Tensor) -> Tensor:  # (N, 2) -> (N, E)
        dtypes = {value.dtype for value in self.nnet.parameters() if value.is_floating_point()}
        if narrow := dtypes & {torch.float16, torch.bfloat16}:
            raise UsageError(
                f"layers with hooks, adapters or other modules compute in their own dtype, and {narrow.pop()}"
                " is too coarse for sines of 30 x: use model.float()"
            )
        dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
        with no_autocast(points):
            result: Tensor = self.nnet(self._features(points.double()).to(dtype))
        return result

    def _features(self, points: Tensor) -> Tensor:  # (N, 2) -> (N, L²) in the convention
        harmonics = transforms.features(points, self.degrees)  # [L², N]
        if self._table is not None:
            rows = torch.nn.functional.pad(harmonics, (0, 0, 0, 1))  # a last row of zeros where there is none
            column = self._column.to(points.device)
            by_order = rows.index_select(0, column.flatten()).unflatten(0, column.shape)
            published = self._table.to(points.device) @ by_order  # [2L − 1, L, N]
            harmonics = published.flatten(0, 1).index_select(0, self._position.to(points.device))
        return (harmonics * self._factors.to(points.device)[:, None]).T

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
        """The network as it is now, in its own convention and dtypes, parametrisations computed.

        Under FSDP all processes call it together. Raises WeightsError for layers that compute with more than
        weights and biases.
        """
        named: dict[str, np.ndarray] = {}
        siren = self._siren()
        if siren is not unwrapped(self.nnet) or not calls_method_of(siren, Siren):
            raise WeightsError(
                f"nnet ({type(self.nnet).__name__}) computes with more than the layers that LocationEncoder "
                "makes: only those can be exported"
            )
        names = [*(f"layers.{index}" for index in range(len(siren.layers))), "last_layer"]
        for name, layer in zip(names, map(unwrapped, siren.all_layers()), strict=True):
            check_exported(layer, name)
            named[f"{name}.weight"], named[f"{name}.bias"] = _as_numpy(layer.weight), _as_numpy(layer.bias)
        return LocationWeights(named, self.convention, self.harmonics, self.w0, provenance or Provenance())

    def encoder(self, *, threads: int | None = None, device: str = "cpu") -> Encoder:
        """The parameters as they are now, ready for grids and rasters."""
        return load(self.to_weights(), threads=threads, device=device, precision=self.precision)

    def extra_repr(self) -> str:
        return (
            f"L={self.degrees}, {self.convention}, harmonics={self.harmonics!r}, "
            f"backend={self.backend!r}, precision={self.precision!r}"
        )

    # The statement is extra state, not a buffer: DistributedDataParallel broadcasts buffers in every call,
    # averages of models (AveragedModel, timm's EMA) add them up, torch.func stacks them, and casts of a
    # module would change one in floating point. As a tensor of bytes it passes torch.load(weights_only=True),
    # safetensors and torch.distributed.checkpoint.
    def get_extra_state(self) -> Tensor:
        """Statement of convention, harmonics and sine frequencies for the state dictionary."""
        return torch.from_numpy(self._statement().encoded())

    def set_extra_state(self, state: Any) -> None:
        """Check that tensors loaded with this statement are this module's. Raises WeightsError."""
        for stated in {_decoded(entry, STATEMENT_KEY) for entry in _stacked(state)}:
            if not stated.same_function(self._statement(), self.degrees):
                raise WeightsError(
                    f"{STATEMENT_KEY}: {stated} is not what this module computes, {self._statement()}: "
                    "load whole states, by load_state_dict, which converts them"
                )

    def _check_called(self, state: Any) -> None:
        """Check the statement of a call's tensors. Raises WeightsError, and UsageError while tracing."""
        if torch.compiler.is_compiling():  # tensors have no values then
            raise UsageError(f"{STATEMENT_KEY} is not read while torch.compile traces: give parameters only")
        self.set_extra_state(state)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any, **options: Any
    ) -> None:
        # torch hands over a dictionary of its own, from which the layers are loaded after this.
        if any(key.startswith(f"{prefix}nnet.") for key in state_dict):
            self._convert_state(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments, **options)

    def _convert_state(self, state: dict[str, Any], prefix: str) -> None:
        """Make it a state of this module's convention. Raises WeightsError."""
        key, own = prefix + STATEMENT_KEY, self._statement()
        if key not in state:
            if not self._takes_unstated:
                way_out = 'convention="analytic"'
                if self.degrees > EXACT_DEGREES:
                    way_out += (
                        f', harmonics="{"published" if self.degrees <= PUBLISHED_DEGREES else "exact"}"'
                    )
                raise WeightsError(
                    f"{key} is missing: the state does not say in which convention its harmonics are; one of "
                    f"the published code is loaded into LocationEncoder(…, {way_out})"
                )
        elif not (stated := _decoded(state[key], key)).same_function(own, self.degrees):
            names = [name for name in state if name.startswith(f"{prefix}nnet.")]
            state |= converted_state({name: state[name] for name in names}, stated, own, prefix)
        state[key] = self.get_extra_state()

    def _statement(self) -> Statement:
        w0 = next((siren.w0 for siren in self._sirens()), PUBLISHED_W0)
        return Statement(self.convention, self.harmonics, w0)

    def _siren(self) -> Siren:
        """The network behind wrappers. Raises UsageError where another module stands for it."""
        for siren in self._sirens():
            return siren
        raise UsageError(f"nnet is a {type(self.nnet).__name__}, not the network that LocationEncoder makes")

    def _sirens(self) -> list[Siren]:
        return [module for module in self.nnet.modules() if isinstance(module, Siren)]

    def _orthonormal(self, weight: Tensor) -> Tensor:  # (H, L²) in the convention -> (H, L²) in our basis
        weight = weight * self._factors.to(weight)
        if self._table is None:
            return weight
        table, column, position = (
            constant.to(weight.device) for constant in (self._table, self._column, self._position)
        )
        columns = torch.nn.functional.pad(weight.T, (0, 0, 0, 1))  # a last row of zeros where there is none
        by_order = columns.index_select(0, column.flatten()).unflatten(0, column.shape)
        # In float64, which autocast leaves alone.
        folded = table.transpose(1, 2) @ by_order.double()  # [2L − 1, L, H]
        return folded.flatten(0, 1).index_select(0, position).T.to(weight.dtype)

    def _set_constants(self) -> None:
        """Put the constants of the fold where the parameters are; on the CPU for those that are nowhere yet.

        They are no buffers: what averages, stacks, broadcasts or casts a module's tensors must leave them.
        """
        first = next(self.nnet.parameters(), None)
        device = torch.device("cpu") if first is None or first.is_meta else first.device

        def constant(values: np.ndarray) -> Tensor:
            return torch.tensor(values, device=device)

        self._factors = constant(column_factors(self.degrees, self.convention))
        self._table: Tensor | None = None
        if folds_published(self.degrees, self.convention, self.harmonics):
            column, table = published_by_order(self.degrees)
            self._table, self._column = constant(table), constant(column)
            self._position = constant(np.argsort(column.ravel(), kind="stable")[: self.degrees**2])

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        module = super()._apply(fn, recurse)
        self._set_constants()
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
    convention: Convention | None = None,
    backend: str = "auto",
) -> LocationEncoder | SatClip:
    """The location encoder of a checkpoint, as the published `get_satclip` returns it: in evaluation mode.

    It takes (N, 2) degrees, longitude first, and returns (N, E) float64; parameters are float64.
    path: what read_weights reads. harmonics, convention: as there. return_all: a SatClip with the logit scale
        and the image encoder's tensors too, from a `.ckpt` that has them.
    backend: "reference" computes in float64; "auto" takes the fastest on the device as `load` does, which
        computes in float32.

    Raises WeightsError for weights that cannot be read or lack what was asked for.
    """
    source = os.fspath(path)
    weights = read_weights(source, harmonics=harmonics, convention=convention)
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


def draw_seed() -> Tensor:  # () int64
    """A seed of dropout masks by torch's generator, that of the CPU whatever the default device is."""
    return torch.randint(2**63 - 1, (), device="cpu")


def _undrawn(inputs: int, outputs: int, *, device: Any = None, dtype: Any = None) -> nn.Linear:
    """A dense layer without values: their bounds are LocationEncoder's to know.

    One of torch's own class, because tools that replace layers (quantisation, adapters) go by the class.
    """
    target = torch.get_default_device() if device is None else device
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, device=target, dtype=dtype)
    return layer


def _stacked(value: Any) -> list[Any]:
    """Statements of modules that are stacked for torch.func.vmap; of one, itself."""
    if not is_wrapped(value):
        return [value]
    plain = unwrapped_tensor(value)
    return list(plain.reshape(-1, plain.shape[-1]))


def _decoded(value: Any, key: str) -> Statement:
    return decode_statement(_as_numpy(value) if isinstance(value, torch.Tensor) else np.array(value), key)


def _as_numpy(parameter: Tensor) -> np.ndarray:
    values = parameter.detach()
    if hasattr(values, "full_tensor"):  # of FSDP's shards
        values = values.full_tensor()
    values = values.cpu()
    # By DLPack: `numpy()` would forbid FSDP to free this memory.
    array: np.ndarray = np.from_dlpack(values.float() if values.dtype == torch.bfloat16 else values)
    return array


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

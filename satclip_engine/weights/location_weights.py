"""Weights of a location encoder: the file's own tensors (LocationWeights), folded into Layers for kernels.

    read_weights("default" | "x.ckpt" | "x.safetensors" | "hf://org/name[/file]").folded() -> Layers

LocationWeights keeps tensors, dtype and harmonics convention as the file has them, so that it is written back
bit by bit. `folded()` turns them, in float64, into the one basis that every kernel knows: orthonormal real
spherical harmonics in feature order l² + l + m, m < 0 the sines, no Condon–Shortley phase, cos θ = −sin(lat),
φ = lon + 180°.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from satclip_engine._forks import cached_property
from satclip_engine.errors import Argument, UsageError, WeightsError
from satclip_engine.weights.checkpoint import SUFFIXES, read_checkpoint, write_checkpoint
from satclip_engine.weights.conventions import (
    EXACT_DEGREES,
    PUBLISHED_DEGREES,
    column_factors,
    fold_published,
    folds_published,
)
from satclip_engine.weights.layers import FLOAT32_MAX, Layers, check_magnitude, frozen
from satclip_engine.weights.safetensors_file import weights_sha256
from satclip_engine.weights.schema import (
    PUBLISHED_W0,
    Convention,
    Harmonics,
    Stored,
    check_frequencies,
    check_modes,
    check_network,
    network_names,
    plain,
)

# Hyper-parameters by which a checkpoint of the published code is recognised.
RELEASED_NAMES: Final = frozenset({"le_type", "legendre_polys"})
# Weights inside the package, by name.
BUILT_IN: Final[Mapping[str, str]] = MappingProxyType(
    {"default": "bluemarble-l40.safetensors", "default-l10": "bluemarble-l10.safetensors"}
)


@dataclass(frozen=True)
class Provenance:
    """Origin of weights. `sha256` is that of the file; "" for weights that were never one."""

    source: str = "memory"
    format: str = "memory"
    sha256: str = ""
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Provenance in plain types, ready for JSON."""
        return {name: plain(value) for name, value in vars(self).items()}


@dataclass(frozen=True, eq=False)
class LocationWeights:
    """Weights of a location encoder as their file holds them. Immutable; pickles.

    tensors: layers.0.weight (H, L²), layers.0.bias (H,), ..., last_layer.weight (E, H), last_layer.bias (E,);
        read-only.
    convention: scale of the harmonics behind the columns of layers.0.weight (conventions.column_factors).
    harmonics: "exact", or "published": the polynomials that the published `analytic` code evaluates. The two
        differ for `analytic` weights with L > 20 only.
    w0: sine frequencies of the first and of the further hidden layers.

    Raises WeightsError for tensors that do not form one network of float32 numbers, UsageError for a mode
    that these weights cannot have.
    """

    tensors: Mapping[str, np.ndarray]
    convention: Convention
    harmonics: Harmonics = "exact"
    w0: tuple[float, float] = PUBLISHED_W0
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        where = self.provenance.source
        names = network_names(self.tensors, where)
        unknown = sorted(set(self.tensors) - set(names))
        if unknown:
            raise WeightsError(f"{where}: {unknown[0]}: expected only {', '.join(names)}")
        check_network({name: np.asarray(self.tensors[name]) for name in names}, where)
        check_modes(convention=self.convention, harmonics=self.harmonics)
        object.__setattr__(self, "w0", check_frequencies(self.w0, where))
        for name, factor in zip(names, self._sine_factors, strict=True):
            check_magnitude(np.asarray(self.tensors[name]), factor, f"{where}: {name}")
        tensors = {name: frozen(self.tensors[name]) for name in names}
        object.__setattr__(self, "tensors", MappingProxyType(tensors))
        if self._fold_published and self.degrees > PUBLISHED_DEGREES:
            raise UsageError(
                f"{where}: ",
                Argument("harmonics", "published"),
                f" covers L up to {PUBLISHED_DEGREES}, these weights have L = {self.degrees}; use ",
                Argument("harmonics", "exact"),
                argument="harmonics",
            )

    @property
    def degrees(self) -> int:
        """Number L of degrees: harmonics of degree 0..L−1, L² features."""
        return math.isqrt(self.tensors["layers.0.weight"].shape[1])

    L = degrees

    @property
    def capacity(self) -> int:
        """Width of the hidden layers."""
        return int(self.tensors["layers.0.weight"].shape[0])

    @property
    def hidden_layers(self) -> int:
        """Number of sine layers."""
        return len(self.tensors) // 2 - 1

    @property
    def embed_dim(self) -> int:
        """Number of outputs."""
        return int(self.tensors["last_layer.weight"].shape[0])

    @cached_property
    def sha256(self) -> str:
        """Hash of the function: tensors, convention, sine frequencies and, where it matters, harmonics."""
        return weights_sha256(self.tensors, self.convention, self.harmonics, self.w0)

    def folded(self) -> Layers:
        """Layers of the same function on exact orthonormal harmonics, float64, with unit sine frequencies."""
        return self._layers

    def converted(self, convention: Convention) -> LocationWeights:
        """Convert to the same function under another convention; these weights themselves when it is theirs.

        The result has harmonics="exact": only `analytic` has published polynomials, and weights on them have
        them folded in on the way. Tensors become float64, since neither π nor that fold fits into less.
        """
        check_modes(convention=convention)
        if convention == self.convention:
            return self
        tensors = {name: value.astype(np.float64) for name, value in self.tensors.items()}
        factors = column_factors(self.degrees, convention)
        tensors["layers.0.weight"] = self._orthonormal_first_weight() / factors
        origin = self.provenance
        provenance = replace(
            origin,
            hyper_parameters={**origin.hyper_parameters, "harmonics_calculation": convention},
            extras={**origin.extras, "converted_from": f"{self.convention}, harmonics {self.harmonics}"},
        )
        return LocationWeights(tensors, convention, "exact", self.w0, provenance)

    def save(self, path: str | os.PathLike[str], *, convention: Convention | None = None) -> None:
        """Write a `.safetensors`, or a `.ckpt` in the published layout; a file there is replaced whole.

        convention: None keeps these weights' own, and read_weights gives every tensor back bit by bit. One
            exception: the published code knows no orthonormal harmonics, so in a `.ckpt` such weights become
            `analytic` up to L = 20 and `closed-form` above, where its analytic polynomials are inexact. Any
            other value converts as `converted` does; readers with exact harmonics (torchgeo) want `analytic`.

        A link is replaced, not followed. Raises UsageError for another suffix or convention, OutputError when
        the file cannot be written.
        """
        target = Path(path)
        if convention is None:
            convention = self.convention
            if target.suffix.lower() == ".ckpt" and convention == "orthonormal":
                convention = "analytic" if self.degrees <= EXACT_DEGREES else "closed-form"
        weights = self.converted(convention)
        origin = weights.provenance
        extras = {"origin": {"source": origin.source, "sha256": origin.sha256}, **origin.extras}
        write_checkpoint(
            target,
            Stored(
                weights.tensors,
                weights.convention,
                weights.harmonics,
                weights.w0,
                origin.hyper_parameters,
                extras,
            ),
        )

    @cached_property
    def _layers(self) -> Layers:
        names, w0 = list(self.tensors), self._sine_factors[::2]
        weights = [self._orthonormal_first_weight(), *(self.tensors[name] for name in names[2::2])]
        biases = [self.tensors[name] for name in names[1::2]]
        layers = Layers(
            self.degrees,
            tuple(
                np.asarray(weight, np.float64) * factor for weight, factor in zip(weights, w0, strict=True)
            ),
            tuple(np.asarray(bias, np.float64) * factor for bias, factor in zip(biases, w0, strict=True)),
        )
        if (layer := layers.beyond_float32()) is not None:
            raise WeightsError(
                f"{self.provenance.source}: {names[2 * layer]}: its rows, w0 and scale of harmonics "
                f"multiplied in, add up to more than float32 can hold ({FLOAT32_MAX:.3g})"
            )
        return layers

    @property
    def _sine_factors(self) -> list[float]:
        """Sine frequency of each tensor, in order of evaluation."""
        hidden = len(self.tensors) // 2 - 1
        return [w0 for w0 in (self.w0[0], *[self.w0[1]] * (hidden - 1), 1.0) for _ in range(2)]

    @property
    def _fold_published(self) -> bool:
        """True for weights on published polynomials that differ from exact harmonics."""
        return folds_published(self.degrees, self.convention, self.harmonics)

    def _orthonormal_first_weight(self) -> np.ndarray:  # [H, L²] float64
        weight = self.tensors["layers.0.weight"].astype(np.float64)
        weight *= column_factors(self.degrees, self.convention)
        return fold_published(weight) if self._fold_published else weight

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy does not pickle, and caches need not travel to other processes.
        return LocationWeights, (
            dict(self.tensors),
            self.convention,
            self.harmonics,
            self.w0,
            self.provenance,
        )

    def __repr__(self) -> str:
        widths = "×".join([str(self.capacity)] * self.hidden_layers)
        return (
            f"LocationWeights(L={self.degrees}, {widths} → {self.embed_dim}, {self.convention}, "
            f"harmonics={self.harmonics!r}, source={self.provenance.source!r})"
        )


def read_weights(
    source: str | os.PathLike[str] = "default",
    *,
    harmonics: Harmonics | None = None,
    convention: Convention | None = None,
) -> LocationWeights:
    """Read weights by name ("default", "default-l10"), from a `.ckpt` or `.safetensors` file, or from hf://org/name[/file].

    harmonics: None takes what the file states, else "published" for `analytic` weights with 20 < L ≤ 40 (the
        function that released weights were trained on) and "exact" for all others. An `analytic` checkpoint
        with L > 40 that does not state its mode is read as "exact" with a UserWarning: the table of published
        polynomials ends there.
    convention: that of a file which does not state it, such as the published code's `state_dict()`; without
        it such a file is refused, since tensors are the same in every convention. Released checkpoints state
        theirs in their hyper-parameters (where those lack it, `analytic`, the published default, is taken
        with a UserWarning), and LocationEncoder in its state dictionary.

    Raises WeightsError for a file that is missing, damaged, hostile, contradicts itself or does not say what
    it is; UsageError for an unknown name, a convention that is not the file's, or a harmonics mode that these
    weights cannot have; MissingExtra when torch or huggingface_hub is needed and absent.
    """
    check_modes(harmonics=harmonics, convention=convention)
    if isinstance(source, str) and source in BUILT_IN:
        with resources.as_file(resources.files("satclip_engine.data") / BUILT_IN[source]) as path:
            return _from_file(path, source, harmonics, convention)
    if isinstance(source, str) and source.startswith("hf://"):
        from satclip_engine.weights.hub import download

        return _from_file(download(source), source, harmonics, convention)
    path = Path(source)
    named_as_file = path.suffix.lower() in SUFFIXES or path.name != str(source) or (source and path.exists())
    if isinstance(source, str) and not named_as_file:
        raise UsageError(
            f"unknown weights {source!r}: expected {', '.join(BUILT_IN)}, "
            f"a file ending in {' or '.join(SUFFIXES)}, or hf://org/name[/file]",
            argument="source",
        )
    return _from_file(path, str(source), harmonics, convention)


def check_convention(stated: Convention, named: Convention | None, source: str) -> None:
    """Raise UsageError for a convention that contradicts what weights state of themselves; None is any."""
    if named not in (None, stated):
        raise UsageError(
            f"{source} states another convention, {stated}: leave ",
            Argument("convention", named),
            " out",
            argument="convention",
        )


def _from_file(
    path: Path, source: str, harmonics: Harmonics | None, named: Convention | None
) -> LocationWeights:
    stored, digest = read_checkpoint(path, source)
    if stored.convention is not None:
        check_convention(stored.convention, named, source)
    convention = stored.convention or named or _released_convention(stored, source)
    degrees = math.isqrt(stored.tensors["layers.0.weight"].shape[1])
    provenance = Provenance(source, path.suffix[1:].lower(), digest, stored.hyper_parameters, stored.extras)
    mode = harmonics or stored.harmonics or _default_harmonics(convention, degrees, source)
    return LocationWeights(stored.tensors, convention, mode, stored.w0, provenance)


def _released_convention(stored: Stored, source: str) -> Convention:
    """Convention of a released checkpoint that lacks its name. Raises WeightsError for any other file."""
    if not stored.hyper_parameters.keys() >= RELEASED_NAMES:
        raise WeightsError(
            f"{source}: does not say in which convention its harmonics are: give ",
            Argument("convention", "analytic"),
            " (the published code's default), closed-form or orthonormal",
        )
    warnings.warn(f"{source} does not name its harmonics: taken as 'analytic'", UserWarning, stacklevel=4)
    return "analytic"


def _default_harmonics(convention: Convention, degrees: int, source: str) -> Harmonics:
    if convention != "analytic" or degrees <= EXACT_DEGREES:
        return "exact"
    if degrees <= PUBLISHED_DEGREES:
        return "published"
    warnings.warn(
        f"{source}: analytic weights with L = {degrees} are read with exact harmonics: "
        f"the table of the published polynomials covers L up to {PUBLISHED_DEGREES}",
        UserWarning,
        stacklevel=4,
    )
    return "exact"

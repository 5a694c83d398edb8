"""Linear maps on an atlas's bands (a selection, a head) and the error bound that follows."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from satclip_engine.atlas.packing import Packing
from satclip_engine.lattice.certificate import Certificate
from satclip_engine.lattice.tolerance import RMS_FLOOR


@dataclass(frozen=True, eq=False)
class Selection:
    """Bands by number, (K,)."""

    index: np.ndarray

    @property
    def outputs(self) -> int:
        return self.index.size

    def whole(self, bands: int) -> bool:
        return np.array_equal(self.index, np.arange(bands))

    def select(self, index: np.ndarray) -> Selection:
        return Selection(self.index[index])

    def compose(self, weight: np.ndarray, bias: np.ndarray, bands: int) -> Head:
        """`weight` (K, E) times these outputs plus `bias` (K,)."""
        # A band may have been selected twice.
        chosen = (self.index[:, None] == np.arange(bands)).astype(np.float64)
        return Head(weight @ chosen, bias)

    def values(self, codes: np.ndarray, packing: Packing) -> np.ndarray:
        """(h, w, E) float32 codes → (h, w, K) float32."""
        whole = self.whole(codes.shape[-1])
        return packing.values(codes, None if whole else self.index)

    def key(self) -> bytes:
        return self.index.astype("<i8").tobytes()


@dataclass(frozen=True, eq=False)
class Head:
    """weight (K, E) times the bands plus bias (K,), float64."""

    weight: np.ndarray
    bias: np.ndarray

    @property
    def outputs(self) -> int:
        return len(self.weight)

    def whole(self, bands: int) -> bool:
        return False

    def select(self, index: np.ndarray) -> Head:
        return Head(self.weight[index], self.bias[index])

    def compose(self, weight: np.ndarray, bias: np.ndarray, bands: int) -> Head:
        return Head(weight @ self.weight, weight @ self.bias + bias)

    def values(self, codes: np.ndarray, packing: Packing) -> np.ndarray:
        # In float64: what order a matrix product sums in is then lost in rounding to float32.
        bands = packing.values(codes).astype(np.float64)
        return (bands @ self.weight.T + self.bias).astype(np.float32)

    def key(self) -> bytes:
        return self.weight.astype("<f8").tobytes() + self.bias.astype("<f8").tobytes()


Linear = Selection | Head


def sha256_of(atlas: str, linear: Linear, bands: int) -> str:
    """Identifies the function; of all bands that of the atlas."""
    if linear.whole(bands):
        return atlas
    kind = type(linear).__name__.encode()
    return hashlib.sha256(b" ".join((atlas.encode(), kind, linear.key()))).hexdigest()


@dataclass(frozen=True, eq=False)
class HeadCertificate(Certificate):
    """Of a linear head: what follows from measurements of the bands it is made of.

    `max_error` is a bound that holds at the positions of these measurements, `rms_error` what follows from
    them exactly; the cosine similarity is not known.
    """

    @property
    def statement(self) -> str:
        return (
            f"at {self.positions + self.further:,} positions where the bands were measured "
            f"no output of this linear head errs by more than {self.max_sigma:.2g} σ, by a bound "
            f"(rms {self.rms_sigma:.1g} σ); with {100 * self.confidence:g} % confidence "
            f"at most {100 * self.fraction:.2g} % of all {self.scope} err by more"
        )

    def tags(self) -> dict[str, str]:
        tags = super().tags()
        del tags["reconstruction_min_cosine"]
        return tags


def head_certificate(
    bands: Certificate,
    head: Head,
    statistics: tuple[np.ndarray, np.ndarray],
    reach: float,
    mean: np.ndarray,
) -> HeadCertificate:
    """A head's certificate from that of the bands, and from `AtlasFile.statistics`.

    An output w·Δ of errors Δ is at most Σ|w||Δ|, and by Cauchy and Schwarz at most √(wᵀMw) times the largest
    √(ΔᵀM⁻¹Δ) of any position, which is `reach`, for any M; M is about the mean of ΔΔᵀ.
    """
    weight, (covariance, errors) = head.weight, statistics
    sigma = np.sqrt(np.maximum(_form(weight, covariance), 0.0))
    rms = np.sqrt(np.square(sigma) + np.square(weight @ mean + head.bias))
    squares = np.maximum(_form(weight, errors), 0.0)
    bound = np.minimum(np.abs(weight) @ bands.max_error, np.sqrt(squares) * reach) + RMS_FLOOR / 10 * rms
    varying = sigma > RMS_FLOOR * rms
    unit = np.where(varying, sigma, 1.0)
    of_all = {f.name: getattr(bands, f.name) for f in dataclasses.fields(Certificate)}
    return HeadCertificate(
        **{
            **of_all,
            "sigma": sigma,
            "max_error": bound,
            "rms_error": np.sqrt(squares),
            "max_sigma": float((bound / unit)[varying].max(initial=0.0)),
            "rms_sigma": float(np.sqrt((squares / unit**2)[varying].mean())) if varying.any() else 0.0,
            "min_cosine": -1.0,
            "max_tolerance": 1.0,  # the bound is all that is promised
        }
    )


def error_measure(errors: np.ndarray, packed: Callable[[np.ndarray], Any]) -> tuple[np.ndarray, float]:
    """M and the reach of `head_certificate` for (n, E) errors; `packed`: M as it will be read again."""
    bands = errors.shape[1]
    mean = errors.T @ errors / len(errors)
    ridge = max(1e-3 * float(np.trace(mean)) / bands, 1e-30)
    measure = packed(mean + ridge * np.eye(bands))
    whitened = np.linalg.solve(measure, errors.T)
    return measure, float(np.sqrt(np.maximum((errors.T * whitened).sum(axis=0), 0.0).max(initial=0.0)))


def field_measure(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covariance and mean of (n, E) values."""
    values = values.astype(np.float64)
    mean = values.mean(axis=0)
    return (values - mean).T @ (values - mean) / len(values), mean


def _form(weight: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """wᵀ M w of every row."""
    return ((weight @ matrix) * weight).sum(axis=1)

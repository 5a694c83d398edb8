"""Tolerances of a reconstruction: the largest error of each band, by its σ or its quantisation step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from satclip_engine.backends.protocols import Call, Prepared
from satclip_engine.errors import Argument, UsageError

DEFAULT_SIGMAS = 1e-4  # σ, of floats
MAX_STEP_SHARE = 1 / 8  # of a quantisation step, of integers
RMS_FLOOR = 1e-5  # of the embedding's rms: as near as two exact float32 evaluations agree
_MOMENT_POINTS = 4096


@dataclass(frozen=True, eq=False)
class Moments:
    """Of each band over the globe, by area, (E,) float64."""

    sigma: np.ndarray
    rms: np.ndarray

    @property
    def floor(self) -> float:
        """The smallest tolerance that float32 can keep, in σ."""
        varying = self.sigma > 1e-6 * self.rms
        return RMS_FLOOR * float((self.rms[varying] / self.sigma[varying]).max(initial=1.0))


@dataclass(frozen=True, eq=False)
class Tolerance:
    """The largest error allowed, (E,) in each band's unit."""

    text: str  # "1e-4 σ", "an eighth of an int8 step"
    bands: np.ndarray
    sigma: np.ndarray

    def of_bands(self, index: np.ndarray) -> Tolerance:
        return Tolerance(self.text, self.bands[index], self.sigma[index])

    def as_dict(self) -> dict[str, Any]:
        return {"text": self.text, "bands": self.bands.tolist(), "sigma": self.sigma.tolist()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Tolerance:
        return cls(content["text"], np.asarray(content["bands"]), np.asarray(content["sigma"]))


def spiral(count: int) -> np.ndarray:
    """(count, 2) longitudes and latitudes spread evenly over the sphere (Fibonacci lattice)."""
    k = np.arange(count) + 0.5
    golden = (1 + 5**0.5) / 2
    lat = np.degrees(np.arcsin(1 - 2 * k / count))
    return np.stack([np.mod(360 * k / golden, 360.0) - 180.0, lat], axis=-1)


def moments(network: Prepared, threads: int | None = None) -> Moments:
    """σ and rms of every band over the globe, from 4096 points."""
    values = network.encode(spiral(_MOMENT_POINTS), call=Call(threads)).astype(np.float64)
    return Moments(values.std(axis=0), np.sqrt(np.square(values).mean(axis=0)))


def check_tolerance(tolerance: float | None) -> None:
    """Raise UsageError for what is no tolerance."""
    if tolerance is None:
        return
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float, np.integer, np.floating)):
        raise UsageError(
            f"tolerance must be a number of σ such as 1e-3, not {tolerance!r}", argument="tolerance"
        )
    if not np.isfinite(tolerance) or tolerance <= 0:
        raise UsageError(f"tolerance must be positive and finite, not {tolerance!r}", argument="tolerance")


def tolerance_of(
    field: Moments,
    tolerance: float | None,
    *,
    step: np.ndarray | None = None,
    dtype: str = "float32",
    exact_possible: bool = True,
) -> Tolerance:
    """The tolerance of a run: as given in σ, else 1/8 of each band's quantisation `step`, else 1e-4 σ.

    exact_possible: `exact` is a way out for the caller. Raises UsageError when what is given is below what
    float32 can keep.
    """
    check_tolerance(tolerance)
    # A constant band has no σ: rounding of its value is all that can be off.
    least = np.maximum(RMS_FLOOR * field.rms, 1e-30)
    if tolerance is None and step is not None:
        share = np.asarray(step, np.float64) * MAX_STEP_SHARE
        article = "a" if dtype.startswith("u") else "an"
        text = f"an eighth of {article} {dtype} step{_or_floor(least > share)}"
        return Tolerance(text, np.maximum(share, least), field.sigma)
    sigmas = DEFAULT_SIGMAS if tolerance is None else float(tolerance)
    if tolerance is not None and sigmas < field.floor:
        raise UsageError(
            f"tolerance {sigmas:g} σ is below what float32 can keep: the floor is {field.floor:.2g} σ "
            "for these weights; give that or more",
            *([", or use ", Argument("exact", True)] if exact_possible else []),
            argument="tolerance",
        )
    text = f"a tolerance of {sigmas:g} σ{_or_floor(least > sigmas * field.sigma)}"
    return Tolerance(text, np.maximum(sigmas * field.sigma, least), field.sigma)


def _or_floor(floored: np.ndarray) -> str:
    """Addition about bands whose tolerance float32 could not keep: constant, or large beside their σ."""
    if not floored.any():
        return ""
    count = int(floored.sum())
    return f" ({RMS_FLOOR:g} of their rms, float32's floor, in {count} of {floored.size} bands)"

"""Certificate of a lattice's error, measured at positions that were not used to choose the lattice.

Check positions are drawn from what is delivered: pixels of the raster, one at random from each of equal
strata, or points of the list. If n positions show no error beyond M, then with confidence c at most

    ε = 1 − (1 − c)^(1/n)

of all positions do: were it more, n draws would all have missed them with a probability (1 − ε)ⁿ ≤ 1 − c.
Strata only help (the product of their probabilities is largest when they are equal), and so do the further
positions that are measured because errors are likely there. When a lattice is refined and measured anew,
each measurement claims its share of the doubt (1 − c).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

CONFIDENCE = 0.9999
MIN_POSITIONS = 2048


@dataclass(frozen=True, eq=False)
class Certificate:
    """Errors as measured. σ is a band's standard deviation over the globe, by area."""

    positions: int  # drawn at random; `fraction` follows from their number
    further: int  # measured beside them: near the probe's worst points, near the poles
    fraction: float  # of positions that may err more than `max_sigma`, at most
    confidence: float
    sigma: np.ndarray  # (E,)
    max_error: np.ndarray  # (E,) largest |Δ| of each band, in its unit
    rms_error: np.ndarray  # (E,)
    max_sigma: float  # largest |Δ| of any band, in σ
    rms_sigma: float  # root mean square of |Δ| over positions and bands, in σ
    min_cosine: float  # smallest cosine similarity of exact and reconstructed embedding
    max_tolerance: float  # largest |Δ| of any band in tolerances
    scope: str = "positions"  # of which `fraction` is a share, if not of the points or pixels delivered

    @property
    def statement(self) -> str:
        """In a sentence."""
        return (
            f"at {self.positions + self.further:,} positions "
            f"no band errs by more than {up(self.max_sigma, 2)} σ "
            f"(rms {up(self.rms_sigma, 1)} σ, cosine ≥ 1 − {up(1 - self.min_cosine, 1)}); "
            f"with {100 * self.confidence:g} % confidence "
            f"at most {up(100 * self.fraction, 2)} % of all {self.scope} err by more"
        )

    def of_bands(self, index: np.ndarray) -> Certificate:
        """The same for some of the bands; bounds of all bands together hold for them too."""
        return replace(
            self,
            sigma=self.sigma[index],
            max_error=self.max_error[index],
            rms_error=self.rms_error[index],
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON; floats survive it exactly."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in fields.items()
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Certificate:
        arrays = ("sigma", "max_error", "rms_error")
        return cls(**{**content, **{name: np.asarray(content[name], np.float64) for name in arrays}})

    def tags(self) -> dict[str, str]:
        """For a raster's metadata."""
        return {
            "reconstruction": self.statement,
            "reconstruction_max_sigma": up(self.max_sigma, 6),
            "reconstruction_rms_sigma": f"{self.rms_sigma:.6g}",
            "reconstruction_min_cosine": f"{self.min_cosine:.12g}",
            "reconstruction_positions": str(self.positions + self.further),
            "reconstruction_drawn": str(self.positions),
            "reconstruction_scope": self.scope,
            "reconstruction_fraction_beyond": up(self.fraction, 6),
            "reconstruction_confidence": f"{self.confidence:g}",
        }


def up(value: float, digits: int) -> str:
    """A bound in a few digits, rounded up."""
    text = f"{value:.{digits}g}"
    if float(text) >= value or not np.isfinite(value):
        return text
    exponent = int(np.floor(np.log10(abs(value))))
    return f"{float(text) + 10.0 ** (exponent - digits + 1):.{digits}g}"


def positions_for(count: int) -> int:
    """Number of positions to draw for a job of `count` points: as many as cost little beside it."""
    return int(min(max(MIN_POSITIONS, count // 4096), 8 * MIN_POSITIONS, count))


def fraction_beyond(positions: int, confidence: float) -> float:
    """ε of the module's text; 1 where nothing was measured."""
    if not positions:
        return 1.0
    return float(-np.expm1(np.log1p(-confidence) / positions))


def certify(
    exact: Callable[[np.ndarray], np.ndarray],
    reconstructed: Callable[[np.ndarray], np.ndarray],
    drawn: np.ndarray,
    further: np.ndarray,
    sigma: np.ndarray,
    tolerance: np.ndarray,
    confidence: float = CONFIDENCE,
    rounds: int = 1,
) -> tuple[Certificate, np.ndarray]:
    """Measure at (n, 2) points drawn at random and at further ones; also every point's error in tolerances.

    rounds: number of lattices, each measured at other points, of which the certified one may be chosen.
    """
    lonlat = np.concatenate([drawn, further])
    truth, values = exact(lonlat).astype(np.float64), reconstructed(lonlat)
    error = np.abs(values - truth)
    largest, unit = error.max(axis=0), np.where(sigma > 0, sigma, 1.0)
    squares = np.square(error).mean(axis=0)
    lengths = np.linalg.norm(truth, axis=1) * np.linalg.norm(values.astype(np.float64), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.where(lengths > 0, (truth * values).sum(axis=1) / lengths, 1.0)
    of_tolerance = (error / tolerance).max(axis=1)
    varying = sigma > 0
    certificate = Certificate(
        positions=len(drawn),
        further=len(further),
        fraction=fraction_beyond(len(drawn), 1 - (1 - confidence) / rounds),
        confidence=confidence,
        sigma=sigma,
        max_error=largest,
        rms_error=np.sqrt(squares),
        max_sigma=float((largest / unit)[varying].max(initial=0.0)),
        rms_sigma=float(np.sqrt((squares / unit**2)[varying].mean())) if varying.any() else 0.0,
        min_cosine=float(min(cosine.min(), 1.0)),
        max_tolerance=float(of_tolerance.max()),
    )
    return certificate, of_tolerance

"""Comparison of weights for the taps of a lattice's interpolation.

    OMP_NUM_THREADS=1 python benchmarks/interpolants.py --markdown interpolants.md --json interpolants.json

A raster made from a lattice costs p multiply-adds per band, pixel and axis, whatever the p weights are. For
each kind of weights: the coarsest spacing, in degrees of great circle, at which the largest error of any band
on any of a few circles stays within a tolerance, in deviations of the band over the globe. Fields are the
default weights and untrained ones whose first layer is multiplied; circles are three of latitude and one
through the poles, which closes as well. Two axes add their errors, whatever the weights.

Weights that depend only on the position between nodes are a filter: at u past node 0 they turn exp(ikx) into
(1 + E(k, u)) exp(ikx). So a circle's errors for all lattices of a spacing are the inverse transform of E
times its Fourier coefficients. What weights leave open is chosen by the mean square error. Takes 4 minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from satclip_engine import reference
from satclip_engine.bench.inputs import scattered, siren
from satclip_engine.bench.machine import versions
from satclip_engine.weights import Layers, read_weights

ORDERS = {3.4e-3: (4, 6, 8, 10, 12), 1e-4: (4, 6, 8, 10, 12), 1e-5: (8, 10, 12)}  # by tolerance; int8's first
BANDS = 32  # of an untrained network, whose bands are alike
FRACTIONS = (1e-6, 0.125, 0.25, 0.375, 0.5)  # between nodes 0 and 1; the other half mirrors it
GAUSS = np.polynomial.legendre.leggauss(32)
CIRCLE_POINTS = 1 << 14
MISJUDGED = {"÷ 1.5": 1 / 1.5, "× 1.5": 1.5}
LIMITED = "least squares, band limit"


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """Fourier coefficients of circles, per deviation of a band; wavenumbers per great circle."""

    name: str
    circles: tuple[tuple[np.ndarray, np.ndarray], ...]  # wavenumbers (K,), coefficients (bands, K) each

    @cached_property
    def spectrum(self) -> tuple[np.ndarray, np.ndarray]:  # (257,), (257,)
        """Wavenumbers and the power at them, the mean of all bands and circles."""
        k = np.concatenate([k for k, _ in self.circles])
        power = np.concatenate([(np.abs(c) ** 2).mean(axis=0) for _, c in self.circles]) / len(self.circles)
        nearest = np.rint(k / k.max() * 256).astype(int)
        return np.arange(257) * k.max() / 256, np.bincount(nearest, power * np.where(k > 0, 2, 1))


@dataclasses.dataclass(frozen=True)
class Kernel:
    """`weights(p, u, parameter, step)` of nodes 1 − p/2 … p/2 at u, in any multiple: divided by their sum,
    which would ripple where most power is. `finer`: 0 for local weights; otherwise the whole circle is
    transformed, put on so many times as many nodes, and, if `corrected`, divided by the mean response."""

    name: str
    weights: Callable[[int, float, Any, float], np.ndarray]
    parameters: Callable[[int, Field], Sequence[Any]] = lambda p, field: (None,)
    finer: int = 0
    corrected: bool = False


def nodes(p: int) -> np.ndarray:
    return np.arange(p) - (p // 2 - 1)


@cache
def lagrange(p: int, u: float, parameter: Any = None, step: float = 0) -> np.ndarray:
    return np.array([math.prod((u - b) / (a - b) for b in nodes(p) if b != a) for a in nodes(p)])


def rational(p: int, u: float, d: int, step: float) -> np.ndarray:
    """Floater and Hormann's barycentric interpolant: polynomials of degree d, blended."""
    starts = [range(max(0, j - d), min(j, p - 1 - d) + 1) for j in range(p)]
    return [(-1) ** j * sum(math.comb(d, j - i) for i in s) for j, s in enumerate(starts)] / (u - nodes(p))


def window(p: int, u: float, shape: float, step: float) -> np.ndarray:
    return np.i0(shape * p * np.sqrt(np.maximum(0, 1 - ((nodes(p) - u) / (p / 2)) ** 2)))


def windowed_sinc(p: int, u: float, shape: float, step: float) -> np.ndarray:
    return window(p, u, shape, step) * np.sinc(u - nodes(p))


def band_limited(p: int, u: float, limit: float, step: float) -> np.ndarray:
    """Least squares over |k| ≤ limit, all alike."""
    return least_squares(p, u, math.radians(step) * limit * (GAUSS[0] + 1) / 2, GAUSS[1])


def own_spectrum(p: int, u: float, spectrum: tuple[np.ndarray, np.ndarray], step: float) -> np.ndarray:
    """Least squares for the field's own power: no p weights have a smaller mean square error."""
    return least_squares(p, u, math.radians(step) * spectrum[0], spectrum[1])


def least_squares(p: int, u: float, kappa: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Weights w of sum 1 with the least Σ_κ power |Σ_j w_j exp(iκ(j − u)) − 1|², as Lagrange's plus what
    sums to 0, so that the constraint holds and lost digits matter less."""
    start, scale = lagrange(p, u), np.sqrt(power)[:, None]
    waves = scale * np.exp(1j * np.outer(kappa, nodes(p) - u))
    rest = scale[:, 0] - waves @ start
    both = [np.concatenate([a.real, a.imag]) for a in (waves[:, 1:] - waves[:, :-1], rest)]
    return start - np.diff(np.linalg.lstsq(*both, rcond=1e-13)[0], prepend=0, append=0)


SHAPES = np.arange(0, 3.01, 0.2)  # of a window, per tap
LIMITS = np.geomspace(0.08, 0.5, 15)  # of a band, in the highest wavenumbers that there are
KERNELS = (
    Kernel("Lagrange", lagrange),
    Kernel("Floater–Hormann", rational, lambda p, field: range(p - 2)),  # above it is Lagrange's
    Kernel("windowed sinc", windowed_sinc, lambda p, field: SHAPES),
    Kernel(LIMITED, band_limited, lambda p, field: field.spectrum[0][-1] * LIMITS),
    Kernel("least squares, own spectrum", own_spectrum, lambda p, field: (field.spectrum,)),
    Kernel("FFT, Kaiser–Bessel", window, lambda p, field: SHAPES, finer=1, corrected=True),
    Kernel("FFT, Kaiser–Bessel at ×2", window, lambda p, field: SHAPES, finer=2, corrected=True),
    Kernel("FFT, Lagrange at ×2", lagrange, finer=2),
)


@dataclasses.dataclass(frozen=True)
class Taps:
    """A kernel with everything chosen but the spacing."""

    kernel: Kernel
    p: int
    parameter: Any

    def deviation(self, k: np.ndarray, step: float) -> np.ndarray:  # (K,) -> (u, K)
        """E(k, u) on a lattice of that spacing."""
        kappa = math.radians(step) * k
        if not self.kernel.finer:
            return self._response(kappa, FRACTIONS, step) - 1
        # The nodes cannot tell κ from its alias, which they turn into a wave between them as well.
        finer, alias = self.kernel.finer, (kappa + np.pi) % (2 * np.pi) - np.pi
        response = self._response(alias / finer, [finer * u % 1 for u in FRACTIONS], step)
        if self.kernel.corrected:
            response /= self._response(alias / finer, (np.arange(16) + 0.5) / 16, step).mean(axis=0)
        return response * np.exp(1j * np.outer(FRACTIONS, alias - kappa)) - 1

    def _response(self, kappa: np.ndarray, positions: Sequence[float], step: float) -> np.ndarray:
        """exp(iκx) as interpolated at positions between nodes, in multiples of itself."""
        weights = np.stack([self.kernel.weights(self.p, u, self.parameter, step) for u in positions])
        weights /= weights.sum(axis=1, keepdims=True)
        interpolated = weights @ np.exp(1j * np.outer(nodes(self.p), kappa))
        return interpolated * np.exp(-1j * np.outer(positions, kappa))

    def typical_error(self, field: Field, step: float) -> float:
        k, power = field.spectrum
        return float(np.sqrt((np.abs(self.deviation(k, step)) ** 2 @ power).mean()))

    def largest_error(self, field: Field, step: float) -> float:
        waves = (coefficients * e for k, coefficients in field.circles for e in self.deviation(k, step))
        errors = (np.fft.irfft(c, 2 << c.shape[1].bit_length(), norm="forward") for c in waves)
        return max(float(np.abs(error).max()) for error in errors)

    def spacing(self, field: Field, within: float) -> float:
        """Spacing of the coarsest lattice whose typical error is within that."""
        low, high = 1e-3, 60.0
        while high / low > 1.004:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.typical_error(field, middle) <= within else (low, middle)
        return low

    def coarsest(self, field: Field, tolerance: float) -> float:
        """Spacing at which the largest error, about five times the typical one, is the tolerance."""
        low, high, step = 1e-3, 60.0, self.spacing(field, tolerance / 5)
        for steps in range(20):
            largest = self.largest_error(field, step)
            low, high = (step, high) if largest <= tolerance else (low, step)
            if 0.9 * tolerance < largest <= tolerance or high / low < 1.01:
                break
            step = self.spacing(field, 0.95 * tolerance * self.typical_error(field, step) / largest)
            step = step if low < step < high and steps < 4 else math.sqrt(low * high)
        return low


def fields() -> list[Field]:
    all_fields, start = [_field("default", read_weights("default").folded())], siren(40, (512, 512, BANDS))
    for gain in (1, 5, 20, 60):
        weights = (start.weights[0] * gain, *start.weights[1:])
        all_fields.append(_field(f"untrained × {gain}", dataclasses.replace(start, weights=weights)))
    return all_fields


def _field(name: str, layers: Layers) -> Field:
    deviation = reference.encode(scattered(4096), layers).std(axis=0)
    angle = np.arange(CIRCLE_POINTS) * 360 / CIRCLE_POINTS - 180
    paths = [(math.cos(math.radians(lat)), angle, np.full_like(angle, lat)) for lat in (0.0, 35.0, 60.0)]
    beyond = np.abs(angle) > 90  # over the poles to the opposite meridian
    lat = np.where(beyond, np.copysign(180, angle) - angle, angle)
    paths.append((1.0, np.where(beyond, -160.0, 20.0), lat))
    circles = []
    for length, lon, lat in paths:
        values = reference.encode(np.stack([lon, lat], axis=1), layers) / deviation
        spectrum = np.fft.rfft(values.T, norm="forward")
        count = 1 + np.flatnonzero(np.abs(spectrum).max(axis=0) > 1e-11)[-1]  # above rounding
        if count > CIRCLE_POINTS * 3 // 8:
            raise ValueError(f"{name}: {CIRCLE_POINTS} points are too few for a circle")
        circles.append((np.arange(count) / length, spectrum[:, :count]))
    return Field(name, tuple(circles))


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the weights that an interpolation's taps may have.")
    parser.add_argument("--markdown", type=Path, help="file for the tables")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    options = parser.parse_args()
    results = [row for field in fields() for t in ORDERS for p in ORDERS[t] for row in rows(field, p, t)]
    text = "\n\n".join(table([row for row in results if row["tolerance"] == t], t) for t in ORDERS)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    if options.json:
        options.json.write_text(json.dumps({"versions": versions(), "found": results}, indent=1) + "\n")


def rows(field: Field, p: int, tolerance: float) -> list[dict[str, Any]]:
    """All kernels on a field, Lagrange first."""
    print(f"{field.name}, {p} taps, {tolerance:g}", file=sys.stderr)
    taps: dict[str, Taps] = {}
    for kernel in KERNELS:
        choices = [Taps(kernel, p, parameter) for parameter in kernel.parameters(p, field)]
        taps[kernel.name] = max(choices, key=lambda choice: choice.spacing(field, tolerance / 5))
    for name, factor in MISJUDGED.items():
        taps[f"{LIMITED} {name}"] = Taps(taps[LIMITED].kernel, p, taps[LIMITED].parameter * factor)
    results: list[dict[str, Any]] = []
    for name, choice in taps.items():
        row = {"field": field.name, "p": p, "tolerance": tolerance, "kernel": name}
        row |= {"parameter": choice.parameter if np.isscalar(choice.parameter) else None}
        row |= {"degrees": choice.coarsest(field, tolerance)}
        row |= {"ratio": row["degrees"] / (results[0] if results else row)["degrees"]}
        results.append(row)
    return results


def table(results: list[dict[str, Any]], tolerance: float) -> str:
    """Spacings of Lagrange's weights, multiples of it for the others; nodes that the default weights need."""
    names = list(dict.fromkeys(row["field"] for row in results))
    lines = [f"Error ≤ {tolerance:g}:\n", f"| taps | weights | {' | '.join(names)} | nodes, {names[0]} |"]
    lines.append("| --- " * (3 + len(names)) + "|")
    for p, kernel in dict.fromkeys((row["p"], row["kernel"]) for row in results):
        own = [row for row in results if (row["p"], row["kernel"]) == (p, kernel)]
        first = kernel == KERNELS[0].name
        cells = [f"{row['degrees']:.3g}°" if first else f"× {row['ratio']:.2f}" for row in own]
        cells.append(f"{41253 / own[0]['degrees'] ** 2:,.0f}" if first else f"× {own[0]['ratio'] ** -2:.2f}")
        lines.append("| " + " | ".join([str(p) if first else "", kernel, *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

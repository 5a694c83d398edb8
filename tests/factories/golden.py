"""Published embeddings: their tables, and the comparison of an encoder with one of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from factories.weights import GOLDEN

from satclip_engine import reference
from satclip_engine.weights import LocationWeights, read_weights

BANDS = (0, 30, 50, 60, 70, 80, 90)
# The published float64 code itself, by band: at L = 40 its polynomials cancel, and only their rounded
# coefficients, not their evaluation noise, can be reproduced. Measured with the released initialisation; the
# noise grows less than four times when the first weight is multiplied by 5.
NOISE_OF_POLYNOMIALS = np.array([1e-8, 3e-6, 6e-5, 5e-4, 2e-3, 4e-3])
FLOAT64 = 1e-11
# Within a degree of the poles the published sin θ = √(1 − x²) cancels.
NEAR_POLES = 1e-6
# A float32 network against the float64 one, in units of the embedding's rms.
FLOAT32 = 1e-5


@dataclass(frozen=True)
class Case:
    """`name`.ckpt evaluated with `harmonics`, beside its table of `kind` ("published" or "exact")."""

    folder: Path
    name: str
    harmonics: str
    kind: str

    def __str__(self) -> str:
        prefix = "" if self.folder == GOLDEN else "whole-"
        return f"{prefix}{self.name}-{self.harmonics}-vs-{self.kind}"

    @cached_property
    def weights(self) -> LocationWeights:
        return read_weights(self.folder / f"{self.name}.ckpt", harmonics=self.harmonics)  # type: ignore[arg-type]

    @cached_property
    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points (n, 2), numbers of the outputs, and their values (n, outputs)."""
        if self.folder == GOLDEN:
            file = np.load(self.folder / f"{self.name}.npz")
            return file["lonlat"], file["columns"], file[self.kind]
        suffix = "_exactSH" if self.kind == "exact" else ""
        file = np.load(self.folder / f"{self.name}{suffix}.npz")
        return file["lonlat"], np.arange(file["embeddings"].shape[1]), file["embeddings"]

    def tolerance(self, latitude: np.ndarray) -> np.ndarray:
        """Largest difference of a float64 evaluation, by absolute latitude."""
        if self.kind == "exact":
            return np.full_like(latitude, FLOAT64)
        if self.weights.convention == "analytic" and self.weights.degrees > 20:
            gain = 4 if self.name.endswith("_w5") else 1
            return gain * NOISE_OF_POLYNOMIALS[np.searchsorted(BANDS[1:-1], latitude, side="right")]
        return np.where(latitude < 89, FLOAT64, NEAR_POLES)


def cases() -> list[Case]:
    """Every published table in the trimmed set and, when SATCLIP_GOLDEN names it, in the whole one."""
    golden = []
    for folder in [GOLDEN, *map(Path, filter(None, [os.environ.get("SATCLIP_GOLDEN")]))]:
        for checkpoint in sorted(folder.glob("L*.ckpt")):
            name = checkpoint.stem
            if not (folder / f"{name}.npz").exists():
                continue
            degrees = int(name[1:3])
            if degrees == 10 or "closed-form" in name:  # both modes are one function
                golden += [Case(folder, name, mode, "published") for mode in ("exact", "published")]
            else:
                golden.append(Case(folder, name, "published", "published"))
            if degrees == 40:
                golden.append(Case(folder, name, "exact", "exact"))
    return golden


def check_golden(encode: Callable[[np.ndarray], np.ndarray], case: Case, *, float32: bool) -> None:
    """Compare `encode`, (N, 2) → (N, E), with the published table, and in float32 also with the reference."""
    lonlat, columns, expected = case.table
    latitude = np.abs(lonlat[:, 1])
    result = np.asarray(encode(lonlat), np.float64)
    tolerance = case.tolerance(latitude)
    if float32:
        definition = reference.encode(lonlat, case.weights.folded())
        rounding = FLOAT32 * np.sqrt(np.mean(definition**2))
        assert np.abs(result - definition).max() <= rounding
        tolerance = tolerance + rounding
    difference = np.abs(result[:, columns] - expected).max(axis=1)
    inside = [(latitude >= low) & (latitude <= high) for low, high in pairwise(BANDS)]
    print(case, " ".join(f"{difference[band].max():.1e}" for band in inside))
    worst = np.argmax(difference / tolerance)
    assert difference[worst] <= tolerance[worst], f"at lon, lat {lonlat[worst]}"

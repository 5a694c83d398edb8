"""Conventions of spherical harmonics: factors from a checkpoint's columns to the one basis of all kernels."""

from __future__ import annotations

import math
from functools import cache
from importlib import resources
from typing import Final

import numpy as np

from satclip_engine.weights.schema import Convention, Harmonics

# Below this degree the published polynomials equal exact harmonics to 1e-9; above, rounded coefficients show.
EXACT_DEGREES: Final = 20
# The table of the published polynomials covers degrees below this.
PUBLISHED_DEGREES: Final = 40


def column_factors(degrees: int, convention: Convention) -> np.ndarray:  # (L²,) float64
    """Features of `convention` in units of our orthonormal ones, by column l² + l + m.

    `analytic` computes √((2l+1)/4·π) where √((2l+1)/(4π)) was meant, hence π at m = 0; `closed-form` has the
    Condon–Shortley phase (−1)^m.
    """
    order = np.concatenate([np.arange(-degree, degree + 1) for degree in range(degrees)])
    if convention == "analytic":
        return np.where(order == 0, np.pi, 1.0)
    if convention == "closed-form":
        return np.where(order % 2 == 0, 1.0, -1.0)
    return np.ones(len(order))


def folds_published(degrees: int, convention: Convention | None, harmonics: Harmonics | None) -> bool:
    """True for weights on published polynomials that differ from exact harmonics."""
    return harmonics == "published" and convention == "analytic" and degrees > EXACT_DEGREES


def fold_published(weight: np.ndarray) -> np.ndarray:  # (H, L²) float64 -> same
    """Fold columns on the published polynomials (π at m = 0 divided out) into exact harmonics; L ≤ 40.

    For each order m the published P(l, m) is Σ_l' T[m, l, l'] · P̄(l', m), hence
    W'(l', m) = Σ_l W(l, m) · T[m, l, l'].
    """
    degrees = math.isqrt(weight.shape[1])
    table = _published_table()
    folded = np.empty_like(weight)
    for m in range(degrees):
        degree = np.arange(m, degrees)
        for order in {m, -m}:
            columns = degree**2 + degree + order
            folded[:, columns] = weight[:, columns] @ table[m, m:degrees, m:degrees]
    return folded


def published_by_order(degrees: int) -> tuple[np.ndarray, np.ndarray]:  # (2L−1, L), (2L−1, L, L)
    """Table of `fold_published` as one batch of products, an order m = −(L−1)..L−1 each; L ≤ 40.

    First the column (l, m) by order and degree, L² where there is none; then T[|m|, l, l'].
    """
    order, degree = np.arange(1 - degrees, degrees)[:, None], np.arange(degrees)
    column = np.where(degree >= abs(order), degree**2 + degree + order, degrees**2)
    return column, _published_table()[abs(order[:, 0]), :degrees, :degrees]


@cache
def _published_table() -> np.ndarray:  # T[m, l, l'], (40, 40, 40) float64
    with (resources.files("satclip_engine.data") / "published_fold.npz").open("rb") as file:
        table: np.ndarray = np.load(file)["T"]
    table.flags.writeable = False
    return table

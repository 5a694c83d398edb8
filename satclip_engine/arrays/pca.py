"""Principal components of an embedding over the whole globe, for bands "pca:K" and every preview.

Components are always fitted on the globe, each point weighted by the area it stands for, whatever the
raster's bounds: a regional map and a global one of the same weights therefore have the same colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from satclip_engine.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from satclip_engine.encoder import Encoder

# 120 × 240 = 28,800 points, a third of a second. With the default weights (L = 40) the deviations of the
# first eight components move by 3e-4 from 3° to 0.75° and by 6e-5 from 1.5° on.
SAMPLE_DEGREES = 1.5

# Loadings are rounded here so that the last bits, which depend on how many threads BLAS used, cannot change
# the folded head (and with it the fingerprint by which an interrupted raster recognises itself).
_LOADING_DECIMALS = 9

# Of the squared mean: a constant embedding has variance in its last bits only.
_MIN_RELATIVE_VARIANCE = 1e-24

# By area; scores outside are clipped or compressed when they become colours.
_STRETCH_QUANTILES = (0.02, 0.98)


@dataclass(frozen=True, eq=False)
class GlobalPCA:
    """Directions of largest variance on the globe, largest first; `score = components @ (e − mean)`."""

    # [k, E], orthonormal rows, each one's loading of largest magnitude positive
    components: NDArray[np.float64]
    mean: NDArray[np.float64]  # [E], area-weighted
    stddev: NDArray[np.float64]  # [k], of the scores, area-weighted
    explained: NDArray[np.float64]  # [k], share of the total variance, 0..1
    low: NDArray[np.float64]  # [k], the scores' 2nd percentile by area
    high: NDArray[np.float64]  # [k], the scores' 98th percentile by area

    @property
    def names(self) -> list[str]:
        """Band names of the scores: pca1, pca2, …"""
        return [f"pca{i + 1}" for i in range(len(self.components))]

    @property
    def tags(self) -> dict[str, str]:
        """Metadata of a raster of the scores."""
        return {
            "pca_fit": f"area-weighted over the globe, {SAMPLE_DEGREES} degree sample",
            "pca_explained_variance": " ".join(f"{share:.4f}" for share in self.explained),
        }


def global_pca(enc: Encoder, k: int) -> GlobalPCA:
    """Fit the first `k` principal components (1 ≤ k ≤ E) of `enc` over the globe; deterministic, float64.

    Raises UsageError for a `k` out of range and WeightsError when the embedding is not finite everywhere.
    """
    if not 1 <= k <= enc.embed_dim:
        raise UsageError(
            f"pca:{k}: an embedding of {enc.embed_dim} bands has 1 to {enc.embed_dim} principal components",
            argument="bands",
        )
    values, area = _sample_globe(enc)  # [n, E], [n]
    mean = area @ values
    values -= mean
    covariance = (values * area[:, None]).T @ values
    variances, vectors = np.linalg.eigh(covariance)  # ascending
    components = np.ascontiguousarray(vectors[:, ::-1][:, :k].T)
    strongest = np.take_along_axis(
        components, np.abs(components.round(_LOADING_DECIMALS)).argmax(axis=1)[:, None], axis=1
    )
    components = (components * np.where(strongest < 0, -1.0, 1.0)).round(
        _LOADING_DECIMALS
    ) + 0.0  # + 0.0: no −0
    variances = variances[::-1]
    variances = np.where(variances > _MIN_RELATIVE_VARIANCE * (mean @ mean), variances, 0.0)
    scores = values @ components.T
    low, high = np.array([_area_quantiles(scores[:, i], area) for i in range(k)]).T
    total = variances.sum()
    explained = variances[:k] / total if total > 0 else np.zeros(k)
    return GlobalPCA(components, mean, np.sqrt(variances[:k]), explained, low, high)


def pca_head(enc: Encoder, k: int) -> tuple[Encoder, GlobalPCA]:
    """Replace the last layer by the first `k` global principal components (pca1 … pcaK); and the fit."""
    fit = global_pca(enc, k)
    return scores_of(enc, fit), fit


def scores_of(enc: Encoder, fit: GlobalPCA) -> Encoder:
    """Encoder of the scores: `enc` with the components of `fit` as its head."""
    return enc.with_head(fit.components, -fit.components @ fit.mean, names=fit.names)


def _sample_globe(enc: Encoder) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Embed a regular grid over the globe [n, E]; and the share of the sphere that each stands for [n]."""
    from satclip_engine.geo.grid import make_grid

    grid = make_grid(resolution=SAMPLE_DEGREES)
    values = enc.evaluate(grid).reshape(-1, enc.embed_dim).astype(np.float64)
    if not np.isfinite(values).all():
        raise WeightsError(
            "the embedding is not finite everywhere: these weights hold NaN, infinity or enormous values"
        )
    area = np.repeat(np.cos(np.radians(grid.lat())), grid.shape[1])
    return values, area / area.sum()


def _area_quantiles(scores: NDArray[np.float64], area: NDArray[np.float64]) -> tuple[float, float]:
    order = np.argsort(scores, kind="stable")
    share = np.cumsum(area[order])
    low, high = np.interp(_STRETCH_QUANTILES, share, scores[order])
    return float(low), float(high)

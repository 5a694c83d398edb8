"""From a table of points to a map: elevation of airports → a linear model on embeddings → a global raster.

    pip install airportsdata
    python examples/elevation_map.py elevation.tif

Any table with longitude, latitude and a number works the same way. The model is judged twice: on points held
out at random, and on whole 10° blocks held out, which is how it will do where there are no points.
"""

from __future__ import annotations

import sys

import airportsdata
import numpy as np

import satclip_engine as se

ALPHA = 10.0  # ridge penalty, in units of standardised embeddings


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else "elevation.tif"
    airports = airportsdata.load("ICAO").values()
    lonlat = np.array([(a["lon"], a["lat"]) for a in airports])
    metres = np.array([a["elevation"] for a in airports]) * 0.3048

    enc = se.load("default")
    x = enc(lonlat).astype(np.float64)

    rng = np.random.default_rng(0)
    at_random = rng.random(len(x)) < 0.2
    block = np.floor(lonlat / 10).astype(int) @ (1, 100)
    in_blocks = np.isin(block, rng.permutation(np.unique(block))[: len(np.unique(block)) // 5])
    print(f"{len(x)} airports; R² {score(x, metres, at_random):.2f} on points held out at random,")
    print(f"{score(x, metres, in_blocks):.2f} on 10° blocks held out")

    # A linear model on the embedding is a linear head of the network: folded into its last layer, the raster
    # holds the prediction itself and costs no more than one band.
    weight, bias = ridge(x, metres)
    model = enc.with_head(weight[None], [bias], names=["elevation_m"])
    se.write_raster(model, path, se.make_grid(resolution=0.25), dtype="float32")
    print(f"{path}: elevation in metres, as the model sees it")


def ridge(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights and bias of a ridge regression of y on the columns of x."""
    mean, spread = x.mean(axis=0), x.std(axis=0)
    z = (x - mean) / spread
    w = np.linalg.solve(z.T @ z + ALPHA * np.eye(z.shape[1]), z.T @ (y - y.mean())) / spread
    return w, float(y.mean() - mean @ w)


def score(x: np.ndarray, y: np.ndarray, held_out: np.ndarray) -> float:
    """R² on the held-out rows of a model fitted to the others."""
    w, b = ridge(x[~held_out], y[~held_out])
    truth = y[held_out]
    return float(1 - np.mean((x[held_out] @ w + b - truth) ** 2) / truth.var())


if __name__ == "__main__":
    main()

"""Implementations of the lattice workloads: a fine raster or many points reconstructed, or evaluated exactly.

Every call of this package's lattice plans anew: it looks at the field, chooses the lattice, evaluates it,
measures the error at fresh positions and fills the caller's memory, which has been touched before. The exact
paths take part of the same points, evenly spread: their time is proportional to the number.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from satclip_engine.backends import cpu
from satclip_engine.bench.catalogue import LatticeWorkload
from satclip_engine.bench.measure import Implementation, PreparedRun
from satclip_engine.encoder import Encoder, load
from satclip_engine.geo.grid import Grid, make_grid

_EXACT_POINTS = 400_000  # that the exact paths take: some seconds
_COMPARED_POINTS = 512
_HEAD_BANDS = 16
_EXACT_TOLERANCE = 1e-5  # σ

Prepare = Callable[[LatticeWorkload, Encoder], PreparedRun]

# Continents as boxes of west, south, east, north, islands and the poles left out: land for points.
_LAND = (
    (-125.0, 32.0, -75.0, 60.0),
    (-80.0, -35.0, -45.0, 5.0),
    (-10.0, 5.0, 35.0, 32.0),
    (12.0, -33.0, 38.0, 5.0),
    (-5.0, 43.0, 60.0, 60.0),
    (60.0, 45.0, 130.0, 70.0),
    (70.0, 10.0, 88.0, 30.0),
    (90.0, 22.0, 120.0, 45.0),
    (115.0, -33.0, 150.0, -18.0),
)


def lattice(
    workload: LatticeWorkload, threads: tuple[int, ...], compare: frozenset[str]
) -> list[Implementation]:
    """Reconstruction with all threads, and the exact paths that would serve otherwise."""
    most = max(threads)
    reconstruct = _reconstructed_points if workload.target == "land" else _reconstructed_raster

    def entry(name: str, work: int, prepare: Prepare, dtype: str = "float32") -> Implementation:
        return Implementation(
            name,
            most,
            float(work),
            lambda settings: prepare(workload, _encoder(workload.target, most)),
            ours=True,
            dtype=dtype,
            missing=cpu.Cpu().missing(),
        )

    exact = _exact_work(workload)
    return [
        entry("satclip lattice", workload.points, reconstruct, workload.dtype),
        *([entry("satclip grid", exact, _exact_grid)] if workload.target == "window" else []),
        entry("satclip points", exact, _exact_points),
    ]


@cache
def _encoder(target: str, threads: int) -> Encoder:
    encoder = load("default", threads=threads)
    if target != "utm":
        return encoder
    head = np.random.default_rng(0).normal(size=(_HEAD_BANDS, encoder.embed_dim)) / 16
    return encoder.with_head(head)


def _grid(workload: LatticeWorkload) -> Grid:
    if workload.target == "utm":
        side = 10.0 * workload.side
        return make_grid(crs="EPSG:32633", resolution=10, bounds=(3e5, 5e6, 3e5 + side, 5e6 + side))
    side = 0.01 * workload.side
    return make_grid(resolution=0.01, bounds=(5.0, 20.0, 5.0 + side, 20.0 + side))


def on_land(count: int, seed: int = 5) -> np.ndarray:
    """(count, 2) points in the boxes, uniform by area, in no order."""
    rng = np.random.default_rng(seed)
    west, south, east, north = np.array(_LAND).T
    low, high = np.sin(np.radians(south)), np.sin(np.radians(north))
    area = (east - west) * (high - low)
    box = rng.choice(len(_LAND), count, p=area / area.sum())
    lon = west[box] + rng.random(count) * (east - west)[box]
    lat = np.degrees(np.arcsin(low[box] + rng.random(count) * (high - low)[box]))
    return np.stack([lon, lat], axis=-1)


def _reconstructed_points(workload: LatticeWorkload, encoder: Encoder) -> PreparedRun:
    lonlat = on_land(workload.side)
    out = np.ones((workload.side, encoder.embed_dim), np.float32)
    return PreparedRun(
        lambda: encoder(lonlat, tolerance=workload.requested, out=out),
        lambda answer: _error(encoder, lonlat[:_COMPARED_POINTS], answer[:_COMPARED_POINTS]),
        workload.tolerance,
    )


def _reconstructed_raster(workload: LatticeWorkload, encoder: Encoder) -> PreparedRun:
    grid = _grid(workload)
    details: dict[str, Any] = {}
    out = np.zeros((*grid.shape, encoder.embed_dim), workload.dtype)
    out.fill(1)  # touched: the system gives memory when it is first written

    def run() -> Any:
        encoder.planner.clear()
        array = encoder.grid(grid, out=out, tolerance=workload.requested)
        details["max_sigma"] = float(array.attrs["reconstruction_max_sigma"])
        return array

    return PreparedRun(
        run, lambda answer: _raster_error(encoder, grid, answer), workload.tolerance, details=details
    )


def _exact_work(workload: LatticeWorkload) -> int:
    """Number of points or pixels that the exact paths take; of a raster whole rows."""
    count = min(workload.points, _EXACT_POINTS)
    return count if workload.target == "land" else count // workload.side * workload.side


def _exact_rows(workload: LatticeWorkload, grid: Grid) -> np.ndarray:
    return np.linspace(0, grid.shape[0] - 1, _exact_work(workload) // grid.shape[1]).astype(int)


def _exact_lonlat(workload: LatticeWorkload) -> np.ndarray:
    if workload.target == "land":
        return on_land(workload.side)[: _exact_work(workload)]
    grid = _grid(workload)
    return grid.lonlat(_exact_rows(workload, grid)).reshape(-1, 2)


def _exact_points(workload: LatticeWorkload, encoder: Encoder) -> PreparedRun:
    lonlat = _exact_lonlat(workload)
    out = np.ones((len(lonlat), encoder.embed_dim), np.float32)

    def run() -> np.ndarray:
        encoder.network.encode(lonlat, out=out)
        return out

    return _compared_exactly(run, encoder, lonlat)


def _exact_grid(workload: LatticeWorkload, encoder: Encoder) -> PreparedRun:
    lonlat, grid = _exact_lonlat(workload), _grid(workload)
    lat, lon = grid.lat(_exact_rows(workload, grid)), grid.lon()
    out = np.ones((lat.size, lon.size, encoder.embed_dim), np.float32)

    def run() -> np.ndarray:
        encoder.network.encode_grid(lat, lon, out=out)
        return out.reshape(len(lonlat), -1)

    return _compared_exactly(run, encoder, lonlat)


def _compared_exactly(run: Callable[[], np.ndarray], encoder: Encoder, lonlat: np.ndarray) -> PreparedRun:
    def check(answer: np.ndarray) -> float:
        return _error(encoder, lonlat[:_COMPARED_POINTS], answer[:_COMPARED_POINTS])

    return PreparedRun(run, check, _EXACT_TOLERANCE)


def _error(encoder: Encoder, lonlat: np.ndarray, values: np.ndarray) -> float:
    """Largest |Δ| from the float64 reference, in σ of each band."""
    from satclip_engine import reference

    deviation = np.abs(values - reference.encode(lonlat, encoder.layers)) / encoder.moments.sigma
    return float(deviation.max()) if np.isfinite(deviation).all() else float("inf")


def _raster_error(encoder: Encoder, grid: Grid, answer: Any) -> float:
    """Largest error of some pixels in σ, half a quantisation step of integers taken off."""
    from satclip_engine import reference

    rng = np.random.default_rng(9)
    rows, columns = (rng.integers(0, size, _COMPARED_POINTS) for size in grid.shape)
    values = answer.transpose("y", "x", "band").values[rows, columns].astype(np.float64)
    rounding: Any = 0.0
    if answer.dtype.kind == "i":
        scale, offset = answer.coords["scale"].values, answer.coords["offset"].values
        clipped = np.abs(values) == np.iinfo(answer.dtype).max
        values = np.where(clipped, np.nan, values * scale + offset)
        rounding = scale / 2
    expected = reference.encode(grid.pixel_lonlat(rows, columns), encoder.layers)
    deviation = np.maximum(np.abs(values - expected) - rounding, 0.0) / encoder.moments.sigma
    return float(np.nanmax(deviation)) if np.isfinite(deviation).mean() > 0.999 else float("inf")

"""Contestants of the lattice cases: a fine raster or many points reconstructed, beside evaluating them.

Every call of ours plans anew: it looks at the field, chooses the lattice, evaluates it, measures the error at
fresh positions and fills the caller's memory, which has been touched before. The exact paths take part of the
same places, evenly spread: their time is proportional to the number.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from satclip_engine.backends import cpu
from satclip_engine.bench.cases import LatticeCase
from satclip_engine.bench.measure import Contestant, Made
from satclip_engine.encoder import Encoder, load
from satclip_engine.geo.grid import Grid, make_grid

_EXACT = 400_000  # places that the exact paths take: some seconds
_CHECKED = 512
_HEAD = 16

# Continents as boxes of west, south, east, north, islands and the poles left out: where points on land lie.
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


def lattice(case: LatticeCase, threads: tuple[int, ...], compare: frozenset[str]) -> list[Contestant]:
    """Ours with all threads, and the exact path that the case would take otherwise."""
    every = max(threads)
    return [
        _ours(case, every),
        *([_exact(case, every, "satclip grid")] if case.where == "window" else []),
        _exact(case, every, "satclip points"),
    ]


@cache
def _encoder(where: str, threads: int) -> Encoder:
    encoder = load("default", threads=threads)
    if where != "utm":
        return encoder
    head = np.random.default_rng(0).normal(size=(_HEAD, encoder.embed_dim)) / 16
    return encoder.with_head(head)


def _grid(case: LatticeCase) -> Grid:
    if case.where == "utm":
        side = 10.0 * case.side
        return make_grid(crs="EPSG:32633", resolution=10, bounds=(3e5, 5e6, 3e5 + side, 5e6 + side))
    side = 0.01 * case.side
    return make_grid(resolution=0.01, bounds=(5.0, 20.0, 5.0 + side, 20.0 + side))


def on_land(count: int, seed: int = 5) -> np.ndarray:
    """(count, 2) places in the boxes, uniform by area, in no order."""
    rng = np.random.default_rng(seed)
    west, south, east, north = np.array(_LAND).T
    low, high = np.sin(np.radians(south)), np.sin(np.radians(north))
    area = (east - west) * (high - low)
    box = rng.choice(len(_LAND), count, p=area / area.sum())
    lon = west[box] + rng.random(count) * (east - west)[box]
    lat = np.degrees(np.arcsin(low[box] + rng.random(count) * (high - low)[box]))
    return np.stack([lon, lat], axis=-1)


def _ours(case: LatticeCase, threads: int) -> Contestant:
    def make(settings: Mapping[str, Any]) -> Made:
        encoder = _encoder(case.where, threads)
        facts: dict[str, Any] = {}
        if case.where == "land":
            places = on_land(case.side)
            filled = np.ones((case.side, encoder.embed_dim), np.float32)
            return Made(
                lambda: encoder(places, tolerance=case.asked, out=filled),
                lambda answer: _error(encoder, places[:_CHECKED], answer[:_CHECKED]),
                case.tolerance,
                facts=facts,
            )
        grid = _grid(case)
        out = np.zeros((*grid.shape, encoder.embed_dim), case.dtype)
        out.fill(1)  # touched: the system gives memory when it is first written

        def run() -> Any:
            encoder.planner.clear()
            found = encoder.grid(grid, out=out, tolerance=case.asked)
            facts["max_sigma"] = float(found.attrs["reconstruction_max_sigma"])
            return found

        return Made(run, lambda answer: _raster_error(encoder, grid, answer), case.tolerance, facts=facts)

    return Contestant(
        "satclip lattice", threads, float(case.places), make, ours=True, dtype=case.dtype, missing=_missing()
    )


def _exact(case: LatticeCase, threads: int, name: str) -> Contestant:
    count = min(case.places, _EXACT)

    def make(settings: Mapping[str, Any]) -> Made:
        encoder = _encoder(case.where, threads)
        if case.where == "land":
            some = on_land(case.side)[:count]
        else:
            grid = _grid(case)
            rows = np.linspace(0, grid.shape[0] - 1, count // grid.shape[1]).astype(int)
            some = grid.lonlat(rows).reshape(-1, 2)
        out = np.ones((count if case.where == "land" else len(some), encoder.embed_dim), np.float32)

        def run() -> np.ndarray:
            if name == "satclip grid":
                lat, lon = grid.lat(rows), grid.lon()
                encoder.network.encode_grid(lat, lon, out=out.reshape(lat.size, lon.size, -1))
            else:
                encoder.network.encode(some, out=out)
            return out

        return Made(run, lambda answer: _error(encoder, some[:_CHECKED], answer[:_CHECKED]), 1e-5)

    work = count if case.where == "land" else count // case.side * case.side
    return Contestant(name, threads, float(work), make, ours=True, missing=_missing())


def _missing() -> str | None:
    return cpu.Cpu().missing()


def _error(encoder: Encoder, places: np.ndarray, values: np.ndarray) -> float:
    """Largest |Δ| from the float64 reference, in σ of each band."""
    from satclip_engine import reference

    off = np.abs(values - reference.encode(places, encoder.layers)) / encoder.moments.sigma
    return float(off.max()) if np.isfinite(off).all() else float("inf")


def _raster_error(encoder: Encoder, grid: Grid, answer: Any) -> float:
    """The same at some pixels, half a quantisation step of integers taken off."""
    from satclip_engine import reference

    rng = np.random.default_rng(9)
    rows, columns = (rng.integers(0, size, _CHECKED) for size in grid.shape)
    values = answer.transpose("y", "x", "band").values[rows, columns].astype(np.float64)
    rounding: Any = 0.0
    if answer.dtype.kind == "i":
        scale, offset = answer.coords["scale"].values, answer.coords["offset"].values
        clipped = np.abs(values) == np.iinfo(answer.dtype).max
        values = np.where(clipped, np.nan, values * scale + offset)
        rounding = scale / 2
    expected = reference.encode(grid.pixel_lonlat(rows, columns), encoder.layers)
    off = np.maximum(np.abs(values - expected) - rounding, 0.0) / encoder.moments.sigma
    return float(np.nanmax(off)) if np.isfinite(off).mean() > 0.999 else float("inf")

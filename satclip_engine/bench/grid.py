"""Contestants of the grid cases: the product grid, and the same pixels as points.

The points path and the peers take some of the pixels, evenly spread: their time is proportional to the
number, and at L = 200 all of them would take minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from satclip_engine import backends
from satclip_engine.backends import cpu
from satclip_engine.bench.cases import GridCase
from satclip_engine.bench.gemm import layer_yardsticks
from satclip_engine.bench.measure import Contestant, Made
from satclip_engine.bench.peers import PEERS
from satclip_engine.bench.points import ours, rival
from satclip_engine.bench.workload import Expected, grid_multiply_adds, multiply_adds, siren
from satclip_engine.geo.grid import Grid, make_grid
from satclip_engine.weights import Layers

_POINTS_WORK = 3e10  # multiply-adds of the contestants that go pixel by pixel: about half a second
_COMPARED = ("torch", "torchgeo")


def grid(case: GridCase, threads: tuple[int, ...], compare: frozenset[str]) -> list[Contestant]:
    """The product grid with each number of threads; the rest with all."""
    layers = siren(case.degrees, case.sizes)
    raster = make_grid(resolution=case.resolution, bounds=(-180.0, case.south, 180.0, case.north))
    some = _some_places(raster, multiply_adds(case.degrees, case.sizes))
    expected, every = Expected(layers, some), max(threads)
    return [
        *(_product(case, layers, raster, count, remember=count == every) for count in reversed(threads)),
        ours(case, layers, some, expected, every, name="satclip points"),
        *layer_yardsticks(case.degrees, case.sizes, every),
        *(
            rival(peer, case, layers, some, expected, every)
            for peer in PEERS
            if peer.key in compare and peer.key in _COMPARED and len(peer.blocks) > 1
        ),
    ]


def _product(case: GridCase, layers: Layers, raster: Grid, threads: int, *, remember: bool) -> Contestant:
    height, width = raster.shape
    lat, lon = raster.lat(), raster.lon()
    expected = Expected(layers, np.stack(np.meshgrid(lon, lat), axis=-1).reshape(-1, 2))

    def make(settings: Mapping[str, Any]) -> Made:
        network = backends.resolve("cpu").prepare(layers, threads)

        def check(answer: np.ndarray) -> float:
            return expected.error(answer.reshape(height * width, -1))

        return Made(lambda: network.encode_grid(lat, lon), check, case.tolerance)

    return Contestant(
        "satclip grid",
        threads,
        float(height * width),
        make,
        multiply_adds=grid_multiply_adds(case.degrees, case.sizes),
        ours=True,
        remember=remember,
        missing=cpu.Cpu().missing(),
    )


def _some_places(raster: Grid, each: float) -> np.ndarray:
    """(n, 2) pixel centres, evenly spread over the rows and columns, n by `_POINTS_WORK`."""
    height, width = raster.shape
    count = int(min(height * width, max(512, _POINTS_WORK / each)))
    index = np.linspace(0, height * width - 1, count).astype(int)
    return np.stack([raster.lon()[index % width], raster.lat()[index // width]], axis=-1)

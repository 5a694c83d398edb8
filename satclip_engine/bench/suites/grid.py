"""Implementations of the grid workloads: the product grid, and the same pixels as points.

The points path and the baselines take some of the pixels, evenly spread: their time is proportional to the
number, and at L = 200 all of them would take minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from satclip_engine import backends
from satclip_engine.backends import cpu
from satclip_engine.bench.catalogue import GridWorkload
from satclip_engine.bench.inputs import Expected, grid_multiply_adds, multiply_adds, pixel_centres, siren
from satclip_engine.bench.measure import Implementation, PreparedRun
from satclip_engine.bench.suites.gemm import layer_rooflines
from satclip_engine.bench.suites.points import baseline_points, points_path
from satclip_engine.bench.suites.torch_baselines import BASELINES
from satclip_engine.geo.grid import Grid, make_grid
from satclip_engine.weights import Layers

_POINTS_MULTIPLY_ADDS = 3e10  # of the implementations that go pixel by pixel: about half a second
_COMPARED = ("torch", "torchgeo")


def grid(workload: GridWorkload, threads: tuple[int, ...], compare: frozenset[str]) -> list[Implementation]:
    """The product grid with each number of threads; the rest with all."""
    layers = siren(workload.degrees, workload.sizes)
    raster = make_grid(resolution=workload.resolution, bounds=(-180.0, workload.south, 180.0, workload.north))
    some_pixels = _evenly_spread(raster, multiply_adds(workload.degrees, workload.sizes))
    expected, most = Expected(layers, some_pixels), max(threads)
    return [
        *(
            _product_grid(workload, layers, raster, count, measure_memory=count == most)
            for count in reversed(threads)
        ),
        points_path(workload, expected, most, name="satclip points"),
        *layer_rooflines(workload.degrees, workload.sizes, most),
        *(
            baseline_points(baseline, workload, expected, most)
            for baseline in BASELINES
            if baseline.key in compare and baseline.key in _COMPARED and len(baseline.blocks) > 1
        ),
    ]


def _product_grid(
    workload: GridWorkload, layers: Layers, raster: Grid, threads: int, *, measure_memory: bool
) -> Implementation:
    height, width = raster.shape
    lat, lon = raster.lat(), raster.lon()
    expected = Expected(layers, pixel_centres(lat, lon))

    def prepare(settings: Mapping[str, Any]) -> PreparedRun:
        network = backends.resolve("cpu").prepare(layers, threads)

        def check(answer: np.ndarray) -> float:
            return expected.error(answer.reshape(height * width, -1))

        return PreparedRun(lambda: network.encode_grid(lat, lon), check, workload.tolerance)

    return Implementation(
        "satclip grid",
        threads,
        float(height * width),
        prepare,
        multiply_adds=grid_multiply_adds(workload.degrees, workload.sizes),
        ours=True,
        measure_memory=measure_memory,
        missing=cpu.Cpu().missing(),
    )


def _evenly_spread(raster: Grid, multiply_adds: float) -> np.ndarray:
    """(n, 2) pixel centres, evenly spread over the rows and columns, n by `_POINTS_MULTIPLY_ADDS`."""
    height, width = raster.shape
    count = int(min(height * width, max(512, _POINTS_MULTIPLY_ADDS / multiply_adds)))
    index = np.linspace(0, height * width - 1, count).astype(int)
    return np.stack([raster.lon()[index % width], raster.lat()[index // width]], axis=-1)

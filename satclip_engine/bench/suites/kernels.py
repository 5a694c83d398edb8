"""Implementations of the kernel workloads: each compiled kernel alone, one thread, every instruction set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from satclip_engine._optional import need
from satclip_engine.backends import compiled, cpu
from satclip_engine.bench.catalogue import (
    GemmWorkload,
    GridKernelWorkload,
    HarmonicsWorkload,
    PointsKernelWorkload,
    RasterKernelWorkload,
)
from satclip_engine.bench.inputs import (
    Expected,
    grid_multiply_adds,
    multiply_adds,
    pixel_centres,
    relative_error,
    scattered,
    siren,
)
from satclip_engine.bench.machine import instruction_sets
from satclip_engine.bench.measure import Implementation, PreparedRun
from satclip_engine.bench.suites import torch_baselines
from satclip_engine.bench.suites.gemm import gemm_rooflines, layer_rooflines, torch_threads

_COMPARED_POINTS = 64
_TIMED_CALLS = 8  # in a measurement of the raster kernels, which take a few milliseconds


def gemm(workload: GemmWorkload, threads: tuple[int, ...], compare: frozenset[str]) -> list[Implementation]:
    """The libraries' products, with each number of threads."""
    shape = [(workload.inputs, workload.outputs)]
    return [entry for count in threads for entry in gemm_rooflines(shape, count, rows=workload.rows)]


def harmonics(
    workload: HarmonicsWorkload, threads: tuple[int, ...], compare: frozenset[str]
) -> list[Implementation]:
    """This package in float64, PyTorch in both precisions, SciPy."""
    lonlat, degrees = scattered(workload.points), workload.degrees

    @functools.cache
    def expected() -> np.ndarray:
        from satclip_engine import reference

        return reference.harmonics(lonlat[:_COMPARED_POINTS], degrees)

    def entry(
        name: str, evaluate: Callable[[], Any], tolerance: float, dtype: str = "float64", **options: Any
    ) -> Implementation:
        def check(answer: Any) -> float:
            return relative_error(np.asarray(answer)[:_COMPARED_POINTS], expected())

        def prepare(settings: Mapping[str, Any]) -> PreparedRun:
            return PreparedRun(evaluate, check, tolerance, before=torch_threads(1))

        return Implementation(name, 1, float(workload.points), prepare, dtype=dtype, **options)

    def by_kernel(isa: str) -> Callable[[], np.ndarray]:
        return lambda: compiled._C.harmonics(lonlat, degrees, 1, isa)

    entries = [
        entry(f"satclip {isa}", by_kernel(isa), workload.tolerance, ours=True) for isa in instruction_sets()
    ]
    if "torch64" in compare:
        entries.append(entry("PyTorch float64", _by_torch(lonlat, degrees, "float64"), 1e-10))
    if "torch" in compare:
        entries.append(entry("PyTorch float32", _by_torch(lonlat, degrees, "float32"), 1e-1, "float32"))
    if "scipy" in compare:
        absent = None if find_spec("scipy") else "scipy is not installed"
        entries.append(entry("SciPy", lambda: _by_scipy(lonlat, degrees), 1e-10, missing=absent))
    return entries


def _by_torch(lonlat: np.ndarray, degrees: int, dtype: str) -> Callable[[], np.ndarray]:
    torch = need("torch", extra="torch", why="satclip-bench")
    tensor, kind = torch.from_numpy(lonlat), getattr(torch, dtype)
    return lambda: torch_baselines.harmonics(tensor, degrees, kind).T.numpy()


def _by_scipy(lonlat: np.ndarray, degrees: int) -> np.ndarray:
    """Real harmonics from SciPy's Legendre functions of all degrees and orders."""
    special = need("scipy.special", extra="dev", why="this baseline")
    theta, phi = np.radians(lonlat[:, 1] + 90), np.radians(lonlat[:, 0] + 180)
    legendre = special.sph_legendre_p_all(degrees - 1, degrees - 1, theta)[0]  # [L, 2L−1, n]
    order = np.arange(degrees)[:, None]
    # SciPy has the Condon–Shortley phase.
    sign = np.where(order % 2, -1.0, 1.0) * np.where(order, np.sqrt(2), 1.0)
    cosine, sine = sign * np.cos(order * phi), sign * np.sin(order * phi)
    values = np.empty((degrees**2, len(lonlat)))
    for degree in range(degrees):
        middle = degree * (degree + 1)
        values[middle : middle + degree + 1] = legendre[degree, : degree + 1] * cosine[: degree + 1]
        values[middle - degree : middle] = (legendre[degree, 1 : degree + 1] * sine[1 : degree + 1])[::-1]
    return values.T


def points(
    workload: PointsKernelWorkload, threads: tuple[int, ...], compare: frozenset[str]
) -> list[Implementation]:
    """Every instruction set beside the matrix products of the same layers."""
    layers, lonlat = siren(workload.degrees, workload.sizes), scattered(workload.points)
    expected = Expected(layers, lonlat)

    def entry(isa: str) -> Implementation:
        def prepare(settings: Mapping[str, Any]) -> PreparedRun:
            network = cpu.Cpu().prepare(layers, 1, isa=isa)
            out = np.empty((workload.points, layers.embed_dim), np.float32)
            return PreparedRun(lambda: network.encode(lonlat, out), expected.error, workload.tolerance)

        return Implementation(
            f"satclip {isa}",
            1,
            float(workload.points),
            prepare,
            multiply_adds=multiply_adds(workload.degrees, workload.sizes),
            ours=True,
        )

    return [
        *(entry(isa) for isa in instruction_sets()),
        *layer_rooflines(workload.degrees, workload.sizes, 1),
    ]


def grid(
    workload: GridKernelWorkload, threads: tuple[int, ...], compare: frozenset[str]
) -> list[Implementation]:
    """Every instruction set beside the matrix products of the layers that a pixel goes through."""
    layers = siren(workload.degrees, workload.sizes)
    lat = (np.arange(workload.rows) + 0.5) * (120 / workload.rows) - 60
    lon = (np.arange(workload.columns) + 0.5) * (360 / workload.columns) - 180
    expected = Expected(layers, pixel_centres(lat, lon))

    def entry(isa: str) -> Implementation:
        def prepare(settings: Mapping[str, Any]) -> PreparedRun:
            network = cpu.Cpu().prepare(layers, 1, isa=isa)
            out = np.empty((workload.rows, workload.columns, layers.embed_dim), np.float32)

            def check(answer: np.ndarray) -> float:
                return expected.error(answer.reshape(lat.size * lon.size, -1))

            return PreparedRun(lambda: network.encode_grid(lat, lon, out), check, workload.tolerance)

        return Implementation(
            f"satclip {isa}",
            1,
            float(workload.rows * workload.columns),
            prepare,
            multiply_adds=grid_multiply_adds(workload.degrees, workload.sizes),
            ours=True,
        )

    return [
        *(entry(isa) for isa in instruction_sets()),
        *layer_rooflines(workload.degrees, workload.sizes, 1),
    ]


def raster(
    workload: RasterKernelWorkload, threads: tuple[int, ...], compare: frozenset[str]
) -> list[Implementation]:
    """Every instruction set beside NumPy."""
    rng = np.random.default_rng(2)
    pixels = rng.standard_normal((workload.rows, workload.columns, workload.bands), np.float32)
    operation = {"pack_tiles": _pack_tiles, "halve": _halve}[workload.operation]

    def entry(name: str, isa: str | None) -> Implementation:
        def prepare(settings: Mapping[str, Any]) -> PreparedRun:
            return operation(workload, pixels, isa)

        work = float(pixels.nbytes * (1 if isa is None else _TIMED_CALLS))
        return Implementation(name, 1, work, prepare, ours=isa is not None, dtype=workload.dtype)

    entries = [entry(f"satclip {isa}", isa) for isa in instruction_sets()]
    return [*entries, entry("NumPy", None)] if "numpy" in compare else entries


def _pack_tiles(workload: RasterKernelWorkload, pixels: np.ndarray, isa: str | None) -> PreparedRun:
    largest, side = np.iinfo(workload.dtype).max, workload.side
    inverse_scale = np.full(workload.bands, largest / 5, np.float32)
    offset = np.linspace(-0.1, 0.1, workload.bands, dtype=np.float32)
    tiles = np.empty((workload.columns // side, workload.bands, side, side), workload.dtype)

    def by_numpy() -> np.ndarray:
        codes = np.rint((pixels - offset) * inverse_scale).clip(-largest, largest).astype(workload.dtype)
        planes = np.moveaxis(codes.reshape(workload.rows, -1, side, workload.bands), (1, 3), (0, 1))
        return np.diff(planes, axis=-1, prepend=np.zeros_like(planes[..., :1]))

    def by_kernel() -> np.ndarray:
        for _ in range(_TIMED_CALLS):
            compiled._C.pack_tiles(
                pixels,
                tiles,
                first_row=0,
                dtype=workload.dtype,
                predictor=2,
                inverse_scale=inverse_scale,
                offset=offset,
                clipped=np.zeros(workload.bands, np.int64),
                overshoot=np.zeros(workload.bands, np.float32),
                valid=np.zeros(len(tiles), np.int64),
                isa=isa,
            )
        return tiles[:, :, : workload.rows]

    def check(answer: np.ndarray) -> float:
        # Values half-way between two codes may take either: multiplying and adding may round once or twice.
        return float(np.mean(answer != by_numpy()))

    return PreparedRun(by_numpy if isa is None else by_kernel, check, workload.tolerance)


def _halve(workload: RasterKernelWorkload, pixels: np.ndarray, isa: str | None) -> PreparedRun:
    rows, columns, bands = workload.rows // 2, workload.columns // 2, workload.bands
    out = np.empty((rows, columns, bands), np.float32)

    def by_numpy() -> np.ndarray:
        return pixels.reshape(rows, 2, columns, 2, bands).mean(axis=(1, 3))

    def by_kernel() -> np.ndarray:
        for _ in range(_TIMED_CALLS):
            compiled._C.halve(pixels, out, isa)
        return out

    def check(answer: np.ndarray) -> float:
        return relative_error(answer, by_numpy())

    return PreparedRun(by_numpy if isa is None else by_kernel, check, workload.tolerance)

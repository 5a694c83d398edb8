"""Contestants of the kernel cases: each compiled kernel alone, one thread, on every instruction set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from satclip_engine import backends
from satclip_engine._optional import need
from satclip_engine.backends import compiled, cpu
from satclip_engine.bench import peers
from satclip_engine.bench.cases import (
    GemmCase,
    GridKernelCase,
    HarmonicsCase,
    PointsKernelCase,
    RasterKernelCase,
)
from satclip_engine.bench.gemm import layer_yardsticks, torch_threads, yardsticks
from satclip_engine.bench.measure import Contestant, Made
from satclip_engine.bench.workload import (
    Expected,
    grid_multiply_adds,
    multiply_adds,
    relative_error,
    scattered,
    siren,
)

_TIMES = 8  # calls in a measurement of the raster kernels, which take a few milliseconds


def instruction_sets() -> list[str]:
    """Best first; empty without the compiled core."""
    return compiled._C.instruction_sets() if compiled._C is not None else []


def gemm(case: GemmCase, threads: tuple[int, ...], compare: frozenset[str]) -> list[Contestant]:
    """The libraries' products, with each number of threads."""
    shape = [(case.inputs, case.outputs)]
    return [entry for count in threads for entry in yardsticks(shape, count, rows=case.rows)]


def harmonics(case: HarmonicsCase, threads: tuple[int, ...], compare: frozenset[str]) -> list[Contestant]:
    """Ours in float64, PyTorch's in both precisions, SciPy's."""
    places = scattered(case.places)

    @functools.cache
    def expected() -> np.ndarray:
        return backends.resolve("reference").harmonics(places[:64], case.degrees)

    def entry(
        name: str, evaluate: Callable[[], Any], tolerance: float, dtype: str = "float64", **extra: Any
    ) -> Contestant:
        def check(answer: Any) -> float:
            return relative_error(np.asarray(answer)[:64], expected())

        def make(settings: Mapping[str, Any]) -> Made:
            return Made(evaluate, check, tolerance, before=torch_threads(1))

        return Contestant(name, 1, float(case.places), make, dtype=dtype, **extra)

    def ours(isa: str) -> Callable[[], np.ndarray]:
        return lambda: compiled._C.harmonics(places, case.degrees, 1, isa)

    def torch(dtype: str) -> Callable[[], np.ndarray]:
        module = need("torch", extra="torch", why="satclip-bench")
        lonlat, kind = module.from_numpy(places), getattr(module, dtype)
        return lambda: peers.harmonics(lonlat, case.degrees, kind).T.numpy()

    entries = [entry(f"satclip {isa}", ours(isa), case.tolerance, ours=True) for isa in instruction_sets()]
    if "torch64" in compare:
        entries.append(entry("PyTorch float64", torch("float64"), 1e-10))
    if "torch" in compare:
        entries.append(entry("PyTorch float32", torch("float32"), 1e-1, "float32"))
    if "scipy" in compare:
        absent = None if find_spec("scipy") else "scipy is not installed"
        entries.append(entry("SciPy", lambda: _scipy(places, case.degrees), 1e-10, missing=absent))
    return entries


def _scipy(places: np.ndarray, degrees: int) -> np.ndarray:
    """Real harmonics from SciPy's Legendre functions of all degrees and orders."""
    special = need("scipy.special", extra="dev", why="this peer")
    theta, phi = np.radians(places[:, 1] + 90), np.radians(places[:, 0] + 180)
    legendre = special.sph_legendre_p_all(degrees - 1, degrees - 1, theta)[0]  # [L, 2L−1, n]
    order = np.arange(degrees)[:, None]
    # SciPy has the Condon–Shortley phase.
    sign = np.where(order % 2, -1.0, 1.0) * np.where(order, np.sqrt(2), 1.0)
    cosine, sine = sign * np.cos(order * phi), sign * np.sin(order * phi)
    values = np.empty((degrees**2, len(places)))
    for degree in range(degrees):
        middle = degree * (degree + 1)
        values[middle : middle + degree + 1] = legendre[degree, : degree + 1] * cosine[: degree + 1]
        values[middle - degree : middle] = (legendre[degree, 1 : degree + 1] * sine[1 : degree + 1])[::-1]
    return values.T


def points(case: PointsKernelCase, threads: tuple[int, ...], compare: frozenset[str]) -> list[Contestant]:
    """Every instruction set beside the matrix products of the same layers."""
    layers, places = siren(case.degrees, case.sizes), scattered(case.places)
    expected = Expected(layers, places)

    def entry(isa: str) -> Contestant:
        def make(settings: Mapping[str, Any]) -> Made:
            network = cpu.Cpu().prepare(layers, 1, isa=isa)
            out = np.empty((case.places, layers.embed_dim), np.float32)
            return Made(lambda: network.encode(places, out), expected.error, case.tolerance)

        return Contestant(
            f"satclip {isa}",
            1,
            float(case.places),
            make,
            multiply_adds=multiply_adds(case.degrees, case.sizes),
            ours=True,
        )

    return [*(entry(isa) for isa in instruction_sets()), *layer_yardsticks(case.degrees, case.sizes, 1)]


def grid(case: GridKernelCase, threads: tuple[int, ...], compare: frozenset[str]) -> list[Contestant]:
    """Every instruction set beside the matrix products of the layers that a pixel goes through."""
    layers = siren(case.degrees, case.sizes)
    lat = (np.arange(case.rows) + 0.5) * (120 / case.rows) - 60
    lon = (np.arange(case.columns) + 0.5) * (360 / case.columns) - 180
    places = np.stack(np.meshgrid(lon, lat), axis=-1).reshape(-1, 2)
    expected = Expected(layers, places)

    def entry(isa: str) -> Contestant:
        def make(settings: Mapping[str, Any]) -> Made:
            network = cpu.Cpu().prepare(layers, 1, isa=isa)
            out = np.empty((case.rows, case.columns, layers.embed_dim), np.float32)

            def check(answer: np.ndarray) -> float:
                return expected.error(answer.reshape(len(places), -1))

            return Made(lambda: network.encode_grid(lat, lon, out), check, case.tolerance)

        return Contestant(
            f"satclip {isa}",
            1,
            float(case.rows * case.columns),
            make,
            multiply_adds=grid_multiply_adds(case.degrees, case.sizes),
            ours=True,
        )

    return [*(entry(isa) for isa in instruction_sets()), *layer_yardsticks(case.degrees, case.sizes, 1)]


def raster(case: RasterKernelCase, threads: tuple[int, ...], compare: frozenset[str]) -> list[Contestant]:
    """Every instruction set beside NumPy."""
    rng = np.random.default_rng(2)
    pixels = rng.standard_normal((case.rows, case.columns, case.bands), np.float32)
    operation = {"pack_tiles": _pack_tiles, "halve": _halve}[case.operation]

    def entry(name: str, isa: str | None) -> Contestant:
        def make(settings: Mapping[str, Any]) -> Made:
            return operation(case, pixels, isa)

        times = 1 if isa is None else _TIMES
        return Contestant(name, 1, float(pixels.nbytes * times), make, ours=isa is not None, dtype=case.dtype)

    entries = [entry(f"satclip {isa}", isa) for isa in instruction_sets()]
    return [*entries, entry("NumPy", None)] if "numpy" in compare else entries


def _pack_tiles(case: RasterKernelCase, pixels: np.ndarray, isa: str | None) -> Made:
    largest = np.iinfo(case.dtype).max
    inverse_scale = np.full(case.bands, largest / 5, np.float32)
    offset = np.linspace(-0.1, 0.1, case.bands, dtype=np.float32)
    tiles = np.empty((case.columns // case.side, case.bands, case.side, case.side), case.dtype)

    def by_numpy() -> np.ndarray:
        codes = np.rint((pixels - offset) * inverse_scale).clip(-largest, largest).astype(case.dtype)
        planes = np.moveaxis(codes.reshape(case.rows, -1, case.side, case.bands), (1, 3), (0, 1))
        return np.diff(planes, axis=-1, prepend=np.zeros_like(planes[..., :1]))

    def by_kernel() -> np.ndarray:
        for _ in range(_TIMES):
            compiled._C.pack_tiles(
                pixels,
                tiles,
                first_row=0,
                dtype=case.dtype,
                predictor=2,
                inverse_scale=inverse_scale,
                offset=offset,
                clipped=np.zeros(case.bands, np.int64),
                overshoot=np.zeros(case.bands, np.float32),
                valid=np.zeros(len(tiles), np.int64),
                isa=isa,
            )
        return tiles[:, :, : case.rows]

    def check(answer: np.ndarray) -> float:
        # Values half-way between two codes may take either: multiplying and adding may round once or twice.
        return float(np.mean(answer != by_numpy()))

    return Made(by_numpy if isa is None else by_kernel, check, case.tolerance)


def _halve(case: RasterKernelCase, pixels: np.ndarray, isa: str | None) -> Made:
    out = np.empty((case.rows // 2, case.columns // 2, case.bands), np.float32)

    def by_numpy() -> np.ndarray:
        return pixels.reshape(case.rows // 2, 2, case.columns // 2, 2, case.bands).mean(axis=(1, 3))

    def by_kernel() -> np.ndarray:
        for _ in range(_TIMES):
            compiled._C.halve(pixels, out, isa)
        return out

    def check(answer: np.ndarray) -> float:
        return relative_error(answer, by_numpy())

    return Made(by_numpy if isa is None else by_kernel, check, case.tolerance)

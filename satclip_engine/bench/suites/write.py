"""Implementations of the write workloads: whole commands as processes of their own, and the writer alone.

A command is timed from start to exit, with its start-up, its sampling pass and the closing of the file.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from satclip_engine.backends.protocols import CALL, Call, Prepared
from satclip_engine.bench.catalogue import WriteWorkload
from satclip_engine.bench.inputs import relative_error
from satclip_engine.bench.measure import Implementation, PreparedRun
from satclip_engine.bench.suites.processes import ProcessUsage, run_process
from satclip_engine.encoder import Encoder
from satclip_engine.geo.grid import Grid
from satclip_engine.geo.pixels import Index, PixelGrid

_COMPARED_PIXELS = 24  # read back from the file
# 1e-4 of a band's values may be clipped by design, so a few of 6144 may differ by more than half a step.
_MAX_CLIPPED = 1e-3
_FLOAT_TOLERANCE = 1e-5  # of the rms


@cache
def temporary_folder() -> Path:
    """Folder for the files that are written, in $TMPDIR; removed at exit."""
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="satclip-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def write(workload: WriteWorkload, threads: tuple[int, ...], compare: frozenset[str]) -> list[Implementation]:
    """satclip-grid, and GDAL's COG driver through rioxarray; or the writer alone."""
    most = max(threads)
    if workload.alone:
        return [_entry(workload, "satclip writer", most, writer_alone)]
    entries = [_entry(workload, "satclip-grid", most, _satclip_grid)]
    if workload.exact:
        entries.append(_entry(workload, "satclip-grid --exact", most, _satclip_grid_exact))
    if workload.baselines and "rioxarray" in compare:
        absent = None if find_spec("rioxarray") else "rioxarray is not installed"
        for dtype in (workload.dtype, "float32"):
            entries.append(_entry(workload, f"rioxarray COG {dtype}", most, _rioxarray, dtype, absent))
    return entries


def _entry(
    workload: WriteWorkload,
    name: str,
    threads: int,
    prepare: Callable[[WriteWorkload, Path, int, str], PreparedRun],
    dtype: str | None = None,
    missing: str | None = None,
) -> Implementation:
    dtype = dtype or workload.dtype
    height, width = _shape(workload)
    file_name = f"{name.replace(' ', '_')}_{workload.resolution:g}_{workload.bands}.tif"
    path = temporary_folder() / file_name
    return Implementation(
        name,
        threads,
        float(width * height * workload.bands),
        lambda settings: prepare(workload, path, threads, dtype),
        ours=name.startswith("satclip"),
        dtype=dtype,
        missing=missing,
    )


def _shape(workload: WriteWorkload) -> tuple[int, int]:
    return round(180 / workload.resolution), round(360 / workload.resolution)


def _satclip_grid_exact(workload: WriteWorkload, path: Path, threads: int, dtype: str) -> PreparedRun:
    return _satclip_grid(workload, path, threads, dtype, "--exact")


def _satclip_grid(workload: WriteWorkload, path: Path, threads: int, dtype: str, *more: str) -> PreparedRun:
    options = [*more, "--overwrite", "--no-preview", "--quiet", "--resolution", f"{workload.resolution:g}"]
    options += ["--bands", f"1-{workload.bands}", "--dtype", dtype, "--compress", workload.compress]
    options += ["--threads", str(threads)]
    program = "from satclip_engine.cli.grid import main; main(prog_name='satclip-grid')"
    command = [sys.executable, "-c", program, str(path), *options]
    return _process(workload, path, threads, command, dtype, shown=["satclip-grid", path.name, *options])


def _rioxarray(workload: WriteWorkload, path: Path, threads: int, dtype: str) -> PreparedRun:
    options = [f"{workload.resolution:g}", str(workload.bands), dtype, workload.compress, str(threads)]
    command = [sys.executable, "-m", "satclip_engine.bench.suites.rioxarray_cog", str(path), *options]
    return _process(workload, path, threads, command, dtype, shown=["rioxarray_cog.py", path.name, *options])


def _process(
    workload: WriteWorkload,
    path: Path,
    threads: int,
    command: Sequence[str],
    dtype: str,
    *,
    shown: Sequence[str],
) -> PreparedRun:
    details: dict[str, Any] = {"command": " ".join(shown)}
    keep_medians = _median_keeper(details, threads)

    def run() -> Path:
        usage = run_process(command)
        keep_medians(usage)
        details["peak_memory"] = max(usage.peak_memory, details.get("peak_memory", 0))
        details["file_bytes"] = path.stat().st_size
        return path

    tolerance = workload.tolerance if dtype.startswith("int") else _FLOAT_TOLERANCE
    return _file_run(workload, path, run, tolerance, details)


def writer_alone(workload: WriteWorkload, path: Path, threads: int, dtype: str) -> PreparedRun:
    """Quantise, compress and assemble pixels that are computed already."""
    from satclip_engine.encoder import load
    from satclip_engine.geo.grid import make_grid
    from satclip_engine.raster.write import write_raster

    encoder = load("default", threads=threads)
    encoder = encoder if workload.bands == encoder.embed_dim else encoder.select(slice(0, workload.bands))
    grid = make_grid(resolution=workload.resolution)
    computed: Any = ComputedEncoder(encoder, grid)
    details: dict[str, Any] = {}
    keep_medians = _median_keeper(details, threads)
    options: dict[str, Any] = {"dtype": dtype, "compress": workload.compress, "threads": threads}

    def run() -> Path:
        start, cpu = time.perf_counter(), time.process_time()
        write_raster(computed, path, grid, exact=True, **options)
        keep_medians(ProcessUsage(time.perf_counter() - start, time.process_time() - cpu, 0))
        details["file_bytes"] = path.stat().st_size
        return path

    return _file_run(workload, path, run, workload.tolerance, details)


def _file_run(
    workload: WriteWorkload, path: Path, run: Callable[[], Path], tolerance: float, details: dict[str, Any]
) -> PreparedRun:
    """A run whose file is removed before the next one."""

    def remove() -> None:
        path.unlink(missing_ok=True)

    return PreparedRun(run, lambda answer: read_back(workload, path), tolerance, remove, details=details)


def _median_keeper(details: dict[str, Any], threads: int) -> Callable[[ProcessUsage], None]:
    """Return a function that keeps medians over the runs: processor time, share of the cores used."""
    runs: list[ProcessUsage] = []

    def keep(usage: ProcessUsage) -> None:
        runs.append(usage)
        details["cpu_seconds"] = float(np.median([run.cpu for run in runs]))
        details["cores_busy"] = float(np.median([run.cpu / run.wall / threads for run in runs]))

    return keep


class ComputedNetwork(Prepared):
    """A network whose pixels of one grid are computed already: giving them out is a copy."""

    def __init__(self, network: Prepared, grid: Grid) -> None:
        self.describe_as(network)
        self._network, self._grid, self.hints = network, grid, network.hints
        self._pixels = network.encode_pixels(grid)

    def encode(self, lonlat: np.ndarray, out: np.ndarray | None = None, call: Call = CALL) -> np.ndarray:
        return self._network.encode(lonlat, out, call)

    def encode_grid(
        self, lat: np.ndarray, lon: np.ndarray, out: np.ndarray | None = None, call: Call = CALL
    ) -> np.ndarray:
        return self._network.encode_grid(lat, lon, out, call)

    def encode_pixels(
        self,
        pixels: PixelGrid,
        rows: Index = None,
        cols: Index = None,
        out: np.ndarray | None = None,
        call: Call = CALL,
    ) -> np.ndarray:
        """As `Prepared.encode_pixels`; of that grid a copy."""
        if pixels != self._grid:
            return self._network.encode_pixels(pixels, rows, cols, out, call)
        window = self._pixels[slice(None) if rows is None else rows][:, slice(None) if cols is None else cols]
        if out is None:
            return window.copy()
        out[...] = window
        return out


class ComputedEncoder:
    """An encoder whose rasters of one grid are computed already."""

    def __init__(self, encoder: Encoder, grid: Grid) -> None:
        self._encoder, self.network = encoder, ComputedNetwork(encoder.network, grid)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)


def read_back(workload: WriteWorkload, path: Path) -> float:
    """Largest difference from the reference at some pixels: in steps for integers, of the rms for floats.

    The few values that are clipped by design are left out; more than that is an error of ∞.
    """
    import rasterio

    height, width = _shape(workload)
    rng = np.random.default_rng(3)
    rows, cols = rng.integers(0, height, _COMPARED_PIXELS), rng.integers(0, width, _COMPARED_PIXELS)
    with rasterio.open(path) as dataset:
        if (dataset.height, dataset.width, dataset.count) != (height, width, workload.bands):
            return float("inf")
        lonlat = np.array([dataset.xy(row, col) for row, col in zip(rows, cols, strict=True)])
        stored = np.array(
            [
                dataset.read(window=rasterio.windows.Window(col, row, 1, 1))[:, 0, 0]
                for row, col in zip(rows, cols, strict=True)
            ]
        )
        scale, offset, dtype = np.array(dataset.scales), np.array(dataset.offsets), dataset.dtypes[0]
    expected = _expected(lonlat, workload.bands)
    if not dtype.startswith("int"):
        return relative_error(stored, expected)
    error = np.abs(stored - (expected - offset) / scale)
    clipped = np.abs(stored) == np.iinfo(dtype).max
    if clipped.mean() > _MAX_CLIPPED + 1 / stored[:, 0].size:
        return float("inf")
    return float(error[~clipped].max())


def _expected(lonlat: np.ndarray, bands: int) -> np.ndarray:
    from satclip_engine import reference
    from satclip_engine.encoder import load

    return reference.encode(lonlat, load("default").layers)[:, :bands]

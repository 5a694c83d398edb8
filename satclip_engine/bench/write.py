"""Contestants of the write cases: whole commands as processes of their own, and the writer alone.

A command is timed from start to exit, with its start-up, its sampling pass and the closing of the file; its
processor time comes from the system, its peak memory from its own high-water mark, watched while it runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from satclip_engine import backends
from satclip_engine.backends.protocols import CALL, Call, Prepared
from satclip_engine.bench.cases import WriteCase
from satclip_engine.bench.measure import Contestant, Made
from satclip_engine.bench.memory import status
from satclip_engine.bench.workload import relative_error
from satclip_engine.encoder import Encoder
from satclip_engine.geo.grid import Grid
from satclip_engine.geo.pixels import Index, PixelGrid

_PIXELS = 24  # read back and compared
_WATCH = 0.02  # seconds between looks at a process's memory
# 1e-4 of a band's values may be clipped by design, so a few of 6144 may differ by more than half a step.
_CLIPPED = 1e-3
_FLOAT_TOLERANCE = 1e-5  # of the rms


@dataclass(frozen=True)
class Finished:
    """A process that ended."""

    wall: float
    cpu: float  # seconds, of its children too
    peak_memory: int  # bytes; 0 where that cannot be known


@cache
def scratch() -> Path:
    """A folder for the files that are written, removed at exit. In $TMPDIR."""
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="satclip-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def write(case: WriteCase, threads: tuple[int, ...], compare: frozenset[str]) -> list[Contestant]:
    """satclip-grid, and GDAL's COG driver through rioxarray; or the writer alone."""
    every = max(threads)
    if case.alone:
        return [_contestant(case, "satclip writer", every, _alone)]
    entries = [_contestant(case, "satclip-grid", every, _satclip_grid)]
    if case.exact:
        entries.append(_contestant(case, "satclip-grid --exact", every, _satclip_grid_exact))
    if case.peers and "rioxarray" in compare:
        absent = None if find_spec("rioxarray") else "rioxarray is not installed"
        for dtype in (case.dtype, "float32"):
            entries.append(_contestant(case, f"rioxarray COG {dtype}", every, _rioxarray, dtype, absent))
    return entries


def run_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    """Run to the end. Raises RuntimeError with the last line that it said when it fails."""
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=said,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
        watch = _Watch(process.pid)
        _, code, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(code)
        peak = watch.stop()
        if process.returncode:
            said.seek(0)
            lines = said.read().strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"exit status {process.returncode}")
    return Finished(wall, usage.ru_utime + usage.ru_stime, peak)


class _Watch:
    """Looks at a process's high-water mark until told to stop; growth in the last instant is missed."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._done = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(_WATCH):
            self._peak = max(self._peak, status("VmHWM", self._pid) or 0)

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self._peak


def _contestant(
    case: WriteCase,
    name: str,
    threads: int,
    make: Callable[[WriteCase, Path, int, str], Made],
    dtype: str | None = None,
    missing: str | None = None,
) -> Contestant:
    dtype = dtype or case.dtype
    width, height = round(360 / case.resolution), round(180 / case.resolution)
    path = scratch() / f"{name.replace(' ', '_')}_{case.resolution:g}_{case.bands}.tif"
    return Contestant(
        name,
        threads,
        float(width * height * case.bands),
        lambda settings: make(case, path, threads, dtype),
        ours=name.startswith("satclip"),
        dtype=dtype,
        missing=missing,
    )


def _satclip_grid_exact(case: WriteCase, path: Path, threads: int, dtype: str) -> Made:
    return _satclip_grid(case, path, threads, dtype, "--exact")


def _satclip_grid(case: WriteCase, path: Path, threads: int, dtype: str, *more: str) -> Made:
    options = [*more, "--overwrite", "--no-preview", "--quiet", "--resolution", f"{case.resolution:g}"]
    options += ["--bands", f"1-{case.bands}", "--dtype", dtype, "--compress", case.compress]
    options += ["--threads", str(threads)]
    program = "from satclip_engine.cli.grid import main; main(prog_name='satclip-grid')"
    command = [sys.executable, "-c", program, str(path), *options]
    return _process(case, path, threads, command, dtype, shown=["satclip-grid", path.name, *options])


def _rioxarray(case: WriteCase, path: Path, threads: int, dtype: str) -> Made:
    options = [f"{case.resolution:g}", str(case.bands), dtype, case.compress, str(threads)]
    command = [sys.executable, "-m", "satclip_engine.bench.rioxarray_cog", str(path), *options]
    return _process(case, path, threads, command, dtype, shown=["rioxarray_cog.py", path.name, *options])


def _process(
    case: WriteCase, path: Path, threads: int, command: Sequence[str], dtype: str, *, shown: Sequence[str]
) -> Made:
    facts: dict[str, Any] = {"command": " ".join(shown)}
    note = _noting(facts, threads)

    def run() -> Path:
        done = run_process(command)
        note(done)
        facts["peak_memory"] = max(done.peak_memory, facts.get("peak_memory", 0))
        facts["file_bytes"] = path.stat().st_size
        return path

    tolerance = case.tolerance if dtype.startswith("int") else _FLOAT_TOLERANCE
    return Made(run, lambda answer: read_back(case, path), tolerance, _remover(path), facts=facts)


def _alone(case: WriteCase, path: Path, threads: int, dtype: str) -> Made:
    from satclip_engine.encoder import load
    from satclip_engine.geo.grid import make_grid
    from satclip_engine.raster.write import write_raster

    encoder = load("default", threads=threads)
    encoder = encoder if case.bands == encoder.embed_dim else encoder.select(slice(0, case.bands))
    grid = make_grid(resolution=case.resolution)
    replay: Any = Replaying(encoder, grid)
    facts: dict[str, Any] = {}
    note = _noting(facts, threads)

    def run() -> Path:
        start, cpu = time.perf_counter(), time.process_time()
        write_raster(replay, path, grid, dtype=dtype, compress=case.compress, threads=threads, exact=True)
        note(Finished(time.perf_counter() - start, time.process_time() - cpu, 0))
        facts["file_bytes"] = path.stat().st_size
        return path

    return Made(run, lambda answer: read_back(case, path), case.tolerance, _remover(path), facts=facts)


def _noting(facts: dict[str, Any], threads: int) -> Callable[[Finished], None]:
    """Keeps in `facts` the medians over the runs so far: processor time, share of the cores used."""
    runs: list[Finished] = []

    def note(done: Finished) -> None:
        runs.append(done)
        facts["cpu_seconds"] = float(np.median([one.cpu for one in runs]))
        facts["cores_busy"] = float(np.median([one.cpu / one.wall / threads for one in runs]))

    return note


class Replay(Prepared):
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


class Replaying:
    """An encoder whose rasters a Replay gives out."""

    def __init__(self, encoder: Encoder, grid: Grid) -> None:
        self._encoder, self.network = encoder, Replay(encoder.network, grid)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)


def read_back(case: WriteCase, path: Path) -> float:
    """Largest difference from the reference at some pixels: in steps for integers, of the rms for floats.

    The few values that are clipped by design are left out; more than that is an error of ∞.
    """
    import rasterio

    height, width = round(180 / case.resolution), round(360 / case.resolution)
    rng = np.random.default_rng(3)
    rows, cols = rng.integers(0, height, _PIXELS), rng.integers(0, width, _PIXELS)
    with rasterio.open(path) as dataset:
        if (dataset.height, dataset.width, dataset.count) != (height, width, case.bands):
            return float("inf")
        places = np.array([dataset.xy(row, col) for row, col in zip(rows, cols, strict=True)])
        stored = np.array(
            [
                dataset.read(window=rasterio.windows.Window(col, row, 1, 1))[:, 0, 0]
                for row, col in zip(rows, cols, strict=True)
            ]
        )
        scale, offset, dtype = np.array(dataset.scales), np.array(dataset.offsets), dataset.dtypes[0]
    expected = _expected(places, case.bands)
    if not dtype.startswith("int"):
        return relative_error(stored, expected)
    error = np.abs(stored - (expected - offset) / scale)
    clipped = np.abs(stored) == np.iinfo(dtype).max
    if clipped.mean() > _CLIPPED + 1 / stored[:, 0].size:
        return float("inf")
    return float(error[~clipped].max())


def _expected(places: np.ndarray, bands: int) -> np.ndarray:
    from satclip_engine.encoder import load

    layers = load("default").layers
    return backends.resolve("reference").prepare(layers).encode(places)[:, :bands]


def _remover(path: Path) -> Callable[[], None]:
    def remove() -> None:
        path.unlink(missing_ok=True)

    return remove

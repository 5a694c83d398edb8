"""Cost model: analytic rates decide (deterministic), measured rates only predict run time.

A choice of lattice decides the last bits of a raster. So it follows from the sizes of the network alone: the
same command gives the same bytes on a busy machine, on two nodes of a cluster, and tomorrow. Only predictions
of time come from this machine, measured once and kept in the user's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from satclip_engine import _C
from satclip_engine._forks import Mutex
from satclip_engine._version import __version__
from satclip_engine.backends.protocols import Call, Prepared
from satclip_engine.device import processor_name
from satclip_engine.files import write_atomically
from satclip_engine.lattice.nodes import empty_window

_TIMED_RUNS = 3


@dataclass(frozen=True)
class Rates:
    """Points a second of one thread."""

    points: float
    grid: float  # pixels of a product grid
    resample: float  # pixels of a grid, order 8
    gather: float  # single points, order 8

    def resampled(self, order: int, *, single: bool) -> float:
        """Points a second from a lattice of that order."""
        # A pixel takes `order` terms a band and its store; a point order × order.
        return self.gather * (64 / order**2) if single else self.resample * 11 / (order + 3)


_measured: dict[str, Rates] = {}
_lock = Mutex()


# Of one thread of a processor with AVX-512, as those of docs/lattice.md are; it is ratios that matter.
_MULTIPLY_ADDS = 7e10  # a second, of a network
_TERMS_PER_SECOND = 2.5e10  # a second, of an interpolation, stores included
_PIXEL_SECONDS, _POINT_SECONDS = 1e-8, 6e-8  # that do not depend on bands: weights of stencils, sorting


def rates_of(network: Prepared) -> Rates:
    """The rates by which lattices are chosen, from the network's sizes."""
    degrees, widths = network.degrees, network.widths
    inner = sum(a * b for a, b in itertools.pairwise(widths))
    first = widths[0]
    bands = -(-widths[-1] // 16) * 16  # vectors are whole
    return Rates(
        points=1 / ((degrees**2 * first + inner) / _MULTIPLY_ADDS + degrees**2 * 1e-9 + _POINT_SECONDS),
        grid=1 / (((2 * degrees - 1) * first + inner) / _MULTIPLY_ADDS + _PIXEL_SECONDS),
        resample=1 / (11 * bands / _TERMS_PER_SECOND + _PIXEL_SECONDS),
        gather=1 / (64 * bands / _TERMS_PER_SECOND + _POINT_SECONDS),
    )


def measured_rates(network: Prepared) -> Rates:
    """The rates on this machine, measured in a tenth of a second when they are not known."""
    key = _key(network)
    with _lock:
        if key not in _measured:
            stored = _read(key)
            _measured[key] = stored or _measure(network)
            if stored is None:
                _write(key, _measured[key])
        return _measured[key]


def _key(network: Prepared) -> str:
    sizes = [*network.widths, network.degrees]
    machine = (platform.machine(), processor_name())
    parts = (__version__, *machine, network.name, network.isa, network.device, sizes)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _best(job: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs, after one that warms up."""
    job()
    times = []
    for _ in range(_TIMED_RUNS):
        started = time.perf_counter()
        job()
        times.append(time.perf_counter() - started)
    return min(times)


def _measure(network: Prepared) -> Rates:
    random = np.random.default_rng(0)
    bands = network.embed_dim
    lat, lon = np.linspace(-50.0, 50.0, 16), np.linspace(-170.0, 170.0, 128)
    points = np.stack([random.uniform(-180, 180, 1024), random.uniform(-80, 80, 1024)], axis=-1)
    window = empty_window(24, 24, bands)
    window[...] = random.normal(size=window.shape)
    rows, columns = np.linspace(8, 15, 16), np.linspace(8, 15, 256)
    pixels = np.empty((rows.size, columns.size, bands), np.float32)
    single = random.uniform(8, 15, (2, 2048))
    values, alone = np.empty((single.shape[1], bands), np.float32), Call(threads=1)
    return Rates(
        points=len(points) / _best(lambda: network.encode(points, call=alone)),
        grid=lat.size * lon.size / _best(lambda: network.encode_grid(lat, lon, call=alone)),
        resample=rows.size * columns.size / _best(lambda: _C.resample(window, rows, columns, pixels)),
        gather=single.shape[1] / _best(lambda: _C.resample_points(window, single[0], single[1], values)),
    )


def _file() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "satclip-engine" / "rates.json"


def _stored() -> dict[str, dict[str, float]]:
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(_file().read_text())
        if isinstance(content, dict):
            return content
    return {}


def _read(key: str) -> Rates | None:
    with contextlib.suppress(TypeError, ValueError):
        rates = Rates(**_stored()[key]) if key in _stored() else None
        if rates is not None and min(asdict(rates).values()) > 0:
            return rates
    return None


def _write(key: str, rates: Rates) -> None:
    """Keep rates for the next process; a failure to write the cache is ignored."""
    with contextlib.suppress(OSError):
        path = _file()
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {**_stored(), key: asdict(rates)}
        write_atomically(path, json.dumps(content, indent=1).encode())

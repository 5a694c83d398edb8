"""An atlas's file: a Zarr group (format 3) with one array a zone, and everything else in its attributes.

zone00 …    (rows, columns, E): rows of nodes from `first_row` of the zone's attributes on (a multiple of 16,
            negative beyond the south pole), columns of one turn from −180° eastward, packed as packing.py
            says, in chunks of 16 × 32 nodes of all bands
statistics  (2, E (E + 1) / 2) float32, upper triangles of the covariance of the bands and of the mean
            square of their errors: what the error of a linear head follows from

Zarr is imported when a file is opened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from satclip_engine._forks import cached_property
from satclip_engine._optional import need
from satclip_engine.atlas.global_zones import count_nodes
from satclip_engine.atlas.packing import NODE_DTYPES, Packing
from satclip_engine.errors import MissingExtra, WeightsError, one_line
from satclip_engine.lattice.certificate import Certificate
from satclip_engine.lattice.nodes import BLOCK_ROWS
from satclip_engine.lattice.tolerance import Moments, Tolerance
from satclip_engine.lattice.zones import Zone

FORMAT, VERSION = "satclip-atlas", 1
SUFFIX = ".zarr"
STATISTICS = "statistics"
_ATTEMPTS, _PAUSE_SECONDS = 3, 0.2  # at reading from elsewhere; seconds before the second one
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Origin:
    """The weights that an atlas was made of."""

    source: str  # a name, without folders
    sha256: str
    function_sha256: str
    harmonics: str
    degrees: int
    capacity: int
    hidden_layers: int
    embed_dim: int


@dataclass(frozen=True, eq=False)
class Contents:
    """Contents of the attributes."""

    zones: tuple[Zone, ...]
    packing: Packing
    band_names: tuple[str, ...]
    tolerance: Tolerance
    moments: Moments
    mean: np.ndarray  # (E,)
    origin: Origin
    nodes_sha256: str  # of all arrays as they are stored
    certificate: Certificate
    reach: float  # the largest error of any point, in the measure of `statistics`
    software: str

    @property
    def bands(self) -> int:
        return len(self.band_names)

    @cached_property
    def sha256(self) -> str:
        """Identifies what an atlas answers."""
        packing = [self.packing.dtype, self.packing.scale.tolist(), self.packing.offset.tolist()]
        parts = [VERSION, self.origin.function_sha256, self.nodes_sha256, packing]
        parts.append([zone.as_dict() for zone in self.zones])
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def nodes(self) -> int:
        return count_nodes(self.zones)

    def as_attributes(self) -> dict[str, Any]:
        """For Zarr, plain types only."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "software": self.software,
            "dtype": self.packing.dtype,
            "scale": self.packing.scale.tolist(),
            "offset": self.packing.offset.tolist(),
            "zones": [zone.as_dict() for zone in self.zones],
            "band_names": list(self.band_names),
            "tolerance": self.tolerance.as_dict(),
            "sigma": self.moments.sigma.tolist(),
            "rms": self.moments.rms.tolist(),
            "mean": self.mean.tolist(),
            "origin": dataclasses.asdict(self.origin),
            "nodes_sha256": self.nodes_sha256,
            "certificate": self.certificate.as_dict(),
            "reach": self.reach,
        }

    @classmethod
    def from_attributes(cls, content: dict[str, Any]) -> Contents:
        """Raises KeyError, TypeError or ValueError for what is no such description."""
        zones = tuple(Zone(**zone) for zone in content["zones"])
        scale, offset = (np.asarray(content[name], np.float32) for name in ("scale", "offset"))
        moments = Moments(*(np.asarray(content[name], np.float64) for name in ("sigma", "rms")))
        contents = cls(
            zones,
            Packing(content["dtype"], scale, offset),
            tuple(str(name) for name in content["band_names"]),
            Tolerance.from_dict(content["tolerance"]),
            moments,
            np.asarray(content["mean"], np.float64),
            Origin(**content["origin"]),
            str(content["nodes_sha256"]),
            Certificate.from_dict(content["certificate"]),
            float(content["reach"]),
            str(content["software"]),
        )
        contents.check()
        return contents

    def check(self) -> None:
        """Raises ValueError for numbers that describe no lattice of the whole Earth."""
        edges = [-90.0, *(zone.north for zone in self.zones)]
        if not self.zones or edges[-1] != 90.0 or edges[:-1] != [zone.south for zone in self.zones]:
            raise ValueError("its zones do not cover the Earth")
        for zone in self.zones:
            if zone.order not in range(4, 13, 2) or min(zone.rows, zone.columns) < zone.order:
                raise ValueError("it has a zone that is no lattice")
        if self.packing.dtype not in NODE_DTYPES:
            raise ValueError(f"its dtype is {self.packing.dtype}")
        bands = (self.packing.scale, self.packing.offset, self.moments.sigma, self.moments.rms, self.mean)
        if not self.bands or any(a.shape != (self.bands,) or not np.isfinite(a).all() for a in bands):
            raise ValueError("its bands do not agree")


def array_name(zone: int) -> str:
    return f"zone{zone:02}"


def array_rows(zone: Zone) -> range:
    """The rows of nodes that a zone's array holds: those stored, and on to whole chunks."""
    rows = zone.row_range
    first, last = rows.start // BLOCK_ROWS, (rows.stop - 1) // BLOCK_ROWS
    return range(first * BLOCK_ROWS, (last + 1) * BLOCK_ROWS)


def zarr() -> Any:
    """The library. Raises MissingExtra."""
    return need("zarr", extra="atlas", why="an atlas file")


class AtlasFile:
    """An open atlas. Threads may share it; arrays are read when they are asked for."""

    def __init__(self, source: str, options: dict[str, Any], group: Any, contents: Contents) -> None:
        self.source, self.options, self.contents = source, options, contents
        self._connect(group)

    @property
    def name(self) -> str:
        """The file's name without folders."""
        return self.source.rstrip("/").rpartition("/")[2]

    @property
    def remote(self) -> bool:
        return "://" in self.source

    def _connect(self, group: Any) -> None:
        self._group, self._process = group, os.getpid()
        self._arrays = [self._array(array_name(k), zone) for k, zone in enumerate(self.contents.zones)]

    def _array(self, name: str, zone: Zone) -> Any:
        array = self._group.get(name)
        shape = (len(array_rows(zone)), zone.columns, self.contents.bands)
        if getattr(array, "shape", None) != shape or array.dtype != self.contents.packing.dtype:
            raise WeightsError(
                f"{self.source}: the atlas is damaged: it has no array {name} of shape {shape}"
            )
        return array

    def stored(self, zone: int, rows: range, columns: range) -> np.ndarray:
        """(h, w, E) of a zone's array as it is stored; rows are counted from the array's first."""
        return self._read(
            lambda: self._arrays[zone][rows.start : rows.stop, columns.start : columns.stop],
            f"{array_name(zone)}, rows {rows.start} to {rows.stop - 1}",
        )

    @cached_property
    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Covariance of the bands and mean square of their errors, (E, E) float64 each."""
        bands = self.contents.bands
        array = self._group.get(STATISTICS)
        if getattr(array, "shape", None) != (2, bands * (bands + 1) // 2):
            raise WeightsError(f"{self.source}: the atlas is damaged: it has no array {STATISTICS}")
        covariance, errors = self._read(lambda: array[...], STATISTICS)
        if not np.isfinite([covariance, errors]).all():
            raise WeightsError(f"{self.source}: the atlas is damaged: a chunk of {STATISTICS} is missing")
        return square(covariance), square(errors)

    def _read(self, job: Callable[[], _Read], what: str) -> _Read:
        if self.remote and self._process != os.getpid():
            self._connect(_opened(self.source, self.options)[1])  # a fork has no connections
        for attempt in range(_ATTEMPTS):
            try:
                return job()
            except MemoryError:
                raise
            except Exception as error:  # of decoders, file systems, aiohttp, and whatever else fsspec uses
                if not self.remote or attempt == _ATTEMPTS - 1:
                    text = f"{self.source}: {what} cannot be read: {one_line(error)}"
                    raise WeightsError(text) from error
            time.sleep(_PAUSE_SECONDS * 4**attempt)
        raise AssertionError


def open_file(source: str | os.PathLike[str], options: dict[str, Any] | None = None) -> AtlasFile:
    """Open an atlas by path or URL; `options` are for the file system that fsspec finds for a URL.

    Raises WeightsError for what is no atlas, MissingExtra when a library is missing.
    """
    name = os.fspath(source).rstrip("/")
    if "://" not in name:
        name = os.path.abspath(name)
        if not Path(name).exists():
            raise WeightsError(f"{name}: no such file or folder")
    attributes, group = _opened(name, options or {})
    if attributes.get("format") != FORMAT:
        raise WeightsError(f"{name} is a Zarr group but no atlas: its attributes do not say {FORMAT}")
    if attributes.get("version") != VERSION:
        raise WeightsError(
            f"{name}: atlas of format version {attributes.get('version')}, this software reads {VERSION}: "
            "use a satclip-engine as new as the one that wrote it"
        )
    try:
        contents = Contents.from_attributes(attributes)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{name}: the atlas is damaged: {one_line(error)}") from error
    return AtlasFile(name, options or {}, group, contents)


def _opened(name: str, options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    library = zarr()
    try:
        if "://" in name:
            need("fsspec", extra="atlas", why="an atlas at a URL")
            store = library.storage.FsspecStore.from_url(name, storage_options=options, read_only=True)
        else:
            store = library.storage.LocalStore(name, read_only=True)
        group = library.open_group(store, mode="r", zarr_format=3)
        return dict(group.attrs), group
    except MissingExtra:
        raise
    except ImportError as error:
        raise MissingExtra(f"{name} needs another library: {one_line(error)}") from error
    except FileNotFoundError as error:
        raise WeightsError(f"{name}: no Zarr group is there") from error
    except Exception as error:  # as in AtlasFile._read
        raise WeightsError(f"{name} cannot be read as an atlas: {one_line(error)}") from error


def square(triangle: np.ndarray) -> np.ndarray:
    """A symmetric matrix from its upper triangle, float64."""
    size = int((np.sqrt(8 * triangle.size + 1) - 1) / 2)
    upper = np.zeros((size, size))
    upper[np.triu_indices(size)] = triangle
    return upper + np.triu(upper, 1).T


def triangle(matrix: np.ndarray) -> np.ndarray:
    """The upper triangle of a symmetric matrix, float32."""
    return matrix[np.triu_indices(len(matrix))].astype(np.float32)

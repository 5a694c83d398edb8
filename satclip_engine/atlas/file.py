"""An atlas's file: a Zarr group (format 3) with one array a zone, and everything else in its attributes.

zone00 …    (rows, columns, E): rows of nodes from `first_row` of the zone's attributes on (a multiple of 16,
            negative beyond the south pole), columns of one turn from −180° eastward, packed as packing.py
            says, in chunks of 16 × 32 nodes of all bands
statistics  (2, E (E + 1) / 2) float32, upper triangles of the covariance of the bands and of the mean
            square of their errors: what the error of a linear head follows from

Every chunk ends in its CRC-32C. The attributes repeat those of all chunks by their place, and have a hash of
their own, so that a chunk of another place or another atlas is noticed without reading more than itself.

Zarr is imported when a file is opened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
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
from satclip_engine.atlas.layout import (
    STATISTICS,
    ChunkSums,
    Layout,
    array_name,
    bounded_options,
    checked_store,
    chunks_of,
    statistics_layout,
    zarr,
    zone_layout,
)
from satclip_engine.atlas.metadata import check_attributes, check_certificate, sealed
from satclip_engine.atlas.packing import Packing
from satclip_engine.backends.extremes import Extremes
from satclip_engine.errors import MissingExtra, WeightsError, one_line
from satclip_engine.lattice.certificate import Certificate
from satclip_engine.lattice.tolerance import Moments, Tolerance
from satclip_engine.lattice.zones import Zone
from satclip_engine.weights.schema import shown

FORMAT, VERSION = "satclip-atlas", 2
SUFFIX = ".zarr"
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
    extremes: Extremes  # of the network's bands over the globe
    sums: ChunkSums | None = None  # None while it is being written

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
        assert self.sums is not None
        content = {
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
            **self.extremes.as_dict(),
            **self.sums.as_dict(),
        }
        return sealed(content)

    @classmethod
    def from_attributes(cls, content: dict[str, Any]) -> Contents:
        """Raises ValueError for what is no such description."""
        check_attributes(content)
        zones = tuple(Zone(**zone) for zone in content["zones"])
        scale, offset = (np.asarray(content[name], np.float32) for name in ("scale", "offset"))
        moments = Moments(*(np.asarray(content[name], np.float64) for name in ("sigma", "rms")))
        contents = cls(
            zones,
            Packing(content["dtype"], scale, offset),
            tuple(content["band_names"]),
            Tolerance.from_dict(content["tolerance"]),
            moments,
            np.asarray(content["mean"], np.float64),
            Origin(**content["origin"]),
            content["nodes_sha256"],
            Certificate.from_dict(content["certificate"]),
            float(content["reach"]),
            content["software"],
            Extremes.from_dict(content),
            ChunkSums.from_dict(content),
        )
        contents.check()
        return contents

    def check(self) -> None:
        """Raises ValueError for numbers that describe no lattice of the whole Earth, or contradict others."""
        edges = [-90.0, *(zone.north for zone in self.zones)]
        if (
            edges[-1] != 90.0
            or edges[:-1] != [zone.south for zone in self.zones]
            or edges != sorted(set(edges))
        ):
            raise ValueError("its zones do not cover the Earth")
        if any(min(zone.rows, zone.columns) < zone.order for zone in self.zones):
            raise ValueError("it has a zone that is no lattice")
        if not all(np.array_equal(self.moments.sigma, a.sigma) for a in (self.tolerance, self.certificate)):
            raise ValueError("its bands do not agree about their sigma")
        if (self.extremes.low > self.extremes.high).any():
            raise ValueError("low: above high")
        check_certificate(self.certificate, self.tolerance.bands.tolist())
        if self.sums is not None and self.sums.counts != [math.prod(chunks_of(z)) for z in self.zones]:
            raise ValueError("chunk_crc32c: not a sum for each chunk")


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
        group.store.expect(self._layouts(), self.contents.sums)
        self._arrays = [self._array(array_name(k)) for k in range(len(self.contents.zones))]

    def _layouts(self) -> dict[str, Layout]:
        """Layouts of the arrays by name."""
        contents = self.contents
        layouts = {
            array_name(k): zone_layout(zone, contents.packing.dtype, contents.bands)
            for k, zone in enumerate(contents.zones)
        }
        return {**layouts, STATISTICS: statistics_layout(contents.bands)}

    def _array(self, name: str) -> Any:
        """An array that is laid out as this software writes it: other codecs could unpack to any size."""
        layout = self._group.store.layouts[name]
        try:
            array = self._group.get(name)
            sound = layout.is_of(array)
        except MemoryError:
            raise
        except Exception as error:  # whatever Zarr makes of other metadata
            raise WeightsError(f"{self.source}: the atlas is damaged: {name}: {one_line(error)}") from error
        if not sound:
            raise WeightsError(
                f"{self.source}: the atlas is damaged: it has no array {name} of shape {layout.shape} "
                f"in chunks and codecs that satclip-engine writes"
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
        array = self._array(STATISTICS)
        covariance, errors = self._read(lambda: array[...], STATISTICS)
        if not np.isfinite([covariance, errors]).all():
            raise WeightsError(f"{self.source}: the atlas is damaged: {STATISTICS} are not finite")
        return square(covariance), square(errors)

    def _read(self, job: Callable[[], _Read], what: str) -> _Read:
        if self.remote and self._process != os.getpid():
            self._connect(_opened(self.source, self.options)[1])  # a fork has no connections
        for attempt in range(_ATTEMPTS):
            try:
                return job()
            except (MemoryError, WeightsError):
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
            f"{name}: atlas of format version {shown(attributes.get('version'))}, this software reads "
            f"{VERSION}: use a satclip-engine as new as the one that wrote it, or write it anew"
        )
    try:
        contents = Contents.from_attributes(attributes)
    except ValueError as error:
        raise WeightsError(f"{name}: the atlas is damaged: {one_line(error)}") from error
    return AtlasFile(name, options or {}, group, contents)


def _opened(name: str, options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    library = zarr()
    try:
        if "://" in name:
            need("fsspec", extra="atlas", why="an atlas at a URL")
            store = library.storage.FsspecStore.from_url(
                name, storage_options=bounded_options(name, options), read_only=True
            )
        else:
            store = library.storage.LocalStore(name, read_only=True)
        group = library.open_group(checked_store(store, name), mode="r", zarr_format=3)
        return dict(group.attrs), group
    except (MissingExtra, WeightsError):
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

"""A network's place taken by an atlas: an Encoder made of these parts answers from a file's nodes.

AtlasWeights   in place of the weights: what reports say about them
AtlasLayers    in place of the network: the function, its bands or a head on them, and its plan
AtlasBackend   in place of a row of backends.TABLE: prepares a PreparedLattice
"""

from __future__ import annotations

import dataclasses
import json
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from satclip_engine import _C
from satclip_engine.atlas.file import AtlasFile, array_name, array_rows, open_file
from satclip_engine.atlas.linear import Linear, Selection, head_certificate, sha256_of
from satclip_engine.atlas.packing import unfolded
from satclip_engine.backends.protocols import CALLS, Calls, Check
from satclip_engine.errors import UsageError, WeightsError
from satclip_engine.lattice.certificate import Certificate
from satclip_engine.lattice.nodes import BLOCK_COLUMNS, BLOCK_ROWS, CACHE_BYTES, BlockNodes
from satclip_engine.lattice.plan import LATTICE, Plan
from satclip_engine.lattice.prepared import PreparedLattice
from satclip_engine.lattice.tolerance import Tolerance, check_tolerance
from satclip_engine.weights import Provenance
from satclip_engine.weights.layers import checked_head

if TYPE_CHECKING:
    from torch import Tensor

    from satclip_engine.device import Device

NAME = "atlas"
# Codes of an atlas are shared by all encoders of it; each has nodes of its own, those of a few bands small.
_CODES_BYTES, _NODES_BYTES = CACHE_BYTES // 2, 3 * CACHE_BYTES // 4  # of float32: int16 takes half of it


def _no_network(source: str, why: str = "") -> NoReturn:
    raise UsageError(
        f"{source} is an atlas, which holds no network{why}: load the weights it was made of instead",
        argument="source",
    )


class Codes(BlockNodes):
    """An atlas's numbers as they are packed, a block a chunk; `window` gives them as float32."""

    def __init__(self, file: AtlasFile) -> None:
        super().__init__(file.contents.zones, file.contents.bands, _CODES_BYTES)
        self.file, self._packing = file, file.contents.packing

    def make(
        self, zone: int, row: int, count: int, columns: range, threads: int | None, check: Check | None
    ) -> np.ndarray:
        first = row * BLOCK_ROWS - array_rows(self.zones[zone]).start
        stored = self.file.stored(zone, range(first, first + count * BLOCK_ROWS), columns)
        for top in range(0, len(stored), BLOCK_ROWS):
            for left in range(0, len(columns), BLOCK_COLUMNS):
                chunk = stored[top : top + BLOCK_ROWS, left : left + BLOCK_COLUMNS]
                if self._missing(chunk):
                    down, across = (first + top) // BLOCK_ROWS, (columns.start + left) // BLOCK_COLUMNS
                    raise WeightsError(
                        f"{self.file.source}: the atlas is incomplete: "
                        f"chunk {array_name(zone)}/c/{down}/{across}/0 is missing"
                    )
                if self._packing.dtype == "int16":
                    chunk[...] = unfolded(chunk)
        return stored

    def _missing(self, chunk: np.ndarray) -> bool:
        """Whether nothing is there: Zarr gives the fill value without a word."""
        one = chunk[..., 0]
        return bool((one == self._packing.fill).all() if one.dtype == np.int16 else np.isnan(one).all())


class StoredNodes(BlockNodes):
    """What bands of an atlas, or a head on them, are at its nodes."""

    def __init__(self, codes: Codes, linear: Linear) -> None:
        super().__init__(codes.zones, linear.outputs, _NODES_BYTES)
        self._codes, self._packing, self._linear = codes, codes.file.contents.packing, linear

    def make(
        self, zone: int, row: int, count: int, columns: range, threads: int | None, check: Check | None
    ) -> np.ndarray:
        rows = range(row * BLOCK_ROWS, (row + count) * BLOCK_ROWS)
        codes = self._codes.window(zone, rows, columns, threads, check)
        return self._linear.values(codes, self._packing)


@dataclass(frozen=True, eq=False)
class AtlasPlan(Plan):
    """The plan of an encoder that has nothing else to compute by."""

    source: str = ""

    def network(self, exact: Any, cache_bytes: int | None = None) -> Any:
        return exact

    def check(self, *, exact: bool, tolerance: float | None) -> None:
        """Raises UsageError for what no atlas, or not this one, can do."""
        assert self.certificate is not None
        known = self.certificate.max_sigma
        if exact:
            _no_network(self.source, f" and errs by up to {known:.2g} σ, so exact=True is not possible")
        check_tolerance(tolerance)
        if tolerance is not None and tolerance < known:
            _no_network(self.source, f" and errs by up to {known:.2g} σ, more than tolerance {tolerance:g}")

    def as_dict(self) -> dict[str, Any]:
        content = super().as_dict()
        del content["source"]
        return content


class AtlasLayers:
    """The function that an atlas answers with. Immutable; pickles by where the file lies."""

    def __init__(self, codes: Codes, linear: Linear | None = None) -> None:
        self.codes, self.file = codes, codes.file
        file = codes.file
        self.linear = Selection(np.arange(file.contents.bands)) if linear is None else linear
        self.sha256 = sha256_of(file.contents.sha256, self.linear, file.contents.bands)
        self.plan = _plan(file, self.linear)

    @property
    def embed_dim(self) -> int:
        """Number of outputs, E."""
        return self.linear.outputs

    def with_head(self, weight: np.ndarray, bias: np.ndarray | None = None) -> AtlasLayers:
        """As `Layers.with_head`."""
        head = checked_head(weight, bias, self.embed_dim)
        return AtlasLayers(self.codes, self.linear.then(*head, self.file.contents.bands))

    def select(self, index: Sequence[int]) -> AtlasLayers:
        """As `Layers.select`."""
        return AtlasLayers(self.codes, self.linear.select(np.asarray(index, np.int64)))

    @property
    def degrees(self) -> int:
        _no_network(self.file.source)

    @property
    def weights(self) -> tuple[np.ndarray, ...]:
        _no_network(self.file.source)

    @property
    def biases(self) -> tuple[np.ndarray, ...]:
        _no_network(self.file.source)

    @property
    def capacity(self) -> int:
        _no_network(self.file.source)

    def astype(self, dtype: Any) -> list[np.ndarray]:
        _no_network(self.file.source)

    def __reduce__(self) -> tuple[Any, ...]:
        file = self.file
        return _reopened, (file.source, file.options, file.contents.sha256, self.linear)


def _plan(file: AtlasFile, linear: Linear) -> AtlasPlan:
    contents = file.contents
    spacing = max(zone.lat_step for zone in contents.zones)
    plan = AtlasPlan(
        LATTICE,
        f"{file.name} holds nodes every {spacing:.3g}° as {contents.packing.dtype}",
        {},
        contents.tolerance,
        contents.zones,
        spacing,
        contents.zones[0].order,
        contents.nodes,
        contents.certificate,
        source=file.source,
    )
    if isinstance(linear, Selection):
        found = plan.of_bands(linear.index)
        assert isinstance(found, AtlasPlan)
        return found
    certificate: Certificate = head_certificate(
        contents.certificate, linear, file.statistics, contents.reach, contents.mean
    )
    text = f"a linear head on bands that keep {contents.tolerance.text}"
    tolerance = Tolerance(text, certificate.max_error, certificate.sigma)
    return dataclasses.replace(plan, certificate=certificate, tolerance=tolerance)


@dataclass(frozen=True, eq=False)
class AtlasWeights:
    """What is known of the weights that an atlas was made of."""

    sha256: str
    harmonics: str
    degrees: int
    capacity: int
    hidden_layers: int
    embed_dim: int
    provenance: Provenance

    @property
    def L(self) -> int:
        return self.degrees

    @property
    def tensors(self) -> NoReturn:
        _no_network(self.provenance.source)

    def folded(self) -> NoReturn:
        _no_network(self.provenance.source)

    def converted(self, convention: Any) -> NoReturn:
        _no_network(self.provenance.source)

    def save(self, path: Any, *, convention: Any = None) -> NoReturn:
        _no_network(self.provenance.source)


class AtlasBackend:
    """Prepares what answers from an atlas."""

    name, grids_only = NAME, None

    def prepare(
        self, layers: AtlasLayers, threads: int, *, device: Device | None = None, precision: str = "exact"
    ) -> PreparedLattice:
        nodes = StoredNodes(layers.codes, layers.linear)
        zones = layers.file.contents.zones
        network: Any = NoNetwork(layers, threads)
        return PreparedLattice(network, zones, nodes, token=layers.plan.token)


@dataclass(frozen=True, eq=False)
class NoNetwork:
    """What stands behind the lattice: nothing that computes."""

    layers: AtlasLayers
    threads: int
    name: str = NAME
    isa: str = _C.instruction_sets()[0]  # interpolates
    device: str = "cpu"
    calls: Calls = CALLS

    def encode(self, *places: Any, **how: Any) -> NoReturn:
        _no_network(self.layers.file.source)

    encode_grid = encode

    def encode_tensor(self, lonlat: Tensor) -> Tensor | None:
        return None


_opened: weakref.WeakValueDictionary[tuple[str, str], Codes] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def open_layers(source: Any, options: dict[str, Any] | None = None) -> AtlasLayers:
    """The function of an atlas by path or URL; `options` are for the file system that fsspec finds.

    Raises WeightsError for what is no atlas, MissingExtra when a library is missing.
    """
    codes = Codes(open_file(source, options))
    with _lock:
        _opened[_key(codes.file.source, codes.file.options)] = codes
    return AtlasLayers(codes)


def weights_of(layers: AtlasLayers) -> AtlasWeights:
    """What stands in for the weights."""
    file, origin = layers.file, layers.file.contents.origin
    known = ("sha256", "harmonics", "degrees", "capacity", "hidden_layers", "embed_dim")
    return AtlasWeights(
        **{name: getattr(origin, name) for name in known},
        provenance=Provenance(
            source=f"{origin.source} ({file.name})",
            format=NAME,
            extras={"atlas_sha256": file.contents.sha256},
        ),
    )


def _key(source: str, options: dict[str, Any]) -> tuple[str, str]:
    return source, json.dumps(options, sort_keys=True, default=repr)


def _reopened(source: str, options: dict[str, Any], sha256: str, linear: Linear) -> AtlasLayers:
    """Pickled layers; those of one process share a file that is open already."""
    with _lock:
        codes = _opened.get(_key(source, options))
    if codes is None or codes.file.contents.sha256 != sha256:
        codes = open_layers(source, options).codes
    if codes.file.contents.sha256 != sha256:
        raise WeightsError(f"{source} is another atlas now than when the encoder was pickled")
    return AtlasLayers(codes, linear)

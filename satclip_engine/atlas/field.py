"""AtlasField: the field of an Encoder that answers from an atlas's nodes; bands of it, or a head on them."""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from satclip_engine import _C
from satclip_engine._forks import Mutex
from satclip_engine.atlas.extremes import lattice_extremes, recorded_extremes
from satclip_engine.atlas.file import AtlasFile, open_file
from satclip_engine.atlas.layout import array_name, array_rows
from satclip_engine.atlas.linear import Linear, Selection, head_certificate, sha256_of
from satclip_engine.atlas.packing import undifferenced
from satclip_engine.backends.extremes import Extremes
from satclip_engine.backends.protocols import Call
from satclip_engine.errors import Argument, UsageError, WeightsError
from satclip_engine.field import EXTREMES_POINTS, AbsentWeights
from satclip_engine.lattice.certificate import Certificate
from satclip_engine.lattice.nodes import BLOCK_COLUMNS, BLOCK_ROWS, CACHE_BYTES, BlockNodes
from satclip_engine.lattice.plan import LATTICE, Plan
from satclip_engine.lattice.prepared import PreparedLattice
from satclip_engine.lattice.tolerance import Tolerance, spiral
from satclip_engine.weights import Layers, Provenance
from satclip_engine.weights.layers import checked_head

NAME = "atlas"
# Codes of an atlas are shared by all encoders of it; each has nodes of its own, those of a few bands small.
_CODES_BYTES, _NODES_BYTES = CACHE_BYTES // 2, 3 * CACHE_BYTES // 4  # of float32: int16 takes half of it


def _no_network(source: str, *error: object) -> tuple[object, ...]:
    """Pieces of the message that refuses what only a network can do."""
    advice = ": load the weights it was made of instead"
    return f"{source} is an atlas, which holds no network", *error, advice


class Codes(BlockNodes):
    """An atlas's numbers as they are packed, a block a chunk; `window` gives them as float32."""

    def __init__(self, file: AtlasFile) -> None:
        super().__init__(file.contents.zones, file.contents.bands, _CODES_BYTES)
        self.file, self._packing = file, file.contents.packing

    def make(self, zone: int, row: int, count: int, columns: range, call: Call) -> np.ndarray:
        first = row * BLOCK_ROWS - array_rows(self.zones[zone]).start
        stored = self.file.stored(zone, range(first, first + count * BLOCK_ROWS), columns)
        for top in range(0, len(stored), BLOCK_ROWS):
            for left in range(0, len(columns), BLOCK_COLUMNS):
                chunk = stored[top : top + BLOCK_ROWS, left : left + BLOCK_COLUMNS]
                if self._packing.dtype == "int16":
                    chunk[...] = undifferenced(chunk)
        if self._packing.dtype != "int16" and not np.isfinite(stored).all():
            raise WeightsError(
                f"{self.file.source}: the atlas is damaged: {array_name(zone)} has nodes that are not finite"
            )
        return stored


class StoredNodes(BlockNodes):
    """Values at an atlas's nodes of some of its bands, or of a head on them."""

    def __init__(self, codes: Codes, linear: Linear) -> None:
        super().__init__(codes.zones, linear.outputs, _NODES_BYTES)
        self._codes, self._packing, self._linear = codes, codes.file.contents.packing, linear

    def make(self, zone: int, row: int, count: int, columns: range, call: Call) -> np.ndarray:
        rows = range(row * BLOCK_ROWS, (row + count) * BLOCK_ROWS)
        codes = self._codes.window(zone, rows, columns, call)
        return self._linear.values(codes, self._packing)


class PreparedAtlas(PreparedLattice):
    """A lattice whose nodes come from a file, without any network behind it."""

    name, isa, device = NAME, _C.instruction_sets()[0], "cpu"  # it interpolates by the best instructions here

    def __init__(self, codes: Codes, linear: Linear, threads: int) -> None:
        contents = codes.file.contents
        super().__init__(None, contents.zones, StoredNodes(codes, linear))
        self.degrees, self.threads = contents.origin.degrees, threads
        self.widths = (*[contents.origin.capacity] * contents.origin.hidden_layers, linear.outputs)


class AtlasField:
    """The function that an atlas answers with. Immutable; pickles by where the file lies."""

    precision = "exact"

    def __init__(self, codes: Codes, linear: Linear | None = None) -> None:
        self.codes, self.file = codes, codes.file
        contents = codes.file.contents
        self.linear = Selection(np.arange(contents.bands)) if linear is None else linear
        self.sha256 = sha256_of(contents.sha256, self.linear, contents.bands)
        self.plan = _plan(codes.file, self.linear)
        self.weights = _absent_weights(codes.file)

    @property
    def embed_dim(self) -> int:
        return self.linear.outputs

    @property
    def layers(self) -> Layers:
        raise UsageError(*_no_network(self.file.source), argument="source")

    def check(self, *, exact: bool, tolerance: float | None) -> None:
        assert self.plan.certificate is not None
        source, largest = self.file.source, self.plan.certificate.max_sigma
        error = f" and errs by up to {largest:.2g} σ, "
        if exact:
            message = _no_network(source, error, "so ", Argument("exact", True), " is not possible")
            raise UsageError(*message, argument="exact")
        if tolerance is not None and tolerance < largest:
            message = _no_network(source, error, "more than ", Argument("tolerance"), f" {tolerance:g}")
            raise UsageError(*message, argument="tolerance")

    def extremes(self, threads: int) -> Extremes:
        recorded = recorded_extremes(self.file.contents, self.linear)
        return recorded or lattice_extremes(self.prepare(threads), spiral(EXTREMES_POINTS), threads)

    def with_head(self, weight: np.ndarray, bias: np.ndarray | None = None) -> AtlasField:
        bands = self.file.contents.bands
        composed = self.linear.compose(*checked_head(weight, bias, self.embed_dim), bands)
        checked_head(composed.weight, composed.bias, bands)  # a head on a head may be too large
        return AtlasField(self.codes, composed)

    def select(self, index: Sequence[int]) -> AtlasField:
        return AtlasField(self.codes, self.linear.select(np.asarray(index, np.int64)))

    def prepare(self, threads: int) -> PreparedAtlas:
        return PreparedAtlas(self.codes, self.linear, threads)

    def __reduce__(self) -> tuple[Any, ...]:
        file = self.file
        return _reopen_field, (file.source, file.options, file.contents.sha256, self.linear)


def _plan(file: AtlasFile, linear: Linear) -> Plan:
    contents = file.contents
    spacing = max(zone.lat_step for zone in contents.zones)
    plan = Plan(
        LATTICE,
        f"{file.name} holds nodes every {spacing:.3g}° as {contents.packing.dtype}",
        {},
        contents.tolerance,
        contents.zones,
        spacing,
        contents.zones[0].order,
        contents.nodes,
        contents.certificate,
    )
    if isinstance(linear, Selection):
        return plan.of_bands(linear.index)
    certificate: Certificate = head_certificate(
        contents.certificate, linear, file.statistics, contents.reach, contents.mean
    )
    text = f"a linear head on bands that keep {contents.tolerance.text}"
    tolerance = Tolerance(text, certificate.max_error, certificate.sigma)
    return dataclasses.replace(plan, certificate=certificate, tolerance=tolerance)


def _absent_weights(file: AtlasFile) -> AbsentWeights:
    """The weights that an atlas was made of, as far as it names them."""
    origin = file.contents.origin
    source = f"{origin.source} ({file.name})"
    return AbsentWeights(
        sha256=origin.sha256,
        harmonics=origin.harmonics,
        degrees=origin.degrees,
        capacity=origin.capacity,
        hidden_layers=origin.hidden_layers,
        embed_dim=origin.embed_dim,
        provenance=Provenance(source, NAME, extras={"atlas_sha256": file.contents.sha256}),
        reason="".join(map(str, _no_network(source))),
    )


_opened: weakref.WeakValueDictionary[tuple[str, str], Codes] = weakref.WeakValueDictionary()
_lock = Mutex()


def open_field(source: Any, options: dict[str, Any] | None = None) -> AtlasField:
    """The field of an atlas by path or URL; `options` are for the file system that fsspec takes for a URL.

    Raises WeightsError for what is no atlas, MissingExtra when a library is missing.
    """
    codes = Codes(open_file(source, options))
    with _lock:
        _opened[_key(codes.file.source, codes.file.options)] = codes
    return AtlasField(codes)


def _key(source: str, options: dict[str, Any]) -> tuple[str, str]:
    return source, json.dumps(options, sort_keys=True, default=repr)


def _reopen_field(source: str, options: dict[str, Any], sha256: str, linear: Linear) -> AtlasField:
    """Unpickle a field; those of one process share a file that is open already."""
    with _lock:
        codes = _opened.get(_key(source, options))
    if codes is None or codes.file.contents.sha256 != sha256:
        codes = open_field(source, options).codes
    if codes.file.contents.sha256 != sha256:
        raise WeightsError(f"{source} is another atlas now than when the encoder was pickled")
    return AtlasField(codes, linear)

"""Makes an atlas: chooses a lattice, writes it, measures the error of the written nodes, refines."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from satclip_engine._version import __version__
from satclip_engine.atlas import global_zones
from satclip_engine.atlas.field import Codes, PreparedAtlas
from satclip_engine.atlas.file import Contents, Origin, square, triangle
from satclip_engine.atlas.folder import Folder
from satclip_engine.atlas.linear import Selection, error_measure, field_measure
from satclip_engine.atlas.packing import RangeExceeded, differenced, make_packing
from satclip_engine.backends.protocols import Call
from satclip_engine.errors import Argument, UsageError, one_line
from satclip_engine.lattice.certificate import Certificate, certify
from satclip_engine.lattice.convergence import halfway
from satclip_engine.lattice.nodes import BLOCK_ROWS, EncodedNodes
from satclip_engine.lattice.sampling import Globe, nearby_positions, polar_positions
from satclip_engine.lattice.tolerance import Tolerance, spiral
from satclip_engine.lattice.zones import Zone, zone_of
from satclip_engine.progress import Progress

if TYPE_CHECKING:
    from satclip_engine.encoder import Encoder

SCOPE = "points on Earth, by area,"
REFINEMENT_ROUNDS = 5  # of measuring and refining
_MEASURED_POSITIONS = 16384  # where the bands' ranges are looked for, and where the error is measured
_EXTRA_POSITIONS = 128  # near the poles, near the probe's worst, and in every zone
_SAFETY = 0.85  # of the tolerance: elsewhere the error may be a little larger than where it is measured
_ROUNDING_SHARE = 0.6  # of the tolerance


class Writer:
    """One atlas on its way into a folder."""

    def __init__(
        self,
        enc: Encoder,
        folder: Folder,
        tolerance: Tolerance,
        sigmas: float,
        *,
        dtype: str,
        threads: int,
        limit: int,
        progress: Progress,
    ) -> None:
        """sigmas: the tolerance in σ."""
        self.enc, self.network, self.folder = enc, enc.network, folder
        self.tolerance, self.sigmas, self.dtype = tolerance, sigmas, dtype
        self.threads, self.limit, self.progress = threads, limit, progress
        self.digests: dict[int, str] = {}  # of arrays that are as they should be
        progress.stage("estimating the field's smoothness")
        sample = self.network.encode(spiral(_MEASURED_POSITIONS), call=Call(threads))
        self.covariance, self.mean = field_measure(sample)
        self.low, self.high = (
            limits.astype(np.float64) for limits in (sample.min(axis=0), sample.max(axis=0))
        )
        self.packing = make_packing(dtype, self.low, self.high)
        self.failed = np.empty((0, 2))

    def write(self) -> tuple[Contents, int]:
        """Write all arrays; the attributes, and the number of lattices that were measured."""
        zones, worst = self._first()
        for attempt in range(REFINEMENT_ROUNDS):
            self._check_size(zones)
            self._arrays(zones)
            contents, zone_errors = self._measured(zones, worst, attempt)
            if contents.certificate.max_tolerance <= _SAFETY:
                return contents, attempt + 1
            rounding = float(self._rounding(zones[0].order).max())
            finer = tuple(
                global_zones.refined(zone, zone_errors.get(k, 0.0), rounding, _SAFETY)
                for k, zone in enumerate(zones)
            )
            self.digests = {k: digest for k, digest in self.digests.items() if finer[k] == zones[k]}
            zones = finer
        raise UsageError(
            f"{REFINEMENT_ROUNDS} lattices, each finer, did not keep {self.tolerance.text}: the last "
            f"erred by {contents.certificate.max_sigma:.2g} σ; give a larger ",
            Argument("tolerance"),
            *self._or_finer_dtype(", or "),
            argument="tolerance",
        )

    def _first(self) -> tuple[tuple[Zone, ...], np.ndarray]:
        """The lattice to begin with, and points where errors are likely."""
        rounding = self._rounding(8)
        if (rounding > _ROUNDING_SHARE).any():
            self._refuse_dtype(rounding)
        tolerance = self.tolerance.bands * (1 - rounding)
        zones, worst = global_zones.first_zones(self.network, tolerance, self.threads)
        if not zones:
            raise UsageError(
                f"the field is too rough for {self.tolerance.text}: errors stay above it with nodes 10 m "
                "apart; give a larger ",
                Argument("tolerance"),
                argument="tolerance",
            )
        return zones, worst

    def _rounding(self, order: int) -> np.ndarray:
        """Largest error that packing adds, (E,) in tolerances: half a step, as stencils amplify it."""
        amplified = (2 * sum(abs(weight) for weight in halfway(order))) ** 2
        largest = np.maximum(np.abs(self.low), np.abs(self.high))
        return amplified * self.packing.half_step(largest) / self.tolerance.bands

    def _refuse_dtype(self, rounding: np.ndarray) -> None:
        worst = int(rounding.argmax())
        name = self.enc.band_names[worst]
        if self.tolerance.sigma[worst] * self.sigmas < self.tolerance.bands[worst]:  # it hardly varies
            raise UsageError(
                f"{self.dtype} cannot keep band {name}, which is almost constant",
                *self._or_finer_dtype(": use "),
                argument="dtype",
            )
        floor = float(rounding[worst]) / _ROUNDING_SHARE * self.sigmas
        digits = 10 ** (math.floor(math.log10(floor)) - 1)
        floor = math.ceil(floor / digits) * digits
        raise UsageError(
            f"{self.dtype} cannot keep {self.tolerance.text}: rounding of band {name} leaves {floor:.2g} σ; "
            "give that or more as ",
            Argument("tolerance"),
            *self._or_finer_dtype(", or "),
            argument="tolerance",
        )

    def _or_finer_dtype(self, before: str) -> list[object]:
        """Parts of a message: the next finer dtype as a way out, if there is one."""
        finer = {"float16": "int16", "int16": "float32"}.get(self.dtype)
        return [] if finer is None else [before, Argument("dtype", finer)]

    def _check_size(self, zones: tuple[Zone, ...]) -> None:
        nodes = global_zones.count_nodes(zones)
        size = nodes * self.enc.embed_dim * np.dtype(self.dtype).itemsize
        if size > self.limit:
            raise UsageError(
                f"an atlas for {self.tolerance.text} needs {nodes:,} nodes, {size / 1e9:.3g} GB before they "
                f"are compressed, more than the limit of {self.limit / 1e9:.3g} GB: give a larger ",
                Argument("tolerance"),
                " or fewer ",
                Argument("bands"),
                argument="tolerance",
            )
        self.folder.check_space(size)

    # Arrays

    def _arrays(self, zones: tuple[Zone, ...]) -> None:
        """Write the arrays that are missing."""
        while True:
            new = [k for k in range(len(zones)) if k not in self.digests]
            nodes = global_zones.count_nodes([zones[k] for k in new])
            self.progress.stage(f"{nodes:,} nodes")
            self.progress.start(nodes)
            try:
                for k in new:
                    self.digests[k] = self._array(zones, k)
                return
            except RangeExceeded as error:
                if self.dtype != "int16" or not np.isfinite([error.low, error.high]).all():
                    raise UsageError(
                        f"{self.dtype} cannot hold these embeddings: use ",
                        Argument("dtype", "float32"),
                        argument="dtype",
                    ) from None
                # The sample was less extreme than these nodes: write anew with their range.
                self.low, self.high = np.minimum(self.low, error.low), np.maximum(self.high, error.high)
                self.packing, self.digests = make_packing(self.dtype, self.low, self.high), {}

    def _array(self, zones: tuple[Zone, ...], number: int) -> str:
        """Write a zone's array, a row of chunks at a time; the hash of what was written."""
        zone, nodes = zones[number], EncodedNodes(self.network, zones)
        array = self.folder.array(number, zone, self.packing, self.enc.embed_dim)
        needed = zone.row_range
        for top in array.tops:
            rows = np.arange(top, top + BLOCK_ROWS)
            used = (rows >= needed.start) & (rows < needed.stop)
            values = nodes.make(number, top // BLOCK_ROWS, 1, range(zone.columns), Call(self.threads))
            stored = np.zeros(values.shape, self.packing.dtype)
            stored[used] = self.packing.codes(values[used])
            if self.packing.dtype == "int16":
                stored = differenced(stored)
                stored[rows >= needed.stop] = 0  # no stencil needs them
            array.write(top, stored)
            self.progress.advance(int(used.sum()) * zone.columns)
        return array.digest

    # Error

    def _measured(
        self, zones: tuple[Zone, ...], worst: np.ndarray, attempt: int
    ) -> tuple[Contents, dict[int, float]]:
        """The attributes, and the largest error of each zone in tolerances."""
        self.progress.stage("measuring the error")
        drawn = Globe().draw(_MEASURED_POSITIONS, 100 + attempt)
        spacing = max(zone.lat_step for zone in zones)
        further = np.concatenate(
            [
                polar_positions(Globe(), _EXTRA_POSITIONS, 200 + attempt),
                nearby_positions(worst, 2 * spacing, _EXTRA_POSITIONS // max(1, len(worst)), 300 + attempt),
                global_zones.zone_positions(zones, _EXTRA_POSITIONS, 400 + attempt),
                self.failed,
            ]
        )
        positions = np.concatenate([drawn, further])
        exact = self.network.encode(positions, call=Call(self.threads))
        contents = self._contents(zones)
        written = PreparedAtlas(
            Codes(self.folder.reader(contents)), Selection(np.arange(contents.bands)), self.threads
        )
        values = written.encode(positions)
        certificate, of_tolerance = certify(
            lambda _: exact,
            lambda _: values,
            drawn,
            further,
            self.tolerance.sigma,
            self.tolerance.bands,
            rounds=REFINEMENT_ROUNDS,
        )
        errors, reach = error_measure(
            values.astype(np.float64) - exact, lambda matrix: square(triangle(matrix))
        )
        self.folder.statistics(np.stack([triangle(self.covariance), triangle(errors)]), contents.bands)
        # A finer lattice is measured here again.
        self.failed = positions[of_tolerance > _SAFETY][:_EXTRA_POSITIONS]
        number = zone_of(zones, positions[:, 1])
        of_zones = {int(k): float(of_tolerance[number == k].max()) for k in np.unique(number)}
        certificate = dataclasses.replace(certificate, scope=SCOPE)
        return dataclasses.replace(contents, certificate=certificate, reach=reach), of_zones

    def _contents(self, zones: tuple[Zone, ...]) -> Contents:
        """The attributes, without an error."""
        weights = self.enc.weights
        source = weights.provenance.source
        nothing = np.full(self.enc.embed_dim, np.inf)
        digests = " ".join(self.digests[k] for k in range(len(zones)))
        return Contents(
            zones=zones,
            packing=self.packing,
            band_names=tuple(self.enc.band_names),
            tolerance=self.tolerance,
            moments=self.enc.moments,
            mean=self.mean,
            origin=Origin(
                source=one_line(source if "://" in source else Path(source).name),
                sha256=weights.sha256,
                function_sha256=self.enc.sha256,
                harmonics=weights.harmonics,
                degrees=int(weights.degrees),
                capacity=weights.capacity,
                hidden_layers=weights.hidden_layers,
                embed_dim=weights.embed_dim,
            ),
            nodes_sha256=hashlib.sha256(digests.encode()).hexdigest(),
            certificate=Certificate(
                0, 0, 1.0, 0.0, self.tolerance.sigma, nothing, nothing, np.inf, np.inf, -1.0, np.inf
            ),
            reach=np.inf,
            software=f"satclip-engine {__version__}",
            extremes=self.enc.extremes,
        )

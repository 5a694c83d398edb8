"""An atlas: the lattice of the whole Earth as a small file that answers without the network.

    write_atlas(enc, "earth.zarr")
    load("earth.zarr")          # an Encoder; from https:// or s3:// too, reading what it needs

writer.py   chooses the lattice, writes it, measures the error of what was written, refines
folder.py   holds it until it is complete
file.py     format of the file, and reading it; packing.py: its numbers
layout.py   arrays and chunks, metadata.py: attributes, both checked before they are believed
field.py    the field of an Encoder that answers from it; linear.py: some of its bands, or heads on them
"""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satclip_engine.atlas.field import NAME
from satclip_engine.atlas.file import SUFFIX
from satclip_engine.atlas.folder import Folder, check_target
from satclip_engine.atlas.metadata import MAX_BANDS, MAX_NAME_LETTERS, is_plain
from satclip_engine.atlas.packing import NODE_DTYPES
from satclip_engine.atlas.writer import Writer
from satclip_engine.backends import grids_only
from satclip_engine.errors import UsageError
from satclip_engine.lattice.certificate import Certificate
from satclip_engine.lattice.tolerance import tolerance_of
from satclip_engine.options import checked_threads
from satclip_engine.progress import Silence
from satclip_engine.weights.schema import shown

if TYPE_CHECKING:
    from satclip_engine.encoder import Encoder
    from satclip_engine.progress import Progress

DEFAULT_TOLERANCE = 1e-3  # σ
MAX_NODE_BYTES = 4 << 30  # bytes of all nodes before they are compressed


@dataclass(frozen=True)
class AtlasReport:
    """Report of a written atlas."""

    path: Path
    bytes: int  # on disk
    dtype: str
    bands: int
    nodes: int
    zones: int
    chunks: int
    spacing: float  # degrees of a great circle, the widest of any zone
    order: int  # nodes of the interpolation along each axis
    tolerance: str
    certificate: Certificate
    rounds: int  # of measuring; all but the first after refining
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        certificate = {**self.certificate.as_dict(), "statement": self.certificate.statement}
        return {**content, "path": str(self.path), "certificate": certificate}


def write_atlas(
    enc: Encoder,
    path: str | os.PathLike[str],
    *,
    tolerance: float = DEFAULT_TOLERANCE,
    dtype: str = "int16",
    overwrite: bool = False,
    threads: int | None = None,
    limit: int = MAX_NODE_BYTES,
    progress: Progress | None = None,
) -> AtlasReport:
    """Write the lattice of the whole Earth to a Zarr folder, of which `load` makes an Encoder again.

    path: ends in .zarr.
    tolerance: the largest error of any band, in σ, at 16,384 fresh positions and further ones that are likely
        to err; measured on what was written.
    dtype: of nodes: "int16" (codes; the smallest), "float16" or "float32".
    overwrite: replace an atlas that is there, when the new one is complete.
    threads: how many compute; default the encoder's. limit: bytes of all nodes before they are compressed.
    progress: is told; it counts nodes.

    The file has its name when it is complete, not before. Raises UsageError for arguments that cannot be
    used, such as a tolerance that the dtype cannot keep, and when the field is too rough for the tolerance
    within the limit; OutputError for a path that cannot be written; MissingExtra without zarr.
    """
    started = time.perf_counter()
    target, progress = Path(path), progress or Silence()
    _check(enc, path, dtype, threads)
    check_target(target, overwrite=overwrite)
    limits = tolerance_of(enc.moments, tolerance, exact_possible=False)
    with Folder(target, overwrite=overwrite) as folder:
        try:
            writer = Writer(
                enc,
                folder,
                limits,
                float(tolerance),
                dtype=dtype,
                threads=checked_threads(threads) or enc.threads,
                limit=limit,
                progress=progress,
            )
            contents, rounds = writer.write()
            size, chunks = folder.publish(contents)
        finally:
            progress.finish()
    return AtlasReport(
        path=target,
        bytes=size,
        dtype=dtype,
        bands=contents.bands,
        nodes=contents.nodes,
        zones=len(contents.zones),
        chunks=chunks,
        spacing=max(zone.lat_step for zone in contents.zones),
        order=contents.zones[0].order,
        tolerance=limits.text,
        certificate=contents.certificate,
        rounds=rounds,
        seconds=time.perf_counter() - started,
    )


def _check(enc: Encoder, path: str | os.PathLike[str], dtype: str, threads: int | None) -> None:
    if "://" in str(path) or Path(path).suffix != SUFFIX:
        raise UsageError(
            f"an atlas is a local folder whose name ends in {SUFFIX}, not {path}", argument="path"
        )
    if dtype not in NODE_DTYPES:
        raise UsageError(f"dtype must be one of {', '.join(NODE_DTYPES)}, not {dtype!r}", argument="dtype")
    checked_threads(threads)
    if enc.backend == NAME:
        raise UsageError(
            "this encoder is an atlas already: write one from the weights it was made of", argument="enc"
        )
    for band in enc.band_names:
        if not is_plain(band) or len(band) > MAX_NAME_LETTERS:
            raise UsageError(
                f"band {shown(band)}: a name in an atlas has at most {MAX_NAME_LETTERS} printable letters: "
                "give others to with_head",
                argument="enc",
            )
    if enc.embed_dim > MAX_BANDS:
        raise UsageError(f"an atlas has at most {MAX_BANDS} bands, not {enc.embed_dim}", argument="enc")
    if (reason := grids_only(enc.backend)) is not None:
        raise UsageError(reason, argument="backend")

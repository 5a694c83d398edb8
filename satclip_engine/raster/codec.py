"""Compression of tiles: which library does it, what the TIFF tags say about it.

Levels were chosen by size and time over whole rasters; docs/raster.md has the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from satclip_engine.errors import UsageError
from satclip_engine.quantize import SampleType


@dataclass(frozen=True)
class Codec:
    """One value of TIFF's Compression tag and how it is used here."""

    name: str
    tag: int
    level: int | None = None
    predicts: bool = True  # whether tiles are differenced before compression
    leaves: float = 0.5  # the part of the bytes that is left, at most, with embeddings

    def predictor(self, sample: SampleType) -> int:
        """TIFF's Predictor for tiles of this type."""
        return sample.predictor if self.predicts else 1


CODECS = {
    codec.name: codec
    for codec in (
        Codec("zstd", 50000, 3),
        Codec("deflate", 8, 1),
        Codec("lerc", 34887, predicts=False, leaves=1.0),
        Codec("none", 1, predicts=False, leaves=1.0),
    )
}


def codec(name: str, sample: SampleType) -> Codec:
    """The codec of that name. Raises UsageError for an unknown one and for types that it cannot hold."""
    if name not in CODECS:
        raise UsageError(f"compress must be one of {', '.join(CODECS)}, not {name!r}")
    if name == "lerc" and sample.name == "float16":
        raise UsageError("compress='lerc' does not know float16: use float32, or compress='zstd'")
    if name == "zstd" and sample.name != "int8":
        # Level 3 is smaller and no slower than 1 for 8-bit differences; wider types only get slower.
        return dataclasses.replace(CODECS[name], level=1)
    return CODECS[name]


def compressor(chosen: Codec) -> Callable[[np.ndarray], bytes]:
    """A function from a tile (side, side) to its bytes in the file.

    One a thread: it may keep working memory.
    """
    if chosen.name == "zstd":
        import zstandard

        # A context that is kept makes 64-pixel tiles compress 2.3 times as fast as one made for each.
        context = zstandard.ZstdCompressor(level=chosen.level or 0)
        return lambda tile: context.compress(tile.data)
    if chosen.name == "deflate":
        import imagecodecs

        return lambda tile: bytes(imagecodecs.deflate_encode(tile.tobytes(), chosen.level))
    return _lerc if chosen.name == "lerc" else np.ndarray.tobytes


def _lerc(tile: np.ndarray) -> bytes:
    """Lossless; pixels without data are masked, as libtiff does it for floats."""
    import imagecodecs

    missing = np.isnan(tile) if tile.dtype.kind == "f" else np.zeros(1, bool)
    if not missing.any():
        return bytes(imagecodecs.lerc_encode(tile))
    return bytes(imagecodecs.lerc_encode(np.where(missing, 0, tile).astype(tile.dtype), masks=~missing))

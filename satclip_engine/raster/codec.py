"""Compression of tiles: libraries, levels and TIFF tags.

Levels were codec by size and time over whole rasters; docs/raster.md has the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from satclip_engine.errors import Argument, UsageError
from satclip_engine.quantize import SampleType

LERC_HEADER_BYTES = 8192  # more than header and ranges of a tile take


@dataclass(frozen=True)
class Codec:
    """A value of TIFF's Compression tag, and its use here."""

    name: str
    tag: int
    level: int | None = None
    predicts: bool = True  # tiles are differenced before compression
    leaves: float = 0.5  # part of the bytes that is left, at most, with embeddings

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


def codec_for(name: str, sample: SampleType) -> Codec:
    """The codec of that name. Raises UsageError for an unknown one and for types that it cannot hold."""
    if name not in CODECS:
        raise UsageError(f"compress must be one of {', '.join(CODECS)}, not {name!r}", argument="compress")
    if name == "lerc" and sample.name == "float16":
        raise UsageError(
            Argument("compress", "lerc"),
            " cannot hold float16: use ",
            Argument("dtype", "float32"),
            " or ",
            Argument("compress", "zstd"),
            argument="compress",
        )
    if name == "zstd" and sample.bytes > 1:
        # Level 3 is smaller and no slower than 1 for 8-bit differences; wider types only get slower.
        return dataclasses.replace(CODECS[name], level=1)
    return CODECS[name]


def compressor(codec: Codec) -> Callable[[np.ndarray], bytes]:
    """A function from a tile (side, side) or (side, side, E) to its bytes in the file.

    One a thread: it may keep working memory.
    """
    if codec.name == "zstd":
        import zstandard

        # A context of the thread's own makes 64-pixel tiles compress 2.3 times as fast as one for each tile.
        context = zstandard.ZstdCompressor(level=codec.level or 0)
        return lambda tile: context.compress(tile.data)
    if codec.name == "deflate":
        import imagecodecs

        return lambda tile: bytes(imagecodecs.deflate_encode(tile.tobytes(), codec.level))
    return _lerc if codec.name == "lerc" else np.ndarray.tobytes


def _lerc(tile: np.ndarray) -> bytes:
    """Lossless; pixels without data are masked, as libtiff does it for floats."""
    missing = np.isnan(tile) if tile.dtype.kind == "f" else np.zeros(1, bool)
    if not missing.any():
        return _lerc_encoded(tile)
    mask = ~missing if tile.ndim == 2 else ~missing[..., 0]  # a pixel has all bands or none
    return _lerc_encoded(np.where(missing, 0, tile).astype(tile.dtype), masks=mask)


def _lerc_encoded(tile: np.ndarray, **options: Any) -> bytes:
    """Encode into zeroed memory: LERC's Huffman coder does not write the last four bytes that it counts."""
    import imagecodecs

    room = tile.nbytes + tile.nbytes // 4 + LERC_HEADER_BYTES  # noise is a little larger than it was
    return bytes(imagecodecs.lerc_encode(tile, planar=False, out=bytearray(room), **options))

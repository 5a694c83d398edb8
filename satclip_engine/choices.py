"""Names that arguments and options choose from. Imports nothing, so that `--help` is quick.

The tables behind them (backends.TABLE, SAMPLE_TYPES, CODECS) are held to these names by a test.
"""

from __future__ import annotations

BACKENDS = ("auto", "triton", "cuda", "cpu", "reference")
# "exact": float32 throughout, on tensor cores as pairs of halves. "fast": 16-bit operands after the first
# layer, float32 sums. It is the least accuracy: backends that know only exact arithmetic compute by that.
PRECISIONS = ("exact", "fast")
HARMONICS = ("exact", "published")
DTYPES = ("int8", "int16", "float16", "float32")
COMPRESSIONS = ("zstd", "deflate", "lerc", "none")

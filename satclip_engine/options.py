"""Options with their choices, defaults, help and limits.

From the fields of RasterOptions follow the options of `satclip-grid`, what `write_raster` takes, and what an
interrupted run must have in common with the one that resumes it. Choices are written here, and a test holds
the tables behind them (backends.TABLE, SAMPLE_TYPES, CODECS) to them: nothing heavy is imported, so that
`--help` is quick.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from satclip_engine.errors import refuse_both

if TYPE_CHECKING:
    from satclip_engine.progress import Progress

BACKENDS = ("auto", "triton", "cuda", "cpu", "reference")
# "exact": float32 throughout, on tensor cores as pairs of halves. "fast": 16-bit operands after the first
# layer, float32 sums. It is the least accuracy: backends that know only exact arithmetic compute by that.
PRECISIONS = ("exact", "fast")
HARMONICS = ("exact", "published")
CONVENTIONS = ("analytic", "closed-form", "orthonormal")
DTYPES = ("int8", "int16", "float16", "float32")
COMPRESSIONS = ("zstd", "deflate", "lerc", "none")


def option(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    least: int | None = None,
    metavar: str | None = None,
    shown: str | None = None,
    identifies: bool = False,
) -> Any:
    """A field that is an option of the command line too, with its help.

    shown: the default as it is typed. identifies: a run is resumed only with the same value.
    """
    limits = {"choices": choices, "least": least}
    words = {"help": text, "metavar": metavar, "shown": shown}
    return field(default=default, metadata={**words, **limits, "identifies": identifies})


def _silence() -> Progress:
    from satclip_engine.progress import Silence

    return Silence()


@dataclass(frozen=True)
class RasterOptions:
    """Keyword arguments of `write_raster`. Raises UsageError for those that exclude each other."""

    dtype: str = option(
        "int8",
        "Type of the values. int8 needs GDAL 3.7 or newer to be read right (builds of QGIS 3.32 and newer "
        "have it); take int16 for older ones.",
        choices=DTYPES,
        identifies=True,
    )
    compress: str = option("zstd", "Compression of the tiles.", choices=COMPRESSIONS, identifies=True)
    blocksize: int | None = option(
        None,
        "Side of the internal tiles in pixels, a multiple of 16.  [default: by size and bands]",
        metavar="N",
        identifies=True,
    )
    threads: int | None = option(None, "Threads.  [default: all cores]", least=1, metavar="N")
    memory: int = option(10**9, "Working memory to stay within.", metavar="SIZE", shown="1GB")
    exact: bool = option(False, "Evaluate every pixel, never interpolate.")
    tolerance: float | None = option(
        None,
        "How far interpolated values may be off, in standard deviations of each band over the globe.  "
        "[default: an eighth of a step of integers; 1e-4 for floats]",
        metavar="T",
    )
    overwrite: bool = option(False, "Replace OUTPUT and its preview.")
    resume: bool = option(False, "Resume a run of the same command that was stopped.")
    tags: Mapping[str, str] = field(default_factory=dict)
    progress: Progress = field(default_factory=_silence)

    def __post_init__(self) -> None:
        refuse_both(overwrite=self.overwrite, resume=self.resume)
        refuse_both(exact=self.exact, tolerance=self.tolerance)

    @property
    def reconstruction(self) -> str:
        """Identifies how pixels may be interpolated."""
        if self.exact:
            return "exact"
        return "default" if self.tolerance is None else f"{float(self.tolerance)!r} σ"


def option_fields() -> dict[str, dataclasses.Field[Any]]:
    """The fields that are options of the command line, by name."""
    return {entry.name: entry for entry in dataclasses.fields(RasterOptions) if "help" in entry.metadata}


def identifying() -> list[str]:
    """Options that a run must have in common with the one that it resumes."""
    return [name for name, entry in option_fields().items() if entry.metadata["identifies"]]

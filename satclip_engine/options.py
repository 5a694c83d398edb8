"""Options with their choices, defaults, help and limits.

From the fields of RasterOptions follow the options of `satclip-grid`, what `write_raster` takes, and what an
interrupted run must have in common with the one that resumes it. Choices are written here, and a test holds
the tables behind them (backends.TABLE, SAMPLE_TYPES, CODECS) to them: nothing heavy is imported, so that
`--help` is quick.
"""

from __future__ import annotations

import dataclasses
import numbers
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from satclip_engine.errors import UsageError, refuse_both

if TYPE_CHECKING:
    from satclip_engine.progress import Progress

BACKENDS = ("auto", "triton", "cuda", "cpu", "reference")
# "exact": float32 throughout, on tensor cores as pairs of halves. "fast": 16-bit operands after the first
# layer, float32 sums. It is the least accuracy: backends that know only exact arithmetic compute by that.
PRECISIONS = ("exact", "fast")
HARMONICS = ("exact", "published")
CONVENTIONS = ("analytic", "closed-form", "orthonormal")
INTEGERS = ("int8", "uint8", "int16")
DTYPES = (*INTEGERS, "float16", "float32")
GLOBE, WINDOW = RANGES = ("globe", "window")  # where the range of a band is looked for; else in a file
SCALES = ("band", "common")
MAX_THREADS = 1 << 16  # more than any machine has cores
COMPRESSIONS = ("zstd", "deflate", "lerc", "none")
INTERLEAVES = ("tile", "pixel", "band")


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
        "have it); take uint8 or int16 for older ones.",
        choices=DTYPES,
        identifies=True,
    )
    range: str = option(
        GLOBE,
        "Range of each band that integers are spread over: over the globe, so that all rasters of the same "
        "weights have the same scales and go together; of this raster alone, in finer steps; or the scales "
        "of a file: another raster, JSON or TOML.",
        metavar="globe|window|FILE",
    )
    scale: str = option(
        SCALES[0],
        "One scale and offset for each band, or common ones for all, coarser, for tools that know only one.",
        choices=SCALES,
        identifies=True,
    )
    compress: str = option("zstd", "Compression of the tiles.", choices=COMPRESSIONS, identifies=True)
    interleave: str = option(
        "tile",
        "Order of the bands.  tile: each has its tiles, those of one area together; pixel: all in one tile, "
        "for pixels read over a network; band: all tiles of a band together.",
        choices=INTERLEAVES,
        identifies=True,
    )
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
    overwrite: bool = option(
        False, "Replace OUTPUT, its preview, and what GDAL reads beside it (.ovr, .msk, .aux.xml)."
    )
    resume: bool = option(False, "Resume a run of the same command that was stopped.")
    tags: Mapping[str, str] = field(default_factory=dict)
    progress: Progress = field(default_factory=_silence)

    def __post_init__(self) -> None:
        for name, entry in option_fields().items():
            value = getattr(self, name)
            if entry.metadata["choices"] and isinstance(value, str):
                object.__setattr__(self, name, value.lower())  # as GDAL's users type them: ZSTD
        refuse_both(overwrite=self.overwrite, resume=self.resume)
        refuse_both(exact=self.exact, tolerance=self.tolerance)
        object.__setattr__(self, "tags", checked_tags(self.tags, "tags"))

    @property
    def reconstruction(self) -> str:
        """Identifies how pixels may be interpolated."""
        if self.exact:
            return "exact"
        return "default" if self.tolerance is None else f"{float(self.tolerance)!r} σ"


def checked_threads(threads: Any) -> int | None:
    """A number of threads, no larger than can be of use. Raises UsageError for what is no positive number."""
    if threads is None:
        return None
    if isinstance(threads, bool) or not isinstance(threads, numbers.Integral) or threads < 1:
        raise UsageError(f"threads must be a positive whole number, not {threads!r}", argument="threads")
    return min(int(threads), MAX_THREADS)


def check_text(text: Any, name: str, argument: str) -> None:
    """Raise UsageError for what cannot stand in a file's metadata, such as control characters.

    name: of the text, for the message.
    """
    if not isinstance(text, str):
        raise UsageError(f"{name} must be text, not {text!r}", argument=argument)
    control = next(
        (letter for letter in text if unicodedata.category(letter) == "Cc" and letter not in "\t\n\r"), ""
    )
    if control:
        raise UsageError(f"{name} holds the control character {control!r}: leave it out", argument=argument)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} holds characters that are no text: {text!r}", argument=argument) from None


def checked_tags(tags: Any, argument: str) -> dict[str, str]:
    """Metadata as a dictionary. Raises UsageError naming the one that no GeoTIFF can hold."""
    try:
        checked = dict(tags or {})
    except (TypeError, ValueError):
        raise UsageError(
            f"{argument} must be a dictionary of texts, not {tags!r}", argument=argument
        ) from None
    for name, value in checked.items():
        check_text(name, f"the name {name!r} in {argument}", argument)
        check_text(value, f"{name!r} in {argument}", argument)
        if not name.strip() or name != name.strip() or set("=:") & set(name) or name == "AREA_OR_POINT":
            raise UsageError(
                f"{argument} cannot have the name {name!r}: GDAL would read another one", argument=argument
            )
    return checked


def option_fields() -> dict[str, dataclasses.Field[Any]]:
    """The fields that are options of the command line, by name."""
    return {entry.name: entry for entry in dataclasses.fields(RasterOptions) if "help" in entry.metadata}


def identifying() -> list[str]:
    """Options that a run must have in common with the one that it resumes."""
    return [name for name, entry in option_fields().items() if entry.metadata["identifies"]]

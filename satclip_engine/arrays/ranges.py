"""Ranges of integer codes: over the globe, over a raster's own pixels, or taken from a file.

    rule = range_rule("globe", "band", sample_type("int8"), enc.band_names)
    rule.quantiser(enc, enc.network, grid)

A file is a raster with scales and offsets, or JSON or TOML with these numbers; `ranges_in` says how. In
Python a mapping of the same form will do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from satclip_engine.backends.extremes import Extremes
from satclip_engine.backends.protocols import Call, Prepared
from satclip_engine.errors import Argument, UsageError
from satclip_engine.options import GLOBE, RANGES, SCALES
from satclip_engine.quantize import RANGE_MARGIN, SAMPLE_TYPES, Quantiser, SampleType, fit
from satclip_engine.weights.schema import parse_json

if TYPE_CHECKING:
    from satclip_engine.encoder import Encoder
    from satclip_engine.geo.pixels import PixelGrid

# Pixels evaluated to find a window's ranges; rasters of up to as many are evaluated completely.
SAMPLE_PIXELS = 1 << 16
# Samples taken until enough pixels have data: a projection's domain may be a small part of the raster.
SAMPLING_ROUNDS = 4
MIN_VALID_SHARE = 1 / 8  # of the sample
_MAX_FILE_BYTES = 1 << 24  # of a JSON or TOML file
_NUMBERS, _MAPPING = "numbers", "the mapping"

RangeChoice: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any]"


@dataclass(frozen=True, eq=False)
class RangeRule:
    """Origin of the ranges of integer codes; made by `range_rule`."""

    sample: SampleType
    origin: str = GLOBE  # globe, window or numbers
    common: bool = False  # one scale and offset for all bands
    content: Quantiser | None = None  # made of numbers that were given

    @property
    def token(self) -> str:
        """Identifies the ranges beside the encoder and the raster; numbers, of a file too, by themselves."""
        if self.content is None:
            return self.origin
        numbers = json.dumps(self.content.as_dict()).encode()
        return f"{_NUMBERS} {hashlib.sha256(numbers).hexdigest()[:16]}"

    @property
    def tags(self) -> dict[str, str]:
        """Metadata of a raster; none of floats."""
        if self.sample.largest_code is None:
            return {}
        return {"quantisation_range": self.token, "quantisation_scale": SCALES[self.common]}

    def summary(self, quantiser: Quantiser, names: Sequence[str]) -> dict[str, Any] | None:
        """For a report, in the form that `ranges_in` reads; None of floats."""
        if quantiser.scale is None:
            return None
        return {"range": self.token, **quantiser.as_dict(), "bands": list(names)}

    def quantiser(self, encoder: Encoder, network: Prepared, grid: PixelGrid, threads: int) -> Quantiser:
        """The codes of a raster that `network` evaluates. Raises UsageError for a window without data."""
        if self.sample.largest_code is None:
            return Quantiser(self.sample)
        if self.content is not None:
            return self.content
        if self.origin == GLOBE:
            extremes, margin = encoder.extremes, RANGE_MARGIN
        else:
            extremes, margin = window_extremes(network, grid, threads)
        if self.common:
            extremes = _common(extremes)
        return fit(self.sample, extremes.low, extremes.high, margin=margin)


def range_rule(choice: RangeChoice, scale: str, sample: SampleType, names: Sequence[str]) -> RangeRule:
    """The rule that `range` and `scale` ask for; a file is read. names: of the bands.

    Raises UsageError for what is none, for numbers that do not fit, and for floats, which have no codes.
    """
    if scale not in SCALES:
        raise UsageError(f"scale must be {' or '.join(SCALES)}, not {scale!r}", argument="scale")
    if not isinstance(choice, (str, os.PathLike, Mapping)):
        raise UsageError(
            f"range must be {', '.join(RANGES)}, a file or a mapping, not {choice!r}", argument="range"
        )
    origin = choice if isinstance(choice, Mapping) else os.fspath(choice)
    common = scale != SCALES[False]
    if sample.largest_code is None:
        _check_nothing_asked(origin, scale, sample)
        return RangeRule(sample)
    if origin in RANGES:
        return RangeRule(sample, str(origin), common)
    if isinstance(origin, str):
        content, source = ranges_in(Path(origin), sample, names), repr(origin)
    else:
        content, source = _of_table(_MAPPING, origin, sample, names), _MAPPING
    if common and not content.is_common:
        raise UsageError(
            Argument("scale", scale), f": the bands of {source} have scales of their own", argument="scale"
        )
    return RangeRule(sample, _NUMBERS, common, content)


def _check_nothing_asked(origin: object, scale: str, sample: SampleType) -> None:
    """Refuse what says something about codes."""
    for name, value, usual in (("range", origin, GLOBE), ("scale", scale, SCALES[False])):
        if value != usual:
            raise UsageError(
                Argument(name, value),
                f" is about integers, and {sample.name} stores the values themselves: leave it out or give ",
                Argument("dtype", "int8"),
                argument=name,
            )


def _common(extremes: Extremes) -> Extremes:
    """One range for all bands."""
    bands = extremes.low.size
    return Extremes(np.full(bands, extremes.low.min()), np.full(bands, extremes.high.max()))


# Files


def ranges_in(path: Path, sample: SampleType, names: Sequence[str]) -> Quantiser:
    """Scales and offsets in a file, for codes of a type and bands of these names.

    A raster's bands are those of the same names, or, where they have none, as many in the same order; int8,
    uint8 and int16 are converted to each other. JSON and TOML have `scale` and `offset`, for codes of `dtype`
    (default: of the type asked for), or `low` and `high`, over which codes are spread; each a number for all
    bands or a list, and `bands`, the names of a list's items. They may lie under `quantisation`, as in the
    report of `satclip-grid --json=full`. Raises UsageError.
    """
    if not path.is_file() and "://" not in str(path) and not str(path).startswith("/vsi"):
        raise _refused(repr(str(path)), f"is none of {', '.join(RANGES)} and a file that is there")
    if path.suffix.lower() in (".json", ".toml"):
        return _in_text(path, sample, names)
    return _in_raster(path, sample, names)


def _in_raster(path: Path, sample: SampleType, names: Sequence[str]) -> Quantiser:
    import rasterio

    try:
        with _without_georeference(), rasterio.open(path) as dataset:
            dtypes, descriptions = set(dataset.dtypes), dataset.descriptions
            scale, offset = (np.array(numbers, np.float64) for numbers in (dataset.scales, dataset.offsets))
    except rasterio.errors.RasterioError as error:
        raise _refused(repr(str(path)), f"is no raster, JSON or TOML that can be read: {error}") from error
    stored = _integer_type(repr(str(path)), dtypes.pop() if len(dtypes) == 1 else "of several types")
    if (scale == 1).all() and (offset == 0).all():
        raise _refused(repr(str(path)), "has no scales and offsets")
    named = all(descriptions) and len(set(descriptions)) == len(descriptions)
    index = _index(repr(str(path)), list(descriptions) if named else None, scale.size, names)
    return Quantiser(stored, *_checked(repr(str(path)), scale[index], offset[index])).of_type(sample)


@contextlib.contextmanager
def _without_georeference() -> Iterator[None]:
    """Take no notice of a raster that does not say where it lies."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _in_text(path: Path, sample: SampleType, names: Sequence[str]) -> Quantiser:
    return _of_table(repr(str(path)), _parsed(path), sample, names)


def _of_table(source: str, table: Mapping[str, Any], sample: SampleType, names: Sequence[str]) -> Quantiser:
    """The codes that a table of names and numbers gives, as `ranges_in` has them."""
    content = table.get("quantisation") or table
    if not isinstance(content, Mapping):
        raise _refused(source, "is no table of names and numbers")
    content = {name: _plain(value) for name, value in content.items()}
    pairs = [pair for pair in (("scale", "offset"), ("low", "high")) if set(pair) <= set(content)]
    if not pairs:
        hint = " (a report has them with --json=full)" if "quantisation" in table else ""
        raise _refused(source, f'has neither "scale" and "offset" nor "low" and "high"{hint}')
    listed = content.get("bands")
    if listed is not None and not (isinstance(listed, list) and all(isinstance(n, str) for n in listed)):
        raise _refused(source, '"bands" must be a list of names')
    first, second = (_numbers(source, name, content[name], listed, names) for name in pairs[0])
    if pairs[0][0] == "low":
        if not (first <= second).all():
            raise _refused(source, '"low" must not be above "high"')
        return fit(sample, first, second)
    stored = _integer_type(source, content.get("dtype", sample.name))
    return Quantiser(stored, *_checked(source, first, second)).of_type(sample)


def _plain(value: Any) -> Any:
    """Arrays and tuples, which only Python has, as lists; everything else as it is."""
    return np.asarray(value).tolist() if isinstance(value, tuple) or hasattr(value, "__array__") else value


def _parsed(path: Path) -> Mapping[str, Any]:
    """The table in a JSON or TOML file."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ValueError("it is too large for a list of scales")
        text = path.read_text(encoding="utf-8")
        content = parse_json(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(repr(str(path)), f"cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise _refused(repr(str(path)), "is no table of names and numbers")
    return content


def _numbers(
    source: str, name: str, value: Any, listed: list[str] | None, names: Sequence[str]
) -> np.ndarray:
    """A number for each band, (E,) float64, from a number for all or a list."""
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in items):
        raise _refused(source, f'"{name}" must be a number or a list of numbers')
    try:
        numbers = np.array(items, np.float64)
    except OverflowError:
        numbers = np.array([np.inf])
    if not np.isfinite(numbers.astype(np.float32)).all():
        raise _refused(source, f'"{name}" must be finite')
    if not isinstance(value, list):
        return np.full(len(names), numbers[0])
    if listed is not None and len(listed) != numbers.size:
        raise _refused(source, f'"{name}" has {numbers.size} numbers for {len(listed)} "bands"')
    return numbers[_index(source, listed, numbers.size, names)]


def _index(source: str, listed: list[str] | None, count: int, names: Sequence[str]) -> np.ndarray:
    """Numbers of the bands of these names among a file's: by its own names, or in the same order."""
    if listed is None:
        if count != len(names):
            raise _refused(source, f"has {count} bands without names, not {len(names)}")
        return np.arange(count)
    numbers = {name: number for number, name in enumerate(listed)}
    if len(numbers) < len(listed):
        raise _refused(source, "names a band twice")
    if absent := [name for name in names if name not in numbers]:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise _refused(source, f"has no band {absent[0]!r}{more}: its bands are other ones")
    return np.array([numbers[name] for name in names])


def _integer_type(source: str, name: Any) -> SampleType:
    sample = SAMPLE_TYPES.get(name) if isinstance(name, str) else None
    if sample is None or sample.largest_code is None:
        integers = ", ".join(name for name, sample in SAMPLE_TYPES.items() if sample.largest_code)
        raise _refused(source, f"holds {name!r}; scales are those of {integers}")
    return sample


def _checked(source: str, scale: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    float32 = np.finfo(np.float32)
    if not (np.isfinite(scale).all() and np.isfinite(offset).all() and (scale > 0).all()):
        raise _refused(source, "scales must be positive, and all numbers finite")
    if scale.min() < float32.tiny or max(scale.max(), abs(offset).max()) > float32.max:
        raise _refused(source, "has numbers that float32 cannot hold")
    return scale, offset


def _refused(source: str, reason: str) -> UsageError:
    return UsageError(f"range: {source} {' '.join(reason.split())}", argument="range")


# Windows


def sample_indices(shape: tuple[int, int], pixels: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of a stratified sample of a raster: a list of (rows, columns) whose products are the
    sample.

    One jittered row and column in each of equally high rows and equally wide columns; columns change every
    few rows. All pixels when there are no more than `pixels`. The same for the same arguments everywhere.
    """
    height, width = shape
    if height * width <= pixels:
        return [(rows, np.arange(width)) for rows in np.array_split(np.arange(height), -(-height // 16))]
    # As square as pixels allow, but never fewer than 64 rows or columns where the raster has them.
    square = round((pixels * height / width) ** 0.5)
    down = max(min(height, 64), min(square, height, pixels // min(width, 64)))
    across = min(width, max(1, pixels // down))
    random = np.random.Generator(np.random.PCG64(seed))

    def strata(size: int, count: int) -> np.ndarray:
        edges = np.linspace(0, size, count + 1)
        return np.minimum(np.floor(edges[:-1] + random.random(count) * np.diff(edges)), size - 1).astype(
            np.int64
        )

    rows = np.unique(strata(height, down))
    return [(chunk, np.unique(strata(width, across))) for chunk in np.array_split(rows, -(-rows.size // 16))]


def check_has_data(grid: PixelGrid) -> None:
    """Raise UsageError where none of a raster's pixels has data, as far as a sample of them tells."""
    if grid.separable and np.isfinite(grid.lat()).any() and np.isfinite(grid.lon()).any():
        return
    for seed in range(SAMPLING_ROUNDS):
        for rows, columns in sample_indices(grid.shape, SAMPLE_PIXELS, seed):
            if np.isfinite(grid.lonlat(rows, columns)).all(axis=-1).any():
                return
    raise _not_on_earth(grid)


def window_extremes(network: Prepared, grid: PixelGrid, threads: int) -> tuple[Extremes, float]:
    """Extremes of a stratified sample of a raster's pixels, and the margin that they need.

    Raises UsageError when none of them has data.
    """
    low = np.full(network.embed_dim, np.inf, np.float32)
    high = -low
    valid_pixels, complete = 0, grid.shape[0] * grid.shape[1] <= SAMPLE_PIXELS
    for seed in range(SAMPLING_ROUNDS):
        for rows, columns in sample_indices(grid.shape, SAMPLE_PIXELS, seed):
            values = network.encode_pixels(grid, rows, columns, call=Call(threads))
            pixels = values.reshape(-1, network.embed_dim)
            valid = pixels[~np.isnan(pixels[:, 0])]
            valid_pixels += len(valid)
            if len(valid):
                np.minimum(low, valid.min(axis=0), out=low)
                np.maximum(high, valid.max(axis=0), out=high)
        if complete or valid_pixels >= SAMPLE_PIXELS * MIN_VALID_SHARE:
            break
    if not valid_pixels:
        raise _not_on_earth(grid)
    return Extremes(low.astype(np.float64), high.astype(np.float64)), 0.0 if complete else RANGE_MARGIN


def _not_on_earth(grid: Any) -> UsageError:
    height, width = grid.shape
    return UsageError(
        f"none of the {height} × {width} pixels lies on Earth: they are outside the domain of CRS "
        f"{grid.crs}; choose other ",
        Argument("bounds"),
        argument="grid",
    )

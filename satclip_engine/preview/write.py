"""Preview picture (PNG) of a raster: the embedding's first three principal components as red, green, blue.

Colours are a function of the weights alone (components and stretch are fitted on the whole globe), so
previews of different regions, resolutions and band selections of the same weights can be laid side by side.
The picture shows the embedding itself, evaluated for the picture, not the raster's quantised pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from satclip_engine import __version__
from satclip_engine.arrays.pca import GlobalPCA, global_pca, scores_of
from satclip_engine.errors import Argument, OutputError, UsageError
from satclip_engine.files import check_name, existing, write_atomically
from satclip_engine.options import check_text
from satclip_engine.preview.map_frame import MapFrame, equal_earth_frame, frame_for, graticule, shortest_arc

if TYPE_CHECKING:
    from PIL.Image import Image

    from satclip_engine.encoder import Encoder
    from satclip_engine.geo.grid import Grid

SUFFIX = ".png"
MAX_KEY_LETTERS = 79  # of the name of a PNG's text
MAP_WIDTH, MAP_HEIGHT = 1624, 1240  # pixels; a world map fills the width, a tall region the height
LOCATOR_WIDTH = 230

_MAX_LOCATOR_SHARE = 0.35  # a map that shows less of the globe than this gets a locator
_FLAT_RANGE = 0.06  # of a colour's 0..1: less is hardly seen
_FLAT_NOTE = "colours are those of the globe, and the embedding hardly varies here"
_SCORE_TOLERANCE = (
    2e-3  # σ of a score: a seventh of a grey level, and coarse enough that a lattice mostly pays
)
_POINTWISE_BACKENDS = ("reference", "cuda")  # which never interpolate single points

Colours = NDArray[np.float32]  # [h, w, 3], 0..1


def write_preview(
    enc: Encoder,
    path: str | os.PathLike[str],
    *,
    grid: Grid,
    title: str = "Location embedding",
    source: str = "",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the PNG picture of `enc` over the extent of `grid` (its pixels do not matter); return its path.

    `enc` is the encoder of the whole embedding (no head folded in), `source` the line below the map,
    `metadata` further text chunks of the file. The file appears under its name only when complete; a link is
    replaced, not followed. Raises UsageError for a name that does not end in .png and for texts that no PNG
    holds, OutputError when it cannot be written or exists already and `overwrite` is not set.
    """
    from PIL.PngImagePlugin import PngInfo

    path = Path(path)
    check_preview_path(path, overwrite=overwrite)
    chunks = PngInfo()
    text = {"Title": title, "Source": source, "Software": f"satclip-engine {__version__}", **(metadata or {})}
    for key, value in text.items():
        _check_chunk(key, value)
        if value:
            chunks.add_itxt(key, value)
    picture = render_preview(enc, grid, title=title, source=source)

    def save(file: BinaryIO) -> None:
        picture.save(file, format="PNG", pnginfo=chunks, compress_level=6)

    write_atomically(path, save, replace=overwrite)
    return path


def _check_chunk(key: str, value: str) -> None:
    """Raise UsageError for a text that a PNG cannot hold."""
    argument = {"Title": "title", "Source": "source"}.get(key, "metadata")
    check_text(key, f"the name {key!r} in {argument}", argument)
    check_text(value, f"{key!r} in {argument}", argument)
    if not 1 <= len(key) <= MAX_KEY_LETTERS or not key.isascii():
        raise UsageError(
            f"metadata cannot have the name {key!r}: a PNG's are 1 to {MAX_KEY_LETTERS} letters of ASCII",
            argument=argument,
        )


def check_preview_path(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError, or UsageError, before anything is drawn where writing `path` would fail."""
    check_name(path, "the preview ")
    if path.suffix.lower() != SUFFIX:
        raise UsageError(f"{path}: a preview's name ends in {SUFFIX}", argument="path")
    if not overwrite and (status := existing(path)):
        raise OutputError(
            f"the preview {path} {status}: remove it, give another name as ",
            Argument("preview"),
            ", or use ",
            Argument("overwrite", True),
        )


def render_preview(enc: Encoder, grid: Grid, *, title: str, source: str) -> Image:
    """Draw the figure: map, graticule, title, legend, source line and, for a region, a locator map."""
    from satclip_engine.preview.layout import layout_figure

    fit = global_pca(enc, min(3, enc.embed_dim))
    scores = scores_of(_interpolating(enc), fit)
    frame = frame_for(grid, max_width=MAP_WIDTH, max_height=MAP_HEIGHT)
    tolerance = None if enc.backend == "atlas" else _SCORE_TOLERANCE  # an atlas keeps its own
    colours = colour(embed_frame(scores, frame, tolerance), fit)
    locator = None
    if _share_of_globe(frame) < _MAX_LOCATOR_SHARE:
        locator = _locator(scores, fit, frame)
    note = _FLAT_NOTE if _is_flat(colours, frame) else ""
    return layout_figure(
        colours, frame, graticule(frame), title=title, source=source, fit=fit, locator=locator, note=note
    )


def _is_flat(colours: Colours, frame: MapFrame) -> bool:
    """True for a map that seems to be one colour."""
    on_map = colours[np.isfinite(frame.lon)]
    return bool(on_map.size) and bool(np.ptp(on_map, axis=0).max() < _FLAT_RANGE)


def embed_frame(enc: Encoder, frame: MapFrame, tolerance: float | None = None) -> NDArray[np.float32]:
    """Embed the frame's pixels [h, w, E], interpolated where that is faster; zero off the map."""
    on_map = np.isfinite(frame.lon)
    out = np.zeros((*frame.shape, enc.embed_dim), np.float32)
    out[on_map] = enc(np.stack([frame.lon[on_map], frame.lat[on_map]], axis=-1), tolerance=tolerance)
    return out


def _interpolating(enc: Encoder) -> Encoder:
    """Encoder of the same function on a backend that interpolates, without which a picture takes minutes."""
    from satclip_engine.encoder import load

    if enc.backend not in _POINTWISE_BACKENDS:
        return enc
    other = load(enc.weights, threads=enc.threads)
    return other if other.sha256 == enc.sha256 else enc  # not when it has a head or is a selection


def colour(scores: NDArray[np.float32], fit: GlobalPCA) -> Colours:
    """Colours of scores [h, w, k ≤ 3]: the globe's 2nd to 98th percentile over the range, soft beyond.

    A little grey is mixed in: three saturated primaries hide what the eye should see.
    """
    middle, half = (fit.low + fit.high) / 2, (fit.high - fit.low) / 2
    z = ((scores - middle) / np.where(half > 0, half, 1.0)).astype(np.float32)
    z = 1.08 * z / np.sqrt(1 + 0.62 * z * z)  # ±1 → ±0.85, far outliers → ±1.37, cut to ±1
    rgb = np.clip(0.5 + 0.5 * z, 0.0, 1.0) ** 0.85
    if rgb.shape[-1] == 1:
        rgb = np.repeat(rgb, 3, axis=-1)
    elif rgb.shape[-1] == 2:
        rgb = np.concatenate([rgb, rgb.mean(axis=-1, keepdims=True)], axis=-1)
    grey = (rgb @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    return 0.03 + 0.95 * (0.76 * rgb + 0.24 * grey)


def _share_of_globe(frame: MapFrame) -> float:
    """Share of the sphere's surface that the frame shows, from cells of 3°."""
    area = np.cos(np.radians(88.5 - 3.0 * np.arange(60)))[:, None]
    return float((_cells_shown(frame, 3.0) * area).sum() / 4583.66)


def _cells_shown(frame: MapFrame, step: float) -> NDArray[np.bool_]:
    """True for cells of a world grid of `step` degrees, north first, that hold a pixel of the frame."""
    on_map = np.isfinite(frame.lat)
    shown = np.zeros((round(180 / step), round(360 / step)), bool)
    shown[_cell_of(frame.lon[on_map], frame.lat[on_map], step)] = True
    return shown


def _cell_of(
    lon: NDArray[np.floating], lat: NDArray[np.floating], step: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the cells that hold the points."""
    rows, columns = round(180 / step), round(360 / step)
    row = np.clip(((90 - lat) / step).astype(np.intp), 0, rows - 1)
    return row, ((lon + 180) % 360 / step).astype(np.intp) % columns


def _locator(enc: Encoder, fit: GlobalPCA, frame: MapFrame) -> tuple[Colours, MapFrame, NDArray[np.float32]]:
    """Draw a small world map: its colours, its frame, and 1 where the region lies, else 0 [h, w]."""
    on_map = np.isfinite(frame.lon)
    west, east = shortest_arc(frame.lon[on_map]) if on_map.any() else (0.0, 0.0)
    wraps = np.floor((west + 180) / 360) != np.floor((east + 180 - 1e-9) / 360) and east - west < 360
    middle = 180.0 if wraps else 0.0
    bounds = (middle - 180, -90.0, middle + 180, 90.0)
    # Drawn at twice its size for the outline's sake; the field is smooth enough at the final size.
    world, small = (
        equal_earth_frame(bounds, max_width=width, max_height=900)
        for width in (2 * LOCATOR_WIDTH, LOCATOR_WIDTH)
    )
    colours = colour(_resized(embed_frame(enc, small), world.shape), fit)
    cells = _cell_of(np.nan_to_num(world.lon), np.nan_to_num(world.lat), 0.5)
    region = _cells_shown(frame, 0.5)[cells] & np.isfinite(world.lat)
    return colours, world, region.astype(np.float32)


def _resized(values: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Interpolate [h, w, K] bicubically to another size."""
    from PIL import Image

    bands = [Image.fromarray(np.ascontiguousarray(values[..., band])) for band in range(values.shape[-1])]
    return np.stack(
        [np.asarray(band.resize(shape[::-1], Image.Resampling.BICUBIC)) for band in bands], axis=-1
    )

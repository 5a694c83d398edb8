"""The picture beside a raster: the first three principal components of the embedding as red, green and blue.

Colours are a function of the weights alone (components and stretch are fitted on the whole globe), so
previews of different regions, resolutions and band selections of the same weights can be laid side by side.
The picture shows the embedding itself, evaluated for the picture, not the raster's quantised pixels.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from satclip_engine import __version__
from satclip_engine.errors import Argument, OutputError
from satclip_engine.preview.field import field_on, turn_covered
from satclip_engine.preview.map_frame import Canvas, canvas_for, equal_earth_canvas, graticule
from satclip_engine.preview.pca import GlobalPCA, pca_head

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo

    from satclip_engine.encoder import Encoder
    from satclip_engine.geo.grid import Grid

MAP_WIDTH, MAP_HEIGHT = 1624, 1240  # pixels; a world map fills the width, a tall region the height
LOCATOR_WIDTH = 230

_LOCATOR_SHARE = 0.35  # a map that shows less of the globe than this gets a locator

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
    """Write the PNG picture of `enc` over the extent of `grid` (its pixels do not matter) and return its
    path.

    `enc` is the encoder of the whole embedding (no head folded in), `source` the line below the map,
    `metadata` further text chunks of the file. The file appears under its name only when complete. Raises
    OutputError when it cannot be written or exists already and `overwrite` is not set.
    """
    from PIL.PngImagePlugin import PngInfo

    path = Path(path)
    check_preview_path(path, overwrite=overwrite)
    picture = render_preview(enc, grid, title=title, source=source)
    chunks = PngInfo()
    text = {"Title": title, "Source": source, "Software": f"satclip-engine {__version__}", **(metadata or {})}
    for key, value in text.items():
        if value:
            chunks.add_itxt(key, value)
    try:
        _save_atomically(picture, path, chunks)
    except OSError as error:
        raise OutputError(f"cannot write the preview {path}: {error.strerror or error}") from error
    return path


def check_preview_path(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError now for what would make writing `path` fail later."""
    if not path.parent.is_dir():
        raise OutputError(f"cannot write the preview {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise OutputError(f"cannot write the preview {path}: it is a folder")
    if path.exists() and not overwrite:
        raise OutputError(
            f"the preview {path} exists already: remove it, give another name as ",
            Argument("preview"),
            ", or use ",
            Argument("overwrite", True),
        )


def render_preview(enc: Encoder, grid: Grid, *, title: str, source: str) -> Image:
    """The finished sheet: map, graticule, title, legend, source line and, for a region, a locator."""
    from satclip_engine.preview.layout import typeset

    head, fit = pca_head(enc, min(3, enc.embed_dim))
    canvas = canvas_for(grid, max_width=MAP_WIDTH, max_height=MAP_HEIGHT)
    colours = colour(field_on(head, canvas), fit)
    locator = None
    if _share_of_globe(canvas) < _LOCATOR_SHARE:
        locator = _locator(head, fit, canvas)
    return typeset(colours, canvas, graticule(canvas), title=title, source=source, fit=fit, locator=locator)


def colour(scores: NDArray[np.float32], fit: GlobalPCA) -> Colours:
    """Scores [h, w, k ≤ 3] as colours: the globe's 2nd to 98th percentile over the range, soft shoulders
    beyond, a little grey mixed in (three saturated primaries hide what the eye should see)."""
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


def _share_of_globe(canvas: Canvas) -> float:
    """Share of the sphere's surface that the canvas shows, from a 3° census."""
    return float(
        (_census(canvas, 3.0) * np.cos(np.radians(88.5 - 3.0 * np.arange(60)))[:, None]).sum() / 4583.66
    )


def _census(canvas: Canvas, step: float) -> NDArray[np.bool_]:
    """Which cells of a world grid of `step` degrees, north first, hold a pixel of the canvas."""
    on_map = np.isfinite(canvas.lat)
    seen = np.zeros((round(180 / step), round(360 / step)), bool)
    row = np.clip(((90 - canvas.lat[on_map]) / step).astype(int), 0, seen.shape[0] - 1)
    column = ((canvas.lon[on_map] + 180) % 360 / step).astype(int) % seen.shape[1]
    seen[row, column] = True
    return seen


def _locator(enc: Encoder, fit: GlobalPCA, canvas: Canvas) -> tuple[Colours, Canvas, NDArray[np.float32]]:
    """A small world map: its colours, its canvas, and 0..1 where the picture's region lies [h, w]."""
    on_map = np.isfinite(canvas.lon)
    west, east = turn_covered(canvas.lon[on_map]) if on_map.any() else (0.0, 0.0)
    wraps = np.floor((west + 180) / 360) != np.floor((east + 180 - 1e-9) / 360) and east - west < 360
    middle = 180.0 if wraps else 0.0
    world = equal_earth_canvas(
        (middle - 180, -90.0, middle + 180, 90.0), max_width=LOCATOR_WIDTH * 2, max_height=900
    )
    colours = colour(field_on(enc, world, pixels=16_200), fit)
    seen = _census(canvas, 0.5)
    row = np.clip(((90 - np.nan_to_num(world.lat)) / 0.5).astype(int), 0, 359)
    column = ((np.nan_to_num(world.lon) + 180) % 360 / 0.5).astype(int) % 720
    return colours, world, (seen[row, column] & np.isfinite(world.lat)).astype(np.float32)


def _save_atomically(picture: Image, path: Path, chunks: PngInfo) -> None:
    """Save under a hidden name in the same folder, then rename: the name never shows half a picture."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            picture.save(file, format="PNG", pnginfo=chunks, compress_level=6)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise

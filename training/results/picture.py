"""Picture of a run: curves of loss and retrieval, and the encoder's map of the globe, by Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from satclip_engine.files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

    from satclip_engine.encoder import Encoder

_HEIGHT_PIXELS: Final = 560
_MARGIN_PIXELS: Final = 88
_GAP_PIXELS: Final = 120  # between the two charts
_TOP_PIXELS, _BOTTOM_PIXELS = 96, 72  # around a chart, inside the picture
_MAX_CURVE_POINTS: Final = 2000
_PAPER, _INK, _GREY = (252, 252, 250), (38, 40, 46), (120, 123, 130)  # as the map's
_BLUE, _ORANGE, _GREEN = (52, 101, 164), (206, 92, 0), (58, 134, 72)


@dataclass(frozen=True)
class Curve:
    """Values over steps."""

    name: str
    steps: np.ndarray
    values: np.ndarray
    colour: tuple[int, int, int]


def write_picture(
    path: Path, encoder: Encoder, history: Sequence[dict[str, Any]], *, title: str, source: str
) -> None:
    """Write the picture as PNG. Raises OutputError."""
    import io

    from PIL import Image

    from satclip_engine.geo.grid import make_grid
    from satclip_engine.preview.write import render_preview

    world = render_preview(encoder, make_grid(resolution=1.0), title=title, source=source)
    charts = draw_charts(history, world.width)
    picture = Image.new("RGB", (world.width, world.height + charts.height), _PAPER)
    picture.paste(charts, (0, 0))
    picture.paste(world, (0, charts.height))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=6)
    write_atomically(path, buffer.getvalue())


def draw_charts(history: Sequence[dict[str, Any]], width: int) -> Image:
    """Draw the loss on the left, retrieval on the right."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, _HEIGHT_PIXELS), _PAPER)
    draw = ImageDraw.Draw(picture)
    half = (width - 2 * _MARGIN_PIXELS - _GAP_PIXELS) // 2
    losses = [
        _curve(history, "train_loss", "training", _BLUE),
        _curve(history, "val_loss", "scored samples", _ORANGE),
    ]
    retrieval = [
        _curve(history, "place_r1", "location to image, R@1", _BLUE, 100),
        _curve(history, "image_r1", "image to location, R@1", _ORANGE, 100),
        _curve(history, "place_r10", "R@10", _GREEN, 100),
    ]
    _chart(draw, _MARGIN_PIXELS, half, "Loss", losses, None)
    best = max((float(curve.values.max()) for curve in retrieval if len(curve.values)), default=100.0)
    top = next((limit for limit in (1.0, 2.0, 5.0, 10.0, 20.0, 50.0) if best <= limit), 100.0)
    _chart(draw, _MARGIN_PIXELS + half + _GAP_PIXELS, half, "Retrieval, %", retrieval, (0.0, top))
    return picture


def _curve(
    history: Sequence[dict[str, Any]], key: str, name: str, colour: tuple[int, int, int], factor: float = 1
) -> Curve:
    rows = [row for row in history if key in row]
    if rows:
        spread = np.unique(np.linspace(0, len(rows) - 1, _MAX_CURVE_POINTS).astype(int))
        rows = [rows[i] for i in spread]
    steps = np.array([row["step"] for row in rows], float)
    return Curve(name, steps, factor * np.array([row[key] for row in rows], float), colour)


def _chart(
    draw: ImageDraw,
    left: int,
    width: int,
    title: str,
    curves: Sequence[Curve],
    limits: tuple[float, float] | None,
) -> None:
    bottom, top = _HEIGHT_PIXELS - _BOTTOM_PIXELS, _TOP_PIXELS
    draw.text((left, 30), title, _INK, font=_font(28))
    x = left + draw.textlength(title, font=_font(28)) + 36
    for curve in curves:
        draw.line((x, 48, x + 26, 48), curve.colour, width=4)
        draw.text((x + 34, 36), curve.name, _GREY, font=_font(18))
        x += 34 + draw.textlength(curve.name, font=_font(18)) + 26
    drawn = [curve for curve in curves if len(curve.steps)]
    if not drawn:
        return
    low, high = limits or _range(np.concatenate([curve.values for curve in drawn]))
    last = max(curve.steps[-1] for curve in drawn)
    for tick in _ticks(low, high):
        y = bottom - (tick - low) / (high - low) * (bottom - top)
        draw.line((left, y, left + width, y), (226, 226, 222))
        draw.text((left - 10, y), f"{tick:g}", _GREY, font=_font(17), anchor="rm")
    for tick in _ticks(0.0, last):
        x = left + tick / last * width
        draw.text((x, bottom + 12), f"{tick:,.0f}", _GREY, font=_font(17), anchor="mt")
    draw.text((left + width, bottom + 38), "steps", _GREY, font=_font(17), anchor="rt")
    for curve in drawn:
        xs = left + curve.steps / last * width
        ys = bottom - (np.clip(curve.values, low, high) - low) / (high - low) * (bottom - top)
        points = [(float(a), float(b)) for a, b in zip(xs, ys, strict=True)]
        draw.line(points if len(points) > 1 else [*points, (points[0][0] + 2, points[0][1])], curve.colour, 3)


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = min(0.0, float(values.min())), float(values.max())
    return low, high if high > low else low + 1.0


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, about five of them."""
    step = 10.0 ** np.floor(np.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    return [float(tick) for tick in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]


def _font(size: int) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)  # type: ignore[return-value]

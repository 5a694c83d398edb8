"""The picture at the end of a run: loss and retrieval over the steps, and the encoder's map of the globe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from satclip_engine.weights.files import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

    from satclip_engine.encoder import Encoder

_HEIGHT: Final = 560
_MARGIN: Final = 88
_GAP: Final = 120  # between the two panels
_TOP, _BOTTOM = 96, 72  # of a panel, inside the picture
_POINTS: Final = 2000  # of a curve
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
    """Write the PNG. Raises OutputError."""
    import io

    from PIL import Image

    from satclip_engine.geo.grid import make_grid
    from satclip_engine.preview.layout import PAPER
    from satclip_engine.preview.write import render_preview

    world = render_preview(encoder, make_grid(resolution=1.0), title=title, source=source)
    charts = draw_charts(history, world.width)
    sheet = Image.new("RGB", (world.width, world.height + charts.height), PAPER)
    sheet.paste(charts, (0, 0))
    sheet.paste(world, (0, charts.height))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", compress_level=6)
    write_whole(path, buffer.getvalue())


def draw_charts(history: Sequence[dict[str, Any]], width: int) -> Image:
    """Loss on the left, retrieval on the right."""
    from PIL import Image, ImageDraw

    from satclip_engine.preview.layout import PAPER

    picture = Image.new("RGB", (width, _HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    half = (width - 2 * _MARGIN - _GAP) // 2
    losses = [
        _curve(history, "train_loss", "training", _BLUE),
        _curve(history, "val_loss", "scored samples", _ORANGE),
    ]
    found = [
        _curve(history, "place_r1", "place to image, first", _BLUE, 100),
        _curve(history, "image_r1", "image to place, first", _ORANGE, 100),
        _curve(history, "place_r10", "first ten", _GREEN, 100),
    ]
    _panel(draw, _MARGIN, half, "Loss", losses, None)
    best = max((float(curve.values.max()) for curve in found if len(curve.values)), default=100.0)
    top = next((limit for limit in (1.0, 2.0, 5.0, 10.0, 20.0, 50.0) if best <= limit), 100.0)
    _panel(draw, _MARGIN + half + _GAP, half, "Retrieval, %", found, (0.0, top))
    return picture


def _curve(
    history: Sequence[dict[str, Any]], key: str, name: str, colour: tuple[int, int, int], factor: float = 1
) -> Curve:
    rows = [row for row in history if key in row]
    kept: Any = np.unique(np.linspace(0, max(0, len(rows) - 1), _POINTS).astype(int)) if rows else []
    steps = np.array([rows[i]["step"] for i in kept], float)
    return Curve(name, steps, factor * np.array([rows[i][key] for i in kept], float), colour)


def _panel(
    draw: ImageDraw,
    left: int,
    width: int,
    title: str,
    curves: Sequence[Curve],
    limits: tuple[float, float] | None,
) -> None:
    from satclip_engine.preview.layout import GREY, INK, font_of

    bottom, top = _HEIGHT - _BOTTOM, _TOP
    draw.text((left, 30), title, INK, font=font_of(28))
    x = left + draw.textlength(title, font=font_of(28)) + 36
    for curve in curves:
        draw.line((x, 48, x + 26, 48), curve.colour, width=4)
        draw.text((x + 34, 36), curve.name, GREY, font=font_of(18))
        x += 34 + draw.textlength(curve.name, font=font_of(18)) + 26
    drawn = [curve for curve in curves if len(curve.steps)]
    if not drawn:
        return
    low, high = limits or _range(np.concatenate([curve.values for curve in drawn]))
    last = max(curve.steps[-1] for curve in drawn)
    for tick in _ticks(low, high):
        y = bottom - (tick - low) / (high - low) * (bottom - top)
        draw.line((left, y, left + width, y), (226, 226, 222))
        draw.text((left - 10, y), f"{tick:g}", GREY, font=font_of(17), anchor="rm")
    for tick in _ticks(0.0, last):
        at = left + tick / last * width
        draw.text((at, bottom + 12), f"{tick:,.0f}", GREY, font=font_of(17), anchor="mt")
    draw.text((left + width, bottom + 38), "steps", GREY, font=font_of(17), anchor="rt")
    for curve in drawn:
        xs = left + curve.steps / last * width
        ys = bottom - (np.clip(curve.values, low, high) - low) / (high - low) * (bottom - top)
        points = [(float(a), float(b)) for a, b in zip(xs, ys, strict=True)]
        draw.line(points if len(points) > 1 else [*points, (points[0][0] + 2, points[0][1])], curve.colour, 3)


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = min(0.0, float(values.min())), float(values.max())
    return low, high if high > low else low + 1.0


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, about five of them."""
    step = 10.0 ** np.floor(np.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    return [float(tick) for tick in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]

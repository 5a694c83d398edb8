"""Figure layout around a map: title, legend, graticule labels, source line, locator map.

Drawn with Pillow and its own font.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from satclip_engine.errors import one_line

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

    from satclip_engine.arrays.pca import GlobalPCA
    from satclip_engine.preview.map_frame import Graticule, MapFrame

PAPER = (252, 252, 250)
INK = (38, 40, 46)
GREY = (120, 123, 130)
LEGEND_SWATCHES = (
    (214, 92, 92),
    (98, 178, 104),
    (96, 120, 214),
)  # red, green, blue as the map's colours look

MARGIN_PIXELS = 88
HEADER_PIXELS = 176
FOOTER_PIXELS = 112
MIN_WIDTH = 1200  # of the map area: room for the title and the source line
_LINE_OPACITY = 0.30

Locator = tuple[NDArray[np.float32], "MapFrame", NDArray[np.float32]]


def layout_figure(
    colours: NDArray[np.float32],
    frame: MapFrame,
    lines: Graticule,
    *,
    title: str,
    source: str,
    fit: GlobalPCA,
    locator: Locator | None = None,
    note: str = "",
) -> Image:
    """Lay out the figure.

    colours: [h, w, 3] 0..1, of `frame`. fit: gives the legend its shares of variance. note: above the source.
    """
    from PIL import Image, ImageDraw

    height, width = frame.shape
    area = max(width, MIN_WIDTH)
    figure = Image.new("RGB", (area + 2 * MARGIN_PIXELS, HEADER_PIXELS + height + FOOTER_PIXELS), PAPER)
    left = MARGIN_PIXELS + (area - width) // 2
    figure.paste(_map_image(colours, frame, lines), (left, HEADER_PIXELS))
    draw = ImageDraw.Draw(figure)
    title_width = area - (locator[1].shape[1] // 2 + 40 if locator else 0)
    title, font = _fitting(draw, one_line(title), (44, 40, 36, 32), title_width)
    draw.text((MARGIN_PIXELS, 82), title, INK, font=font, anchor="lm")
    _legend(draw, (MARGIN_PIXELS, 122), fit)
    _labels(draw, lines, (left, HEADER_PIXELS))
    bottom = HEADER_PIXELS + height + FOOTER_PIXELS - 44
    source, font = _fitting(draw, one_line(source), (19, 17), area)
    draw.text((MARGIN_PIXELS, bottom), source, GREY, font=font)
    draw.text((MARGIN_PIXELS, bottom - 27), note, GREY, font=font_of(19))
    if locator is not None:
        inset = _locator_image(*locator)
        figure.paste(inset, (MARGIN_PIXELS + area - inset.width, 36))
    return figure


def _map_image(colours: NDArray[np.float32], frame: MapFrame, lines: Graticule) -> Image:
    from PIL import Image

    line = _LINE_OPACITY * lines.strength[..., None]
    rgb = colours * (1 - line) + line
    cover = frame.coverage[..., None]
    rgb = 255 * rgb * cover + np.array(PAPER, np.float32) * (1 - cover)
    return Image.fromarray((rgb + 0.5).astype(np.uint8))


def _legend(draw: ImageDraw, origin: tuple[int, int], fit: GlobalPCA) -> None:
    """Name the component behind each colour, and its share of the embedding's variance."""
    x, y = origin
    font = font_of(21)
    for i, share in enumerate(fit.explained):
        text = f"PC{i + 1}  {100 * share:.0f} %"
        draw.rounded_rectangle(
            (x, y + 2, x + 20, y + 22), 5, fill=LEGEND_SWATCHES[i] if len(fit.explained) > 1 else GREY
        )
        draw.text((x + 30, y), text, GREY, font=font)
        x += 30 + int(draw.textlength(text, font=font)) + 34
    draw.text((x, y), "of the variance on the globe", GREY, font=font)


def _labels(draw: ImageDraw, lines: Graticule, origin: tuple[int, int]) -> None:
    """Write degrees beside the graticule's ends; none for meridians that would crowd, as at a pole."""
    font = font_of(17)
    last = -100
    for row, column, lat in lines.left:
        if row - last >= 24:
            text = _degrees(lat, "N", "S", lines.lat_step)
            draw.text((origin[0] + column - 10, origin[1] + row), text, GREY, font=font, anchor="rm")
            last = row
    texts = [_degrees(lon, "E", "W", lines.lon_step) for _, _, lon in lines.bottom]
    columns = [column for column, _, _ in lines.bottom]
    spacing = max((draw.textlength(text, font=font) for text in texts), default=0.0) + 12
    if all(b - a >= spacing for a, b in pairwise(columns)):
        for (column, row, _), text in zip(lines.bottom, texts, strict=True):
            draw.text((origin[0] + column, origin[1] + row + 10), text, GREY, font=font, anchor="mt")


def _degrees(value: float, positive: str, negative: str, step: float) -> str:
    decimals = max(0, -int(np.floor(np.log10(step) + 1e-9)))
    text = f"{abs(value):.{decimals}f}°"
    if abs(value) < 1e-9 or abs(abs(value) - 180) < 1e-9:
        return text
    return text + (positive if value > 0 else negative)


def _locator_image(colours: NDArray[np.float32], world: MapFrame, region: NDArray[np.float32]) -> Image:
    """Draw a pale world with the region in full colour and ringed, at twice its size, and reduce it."""
    from PIL import Image, ImageFilter

    mask = Image.fromarray((255 * region).astype(np.uint8))
    if np.count_nonzero(region) < 60:  # a small region: a dot that can be seen
        mask = mask.filter(ImageFilter.MaxFilter(9))
    outer = mask.filter(ImageFilter.MaxFilter(7))
    inner, ring = (np.asarray(image, np.float32)[..., None] / 255 for image in (mask, outer))
    grey = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    pale = 0.55 + 0.38 * grey[..., None]
    rgb = pale * (1 - ring) + ring * ((1 - inner) * np.array(INK, np.float32) / 255 + inner * colours)
    cover = world.coverage[..., None]
    rgb = 255 * rgb * cover + np.array(PAPER, np.float32) * (1 - cover)
    image = Image.fromarray((rgb + 0.5).astype(np.uint8))
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)


def _fitting(draw: ImageDraw, text: str, sizes: tuple[int, ...], width: int) -> tuple[str, FreeTypeFont]:
    """Fit `text` into `width` pixels: in letters that the font has, at the largest of `sizes` that fits.

    If none does, at the smallest with the middle of the text left out.
    """
    missing = bytes(font_of(sizes[0]).getmask("\uffff"))
    text = "".join(c if c.isspace() or bytes(font_of(sizes[0]).getmask(c)) != missing else "?" for c in text)
    font = next(
        (f for f in map(font_of, sizes) if draw.textlength(text, font=f) <= width), font_of(sizes[-1])
    )
    shown, letters = text, len(text)
    while letters > 8 and draw.textlength(shown, font=font) > width:
        letters -= 2
        shown = text[: letters // 2] + "…" + text[-(letters - letters // 2) :]
    return shown, font


def font_of(size: int) -> FreeTypeFont:
    """Pillow's own font in a size."""
    from PIL import ImageFont

    return ImageFont.load_default(size)  # type: ignore[return-value]

"""A smooth embedding at every pixel of a map picture, from far fewer evaluations.

The encoder runs on a latitude-longitude grid under the picture (the product grid, the cheapest way to
evaluate it); the picture's pixels are interpolated from that, across the antimeridian and over the poles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from satclip_engine.preview.map_frame import Canvas, Floats

if TYPE_CHECKING:
    from satclip_engine.encoder import Encoder

# 360 × 720: half a degree for the whole globe, two seconds of two cores with the default weights.
FIELD_PIXELS = 260_000
_UPSAMPLING = 3  # cubic, in Pillow's C code; what follows is bilinear


def field_on(enc: Encoder, canvas: Canvas, *, pixels: int = FIELD_PIXELS) -> NDArray[np.float32]:
    """`enc` at the canvas's pixel centres [h, w, K]: a latitude-longitude grid of at most about `pixels`
    places under the canvas, interpolated. Pixels off the map take some finite value."""
    from PIL import Image

    from satclip_engine.geo.grid import make_grid

    lattice = Lattice.under(canvas, pixels)
    grid = make_grid(resolution=lattice.step, bounds=lattice.bounds)
    values = lattice.pad(enc.evaluate(grid))
    row, column = lattice.position(np.nan_to_num(canvas.lat), np.nan_to_num(canvas.lon))
    row, column = (_UPSAMPLING * (axis + 0.5) - 0.5 for axis in (row, column))
    size = (values.shape[1] * _UPSAMPLING, values.shape[0] * _UPSAMPLING)
    out = np.empty((*canvas.shape, values.shape[-1]), np.float32)
    for band in range(values.shape[-1]):
        plane = Image.fromarray(np.ascontiguousarray(values[..., band]))
        out[..., band] = _bilinear(np.asarray(plane.resize(size, Image.Resampling.BICUBIC)), row, column)
    return out


class Lattice:
    """A grid of latitude and longitude with cells of `step` degrees that covers a canvas, and places beyond
    its edge."""

    margin = 3

    def __init__(self, step: float, west: float, east: float, south: float, north: float) -> None:
        self.step = step
        first, last = np.floor(west / step) - self.margin, np.ceil(east / step) + self.margin
        self.whole_turn = bool((last - first) * step >= 360)
        self.west = -180.0 if self.whole_turn else float(first * step)
        self.columns = round(360 / step) if self.whole_turn else int(last - first)
        rows = round(180 / step)  # counted from the north pole
        self.first_row = max(0, int(np.floor((90 - north) / step)) - self.margin)
        self.last_row = min(rows, int(np.ceil((90 - south) / step)) + self.margin)
        self.north = 90 - self.first_row * step
        self.poles = (self.first_row == 0, self.last_row == rows)

    @classmethod
    def under(cls, canvas: Canvas, pixels: int) -> Lattice:
        """Cells of two canvas pixels, wider when that would take more than `pixels` places; whole cells
        from pole to pole."""
        on_map = np.isfinite(canvas.lat)
        if not on_map.any():
            return cls(30.0, -180.0, 180.0, -90.0, 90.0)
        lat = canvas.lat[on_map]
        south, north = float(lat.min()), float(lat.max())
        west, east = turn_covered(canvas.lon[on_map])
        finest = 2 * max(north - south, 1e-6) / canvas.shape[0]
        step = max(finest, np.sqrt(max((north - south) * (east - west), 1e-12) / pixels))
        return cls(180.0 / max(6, np.floor(180.0 / step)), west, east, south, north)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        height = self.last_row - self.first_row
        return (
            self.west,
            max(-90.0, self.north - height * self.step),
            self.west + self.columns * self.step,
            self.north,
        )

    def pad(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Continue [h, w, K] by `margin` cells: around the turn, over a pole (half a turn away), else by
        repetition."""
        m = self.margin
        values = np.pad(values, ((0, 0), (m, m), (0, 0)), mode="wrap" if self.whole_turn else "edge")
        top, bottom = np.repeat(values[:1], m, axis=0), np.repeat(values[-1:], m, axis=0)
        if self.whole_turn and self.columns % 2 == 0:
            opposite = np.roll(values[:, m:-m], self.columns // 2, axis=1)
            opposite = np.pad(opposite, ((0, 0), (m, m), (0, 0)), mode="wrap")
            if self.poles[0]:
                top = opposite[:m][::-1]
            if self.poles[1]:
                bottom = opposite[-m:][::-1]
        return np.concatenate([top, values, bottom])

    def position(self, lat: Floats, lon: Floats) -> tuple[Floats, Floats]:
        """Fractional (row, column) in the padded grid, 0 = centre of its first cell."""
        centre = self.west + self.columns * self.step / 2
        lon = centre + (lon - centre + 180.0) % 360.0 - 180.0
        return (
            (self.north - lat) / self.step - 0.5 + self.margin,
            (lon - self.west) / self.step - 0.5 + self.margin,
        )


def turn_covered(lon: Floats) -> tuple[float, float]:
    """West and east (E > W) of the shortest arc of longitude that holds every value, to 1e-9 degree or
    whole degrees."""
    west, east = float(lon.min()), float(lon.max())
    if east - west < 180:
        return west, east
    used = np.zeros(360, bool)
    used[np.floor(lon).astype(np.int64) % 360] = True
    if used.all():
        return -180.0, 180.0
    starts = np.flatnonzero(used & ~np.roll(used, 1))  # of the runs of used degrees, in order around the turn
    ends = np.flatnonzero(used & ~np.roll(used, -1)) + 1
    ends = ends if ends[0] > starts[0] else np.roll(ends, -1)
    gaps = (np.roll(starts, -1) - ends) % 360  # after each run
    widest = int(np.argmax(gaps))
    west = float(np.roll(starts, -1)[widest])
    return west, west + 360.0 - float(gaps[widest])


def _bilinear(plane: NDArray[np.float32], row: Floats, column: Floats) -> NDArray[np.float32]:
    """Values of `plane` [H, W] at fractional positions [h, w], clamped to its edge."""
    height, width = plane.shape
    row, column = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
    i, j = np.minimum(row.astype(np.int32), height - 2), np.minimum(column.astype(np.int32), width - 2)
    u, v = (row - i).astype(np.float32), (column - j).astype(np.float32)
    flat, at = np.ravel(plane), i * width + j
    upper = flat[at] + v * (flat[at + 1] - flat[at])
    lower = flat[at + width] + v * (flat[at + width + 1] - flat[at + width])
    return upper + u * (lower - upper)

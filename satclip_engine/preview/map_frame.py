"""Where each pixel of a map picture lies on the globe, and the graticule over it.

A raster in degrees is drawn in the Equal Earth projection, centred on the raster; one in a projected CRS is
drawn in that CRS, the way a GIS shows it. North is up either way. Edges and lines are antialiased by their
distance in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from satclip_engine.preview import equal_earth

if TYPE_CHECKING:
    from satclip_engine.geo.grid import Grid

Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Canvas:
    """Geometry of a map picture, north up; pixel centres."""

    lon: Floats  # [h, w] degrees, continuous across the antimeridian within a row; NaN off the map
    lat: Floats  # [h, w] degrees; NaN off the map
    coverage: NDArray[np.float32]  # [h, w] share of the pixel inside the map, 0..1
    projection: str  # for the caption

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.lon.shape
        return height, width


def canvas_for(grid: Grid, *, max_width: int, max_height: int) -> Canvas:
    """The picture of `grid`'s extent with square pixels that fills one of the two limits (in pixels)."""
    if _in_degrees(grid):
        west, south, east, north = _bounds(grid)
        return equal_earth_canvas(
            (west, max(south, -90.0), east, min(north, 90.0)), max_width=max_width, max_height=max_height
        )
    return _own_canvas(grid, max_width=max_width, max_height=max_height)


def equal_earth_canvas(
    bounds: tuple[float, float, float, float], *, max_width: int, max_height: int
) -> Canvas:
    """Equal Earth over the bounds W, S, E, N (degrees, E > W, at most 360 wide), centred on their middle
    meridian."""
    west, south, east, north = bounds
    middle, half = (west + east) / 2, np.radians(east - west) / 2
    widest = 0.0 if south <= 0 <= north else min(abs(south), abs(north))
    reach = float(equal_earth.parallel_scale(widest)) * half
    top, bottom = float(equal_earth.northing(north)), float(equal_earth.northing(south))
    pixel, height, width = _fit(2 * reach, top - bottom, max_width, max_height)

    x = (np.arange(width) + 0.5 - width / 2) * pixel
    lat = equal_earth.latitude(top - (np.arange(height) + 0.5) * pixel)
    scale = equal_earth.parallel_scale(lat)
    lon = middle + np.degrees(x / scale[:, None])
    edge = scale * half  # x of the eastern edge, by row
    slant = np.hypot(1.0, np.gradient(edge, pixel))
    coverage = np.clip((edge[:, None] - np.abs(x)) / (pixel * slant[:, None]) + 0.5, 0.0, 1.0)
    lon = np.clip(
        lon, west, east
    )  # half-covered edge pixels take the edge's colour, not that of the far side
    return Canvas(
        np.where(coverage > 0, lon, np.nan),
        np.where(coverage > 0, lat[:, None], np.nan),
        coverage.astype(np.float32),
        "Equal Earth",
    )


def _own_canvas(grid: Grid, *, max_width: int, max_height: int) -> Canvas:
    """North-up picture in the grid's own CRS; covered where the grid (rotated or not) and its projection
    reach."""
    from affine import Affine
    from odc.geo.geobox import GeoBox

    from satclip_engine.geo.grid import Grid

    west, south, east, north = _bounds(grid)
    pixel, height, width = _fit(east - west, north - south, max_width, max_height)
    transform = Affine(pixel, 0.0, west, 0.0, -pixel, north)
    picture = Grid.from_geobox(GeoBox((height, width), transform, grid.crs))
    lonlat = picture.lonlat(slice(0, height), slice(0, width))  # [h, w, 2]
    valid = np.isfinite(lonlat[..., 0])
    x = west + (np.arange(width) + 0.5) * pixel
    y = north - (np.arange(height) + 0.5)[:, None] * pixel
    inside = _soften(valid) * _inside(grid, x, y, pixel)
    lon, lat = (np.where(inside > 0, lonlat[..., axis], np.nan) for axis in (0, 1))
    return Canvas(lon, lat, np.where(valid, inside, 0.0).astype(np.float32), _crs_name(grid))


def _inside(grid: Grid, x: Floats, y: Floats, pixel: float) -> Floats:
    """Share of each picture pixel [h, w] inside the raster's outline; x [w], y [h, 1] are the pixels'
    centres."""
    a, b, c, d, e, f = (~grid.transform)[:6]
    inside = np.ones((y.size, x.size))
    for u, v, w, size in ((a, b, c, grid.shape[1]), (d, e, f, grid.shape[0])):
        position = u * x + v * y + w  # column, then row, of the raster
        distance = np.minimum(position, size - position) / (np.hypot(u, v) * pixel)  # in picture pixels
        inside *= np.clip(distance + 0.5, 0.0, 1.0)
    return inside


def _soften(mask: NDArray[np.bool_]) -> Floats:
    """A 0/1 mask with its inner edge two pixels soft: 3 × 3 mean, beyond the picture counting as inside."""
    padded = np.pad(mask.astype(np.float64), 1, mode="edge")
    columns = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    mean = (columns[:-2] + columns[1:-1] + columns[2:]) / 9
    return np.clip(2 * mean - 1, 0.0, 1.0) * mask


def _fit(width: float, height: float, max_width: int, max_height: int) -> tuple[float, int, int]:
    """Pixel size in map units, and (height, width) in pixels, of a picture that fills one of the limits."""
    pixel = max(width / max_width, height / max_height)
    return pixel, max(2, round(height / pixel)), max(2, round(width / pixel))


def _bounds(grid: Grid) -> tuple[float, float, float, float]:
    """W, S, E, N of the grid's outline in its own units, whatever the orientation."""
    height, width = grid.shape
    xs, ys = grid.xy(np.array([0, 0, height, height]) - 0.5, np.array([0, width, 0, width]) - 0.5)
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def _in_degrees(grid: Grid) -> bool:
    """True when the axes are longitude and latitude in degrees from Greenwich and the grid is not rotated."""
    if grid.separable:
        return True
    from satclip_engine.geo.crs import unit_name

    crs = grid.crs.proj
    if not (grid.unrotated and crs.is_geographic and crs.prime_meridian is not None):
        return False
    return bool(crs.prime_meridian.longitude == 0 and unit_name(crs) == "degree")


def _crs_name(grid: Grid) -> str:
    epsg = getattr(grid.crs, "epsg", None)
    return f"EPSG:{epsg}" if epsg else "the raster's own CRS"


@dataclass(frozen=True, eq=False)
class Graticule:
    """Meridians and parallels over a canvas."""

    lat_step: float  # degrees between parallels
    lon_step: float  # degrees between meridians
    strength: NDArray[np.float32]  # [h, w] 0..1, how much of the pixel a line covers
    left: list[tuple[int, int, float]]  # (row, column, latitude) where parallels meet the map's left edge
    bottom: list[
        tuple[int, int, float]
    ]  # (column, row, longitude in (−180, 180]) where meridians meet its lower edge


_STEPS = (30.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


def graticule(canvas: Canvas, *, line_width: float = 1.2) -> Graticule:
    """Lines every 30° on a world map, closer on a smaller one so that about five cross it; `line_width` in
    pixels."""
    on_map = np.isfinite(canvas.lon)
    lat_step = _step(canvas.lat[on_map])
    lon_step = max(lat_step, _step(canvas.lon[on_map] / 2))
    away_from_pole = np.clip(
        (90.0 - np.abs(canvas.lat)) / 30.0, 0.0, 1.0
    )  # meridians fade where they would crowd
    meridians = _line_strength(canvas.lon, lon_step, line_width, periodic=True) * np.minimum(
        1.0, 3 * away_from_pole
    )
    parallels = _line_strength(canvas.lat, lat_step, line_width, periodic=False)
    strength = np.nan_to_num(np.maximum(meridians, parallels)) * canvas.coverage
    whole = (
        canvas.coverage >= 1
    )  # the outline itself, where longitude is cut at the map's edge, gets no label
    first_column = np.argmax(whole, axis=1)
    last_row = whole.shape[0] - 1 - np.argmax(whole[::-1], axis=0)
    rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
    left = [
        (row, int(first_column[row]), lat)
        for row, lat in _crossings(rows, canvas.lat[rows, first_column[rows]], lat_step)
    ]
    bottom = [
        (column, int(last_row[column]), 180.0 - (180.0 - lon) % 360.0)
        for column, lon in _crossings(
            columns, np.unwrap(canvas.lon[last_row[columns], columns], period=360), lon_step
        )
    ]
    return Graticule(lat_step, lon_step, strength.astype(np.float32), left, bottom)


def _line_strength(degrees: Floats, step: float, width: float, *, periodic: bool) -> Floats:
    """How much of each pixel the nearest multiple of `step` covers, from its distance in pixels."""
    offset = np.abs(degrees - step * np.round(degrees / step))
    if periodic:
        turn = np.radians(degrees)
        slope = np.degrees(np.hypot(_slope(np.cos(turn)), _slope(np.sin(turn))))
    else:
        slope = _slope(degrees)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip((width + 1) / 2 - offset / slope, 0.0, min(1.0, width))


def _slope(values: Floats) -> Floats:
    """Length of the gradient per pixel, by one-sided differences so that NaN beyond an edge costs one pixel
    only."""
    down = np.abs(np.diff(values, axis=0, append=values[-2:-1]))
    right = np.abs(np.diff(values, axis=1, append=values[:, -2:-1]))
    return np.hypot(np.nan_to_num(down), np.nan_to_num(right))


def _crossings(where: NDArray[np.intp], degrees: Floats, step: float) -> list[tuple[int, float]]:
    """(position, multiple of step) wherever `degrees` along an edge passes one; leaps between distant parts
    do not count."""
    cell = np.floor(degrees / step)
    found = []
    for i in np.flatnonzero(np.diff(cell)):
        if abs(degrees[i + 1] - degrees[i]) < step:
            found.append((int(where[i]), float(step * max(cell[i], cell[i + 1]))))
    return found


def _step(degrees: Floats) -> float:
    """The widest of the usual steps that crosses the span of `degrees` four times."""
    span = float(degrees.max() - degrees.min()) if degrees.size else 180.0
    return next((step for step in _STEPS if span / step >= 4), _STEPS[-1])

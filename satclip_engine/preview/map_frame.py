"""Map frames: longitude and latitude of a picture's pixels, and the graticule over them.

A raster in degrees is drawn in the Equal Earth projection, centred on the raster; one in a projected CRS is
drawn in that CRS, the way a GIS shows it. North is up either way. Edges and lines are antialiased by their
distance in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pyproj import Proj

    from satclip_engine.geo.grid import Grid

Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class MapFrame:
    """Pixel centres of a map picture, north up."""

    lon: Floats  # [h, w] degrees, continuous across the antimeridian within a row; NaN off the map
    lat: Floats  # [h, w] degrees; NaN off the map
    coverage: NDArray[np.float32]  # [h, w] share of the pixel inside the map, 0..1
    projection: str  # for the caption

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.lon.shape
        return height, width


def frame_for(grid: Grid, *, max_width: int, max_height: int) -> MapFrame:
    """Frame `grid`'s extent in square pixels that fill one of the two limits (in pixels)."""
    if _in_degrees(grid):
        west, south, east, north = _bounds(grid)
        return equal_earth_frame(
            (west, max(south, -90.0), east, min(north, 90.0)), max_width=max_width, max_height=max_height
        )
    return _own_crs_frame(grid, max_width=max_width, max_height=max_height)


def equal_earth_frame(
    bounds: tuple[float, float, float, float], *, max_width: int, max_height: int
) -> MapFrame:
    """Frame the bounds W, S, E, N (degrees, E > W, at most 360 wide) in Equal Earth, centred on their middle.

    The projection is pseudocylindrical: latitude depends on y alone, and along a parallel x is linear in
    longitude. On the sphere, not the ellipsoid: the two differ by a ninth of a degree at most, less than a
    pixel of a page-sized map.
    """
    west, south, east, north = bounds
    middle, half = (west + east) / 2, np.radians(east - west) / 2
    widest_parallel = 0.0 if south <= 0 <= north else min(abs(south), abs(north))
    right = float(_x_per_radian(np.array([widest_parallel]))[0]) * half
    top, bottom = (float(_equal_earth()(0.0, lat)[1]) for lat in (north, south))
    pixel, height, width = _fit(2 * right, top - bottom, max_width, max_height)

    x = (np.arange(width) + 0.5 - width / 2) * pixel
    y = np.maximum(top - (np.arange(height) + 0.5) * pixel, bottom)  # not beyond the pole by a rounding
    lat = _equal_earth()(np.zeros(height), y, inverse=True)[1]
    scale = _x_per_radian(lat)
    lon = middle + np.degrees(x / scale[:, None])
    edge = scale * half  # x of the eastern edge, by row
    slant = np.hypot(1.0, np.gradient(edge, pixel))
    coverage = np.clip((edge[:, None] - np.abs(x)) / (pixel * slant[:, None]) + 0.5, 0.0, 1.0)
    # Half-covered edge pixels take the edge's colour, not that of the far side.
    lon = np.clip(lon, west, east)
    return MapFrame(
        np.where(coverage > 0, lon, np.nan),
        np.where(coverage > 0, lat[:, None], np.nan),
        coverage.astype(np.float32),
        "Equal Earth",
    )


@cache
def _equal_earth() -> Proj:
    from pyproj import Proj

    return Proj("+proj=eqearth +R=1")


def _x_per_radian(lat: Floats) -> Floats:
    """Length of a radian of longitude on the Equal Earth map, along the parallels `lat` (n,) in degrees."""
    return np.asarray(_equal_earth()(np.full(lat.shape, np.degrees(1.0)), lat)[0])


def _own_crs_frame(grid: Grid, *, max_width: int, max_height: int) -> MapFrame:
    """Frame the grid's outline, rotated or not, north up in its own CRS; empty outside the CRS's domain."""
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
    return MapFrame(lon, lat, np.where(valid, inside, 0.0).astype(np.float32), _crs_name(grid))


def _inside(grid: Grid, x: Floats, y: Floats, pixel: float) -> Floats:
    """Share of each picture pixel [h, w] inside the raster's outline; x [w], y [h, 1]: pixel centres."""
    a, b, c, d, e, f = (~grid.transform)[:6]
    inside = np.ones((y.size, x.size))
    for u, v, w, size in ((a, b, c, grid.shape[1]), (d, e, f, grid.shape[0])):
        position = u * x + v * y + w  # column, then row, of the raster
        distance = np.minimum(position, size - position) / (np.hypot(u, v) * pixel)  # in picture pixels
        inside *= np.clip(distance + 0.5, 0.0, 1.0)
    return inside


def _soften(mask: NDArray[np.bool_]) -> Floats:
    """Soften the inner edge of a 0/1 mask over two pixels: 3 × 3 mean; beyond the picture is inside."""
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
    """True for unrotated grids whose axes are longitude and latitude in degrees from Greenwich."""
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
    """Meridians and parallels over a map frame."""

    lat_step: float  # degrees between parallels
    lon_step: float  # degrees between meridians
    strength: NDArray[np.float32]  # [h, w] 0..1, how much of the pixel a line covers
    # (row, column, latitude) where parallels meet the map's left edge
    left: list[tuple[int, int, float]]
    # (column, row, longitude in (−180, 180]) where meridians meet its lower edge
    bottom: list[tuple[int, int, float]]


_LINE_STEPS_DEGREES = (30.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


def graticule(frame: MapFrame, *, line_width: float = 1.2) -> Graticule:
    """Draw lines every 30° on a world map, closer on a smaller one so that about five cross it.

    line_width: in pixels.
    """
    on_map = np.isfinite(frame.lon)
    lat_step = _step(frame.lat[on_map])
    lon_step = max(lat_step, _step(frame.lon[on_map] / 2))
    # Meridians fade where they would crowd.
    fading = np.minimum(1.0, 3 * np.clip((90.0 - np.abs(frame.lat)) / 30.0, 0.0, 1.0))
    meridians = _line_strength(frame.lon, lon_step, line_width, periodic=True) * fading
    parallels = _line_strength(frame.lat, lat_step, line_width, periodic=False)
    strength = np.nan_to_num(np.maximum(meridians, parallels)) * frame.coverage
    # The outline itself, where longitude is cut at the map's edge, gets no label.
    whole = frame.coverage >= 1
    first_column = np.argmax(whole, axis=1)
    last_row = whole.shape[0] - 1 - np.argmax(whole[::-1], axis=0)
    rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
    left = [
        (row, int(first_column[row]), lat)
        for row, lat in _crossings(rows, frame.lat[rows, first_column[rows]], lat_step)
    ]
    bottom = [
        (column, int(last_row[column]), 180.0 - (180.0 - lon) % 360.0)
        for column, lon in _crossings(
            columns, np.unwrap(frame.lon[last_row[columns], columns], period=360), lon_step
        )
    ]
    return Graticule(lat_step, lon_step, strength.astype(np.float32), left, bottom)


def _line_strength(degrees: Floats, step: float, width: float, *, periodic: bool) -> Floats:
    """Share of each pixel that the nearest multiple of `step` covers, from its distance in pixels."""
    offset = np.abs(degrees - step * np.round(degrees / step))
    if periodic:
        turn = np.radians(degrees)
        slope = np.degrees(np.hypot(_slope(np.cos(turn)), _slope(np.sin(turn))))
    else:
        slope = _slope(degrees)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip((width + 1) / 2 - offset / slope, 0.0, min(1.0, width))


def _slope(values: Floats) -> Floats:
    """Length of the gradient per pixel; one-sided differences, so NaN beyond an edge costs one pixel only."""
    down = np.abs(np.diff(values, axis=0, append=values[-2:-1]))
    right = np.abs(np.diff(values, axis=1, append=values[:, -2:-1]))
    return np.hypot(np.nan_to_num(down), np.nan_to_num(right))


def _crossings(positions: NDArray[np.intp], degrees: Floats, step: float) -> list[tuple[int, float]]:
    """(position, multiple of step) wherever `degrees` along an edge passes one.

    Leaps between distant parts of the edge do not count.
    """
    cell = np.floor(degrees / step)
    return [
        (int(positions[i]), float(step * max(cell[i], cell[i + 1])))
        for i in np.flatnonzero(np.diff(cell))
        if abs(degrees[i + 1] - degrees[i]) < step
    ]


def _step(degrees: Floats) -> float:
    """Widest of the usual steps that crosses the span of `degrees` four times."""
    span = float(degrees.max() - degrees.min()) if degrees.size else 180.0
    return next((step for step in _LINE_STEPS_DEGREES if span / step >= 4), _LINE_STEPS_DEGREES[-1])


def shortest_arc(lon: Floats) -> tuple[float, float]:
    """West and east (E > W) of the shortest arc that holds every longitude; beyond 180° in whole degrees."""
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

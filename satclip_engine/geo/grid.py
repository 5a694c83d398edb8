"""Grid: the pixels of a raster, their CRS and transform, and the longitude and latitude of each.

`make_grid` turns a resolution, bounds, a CRS or an existing raster into a Grid; a Grid gives the latitude and
longitude of any pixels of it. Conventions: pixel-is-area; a pixel's location is its centre; bounds are west,
south, east, north and, like the resolution, in units of the CRS; x before y and longitude before latitude
whatever the authority says.

A pixel's coordinates depend on its row and column alone, never on which window is asked for, so that tiles,
threads and resumed runs see the same bits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from satclip_engine._forks import cached_property
from satclip_engine.errors import Argument, UsageError, listed
from satclip_engine.geo import crs as _crs
from satclip_engine.geo.bounds import fit_geobox
from satclip_engine.geo.lonlat import at_pole
from satclip_engine.geo.pixels import Index, indices

if TYPE_CHECKING:
    import pyproj
    from affine import Affine
    from odc.geo.crs import CRS
    from odc.geo.geobox import GeoBox

_MAX_RETURN_PIXELS = 0.01  # error of a valid pixel's way to longitude and latitude and back
_MAX_RETURN_METRES = 5e-3  # will do whatever the pixel: PROJ's equal-area series come back to 1.7 mm
_STEPS_PER_DEGREE = 2.0**40  # of canonical coordinates (1e-7 m): exact sums, exact mirrors
_BLOCK_PIXELS = 1 << 18  # sent through PROJ at once: 2 MB an array


@dataclass(frozen=True)
class Grid:
    """The pixels of a raster and their locations; made by `make_grid` or `Grid.from_geobox`."""

    geobox: GeoBox

    @classmethod
    def from_geobox(cls, geobox: GeoBox, *, name: str = "the GeoBox") -> Grid:
        """A Grid of an odc-geo GeoBox.

        Raises UsageError (speaking of `name`) when it has no usable georeference.
        """
        from odc.geo.geobox import GeoBox

        if not isinstance(geobox, GeoBox):
            raise UsageError(
                f"{name} is located by ground control points, not by a transform: warp it first (gdalwarp)"
            )
        if geobox.crs is None:
            raise UsageError(f"{name} has no CRS, so its pixels have no location on Earth")
        transform = geobox.transform
        if not all(math.isfinite(v) for v in transform[:6]) or transform.determinant == 0:
            raise UsageError(f"{name} has a transform that cannot be inverted: {tuple(transform[:6])}")
        if min(geobox.shape) < 1:
            raise UsageError(f"{name} has no pixels: {geobox.shape[0]} rows by {geobox.shape[1]} columns")
        grid = cls(geobox)
        _check_location(grid, _crs.parse_crs(geobox.crs.proj), name)
        return grid

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.geobox.shape[0]), int(self.geobox.shape[1])

    @property
    def crs(self) -> CRS:
        return self.geobox.crs

    @property
    def transform(self) -> Affine:
        """From (column, row) of a pixel's corner to (x, y)."""
        return self.geobox.transform

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east and north edge in units of the CRS; of a rotated grid, around all of it."""
        a, b, c, d, e, f = self.transform[:6]
        height, width = self.shape
        corners = [(col, row) for col in (0, width) for row in (0, height)]
        x = [a * col + b * row + c for col, row in corners]
        y = [d * col + e * row + f for col, row in corners]
        return min(x), min(y), max(x), max(y)

    @cached_property
    def _proj(self) -> pyproj.CRS:
        return self.crs.proj

    @cached_property
    def _wkt(self) -> str:
        return self._proj.to_wkt()

    @cached_property
    def unrotated(self) -> bool:
        """True where rows run along x and columns along y."""
        return self.transform.b == 0 and self.transform.d == 0

    @cached_property
    def separable(self) -> bool:
        """True where latitude depends on the row alone and longitude on the column alone."""
        return self.unrotated and _crs.is_lonlat(self._proj)

    def lat(self, rows: Index = None) -> np.ndarray:
        """Latitude of pixel centres, (h,) float64 degrees.

        NaN for rows beyond a pole. Separable grids only.
        """
        height = self.shape[0]
        centres = _centres(self.transform.f, self.transform.e, height, indices(rows, height))
        return _valid_latitude(centres)

    def lon(self, cols: Index = None) -> np.ndarray:
        """Longitude of pixel centres, (w,) float64 degrees, as in the CRS (181 stays 181).

        Separable grids only.
        """
        width = self.shape[1]
        return _centres(self.transform.c, self.transform.a, width, indices(cols, width))

    def lonlat(self, rows: Index = None, cols: Index = None) -> np.ndarray:
        """Longitude and latitude of the pixels in `rows` × `cols`, (h, w, 2) float64 degrees.

        NaN outside the CRS's domain (where the location does not come back within 0.01 pixel) and beyond a
        pole. Any grid.
        """
        if self.separable:
            lat, lon = self.lat(rows), self.lon(cols)
            out = np.empty((lat.size, lon.size, 2))
            out[..., 0], out[..., 1] = lon, lat[:, None]
            out[np.isnan(lat)] = np.nan
            return out
        row, col = indices(rows, self.shape[0]), indices(cols, self.shape[1])
        out = np.empty((row.size, col.size, 2))
        flat = out.reshape(-1, 2)
        for start in range(0, flat.shape[0], _BLOCK_PIXELS):
            pixel = np.arange(start, min(start + _BLOCK_PIXELS, flat.shape[0]))
            flat[pixel[0] : pixel[-1] + 1] = self.pixel_lonlat(row[pixel // col.size], col[pixel % col.size])
        return out

    def pixel_lonlat(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Longitude and latitude of single pixels, (n, 2) float64 degrees for (n,) rows and columns.

        NaN as `lonlat`.
        """
        if self.separable:
            lat = self.lat(rows)
            return np.stack([np.where(np.isnan(lat), np.nan, self.lon(cols)), lat], axis=-1)
        x, y = self.xy(rows, cols)
        lon, lat, x2, y2 = _crs.to_lonlat(self._wkt, x, y)
        with np.errstate(invalid="ignore"):
            dx, dy = x2 - x, y2 - y
            turn = _crs.full_turn(self._proj)
            if math.isfinite(turn):  # 181° comes back as −179°
                dx = np.remainder(dx + turn / 2, turn) - turn / 2
            inverse = ~self.transform
            off_col, off_row = inverse.a * dx + inverse.b * dy, inverse.d * dx + inverse.e * dy
            lat = _valid_latitude(lat)
            near = (np.abs(off_col) <= _MAX_RETURN_PIXELS) & (np.abs(off_row) <= _MAX_RETURN_PIXELS)
            near |= np.hypot(dx, dy) * _crs.unit_metres(self._proj) <= _MAX_RETURN_METRES
            valid = near & np.isfinite(lon + lat)
        return np.where(valid[:, None], np.stack([lon, lat], axis=-1), np.nan)

    def xy(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x and y of pixel centres in units of the CRS, for row and column arrays that broadcast together."""
        a, b, c, d, e, f = self.transform[:6]
        col, row = np.asarray(cols) + 0.5, np.asarray(rows) + 0.5
        return a * col + b * row + c, d * col + e * row + f

    def axis(self, dim: str, index: Index = None) -> np.ndarray:
        """x of columns or y of rows, as rioxarray labels them, in units of the CRS. Unrotated grids only."""
        step, start, size = self.steps(dim)
        return indices(index, size) * step + start

    def steps(self, dim: str) -> tuple[float, float, int]:
        """Step, first label and number of labels along "x" or "y" of an unrotated grid."""
        a, _, c, _, e, f = self.transform[:6]
        # As rioxarray does it, in the same order: labels that differ in the last bit would not align.
        return (a, 0.5 * a + c, self.shape[1]) if dim == "x" else (e, 0.5 * e + f, self.shape[0])

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return ("satclip_engine.Grid", self._wkt, tuple(self.transform[:6]), self.shape)


def make_grid(
    *,
    resolution: float | str | Sequence[float | str] | None = None,
    bounds: Sequence[float] | None = None,
    crs: Any = None,
    like: Any = None,
    bounds_crs: Any = None,
    align: bool = False,
) -> Grid:
    """Describe a raster: by resolution, bounds and CRS, or by an existing one.

    resolution: pixel size in units of `crs`, one number or (x, y); default 0.25 for degrees, required for
        projected CRSs. As text also a fraction ("1/12"), seconds or minutes of arc ("30s", "5min"), "1km".
    bounds: west, south, east, north in units of `crs`; east > 180 crosses the antimeridian. Default: the
        globe, or a projected CRS's area of use, widened to multiples of the resolution.
    crs: EPSG code, PROJ string, WKT or CRS object; default EPSG:4326. Beside `like` that of a raster which
        has none.
    like: path of a raster, rasterio dataset or its profile, odc-geo GeoBox, Grid or xarray object whose
        pixels are taken as they are; excludes resolution and bounds.
    bounds_crs: of bounds in another CRS. The raster surrounds them, curved edges and poles included, in
        pixels as with `align`.
    align: widen bounds outward to multiples of the resolution, as gdalwarp -tap does: rasters of one
        resolution then share their pixels' edges. Without it bounds must be whole pixels.

    West and north edges are kept exactly. Raises UsageError.
    """
    if like is not None:
        others = {
            "resolution": resolution,
            "bounds": bounds,
            "bounds_crs": bounds_crs,
            "align": align or None,
        }
        if extra := [Argument(name) for name, value in others.items() if value is not None]:
            raise UsageError("like already fixes the grid: leave out ", *listed(extra), argument="like")
        try:
            return _grid_like(like, crs)
        except UsageError as error:
            error.argument = "like"
            raise
    own = _crs.parse_crs("EPSG:4326" if crs is None else crs)
    return Grid(fit_geobox(resolution, bounds, own, bounds_crs=bounds_crs, align=align))


def outside_area_of_use(grid: Grid) -> str:
    """Sentence that a raster lies wholly outside its projected CRS's area of use, or looks like degrees.

    Such a raster is possible, but most often its bounds were meant in another CRS. Empty for others.
    """
    crs = grid.crs.proj
    if crs.is_geographic:
        return ""
    if max(abs(edge) for edge in grid.bounds) <= 360:
        return (
            f"the raster's bounds look like degrees, but are counted in the {_crs.unit_name(crs)} of "
            f"{_crs.crs_name(grid.crs)}; for degrees give their own CRS, EPSG:4326"
        )
    try:
        area = _crs.area_of_use(crs)
    except UsageError:  # it has none
        return ""
    west, south, east, north = grid.bounds
    if west < area[2] and east > area[0] and south < area[3] and north > area[1]:
        return ""
    return (
        f"the raster lies wholly outside the area of use of {_crs.crs_name(grid.crs)} "
        f"({' '.join(f'{edge:.0f}' for edge in area)}); bounds are counted in its unit, the "
        f"{_crs.unit_name(crs)}"
    )


def _check_location(grid: Grid, crs: pyproj.CRS, name: str) -> None:
    """Raise UsageError for rows that all lie beyond the poles, and for degrees in a projected CRS."""
    west, south, east, north = grid.bounds
    pole = _crs.full_turn(crs) / 4
    if south >= pole or north <= -pole:
        raise UsageError(
            f"{name}: its rows lie beyond the poles (y from {south:.8g} to {north:.8g}): they are not in CRS "
            f"{crs.name!r}"
        )
    if _crs.look_like_degrees(crs, np.array([west, east]), np.array([south, north])):
        raise UsageError(
            f"{name}: its bounds {west:.6g} {south:.6g} {east:.6g} {north:.6g} look like degrees, and CRS "
            f"{crs.name!r} counts in {_crs.unit_name(crs)}s"
        )


def _grid_like(like: Any, crs: Any) -> Grid:
    """The Grid of an existing raster; crs: of one that has none."""
    from satclip_engine.geo.raster_file import geobox_of_dataset, geobox_of_file

    if isinstance(like, (str, os.PathLike)):
        return Grid.from_geobox(geobox_of_file(like, crs), name=os.fspath(like))
    if hasattr(like, "get_transform") and hasattr(like, "gcps"):
        return Grid.from_geobox(geobox_of_dataset(like, crs), name=like.name)
    if isinstance(like, Grid):
        _refuse_other(like.crs.proj, crs, "the Grid")
        return like
    if hasattr(like, "pix2wld"):  # any of odc-geo's geoboxes
        return _with_crs(like, crs)
    if hasattr(like, "coords") and hasattr(like, "dims"):
        return _grid_of_object(like, crs)
    if isinstance(like, Mapping):
        return Grid.from_geobox(_geobox_of_profile(like, crs), name="the profile")
    raise UsageError(
        "a raster is told by its path, a dataset or profile of rasterio, a GeoBox or an xarray object, not "
        f"{type(like).__name__}"
    )


def _grid_of_object(obj: Any, crs: Any) -> Grid:
    """The Grid of an xarray object."""
    from satclip_engine.geo.xarray_grid import crs_of, geobox_of

    own = crs_of(obj)
    if own is None and crs is not None:
        obj = obj.rio.write_crs(_crs.parse_crs(crs))
    else:
        _refuse_other(own, crs, "the xarray object")
    geobox = geobox_of(obj)
    if geobox is None:
        raise UsageError(
            "the xarray object has no CRS with evenly spaced x and y: use its .satclip.embed() instead"
        )
    return Grid.from_geobox(geobox, name="the xarray object")


def _geobox_of_profile(profile: Mapping[str, Any], crs: Any) -> GeoBox:
    """The GeoBox of what rasterio calls a profile: transform, width, height and crs."""
    from affine import Affine
    from odc.geo.geobox import GeoBox

    if missing := [key for key in ("transform", "width", "height") if profile.get(key) is None]:
        raise UsageError(
            f"the profile has no {' and no '.join(missing)}: it needs transform, width and height"
        )
    own = profile.get("crs")
    parsed = None if own is None else _crs.parse_crs(own)
    if parsed is None:
        parsed = None if crs is None else _crs.parse_crs(crs)
    else:
        _refuse_other(parsed, crs, "the profile")
    shape = int(profile["height"]), int(profile["width"])
    return GeoBox(shape, Affine(*profile["transform"][:6]), None if parsed is None else _crs.odc_crs(parsed))


def _with_crs(geobox: Any, crs: Any) -> Grid:
    """The Grid of a GeoBox, with this CRS if it has none."""
    own = None if geobox.crs is None else geobox.crs.proj
    if own is None and crs is not None:
        geobox = type(geobox)(geobox.shape, geobox.transform, _crs.odc_crs(_crs.parse_crs(crs)))
    else:
        _refuse_other(own, crs, "the GeoBox")
    return Grid.from_geobox(geobox)


def _refuse_other(own: pyproj.CRS | None, crs: Any, name: str) -> None:
    """Raise UsageError when a CRS is given beside another one that is there."""
    if own is None or crs is None:
        return
    parsed = _crs.parse_crs(crs)
    if not own.equals(parsed, ignore_axis_order=True):
        raise UsageError(f"{name} has CRS {own.name!r}, not {parsed.name!r}: leave out ", Argument("crs"))


def _centres(edge: float, step: float, size: int, index: np.ndarray) -> np.ndarray:
    """Pixel centres between the first edge and the last, in multiples of 2⁻⁴⁰ degree.

    Weighing the two edges by integers (instead of adding up steps) makes the mirror pixels of a grid that is
    symmetric about 0 exact negatives of each other: the terms swap, and neither sum nor division knows signs.
    """
    first = np.rint(edge * _STEPS_PER_DEGREE) / _STEPS_PER_DEGREE
    last = np.rint((edge + size * step) * _STEPS_PER_DEGREE) / _STEPS_PER_DEGREE
    weight = 2 * index + 1
    centres = (first * (2 * size - weight) + last * weight) / (2 * size)
    return np.rint(centres * _STEPS_PER_DEGREE) / _STEPS_PER_DEGREE


def _valid_latitude(lat: np.ndarray) -> np.ndarray:
    """Latitudes with rounding beyond a pole taken back, NaN farther beyond."""
    near = at_pole(lat)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(near) <= 90.0, near, np.nan)

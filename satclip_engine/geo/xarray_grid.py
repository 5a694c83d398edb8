"""Georeference of an xarray object: its GeoBox, CRS, labels, or longitude and latitude coordinates.

A CRS with x and y labels or a transform is found as rioxarray finds it; longitudes and latitudes by the
words of CF (standard_name, units) or by their names. The labels are the truth: a transform that contradicts
them is not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from satclip_engine.errors import UsageError
from satclip_engine.geo.crs import odc_crs, parse_crs

if TYPE_CHECKING:
    import pyproj
    import xarray
    from affine import Affine
    from odc.geo.geobox import GeoBox

    Object = xarray.DataArray | xarray.Dataset

# Names by which longitudes and latitudes go when nothing else says what they are.
LONGITUDE = ("lon", "longitude", "lng", "long", "nav_lon", "xlong", "glamt")
LATITUDE = ("lat", "latitude", "nav_lat", "xlat", "gphit")
_UNITS_EAST = ("degrees_east", "degree_east", "degree_e", "degrees_e", "degreee", "degreese")
_UNITS_NORTH = ("degrees_north", "degree_north", "degree_n", "degrees_n", "degreen", "degreesn")
_DIMS = (("y", "x"), ("lat", "lon"), ("latitude", "longitude"), ("yc", "xc"))
_MAX_LABEL_PIXELS = 1e-3  # error: evenly spaced labels in float32 are off by up to 2e-4
_MAX_TRANSFORM_PIXELS = 1e-6  # error: labels computed from the transform in another order of sums


def spatial_dims(obj: Object) -> tuple[str, str] | None:
    """The dimensions (y, x) of a raster: as rioxarray has them, then the usual names; None without."""
    import rioxarray

    try:
        return str(_rio(obj).y_dim), str(_rio(obj).x_dim)
    except rioxarray.exceptions.RioXarrayError:
        return next((pair for pair in _DIMS if set(pair) <= set(obj.dims)), None)


def crs_of(obj: Object) -> pyproj.CRS | None:
    """The CRS of an xarray object, None without. Raises UsageError when it has one that is not understood."""
    import rasterio
    import rioxarray

    try:
        crs = _rio(obj).crs
    except (rioxarray.exceptions.RioXarrayError, rasterio.errors.CRSError) as error:
        raise UsageError(f"the xarray object's CRS is not understood: {error}") from error
    return None if crs is None else parse_crs(crs.to_wkt())


def geobox_of(obj: Object) -> GeoBox | None:
    """The GeoBox of a raster with a CRS and evenly spaced labels or, when rotated, a transform; None without.

    Raises UsageError for one that is located by ground control points.
    """
    from odc.geo.geobox import GeoBox

    dims, crs = spatial_dims(obj), crs_of(obj)
    if dims is None or crs is None or min(obj.sizes[dim] for dim in dims) < 1:
        return None
    mapping = grid_mapping(obj)
    if mapping is not None and "gcps" in obj.coords[mapping].attrs:
        raise UsageError(
            "the xarray object is located by ground control points, not by a transform: "
            "warp it first (rio.reproject)"
        )
    transform = _transform(obj, dims)
    return None if transform is None else GeoBox(tuple(obj.sizes[d] for d in dims), transform, odc_crs(crs))


def grid_mapping(obj: Object) -> str | None:
    """The name of the coordinate that holds the CRS, None without."""
    name = _rio(obj).grid_mapping
    return name if name in obj.coords else None


def xy_of(obj: Object) -> tuple[xarray.DataArray, xarray.DataArray] | None:
    """The x and y labels of a raster: along its dimensions, or 2-d xc and yc; None without."""
    dims = spatial_dims(obj)
    if dims is None:
        return None
    for y, x in ((dims[0], dims[1]), ("yc", "xc")):
        if x in obj.coords and y in obj.coords:
            return obj.coords[x], obj.coords[y]
    return None


def lonlat_of(obj: Object) -> tuple[xarray.DataArray, xarray.DataArray] | None:
    """The longitude and latitude coordinates, of any dimensions; None without both."""
    lon = _coordinate(obj, "longitude", _UNITS_EAST, LONGITUDE)
    lat = _coordinate(obj, "latitude", _UNITS_NORTH, LATITUDE)
    return None if lon is None or lat is None else (lon, lat)


def lonlat_variables(obj: Object) -> list[str]:
    """Names of data variables that are longitude and latitude, as some swaths have them; empty without."""
    if not hasattr(obj, "data_vars"):
        return []
    lonlat = lonlat_of(obj.set_coords(list(obj.data_vars)))
    return [] if lonlat is None else [str(coord.name) for coord in lonlat if coord.name in obj.data_vars]


def _rio(obj: Object) -> Any:
    """rioxarray's view of an object.

    A Dataset's variable called "name" (of stations, say) is left out: rioxarray would take it for the name of
    a DataArray and fail when it wants to tell it.
    """
    if hasattr(obj, "data_vars") and "name" in obj.variables:
        obj = obj.drop_vars("name")
    return obj.rio


def _coordinate(obj: Object, standard: str, units: tuple[str, ...], names: tuple[str, ...]) -> Any:
    def attribute(name: Any, key: str) -> str:
        return str(obj.coords[name].attrs.get(key, "")).strip().lower()

    numeric = [name for name in obj.coords if obj.coords[name].dtype.kind in "iuf"]
    for rule in (
        lambda name: attribute(name, "standard_name") == standard,
        lambda name: attribute(name, "units") in units,
        lambda name: str(name).lower() in names,
    ):
        matches = [name for name in numeric if rule(name)]
        if matches:
            # One of many dimensions locates the values; a scalar merely says where they came from.
            return max((obj.coords[name] for name in matches), key=lambda coord: coord.ndim > 0)
    return None


def _transform(obj: Object, dims: tuple[str, str]) -> Affine | None:
    """From (column, row) to (x, y), as the labels have it; the stored one where both agree."""
    stored = _rio(obj)._cached_transform()
    labels = xy_of(obj)
    if labels is None:
        # Without labels a transform is all there is; the identity stands for none.
        return None if stored is None or stored == stored.identity() else stored
    x, y = (np.asarray(label.values, dtype=np.float64) for label in labels)
    if x.ndim == 2:
        transposed = labels[0].dims != dims
        return _agreeing(stored, x.T if transposed else x, y.T if transposed else y)
    return _from_axes(stored, x, y)


def _agreeing(stored: Affine | None, x: np.ndarray, y: np.ndarray) -> Affine | None:
    """The stored transform if it leads to these 2-d labels."""
    if stored is None or stored.determinant == 0:
        return None
    row, col = np.indices(x.shape)
    inverse = ~stored
    off_col = inverse.a * x + inverse.b * y + inverse.c - (col + 0.5)
    off_row = inverse.d * x + inverse.e * y + inverse.f - (row + 0.5)
    return stored if max(np.abs(off_col).max(), np.abs(off_row).max()) <= _MAX_LABEL_PIXELS else None


def _from_axes(stored: Affine | None, x: np.ndarray, y: np.ndarray) -> Affine | None:
    """The transform of labels that are evenly spaced along both axes; None when they are not."""
    from affine import Affine

    unrotated = stored is not None and stored.b == 0 and stored.d == 0
    stored_steps = (stored.a, stored.e) if stored is not None and unrotated else (None, None)
    steps = []
    for label, step in zip((x, y), stored_steps, strict=True):
        if label.size > 1:
            step = (label[-1] - label[0]) / (label.size - 1)
        if not step or not np.isfinite(label).all():
            return None
        if np.abs(label - (label[0] + step * np.arange(label.size))).max() > _MAX_LABEL_PIXELS * abs(step):
            return None
        steps.append(float(step))
    own = Affine(steps[0], 0.0, float(x[0]) - steps[0] / 2, 0.0, steps[1], float(y[0]) - steps[1] / 2)
    if stored is not None and unrotated and _same(own, stored, x.size, y.size):
        return stored
    return own


def _same(first: Affine, second: Affine, width: int, height: int) -> bool:
    """True where two unrotated transforms lead to the same corners of a raster, within 1e-6 pixel."""
    east, south = first.c + first.a * width, first.f + first.e * height
    x_error = max(abs(first.c - second.c), abs(east - second.c - second.a * width))
    y_error = max(abs(first.f - second.f), abs(south - second.f - second.e * height))
    return x_error <= _MAX_TRANSFORM_PIXELS * abs(first.a) and y_error <= _MAX_TRANSFORM_PIXELS * abs(first.e)

"""Georeference of an xarray object: its GeoBox, CRS, labels, or longitude and latitude coordinates.

A CRS with x and y labels or a transform is found as rioxarray finds it; longitudes and latitudes by the
words of CF (standard_name, units) or by their names. The labels are the truth: a transform that contradicts
them is not used. They are taken in the units that they are in; longitudes and latitudes beside a CRS must
agree with it.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from satclip_engine.errors import UsageError
from satclip_engine.geo.agreement import check_agreement, check_points_agree
from satclip_engine.geo.columns import plain_role
from satclip_engine.geo.crs import odc_crs, parse_crs, unit_name
from satclip_engine.geo.units import (
    MAX_LABEL_PIXELS,
    STANDARD_NAMES,
    label_error,
    refuse_angles,
    refuse_unit,
    to_crs_unit,
    to_degrees,
)

if TYPE_CHECKING:
    import pyproj
    import xarray
    from affine import Affine
    from odc.geo.geobox import GeoBox

    Object = xarray.DataArray | xarray.Dataset

_UNITS_EAST = (
    "degrees_east", "degree_east", "degree_e", "degrees_e", "degreee", "degreese", "degrees longitude"
)  # fmt: skip
_UNITS_NORTH = (
    "degrees_north", "degree_north", "degree_n", "degrees_n", "degreen", "degreesn", "degrees latitude"
)  # fmt: skip
_DIMS = (
    *(("y", "x"), ("lat", "lon"), ("latitude", "longitude"), ("yc", "xc"), ("rlat", "rlon")),
    *(("YDim", "XDim"), ("ydim", "xdim"), ("northing", "easting"), ("Northing", "Easting")),
)
_MAX_TRANSFORM_PIXELS = 1e-6  # error: labels computed from the transform in another order of sums


def spatial_dims(obj: Object) -> tuple[str, str] | None:
    """The dimensions (y, x) of a raster: as rioxarray has them, then the usual names; None without."""
    import rioxarray

    try:
        dims = str(_rio(obj).y_dim), str(_rio(obj).x_dim)
    except rioxarray.exceptions.RioXarrayError:
        dims = None
    for pair in (dims, *_DIMS):
        if pair is not None and set(pair) <= set(obj.dims):
            return pair
    return None


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

    Raises UsageError for one that is located by ground control points, for labels in a unit that the CRS does
    not know, and for longitudes and latitudes that contradict it.
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
    if _counts_pixels(obj, crs):
        raise UsageError(
            f"the xarray object has no georeference: its {dims[1]} and {dims[0]} count pixels; assign them "
            'in its CRS, or open netCDF with xr.open_dataset(…, decode_coords="all")'
        )
    transform = _transform(obj, dims, crs)
    if transform is None:
        return None
    shape = obj.sizes[dims[0]], obj.sizes[dims[1]]
    _check_lonlat(obj, dims, crs, transform)
    return GeoBox(shape, transform, odc_crs(crs))


def grid_mapping(obj: Object) -> str | None:
    """The name of the coordinate that holds the CRS, None without."""
    name = _rio(obj).grid_mapping
    return name if name in obj.coords else None


def names_grid_mapping(obj: Object) -> bool:
    """True where an object, or a variable of a Dataset, names a CRS as CF does, and has none of that name."""
    variables = list(obj.data_vars.values()) if hasattr(obj, "data_vars") else [obj]
    names = [{**variable.attrs, **variable.encoding}.get("grid_mapping") for variable in variables]
    return any(name is not None and name not in obj.coords for name in names)


def xy_of(obj: Object, crs: pyproj.CRS) -> tuple[xarray.DataArray, xarray.DataArray] | None:
    """x and y in units of a CRS, float64, of any dimensions; None without.

    Of a raster its labels, along its dimensions or 2-d xc and yc; else those of points. Raises UsageError for
    a unit that the CRS does not know.
    """
    labels = _labels(obj, crs)
    if labels is None:
        return None
    _refuse_assumed_degrees(obj, crs, labels[0])
    x, y = (_in_crs_unit(label, crs, axis) for label, axis in zip(labels, "xy", strict=True))
    units = [_attribute_of(label, "units") for label in labels]
    if not all(units) and any(unit and to_crs_unit(unit, crs, axis="x") != 1.0 for unit in units):
        bare, other = (0, 1) if units[1] else (1, 0)
        raise UsageError(
            f"coordinate {str(labels[bare].name)!r} has no units, while {str(labels[other].name)!r} is in "
            f"{units[other]!r}: set its attribute units"
        )
    return x, y


def _refuse_assumed_degrees(obj: Object, crs: pyproj.CRS, x: xarray.DataArray) -> None:
    """Raise UsageError for labels called degrees beside a transform that has the same numbers as grads.

    rioxarray calls those of every geographic CRS degrees_east.
    """
    units, stored = _attribute_of(x, "units"), _rio(obj)._cached_transform()
    if not (crs.is_geographic and units.startswith("deg")) or unit_name(crs) == "degree" or stored is None:
        return
    if x.ndim == 1 and x.size and abs(float(x[0]) - stored.c - stored.a / 2) <= abs(stored.a) / 100:
        raise UsageError(
            f"coordinate {str(x.name)!r} is in {units!r}, and the transform has the same numbers in "
            f"{unit_name(crs)}s, as CRS {crs.name!r} counts: correct its attribute units"
        )


def _labels(obj: Object, crs: pyproj.CRS) -> tuple[xarray.DataArray, xarray.DataArray] | None:
    dims = spatial_dims(obj)
    if dims is not None:
        for y, x in (dims, ("yc", "xc")):
            if x in obj.coords and y in obj.coords:
                return obj.coords[x], obj.coords[y]
        return None
    x_label, y_label = _label(obj, crs, "x"), _label(obj, crs, "y")
    return None if x_label is None or y_label is None else (x_label, y_label)


def _label(obj: Object, crs: pyproj.CRS, axis: str) -> xarray.DataArray | None:
    """The x or y coordinate of points: by CF's words, then by the names of rasters' dimensions."""
    numeric = [name for name in obj.coords if obj.coords[name].dtype.kind in "iuf"]
    names = [pair["yx".index(axis)] for pair in _DIMS]
    standard = [word for word in STANDARD_NAMES[axis] if word.startswith("projection") != crs.is_geographic]
    for rule in (
        lambda name: _attribute(obj, name, "axis") == axis,
        lambda name: _attribute(obj, name, "standard_name") in standard,
        lambda name: name in names,
    ):
        if matches := [name for name in numeric if rule(name)]:
            return obj.coords[matches[0]]
    return None


def _in_crs_unit(label: xarray.DataArray, crs: pyproj.CRS, axis: str) -> xarray.DataArray:
    """Labels in the unit of a CRS. Raises UsageError where they are something else."""
    standard, units = (_attribute_of(label, key) for key in ("standard_name", "units"))
    other = {"x": "y", "y": "x"}[axis]
    rotated = standard.startswith("grid_") and crs.is_geographic and not crs.is_derived
    degrees = standard in ("longitude", "latitude") and not crs.is_geographic
    if standard in STANDARD_NAMES[other] or rotated or degrees:
        raise UsageError(
            f"coordinate {str(label.name)!r} has the standard_name {standard!r}: it is not the {axis} of "
            f"CRS {crs.name!r}"
        )
    factor = to_crs_unit(units, crs, axis=axis) if units else 1.0
    if not units:
        refuse_angles(label.name, crs, np.asarray(label.values, np.float64))
    if factor is None:
        raise refuse_unit(label.name, units, f"CRS {crs.name!r}, which counts in {unit_name(crs)}s")
    return _scaled(label, factor)


def _scaled(coordinate: xarray.DataArray, factor: float) -> xarray.DataArray:
    """A coordinate in another unit, float64, without coordinates of its own."""
    import xarray

    values = coordinate.variable.to_base_variable().astype(np.float64)
    return xarray.DataArray(values if factor == 1.0 else values * factor, name=coordinate.name)


def lonlat_of(obj: Object) -> tuple[xarray.DataArray, xarray.DataArray] | None:
    """The longitude and latitude coordinates in degrees, of any dimensions; None without both.

    Raises UsageError for units that are no angles, and for several of other dimensions.
    """
    lon, lat = _candidates(obj, "longitude"), _candidates(obj, "latitude")
    if not lon or not lat:
        return None
    pairs = [pair for pair in itertools.product(lon, lat) if set(pair[0].dims) == set(pair[1].dims)]
    pairs = pairs or list(itertools.product(lon, lat))
    if len({(first.dims, second.dims) for first, second in pairs}) > 1:
        names = ", ".join(sorted({str(first.name) for first, _ in pairs}))
        raise UsageError(
            f"the xarray object has several longitudes ({names}): embed one of its variables, obj['…'], "
            "or drop the others"
        )
    return _in_degrees(pairs[0][0], "x"), _in_degrees(pairs[0][1], "y")


def _in_degrees(coordinate: xarray.DataArray, axis: str) -> xarray.DataArray:
    """Longitudes or latitudes in degrees. Raises UsageError for what is no angle."""
    units = _attribute_of(coordinate, "units")
    factor = to_degrees(units, axis=axis) if units else 1.0
    if factor is None:
        raise refuse_unit(coordinate.name, units, "a longitude" if axis == "x" else "a latitude")
    return coordinate if factor == 1.0 else _scaled(coordinate, factor)


def _check_lonlat(obj: Object, dims: tuple[str, str], crs: pyproj.CRS, transform: Affine) -> None:
    """Raise UsageError when two-dimensional longitudes and latitudes lie elsewhere than a raster's pixels."""
    beside = _beside(obj, dims)
    if beside is None:
        return

    def sample(rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lon, lat = (coordinate[rows][:, cols].values.astype(np.float64) for coordinate in beside)
        return lon, lat

    shape = obj.sizes[dims[0]], obj.sizes[dims[1]]
    check_agreement(crs, transform, shape, sample, *_contradiction(obj, crs, beside))


def check_lonlat_of_points(obj: Object, dims: tuple[Any, ...], crs: pyproj.CRS, lonlat: np.ndarray) -> None:
    """The same of points by their labels in a CRS: (…dims, 2) longitudes and latitudes."""
    beside = _beside(obj, dims)
    if beside is not None:
        lon, lat = (coordinate.values.astype(np.float64) for coordinate in beside)
        check_points_agree(lonlat, lon, lat, *_contradiction(obj, crs, beside))


def _beside(obj: Object, dims: tuple[Any, ...]) -> tuple[xarray.DataArray, xarray.DataArray] | None:
    """Longitudes and latitudes along all these dimensions, in degrees; None without both."""
    beside = []
    for name, axis in (("longitude", "x"), ("latitude", "y")):
        own = [coord for coord in _candidates(obj, name) if set(coord.dims) == set(dims)]
        if not own:
            return None
        beside.append(_in_degrees(own[0], axis).transpose(*dims))
    return beside[0], beside[1]


def _contradiction(obj: Object, crs: pyproj.CRS, beside: tuple[xarray.DataArray, ...]) -> tuple[str, str]:
    """Subject of a message and the way out."""
    names = " and ".join(repr(str(coordinate.name)) for coordinate in beside)
    labels = _labels(obj, crs)
    units = "" if labels is None else f" and the units of {labels[0].name} and {labels[1].name}"
    return (
        f"the CRS {crs.name!r} and the coordinates {names}",
        f"correct the CRS{units}, or drop one of both (obj.drop_vars)",
    )


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


def _attribute(obj: Object, name: Any, key: str) -> str:
    return _attribute_of(obj.coords[name], key).lower()


def _attribute_of(coordinate: xarray.DataArray, key: str) -> str:
    return str(coordinate.attrs.get(key, "")).strip()


def _candidates(obj: Object, role: str) -> list[xarray.DataArray]:
    """Coordinates that are longitudes or latitudes, by CF's words, then by their names.

    One of many dimensions locates the values; a scalar merely says where they came from. Corners of cells are
    none of them.
    """
    east = role == "longitude"
    every = [obj.coords[name] for name in obj.coords]
    bounds = {coordinate.attrs.get("bounds", coordinate.encoding.get("bounds")) for coordinate in every}
    numeric = [name for name in obj.coords if obj.coords[name].dtype.kind in "iuf" and name not in bounds]
    others = [name for name in numeric if _attribute(obj, name, "standard_name") in ("", role)]
    for names, rule in (
        (numeric, lambda name: _attribute(obj, name, "standard_name") == role),
        (others, lambda name: _attribute(obj, name, "units") in (_UNITS_EAST if east else _UNITS_NORTH)),
        (others, lambda name: plain_role(name) == role),
    ):
        if matches := [obj.coords[name] for name in names if rule(name)]:
            return [coordinate for coordinate in matches if coordinate.ndim > 0] or matches
    return []


def _transform(obj: Object, dims: tuple[str, str], crs: pyproj.CRS) -> Affine | None:
    """From (column, row) to (x, y), as the labels have it; the stored one where both agree."""
    stored = _rio(obj)._cached_transform()
    labels = xy_of(obj, crs)
    if labels is None:
        # Without labels a transform is all there is; the identity stands for none.
        return None if stored is None or stored == stored.identity() else stored
    x, y = (np.asarray(label.values, dtype=np.float64) for label in labels)
    if x.ndim == 2:
        transposed = labels[0].dims != dims
        return _agreeing(stored, x.T if transposed else x, y.T if transposed else y)
    single = any(label.dtype == np.float32 for label in _labels(obj, crs) or ())
    return _from_axes(stored, x, y, single=single)


def _agreeing(stored: Affine | None, x: np.ndarray, y: np.ndarray) -> Affine | None:
    """The stored transform if it leads to these 2-d labels."""
    if stored is None or stored.determinant == 0:
        return None
    row, col = np.indices(x.shape)
    inverse = ~stored
    off_col = inverse.a * x + inverse.b * y + inverse.c - (col + 0.5)
    off_row = inverse.d * x + inverse.e * y + inverse.f - (row + 0.5)
    return stored if max(np.abs(off_col).max(), np.abs(off_row).max()) <= MAX_LABEL_PIXELS else None


def _from_axes(stored: Affine | None, x: np.ndarray, y: np.ndarray, *, single: bool) -> Affine | None:
    """The transform of labels that are evenly spaced along both axes; None when they are not.

    single: they were float32 numbers, and are off by that.
    """
    from affine import Affine

    unrotated = stored is not None and stored.b == 0 and stored.d == 0
    stored_steps = (stored.a, stored.e) if stored is not None and unrotated else (None, None)
    steps = []
    for label, step in zip((x, y), stored_steps, strict=True):
        if label.size > 1:
            step = (label[-1] - label[0]) / (label.size - 1)
        if not step or not np.isfinite(label).all():
            return None
        uneven = np.abs(label - (label[0] + step * np.arange(label.size))).max()
        if uneven > label_error(label, step, single=single):
            return None
        steps.append(float(step))
    own = Affine(steps[0], 0.0, float(x[0]) - steps[0] / 2, 0.0, steps[1], float(y[0]) - steps[1] / 2)
    if stored is not None and unrotated and _same(own, stored, x.size, y.size):
        return stored
    return own


def _counts_pixels(obj: Object, crs: pyproj.CRS) -> bool:
    """True for labels that rioxarray gives a file without georeference, and windows of it."""
    stored = _rio(obj)._cached_transform()
    labels = _labels(obj, crs)
    if stored is None or not stored.is_identity or labels is None:
        return False
    return all(
        label.ndim == 1 and label[0] % 1 == 0.5 and np.array_equal(label - label[0], np.arange(label.size))
        for label in (np.asarray(label.values, dtype=np.float64) for label in labels)
    )


def _same(first: Affine, second: Affine, width: int, height: int) -> bool:
    """True where two unrotated transforms lead to the same corners of a raster, within 1e-6 pixel."""
    east, south = first.c + first.a * width, first.f + first.e * height
    x_error = max(abs(first.c - second.c), abs(east - second.c - second.a * width))
    y_error = max(abs(first.f - second.f), abs(south - second.f - second.e * height))
    return x_error <= _MAX_TRANSFORM_PIXELS * abs(first.a) and y_error <= _MAX_TRANSFORM_PIXELS * abs(first.e)

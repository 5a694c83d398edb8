"""Grid of a raster that GDAL opens: its transform and CRS, checked where GDAL is known to err.

Of netCDF files GDAL takes labels x and y as they are stored: in km or radians where the CRS counts in metres,
and packed in integers. Here the labels themselves are read, unpacked and taken in the unit of the CRS.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from satclip_engine.errors import Argument, UsageError, one_line
from satclip_engine.files import check_readable
from satclip_engine.geo import crs as _crs
from satclip_engine.geo.agreement import check_agreement
from satclip_engine.geo.columns import plain_role
from satclip_engine.geo.units import (
    STANDARD_NAMES,
    label_error,
    refuse_angles,
    refuse_unit,
    to_crs_unit,
    to_degrees,
)

if TYPE_CHECKING:
    import pyproj
    from affine import Affine
    from odc.geo.geobox import GeoBox

_MAX_TRANSFORM_PIXELS = 1e-2  # error of a transform that agrees with labels
_MAX_OPENED = 20  # variables of a file, to suggest one
_NAMES = {  # of labels that no attribute tells
    "x": ("x", "xc", "lon", "longitude", "rlon", "easting", "xdim", "projection_x_coordinate"),
    "y": ("y", "yc", "lat", "latitude", "rlat", "northing", "ydim", "projection_y_coordinate"),
}


def geobox_of_file(path: str | os.PathLike[str], crs: Any = None) -> GeoBox:
    """The pixels of a raster file; crs: of one that has none. Raises UsageError naming the file."""
    import rasterio

    try:
        check_readable(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                return geobox_of_dataset(dataset, crs)
    except (OSError, UnicodeError) as error:  # rasterio's are OSErrors; the latter of a VRT that is not UTF-8
        reason = one_line(error.strerror if isinstance(error, OSError) and error.strerror else error)
        raise UsageError(f"{os.fspath(path)}: cannot be read as a raster ({reason})") from error


def geobox_of_dataset(dataset: Any, crs: Any = None) -> GeoBox:
    """The same of an open rasterio dataset."""
    from odc.geo.geobox import GeoBox

    _check_georeference(dataset)
    parsed = _crs_of(dataset, crs)
    transform = dataset.transform
    if dataset.driver in ("netCDF", "Zarr"):
        transform = _transform_of_labels(dataset, parsed)
        _check_beside(dataset, parsed, transform)
    return GeoBox(dataset.shape, transform, _crs.odc_crs(parsed))


def _check_georeference(dataset: Any) -> None:
    name = dataset.name
    if dataset.count == 0 and dataset.subdatasets:
        raise UsageError(
            f"{name}: holds {len(dataset.subdatasets)} rasters; name one of them, "
            f"such as {_largest_name(dataset.subdatasets)}"
        )
    if not dataset.transform.is_identity:
        return
    if dataset.gcps[0]:
        raise UsageError(
            f"{name}: located by ground control points, not by a transform: warp it first (gdalwarp)"
        )
    scientific = dataset.driver in ("netCDF", "HDF5", "Zarr")
    hint = "; open it with xarray and use .satclip.embed()" if scientific else ""
    raise UsageError(
        f"{name}: has no georeference (no transform), so its pixels have no location on Earth{hint}"
    )


def _largest_name(names: list[str]) -> str:
    """Name of the first of a file's rasters that is none of its coordinates."""
    own = [name for name in names if plain_role(name.rpartition(":")[2].strip("/")) is None]
    for name in own[:_MAX_OPENED]:
        labels = _read_labels(name)
        if labels is not None and min(labels.values.shape) > 1:
            return name
    return (own or names)[0]


def _crs_of(dataset: Any, crs: Any) -> pyproj.CRS:
    name = dataset.name
    try:
        own = None if dataset.crs is None else _crs.parse_crs(dataset.crs.to_wkt())
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    if own is None and crs is None:
        degrees = max(map(abs, dataset.bounds)) <= 400 and abs(dataset.bounds.top) <= 100
        raise UsageError(
            f"{name}: has no CRS, so its pixels have no location on Earth: say which it is by ",
            Argument("crs", "EPSG:4326" if degrees else "EPSG:…"),
        )
    if crs is None:
        assert own is not None
        return own
    parsed = _crs.parse_crs(crs)
    if own is not None and not own.equals(parsed, ignore_axis_order=True):
        raise UsageError(f"{name}: its CRS is {own.name!r}, not {parsed.name!r}: leave out ", Argument("crs"))
    return parsed


@dataclass(frozen=True)
class _Stored:
    """A variable of a netCDF file, unpacked, and its unit."""

    name: str
    values: np.ndarray
    units: str
    scale: float  # negative: packed numbers run the other way
    single: bool  # float32


def _read_labels(name: str) -> _Stored | None:
    """A variable by its GDAL name, float64; None when it cannot be opened."""
    import rasterio

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with rasterio.open(name) as dataset:
                variable = name.rpartition(":")[2].strip("/")
                stored = dataset.read(1).astype(np.float64)
                units = dataset.units[0] or dataset.tags().get(f"{variable}#units", "")
                scale, offset = float(dataset.scales[0]), float(dataset.offsets[0])
                single = dataset.dtypes[0] == "float32"
                return _Stored(variable, stored * scale + offset, units, scale, single)
    except rasterio.errors.RasterioError:
        return None


def _beside(dataset: Any, variable: str) -> str:
    """GDAL's name of another variable of a dataset's file."""
    if dataset.driver == "Zarr":
        return f"{dataset.name.rpartition('/')[0]}/{variable}"
    return f'NETCDF:"{dataset.files[0] if dataset.files else dataset.name}":{variable}'


def _axis(dataset: Any, axis: str) -> _Stored | None:
    """The labels along x or y of a netCDF variable; None when the file has none, or not as it has pixels."""
    tags = dataset.tags()
    attributes = {key: str(value).lower() for key, value in tags.items() if "#" in key}
    by_attributes = [
        key.partition("#")[0]
        for key, value in attributes.items()
        if (key.endswith("#standard_name") and value in STANDARD_NAMES[axis])
        or (key.endswith("#axis") and value == axis)
    ]
    size = dataset.width if axis == "x" else dataset.height
    variables = {key.partition("#")[0] for key in attributes}
    named = [name for name in variables if name.lower() in _NAMES[axis]] or list(_NAMES[axis])
    for name in dict.fromkeys((*by_attributes, *named)):
        stored = _read_labels(_beside(dataset, name))
        if stored is not None and 1 in stored.values.shape and stored.values.size == size:
            return replace(stored, values=stored.values.ravel())
    return None


def _transform_of_labels(dataset: Any, crs: pyproj.CRS) -> Affine:
    """The dataset's transform, or that of its labels where GDAL took these for other numbers."""
    from affine import Affine

    own = dataset.transform
    if own.b != 0 or own.d != 0:
        return own
    x = _fitted(dataset, crs, "x", own.a, _axis(dataset, "x"))
    y = _fitted(dataset, crs, "y", own.e, _axis(dataset, "y"))
    (a, c), (e, f) = x or (own.a, own.c), y or (own.e, own.f)
    turn = _crs.full_turn(crs)
    if math.isfinite(turn):
        c += turn * round((own.c - c) / turn)
    corners = [(a, c, own.a, own.c, dataset.width), (e, f, own.e, own.f, dataset.height)]
    near = all(
        max(abs(start - start2), abs(start + n * step - start2 - n * step2))
        <= _MAX_TRANSFORM_PIXELS * abs(step)
        for step, start, step2, start2, n in corners
    )
    return own if near else Affine(a, 0.0, c, 0.0, e, f)


def _turned_over(stored: _Stored, factor: float, step: float) -> bool:
    """True where GDAL reads the rows from the last to the first, by their labels or by the packed numbers."""
    own = (stored.values[-1] - stored.values[0]) / (stored.values.size - 1)
    packed = own / stored.scale
    by_packed = any(math.isclose(abs(step), abs(packed) * unit, rel_tol=1e-6) for unit in (1.0, factor))
    return ((packed if by_packed else own) > 0) != (step > 0)


def _fitted(
    dataset: Any, crs: pyproj.CRS, axis: str, step: float, stored: _Stored | None
) -> tuple[float, float] | None:
    """Step and first edge along an axis in units of the CRS; None without labels to tell them by."""
    if stored is None or stored.values.size < 2:
        return None
    factor = to_crs_unit(stored.units, crs, axis=axis) if stored.units else 1.0
    if not stored.units:
        refuse_angles(stored.name, crs, stored.values)
    if factor is None:
        crs_words = f"CRS {crs.name!r}, which counts in {_crs.unit_name(crs)}s"
        raise UsageError(f"{dataset.name}: {refuse_unit(stored.name, stored.units, crs_words)}")
    labels = stored.values * factor
    if axis == "x" and math.isfinite(turn := _crs.full_turn(crs)):
        labels = np.unwrap(labels, period=turn)
    if axis == "y" and _turned_over(stored, factor, step):
        labels = labels[::-1]
    own = (labels[-1] - labels[0]) / (labels.size - 1)
    uneven = np.abs(labels - (labels[0] + own * np.arange(labels.size))).max()
    if not own or uneven > label_error(labels, own, single=stored.single):
        raise UsageError(
            f"{dataset.name}: its labels {stored.name} are not evenly spaced: open it with xarray and use "
            ".satclip.embed()"
        )
    return float(own), float(labels[0] - own / 2)


def _check_beside(dataset: Any, crs: pyproj.CRS, transform: Affine) -> None:
    """Raise UsageError when longitudes and latitudes in the file lie elsewhere than the pixels."""
    tags = dataset.tags()
    listed = [value for key, value in tags.items() if key.rpartition("#")[2] == "coordinates"]
    names = {plain_role(name): name for text in listed for name in text.split()}
    stored = [
        _read_labels(_beside(dataset, names[role])) for role in ("longitude", "latitude") if role in names
    ]
    if len(stored) != 2 or any(entry is None or entry.values.shape != dataset.shape for entry in stored):
        return
    degrees = []
    for entry, axis in zip(stored, "xy", strict=True):
        assert entry is not None
        factor = to_degrees(entry.units, axis=axis) if entry.units else 1.0
        if factor is None:
            return
        degrees.append(entry.values * factor)
    shown = " and ".join(repr(entry.name) for entry in stored if entry is not None)
    try:
        check_agreement(
            crs,
            transform,
            dataset.shape,
            lambda rows, cols: (degrees[0][np.ix_(rows, cols)], degrees[1][np.ix_(rows, cols)]),
            f"the CRS {crs.name!r} with its labels and the coordinates {shown}",
            "correct the file, or open it with xarray and use .satclip.embed()",
        )
    except UsageError as error:
        raise UsageError(f"{dataset.name}: {error}") from error

"""Points out of what has names or geometries: tables, records, Datasets and shapely's points as x and y.

pandas, polars and pyarrow tables, mappings, structured arrays, named tuples, labelled Series and DataArrays;
GeoDataFrames, GeoSeries and shapely points. None of these libraries is imported: their objects bring them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from satclip_engine.errors import UsageError
from satclip_engine.geo.columns import coordinate_columns, hemisphere_column


@dataclass(frozen=True)
class _Table:
    """Names of columns, and the function that gives one of them as an array."""

    names: list[Any]
    column: Callable[[Any], Any]


@dataclass(frozen=True)
class Geometries:
    """An array of shapely geometries, any shape, and their CRS; None when they do not tell."""

    array: np.ndarray
    crs: Any


def table_points(points: Any, numbers: Callable[[Any], np.ndarray], *, projected: bool) -> np.ndarray | None:
    """The (..., 2) numbers of something whose parts have names; None when they have none.

    numbers: turns a column into float64, or raises TypeError. projected: x and y in a projected CRS are
        wanted. Raises UsageError for names without a location, TypeError naming a column.
    """
    if hasattr(points, "data_vars"):
        return _of_dataset(points, projected)
    table = _table(points)
    if table is None:
        return None
    chosen = coordinate_columns(table.names, projected=projected)
    if chosen is None and (levels := _levels(points)) is not None:
        chosen, table = coordinate_columns(levels.names, projected=projected), levels
    if chosen is None:
        if len(table.names) != 2 or isinstance(points, Mapping):
            raise UsageError(
                f"a table needs columns lon and lat (or longitude and latitude, or x and y), "
                f"not {table.names}{_geometry_hint(table.names)}"
            )
        chosen = table.names[0], table.names[1]
    first, second = (_numbers(table, name, numbers) for name in chosen)
    if first.shape != second.shape:
        raise UsageError(
            f"{chosen[0]!r} and {chosen[1]!r} have shapes {first.shape} and {second.shape}, not the same"
        )
    if not projected:
        _check_signs(table, chosen[0], first, "longitude", "W")
        _check_signs(table, chosen[1], second, "latitude", "S")
    return np.stack([first, second], axis=-1)


def _check_signs(table: _Table, name: Any, degrees: np.ndarray, role: str, letter: str) -> None:
    """Raise UsageError where a column of letters says west or south, and the numbers have no sign for it."""
    letters = hemisphere_column(table.names, role)
    if letters is None or (degrees < 0).any():
        return
    values = np.ravel(np.asarray(table.column(letters), dtype=object))
    if any(str(value).strip()[:1].upper() == letter for value in values):
        raise UsageError(
            f"column {letters!r} says {letter}, and no {role} in {name!r} is negative: multiply those by -1"
        )


def geometries(points: Any) -> Geometries | None:
    """The geometries of a GeoDataFrame or GeoSeries, or shapely's own; None for anything else."""
    if hasattr(points, "to_crs") and hasattr(points, "crs"):
        column = getattr(points, "geometry", points) if hasattr(points, "columns") else points
        array = getattr(column, "geom", None)  # odc-geo's Geometry
        return Geometries(np.asarray(column if array is None else array, dtype=object), points.crs)
    shapely = sys.modules.get("shapely")
    if shapely is None:
        return None
    if isinstance(points, shapely.Geometry):
        return Geometries(np.asarray(points, dtype=object), None)
    if _holds_geometry(points, shapely.Geometry):
        array = np.asarray(points, dtype=object)
        if not all(item is None or isinstance(item, shapely.Geometry) for item in array.flat):
            raise TypeError("lonlat holds geometries among other things")
        return Geometries(array, None)
    return None


def xy_of_points(array: np.ndarray) -> np.ndarray:
    """(..., 2) x and y of shapely points; NaN for missing and empty ones.

    Raises UsageError naming the first geometry that is no point.
    """
    import shapely

    kinds = shapely.get_type_id(array)
    other = ~np.isin(kinds, (-1, 0))  # missing, a point
    if other.any():
        index = tuple(int(i) for i in np.argwhere(other)[0])
        kind = array[index].geom_type
        row = f"row {index[0]}: " if len(index) == 1 else ""
        raise UsageError(
            f"{row}a {kind} is no point; give points, such as representative_point() or centroid of it"
        )
    xy = np.full((*array.shape, 2), np.nan)
    filled = (kinds == 0) & ~shapely.is_empty(array)
    xy[filled] = np.stack([shapely.get_x(array[filled]), shapely.get_y(array[filled])], axis=-1)
    return xy


def _holds_geometry(points: Any, kind: type) -> bool:
    """True for a sequence or an array of objects whose first one that is not missing is of a kind."""
    if not isinstance(points, (list, tuple)):
        if getattr(getattr(points, "dtype", None), "kind", None) != "O":
            return False
        points = np.ravel(points)
    return isinstance(next((item for item in points if item is not None), None), kind)


def _table(points: Any) -> _Table | None:
    if hasattr(points, "columns") and hasattr(points, "to_numpy"):  # pandas, polars
        return _Table(list(points.columns), lambda name: points[name].to_numpy())
    if hasattr(points, "schema") and hasattr(points, "column"):  # pyarrow
        return _Table(
            list(points.schema.names), lambda name: points.column(name).to_numpy(zero_copy_only=False)
        )
    if isinstance(points, Mapping):
        return _Table(list(points), lambda name: points[name])
    if isinstance(points, (list, tuple)) and points and isinstance(points[0], Mapping):  # records
        return _Table(list(points[0]), lambda name: [row.get(name) for row in points])
    fields = getattr(getattr(points, "dtype", None), "names", None)
    if fields:
        return _Table(list(fields), lambda name: points[name])
    return _labelled(points)


def _levels(points: Any) -> _Table | None:
    """The levels of a pandas index, where they are coordinates and the columns are not."""
    index = getattr(points, "index", None)
    names = [name for name in getattr(index, "names", ()) or () if name is not None]
    if index is None or coordinate_columns(names) is None:
        return None
    return _Table(names, lambda name: index.get_level_values(name).to_numpy())


def _labelled(points: Any) -> _Table | None:
    """Two numbers along the last axis whose labels speak of coordinates: a row of a table, a named tuple."""
    if hasattr(points, "dims") and hasattr(points, "coords"):  # a DataArray
        labels = points.coords.get(points.dims[-1]) if points.dims else None
        names = [] if labels is None or labels.dtype.kind not in "UOT" else labels.values.tolist()
        array: Any = points
    elif hasattr(points, "index") and hasattr(points, "to_numpy"):  # a pandas Series
        names, array = list(points.index), points.to_numpy()
    else:
        first = points
        while isinstance(first, list) and first:
            first = first[0]
        names, array = list(getattr(first, "_fields", ())), points
    if not any(isinstance(name, str) for name in names) or coordinate_columns(names) is None:
        return None
    values = array if hasattr(array, "dims") else np.asarray(array)  # a DataArray states its unit
    if values.dtype == np.dtype(object):  # a row with text in other columns
        return _Table(names, lambda name: values[..., names.index(name)].tolist())
    return _Table(names, lambda name: values[..., names.index(name)])


def _numbers(table: _Table, name: Any, numbers: Callable[[Any], np.ndarray]) -> np.ndarray:
    try:
        return numbers(table.column(name))
    except TypeError as error:
        raise TypeError(f"column {name!r}: {error}") from error


def _of_dataset(dataset: Any, projected: bool) -> np.ndarray:
    from satclip_engine.geo.xarray_grid import lonlat_of

    if projected:
        raise UsageError("a Dataset in a projected CRS: use its .satclip.embed()")
    lonlat = lonlat_of(dataset.set_coords(list(dataset.data_vars)))
    if lonlat is None or lonlat[0].dims != lonlat[1].dims:
        raise UsageError(
            "a Dataset needs longitudes and latitudes along the same dimensions; for pixels use its "
            ".satclip.embed()"
        )
    return np.stack([coordinate.values for coordinate in lonlat], axis=-1)


def _geometry_hint(names: list[Any]) -> str:
    if "geometry" not in names:
        return ""
    return "; of geometries give the column alone, with their crs, or a GeoDataFrame"

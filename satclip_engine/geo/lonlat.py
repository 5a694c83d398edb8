"""Coordinate inputs (lists, arrays, tables, tensors) as float64 (lon, lat) degrees; checks of latitudes."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from satclip_engine.errors import UsageError

# Column names of a table, longitude first; the first pair that is there is taken.
_COLUMNS = (
    ("lon", "lat"),
    ("longitude", "latitude"),
    ("lng", "lat"),
    ("long", "lat"),
    ("decimallongitude", "decimallatitude"),  # Darwin Core, as GBIF has them; case does not matter
    ("x", "y"),
)


def as_lonlat(points: Any) -> np.ndarray:
    """Turn points into (..., 2) float64 degrees, longitude first.

    points: array-like (..., 2) of integers or floats, masked arrays (masked becomes NaN), a table with
        columns lon/lat, longitude/latitude, decimalLongitude/decimalLatitude or x/y in either order (or any
        two columns, longitude first), or a torch tensor.

    Raises UsageError (a ValueError) for another shape or |latitude| > 90, naming the index; TypeError for
    what is not real numbers, naming a table's column.
    """
    if is_tensor(points):
        array = _from_tensor(points)
    elif hasattr(points, "columns") and hasattr(points, "to_numpy"):
        array = _from_table(points)
    else:
        array = _from_array(points)
    if array.ndim == 0 or array.shape[-1] != 2:
        raise UsageError(
            f"lonlat must have shape (..., 2), longitude then latitude, such as [[2.35, 48.86]]; "
            f"not {array.shape}",
            argument="lonlat",
        )
    check_latitudes(array[..., 1], array[..., 0])
    return array


def as_points_tensor(points: Any) -> Any:
    """A torch tensor as (..., 2) float64 degrees on its own device; raises as `as_lonlat`."""
    _check_tensor(points)
    if points.ndim == 0 or points.shape[-1] != 2:
        as_lonlat(points)  # says what is wrong
    points = points.detach().to(sys.modules["torch"].float64)
    check_points(points)
    return points


def check_points(points: Any) -> None:
    """Raise as `as_lonlat` for latitudes of a (..., 2) tensor beyond the poles, asking its device once.

    Nothing is asked while a CUDA graph is captured: an answer would end that.
    """
    if points.is_cuda and sys.modules["torch"].cuda.is_current_stream_capturing():
        return
    lat = points[..., 1]
    if bool(((lat.abs() > 90.0) & lat.isfinite()).any()):
        as_lonlat(points)  # names the row


def is_tensor(points: Any) -> bool:
    """True for a torch tensor; torch is never imported to tell."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(points, getattr(torch, "Tensor", ()))


def like_tensor(embedding: np.ndarray, points: Any) -> Any:
    """The embedding as a float32 tensor on the device of the points it was asked for."""
    return sys.modules["torch"].from_numpy(embedding).to(points.device)


def _from_tensor(points: Any) -> np.ndarray:
    _check_tensor(points)
    return points.detach().cpu().to(sys.modules["torch"].float64).numpy()


def _check_tensor(points: Any) -> None:
    torch = sys.modules["torch"]
    if points.requires_grad and torch.is_grad_enabled():
        raise UsageError(
            "lonlat requires gradients, which an Encoder does not compute: "
            "pass lonlat.detach() or use torch.no_grad()",
            argument="lonlat",
        )
    if points.is_complex() or points.dtype == torch.bool:
        raise TypeError(f"lonlat must be real numbers, not {points.dtype}")


def _from_table(table: Any) -> np.ndarray:
    names = {str(name).strip().lower(): name for name in table.columns}
    for pair in _COLUMNS:
        if names.keys() >= set(pair):
            return np.stack([_from_column(table, names[name]) for name in pair], axis=-1)
    if len(table.columns) != 2 or names.keys() & {name for pair in _COLUMNS for name in pair}:
        raise UsageError(
            f"a table needs columns lon and lat (or longitude and latitude, or x and y), "
            f"not {list(table.columns)}"
        )
    return np.stack([_from_column(table, name) for name in table.columns], axis=-1)


def _from_column(table: Any, name: Any) -> np.ndarray:
    try:
        return _from_array(table[name].to_numpy())
    except TypeError as error:
        raise TypeError(f"column {name!r}: {error}") from error


def _from_array(points: Any) -> np.ndarray:
    try:
        array = points if isinstance(points, np.ndarray) else np.asarray(points)
    except ValueError as error:  # ragged lists
        raise UsageError(
            f"lonlat must have shape (..., 2), longitude then latitude ({str(error)[:80]})", argument="lonlat"
        ) from error
    if array.dtype.kind not in "iuf":
        if array.size == 0 and array.dtype.kind == "O":
            return np.empty(array.shape)
        raise TypeError(f"lonlat must be real numbers, not {array.dtype}")
    if isinstance(array, np.ma.MaskedArray):
        return np.ma.filled(array.astype(np.float64), np.nan)
    return np.asarray(array, dtype=np.float64)


def beyond_pole(lat: np.ndarray) -> np.ndarray:
    """Mask of the finite latitudes outside [-90, 90]."""
    with np.errstate(invalid="ignore"):
        return (np.abs(lat) > 90.0) & np.isfinite(lat)


def check_latitudes(lat: np.ndarray, lon: np.ndarray | None = None) -> None:
    """Raise UsageError naming the first latitude beyond a pole, of any shape; NaN and infinity pass.

    lon: the longitudes beside them, by which a swapped order is recognised.
    """
    beyond = beyond_pole(lat)
    if not beyond.any():
        return
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(beyond)), beyond.shape))
    position = "" if not index else f"row {index[0]}: " if len(index) == 1 else f"index {index}: "
    hint = ""
    if lon is not None and np.all(np.abs(lon[beyond]) <= 90.0):
        hint = f"; ({lon[index]:g}, {lat[index]:g}) looks swapped: longitude comes first"
    raise UsageError(f"{position}latitude {lat[index]} is outside [-90, 90]{hint}")

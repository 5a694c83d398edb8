"""Points in their many forms as float64 (lon, lat) degrees; checks of latitudes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from satclip_engine.errors import Argument, UsageError
from satclip_engine.geo.crs import degrees_of, look_like_degrees, parse_crs, unit_name
from satclip_engine.geo.tables import geometries, table_points, xy_of_points
from satclip_engine.geo.units import to_degrees

if TYPE_CHECKING:
    import pyproj

# Beyond a pole by rounding: float32 has 7.6e-6 degrees there, which is 0.8 m.
ROUND_OFF_DEGREES = 1e-5
_MIN_SWAP_DEGREES = 1.0  # beyond a pole: less is an overshoot, not a longitude
MAX_DEGREES = 360.0  # of anything that may be degrees


def as_lonlat(points: Any, crs: Any = None) -> np.ndarray:
    """Turn points into (..., 2) float64 degrees, longitude first.

    points: array-like (..., 2) of integers or floats, masked arrays (masked becomes NaN); anything with
        named columns (a table, a mapping, a structured array, …), whose names `coordinate_columns` reads;
        shapely points, a GeoSeries or GeoDataFrame, taken to degrees from their CRS; or a torch tensor.
    crs: of points that are not degrees but (x, y) in this CRS; outside its domain they become NaN.

    Latitudes beyond a pole by rounding (1e-5) are taken back. Raises UsageError (a ValueError) for another
    shape or |latitude| > 90, naming the index; TypeError for what is not real numbers, naming the column.
    """
    source = None if crs is None else parse_crs(crs)
    if (shapes := geometries(points)) is not None:
        source = _crs_of_geometries(shapes.crs, source)
        array = xy_of_points(shapes.array)
    elif is_tensor(points):
        array = _from_tensor(points)
    else:
        numbers = _degrees_from if source is None else _from_array
        named = table_points(points, numbers, projected=source is not None and source.is_projected)
        array = numbers(points) if named is None else named
    if array.ndim == 0 or array.shape[-1] != 2:
        raise UsageError(
            f"lonlat must have shape (..., 2), longitude then latitude, such as [[2.35, 48.86]]; "
            f"not {array.shape}",
            argument="lonlat",
        )
    if source is not None:
        _refuse_degrees(source, array)
        array = np.stack(degrees_of(source, array[..., 0], array[..., 1]), axis=-1)
    return without_round_off(array)


def _refuse_degrees(crs: pyproj.CRS, points: np.ndarray) -> None:
    """Raise UsageError for degrees where a projected CRS's own coordinates are wanted."""
    if look_like_degrees(crs, points[..., 0], points[..., 1]):
        raise UsageError(
            f"the points look like degrees, and CRS {crs.name!r} counts in {unit_name(crs)}s: leave out ",
            Argument("crs"),
            " for longitude and latitude",
            argument="crs",
        )


def as_points_tensor(points: Any) -> Any:
    """A torch tensor as (..., 2) float64 degrees on its own device; raises as `as_lonlat`."""
    _check_tensor(points)
    if points.ndim == 0 or points.shape[-1] != 2:
        as_lonlat(points)  # says what is wrong
    torch = sys.modules["torch"]
    points = points.detach().to(torch.float64)
    if _largest_latitude(points) > 90.0:
        lat = points[..., 1]
        rounded = torch.where(lat.abs() <= 90.0 + ROUND_OFF_DEGREES, lat.clamp(-90.0, 90.0), lat)
        points = torch.stack([points[..., 0], rounded], dim=-1)
        check_points(points)
    return points


def check_points(points: Any) -> None:
    """Raise as `as_lonlat` for latitudes of a (..., 2) tensor beyond the poles, asking its device once.

    Nothing is asked while a CUDA graph is captured: an answer would end that.
    """
    if _largest_latitude(points) > 90.0:
        array = points.cpu().double().numpy()
        check_latitudes(array[..., 1], array[..., 0])  # names the row


def _largest_latitude(points: Any) -> float:
    """The largest finite |latitude| of a (..., 2) tensor; 0 while a CUDA graph is captured."""
    torch = sys.modules["torch"]
    if points.numel() == 0 or (points.is_cuda and torch.cuda.is_current_stream_capturing()):
        return 0.0
    lat = points[..., 1].abs()
    return float(torch.where(lat.isfinite(), lat, 0.0).max())


def _crs_of_geometries(own: Any, crs: pyproj.CRS | None) -> pyproj.CRS | None:
    """The CRS of geometries that may bring their own. Raises UsageError where another one is given."""
    parsed = None if own is None else parse_crs(own)
    if parsed is not None and crs is not None and not parsed.equals(crs, ignore_axis_order=True):
        raise UsageError(
            f"the geometries are in {parsed.name}, not {crs.name}: leave out ",
            Argument("crs"),
            argument="crs",
        )
    return crs if parsed is None else parsed


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


def _degrees_from(points: Any) -> np.ndarray:
    """Numbers as degrees. Raises UsageError where they say that they are in another unit than of an angle."""
    units = _units_of(points)
    if not units:
        return _from_array(points)
    factor = to_degrees(units, axis="x") or to_degrees(units, axis="y") or 0.0
    if factor <= 0.0:
        raise UsageError(
            f"lonlat is in {units!r}, which is no unit of longitudes and latitudes: convert it, or say in "
            "which projection by ",
            Argument("crs", "EPSG:…"),
            argument="lonlat",
        )
    array = _from_array(points)
    return array if factor == 1.0 else array * factor


def _units_of(points: Any) -> str:
    """The unit that a DataArray or a Quantity (astropy's, pint's) states; empty without."""
    if hasattr(points, "dims"):
        return str(getattr(points, "attrs", {}).get("units", "")).strip()
    if isinstance(points, np.ndarray) or hasattr(points, "magnitude"):
        return str(getattr(points, "unit", getattr(points, "units", ""))).strip()
    return ""


def without_round_off(lonlat: np.ndarray) -> np.ndarray:
    """The same (..., 2) points, latitudes beyond a pole by rounding taken back to it.

    Raises UsageError as `check_latitudes` for those farther beyond.
    """
    lon, lat = lonlat[..., 0], lonlat[..., 1]
    if not beyond_pole(lat).any():
        return lonlat
    lat = at_pole(lat)
    check_latitudes(lat, lon)
    return np.stack([lon, lat], axis=-1)


def at_pole(lat: np.ndarray) -> np.ndarray:
    """Latitudes, those beyond a pole by rounding taken back to it."""
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(lat) <= 90.0 + ROUND_OFF_DEGREES, np.clip(lat, -90.0, 90.0), lat)


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
    hint = _cause(lat, lon, index)
    raise UsageError(f"{position}latitude {lat[index]} is outside [-90, 90]", *hint)


def _cause(lat: np.ndarray, lon: np.ndarray | None, index: tuple[int, ...]) -> list[object]:
    """Pieces of a message: the likely cause of a latitude beyond a pole; none where it is anybody's guess."""
    with np.errstate(invalid="ignore"):
        overshoot = abs(float(lat[index])) - 90.0
        if overshoot <= ROUND_OFF_DEGREES:
            return [" by rounding: clip it to ±90"]
        if np.nanmax(np.abs(lat), where=np.isfinite(lat), initial=0.0) > MAX_DEGREES:
            return (
                [
                    "; it looks projected, not in degrees: give the points' ",
                    Argument("crs"),
                    ", or transform them to longitude and latitude first",
                ]
                if lon is not None
                else ["; it is not in degrees"]
            )
        if lon is None or overshoot < _MIN_SWAP_DEGREES or not np.all(np.abs(lon[np.isfinite(lon)]) <= 90.0):
            return []
    return [f"; ({lon[index]:g}, {lat[index]:g}) looks swapped: longitude comes first"]
